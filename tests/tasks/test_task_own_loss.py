"""Losses that networks compute themselves: a detector, and an example for the laws."""

import pytest
import torch
from task_case import CLASSES, ROWS, Example, Texts, labelled_texts, numbers, random
from torch import nn

import l0prune
from l0prune.errors import ConfigError
from l0prune.finetuning.passes import rows
from l0prune.tasks.provided.own_loss import OwnLoss
from l0prune.tasks.provided.regression import Regression

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


class TrainedByLosses(nn.Module):
    """Class scores in evaluation mode, and losses, by the targets it is given, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(5, 24), nn.BatchNorm1d(24), nn.Linear(24, 2)

    def forward(self, x, targets=None):
        y = self.head(self.norm(self.stem(x)).relu())
        return {"loss_numbers": (y - targets).square().mean(), "size": 1e-4 * y.abs().mean()} if self.training else y


def test_a_network_with_losses_in_training_mode_alone_is_trained_and_cut():
    batches = [numbers(seed) for seed in range(8)]
    torch.manual_seed(0)
    gated = l0prune.inject(model := TrainedByLosses().eval(), l0prune.trace(model, batches[0][0]))

    result = l0prune.finetune(
        gated,
        batches,
        task=OwnLoss(argument="targets", in_training_only=True),
        budget=l0prune.Budget("macs", 0.5),
        config=l0prune.FinetuneConfig(epochs=12, optimizer="adam", lr=0.01, recovery_lr=0.02, align=1),
        evaluate=lambda network: Regression().evaluate(network, batches),
    )

    errors = {milestone.when: milestone.figures["score"] for milestone in result.history}
    assert result.budget_met
    assert errors["end"] < 0.3 * errors["freeze"]
