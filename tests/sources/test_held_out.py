"""Rows set apart: no row is on both sides, every class gives its share, and a seed decides which."""

import numpy as np
import pytest

from l0prune.errors import DataError
from l0prune.sources.datasets import DataSource
from l0prune.sources.held_out import held_rows, set_apart


def numbered(n_train=200, n_test=60, n_classes=4) -> DataSource:
    """Data whose inputs are the numbers of their rows; classes are of different sizes."""
    rng = np.random.default_rng(0)
    labels = [rng.choice(n_classes, n, p=[0.5, 0.3, 0.15, 0.05]).astype(np.int64) for n in (n_train, n_test)]
    train, test = np.arange(n_train, dtype=np.float32)[:, None], 1000 + np.arange(n_test, dtype=np.float32)[:, None]
    return DataSource(train, labels[0], test, labels[1])


@pytest.mark.parametrize("place", ["train", "test"])
def test_no_row_decides_that_is_trained_on_or_judges(place):
    data = numbered()
    apart = set_apart(data, place, seed=3)
    decide, train, judge = (
        set(array.ravel()) for array in (apart.deciding.x_test, apart.deciding.x_train, apart.judging.x_test)
    )

    assert not decide & train
    assert not decide & judge
    assert not train & judge
    assert len(decide) == {"train": 20, "test": 30}[place]
    assert decide | train | judge == set(data.x_train.ravel()) | set(data.x_test.ravel())
    for x, y in ((apart.deciding.x_test, apart.deciding.y_test), (apart.deciding.x_train, apart.deciding.y_train)):
        for value, label in zip(x.ravel().astype(int), y, strict=True):
            assert label == (data.y_test[value - 1000] if value >= 1000 else data.y_train[value])


def test_the_seed_decides_and_nothing_else():
    data = numbered()
    rows = [set_apart(data, "train", seed=seed).rows.tolist() for seed in (0, 0, 1)]

    assert rows[0] == rows[1] != rows[2]


def test_every_class_gives_its_share():
    y = numbered(n_train=1000).y_train

    held = held_rows(y, 100, seed=0)

    assert len(set(held)) == 100
    for label in range(4):
        assert abs((y[held] == label).sum() - 0.1 * (y == label).sum()) < 1


def test_numbers_are_drawn_alike():
    held = held_rows(np.linspace(0, 1, 50, dtype=np.float32), 10, seed=0)

    assert len(set(held)) == 10


def test_too_few_rows_are_an_error():
    with pytest.raises(DataError, match="of 40 rows of train data, 4 would be held out, too few"):
        set_apart(numbered(n_train=40), "train", seed=0)


def test_inputs_by_name_are_split_alike():
    data = numbered()
    named = DataSource(
        {"a": data.x_train, "b": 2 * data.x_train}, data.y_train, {"a": data.x_test, "b": data.x_test}, data.y_test
    )

    deciding = set_apart(named, "train", seed=0).deciding

    np.testing.assert_array_equal(deciding.x_test["b"], 2 * deciding.x_test["a"])
