"""How far training images are moved follows from how often each of them is seen."""

import numpy as np
import pytest

from l0prune.cli.case import Case
from l0prune.sources.datasets import load_data
from l0prune.sources.model_spec import load_model


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8), np.arange(16) % 10
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return Case.of(load_model("resnet20"), load_data(f"npz:{path}"), None, {})


@pytest.mark.parametrize(("epochs", "pad"), [(0.3, 1), (2, 1), (6, 2), (9, 3), (12, 4), (200, 4)])
def test_the_fewer_epochs_the_less_images_are_moved(case, epochs, pad):
    batches = case.train_batches(batch_size=8, augment=True, epochs=epochs, seed=0)
    assert batches.augment.pad == pad
    assert batches.augment.flip


def test_images_stay_where_they_are_without_augmentation(case):
    assert case.train_batches(batch_size=8, augment=False, epochs=6, seed=0).augment is None
