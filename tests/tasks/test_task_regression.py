"""Numbers: an example for the laws."""

import pytest
import torch
from task_case import CLASSES, ROWS, Example, dense, numbers, random

from l0prune.errors import DataError
from l0prune.tasks.provided.regression import Regression

EXAMPLES = {
    "regression": Example(
        Regression(), random(ROWS, 3), random(ROWS, CLASSES, seed=1), network=lambda: dense(5, 2), batch=numbers
    )
}


def test_targets_of_another_size_are_an_error():
    with pytest.raises(DataError, match=r"targets have shape \(2,\) each, and the model gives \(3,\)"):
        Regression().loss(random(4, 3), random(4, 2))


def test_targets_may_have_another_shape_and_type():
    assert Regression().loss(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 4])) == 2
