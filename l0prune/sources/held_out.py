"""Rows set apart to decide by: some of the training data, or some of the test data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from l0prune.errors import DataError
from l0prune.sources.datasets import Array, DataSource, Inputs

__all__ = ["Apart", "held_rows", "set_apart"]

SHARES = {"train": 0.1, "test": 0.5}
MOST = 5000
FEWEST = 8


@dataclass(frozen=True, eq=False)
class Apart:
    """A data set of which some rows are set apart.

    Attributes:
        deciding: Trains on what is left to train on; its test data are the rows set apart.
        judging: Its test data are those of which no row decides.
        rows: Those set apart, ascending, of the data they are taken from.
    """

    deciding: DataSource
    judging: DataSource
    rows: npt.NDArray[np.int64]


def set_apart(data: DataSource, place: str, *, seed: int) -> Apart:
    """Set rows apart: of "train" a tenth, which are not trained on, or of "test" the half; 5000 at most.

    Args:
        data: Training and test data.
        place: Where to take them from.
        seed: Which rows are taken depends on this alone.

    Raises:
        DataError: there are too few.
    """
    from_train = place == "train"
    x, y = (data.x_train, data.y_train) if from_train else (data.x_test, data.y_test)
    n_held = min(MOST, round(SHARES[place] * len(y)))
    if n_held < FEWEST:
        raise DataError(
            f"{data.name}: of {len(y)} rows of {place} data, {n_held} would be held out, too few to decide by;"
            f" {FEWEST} are needed"
        )
    rows = held_rows(y, n_held, seed=seed)
    rest = np.setdiff1d(np.arange(len(y)), rows)
    held, left = (take(x, rows), y[rows]), (take(x, rest), y[rest])
    deciding = replace(data, x_test=held[0], y_test=held[1])
    if from_train:
        deciding = replace(deciding, x_train=left[0], y_train=left[1])
        return Apart(deciding, data, rows)
    return Apart(deciding, replace(data, x_test=left[0], y_test=left[1]), rows)


def held_rows(y: Array, n_held: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of the rows to hold out, ascending; of each class, where targets are classes, the same share.

    Args:
        y: Targets, (N, ...).
        n_held: How many.
        seed: Decides which.
    """
    rng = np.random.default_rng([seed, 0x48454C44])
    order = rng.permutation(len(y))
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        return np.sort(order[:n_held])
    _, label = np.unique(y, return_inverse=True)
    sizes = np.bincount(label)
    exact = sizes * (n_held / len(y))
    taken = np.floor(exact).astype(np.int64)
    most_left = np.lexsort((np.arange(len(sizes)), taken - exact))
    taken[most_left[: n_held - taken.sum()]] += 1
    by_class = [order[label[order] == number][:n] for number, n in enumerate(taken)]
    return np.sort(np.concatenate(by_class))


def take(inputs: Inputs, rows: npt.NDArray[np.int64]) -> Inputs:
    """Some rows of inputs."""
    return {name: array[rows] for name, array in inputs.items()} if isinstance(inputs, dict) else inputs[rows]
