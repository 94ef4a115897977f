"""Losses that networks compute themselves: a detector, and an example for the laws."""

import pytest
import torch
from task_case import CLASSES, ROWS, Example, Texts, labelled_texts, random
from torch import nn

from l0prune.errors import ConfigError
from l0prune.finetuning.passes import rows
from l0prune.tasks.provided.own_loss import OwnLoss

EXAMPLES = {
    "own-loss": Example(
        OwnLoss(),
        random(ROWS, 3),
        random(ROWS, seed=1),
        network=lambda: Texts(CLASSES),
        batch=labelled_texts,
    )
}


class Detector(nn.Module):
    """As those of torchvision: a list of images, and losses in training mode alone."""

    def forward(self, images, targets=None):
        if self.training:
            return {"boxes": images[0].mean() + targets[0]["shift"], "classes": images[1].mean()}
        return [{"boxes": image} for image in images]


def test_a_detector_is_given_its_targets_in_training_mode_alone():
    task = OwnLoss(argument="targets", in_training_only=True)
    images = tuple(random(3, 4 + place, 5) for place in range(4))
    inputs, targets = task.split((images, tuple({"shift": torch.tensor(float(place))} for place in range(4))))
    model = Detector()

    outputs = task.call(model.train(), inputs, targets)

    assert task.loss(outputs, targets) == pytest.approx(float(images[0].mean() + images[1].mean()))
    assert len(task.call(model.eval(), inputs, targets)) == 4
    second, shifts = rows(inputs, targets, task, 2, 4)
    assert [image.shape[1] for image in second[0]] == [6, 7]
    assert [float(target["shift"]) for target in shifts] == [2, 3]
    with pytest.raises(ConfigError, match="returned no loss, but boxes"):
        task.loss({"boxes": random(3)}, targets)
