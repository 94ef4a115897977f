"""Scores that knowing nothing of the inputs gives: by hand for each task, and told with what to look at."""

import numpy as np
import pytest

from l0prune.sources.datasets import DataSource
from l0prune.tasks.provided.embeddings import Embeddings
from l0prune.tasks.provided.match import Match
from l0prune.tasks.provided.pixels import PixelClassification
from l0prune.tasks.provided.regression import Regression


def data(y):
    return DataSource(np.zeros((len(y), 2), np.float32), y, np.zeros((len(y), 2), np.float32), y, name="mine")


SCENES = np.array([[[0, 0, 0, 1]], [[0, 0, 255, 1]]])


@pytest.mark.parametrize(
    ("task", "targets", "known", "better", "worse"),
    [
        (Regression(), np.array([1.0, 3.0], np.float32), 1.0, 0.9, 1.1),
        (PixelClassification(), SCENES, 100 * (5 / 7) / 2, 40.0, 35.0),
        (Embeddings(pairs=True), np.linspace(0, 1, 401, dtype=np.float32), 0.1, 0.2, 0.05),
    ],
)
def test_what_knowing_nothing_scores_is_told_from_what_was_learned(task, targets, known, better, worse):
    found, how = task.chance(data(targets))

    assert found == pytest.approx(known)
    assert task.doubts(better, data(targets)) is None
    line = task.doubts(worse, data(targets))
    assert line.startswith(f"CAREFUL: {task.metric.name} of the dense network is {worse:g} on mine")
    assert f"{how} gives {known:.4g}" in line


def test_nothing_is_said_where_chance_is_not_known():
    targets = np.zeros(4, np.float32)

    assert Match().doubts(1.0, data(targets)) is None
    assert Embeddings().doubts(0.0, data(targets)) is None
