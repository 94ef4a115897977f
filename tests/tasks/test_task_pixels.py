"""Classes of pixels: mean intersection over union by hand, and an example for the laws."""

import pytest
import torch
from task_case import CLASSES, ROWS, TOKENS, Example, random, whole, with_gaps
from torch import Tensor, nn

from l0prune.tasks.provided.pixels import PixelClassification


class Maps(nn.Module):
    """An answer for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, CLASSES, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def maps(seed: int) -> tuple[Tensor, Tensor]:
    x = random(16, 1, 6, 6, seed=seed).float()
    return x, torch.bucketize(x[:, 0], torch.tensor([-0.7, 0.0, 0.7]))


EXAMPLES = {
    "pixels": Example(
        PixelClassification(),
        random(ROWS, 3, TOKENS, 2),
        with_gaps(whole(ROWS, TOKENS, 2), PixelClassification().ignore),
        network=Maps,
        batch=maps,
    )
}


def test_the_mean_intersection_over_union_by_hand():
    truth = torch.tensor([[[0, 0, 1], [1, 255, 2]]])
    said = torch.tensor([[[0, 1, 1], [1, 2, 2]]])  # of classes 0, 1, 2, 3: 1/2, 2/3, 1/1, and 3 is nowhere
    logits = nn.functional.one_hot(said, 4).movedim(-1, 1).double()

    batches = [(logits[..., :2], truth[..., :2]), (logits[..., 2:], truth[..., 2:])]

    assert PixelClassification().evaluate(nn.Identity(), batches) == pytest.approx(100 * (1 / 2 + 2 / 3 + 1) / 3)


def test_maps_of_another_resolution_are_resized_to_the_targets():
    small = random(1, CLASSES, 2, 2)
    large = nn.functional.interpolate(small, (6, 4), mode="bilinear")
    targets, task = whole(1, 6, 4), PixelClassification()

    assert task.loss({"out": small}, targets) == task.loss(large, targets)
