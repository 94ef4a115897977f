"""Distillation, parameter groups, moving average."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l0prune.errors import ConfigError
from l0prune.finetuning.config import FinetuneConfig
from l0prune.finetuning.optimization import build_optimizer, decay_groups
from l0prune.finetuning.settings import resolve
from l0prune.tasks.outputs import chosen_output
from l0prune.tasks.teaching import frozen_copy, softened_divergence, squared_difference


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_student_that_agrees_loses_nothing():
    logits = random(8, 10)

    assert softened_divergence(logits, logits.clone(), axis=1, temperature=3.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_loss_is_the_scaled_mean_divergence_of_the_softened_predictions(temperature):
    student, teacher = random(6, 5, seed=1), random(6, 5, seed=2)

    p, q = (torch.softmax(x / temperature, 1) for x in (teacher, student))
    by_hand = temperature**2 * (p * (p / q).log()).sum() / 6

    assert softened_divergence(student, teacher, axis=1, temperature=temperature) == pytest.approx(float(by_hand))


def test_classes_lie_along_the_axis_that_is_given():
    student, teacher = random(2, 3, 4, 5, seed=1), random(2, 3, 4, 5, seed=2)
    flat = [x.permute(0, 2, 3, 1).reshape(-1, 3) for x in (student, teacher)]

    expected = softened_divergence(*flat, axis=1, temperature=2.0)

    assert softened_divergence(student, teacher, axis=1, temperature=2.0) == pytest.approx(float(expected))
    swapped = [x.movedim(1, -1) for x in (student, teacher)]
    assert softened_divergence(*swapped, axis=-1, temperature=2.0) == pytest.approx(float(expected))


def test_predictions_that_do_not_count_change_nothing_and_may_be_no_numbers():
    student, teacher = random(5, 3, seed=1), random(5, 3, seed=2)
    counted = torch.tensor([True, False, True, True, False])
    expected = softened_divergence(student[counted], teacher[counted], axis=1, temperature=2.0)
    student = student.requires_grad_()
    spoiled = torch.where(counted.unsqueeze(1), student, 1e30)

    loss = softened_divergence(spoiled, teacher, axis=1, temperature=2.0, counted=counted)
    loss.backward()

    assert loss.item() == pytest.approx(float(expected))
    assert ((student.grad != 0).any(1) == counted).all()
    assert softened_divergence(student, teacher, axis=1, temperature=2.0, counted=counted & False) == 0


def test_numbers_are_taught_by_the_squared_difference():
    student, teacher = random(7, 1, seed=1), random(7, 1, seed=2)

    assert squared_difference(student, teacher) == F.mse_loss(student, teacher)
    assert squared_difference(student, teacher, scale=4.0) == F.mse_loss(student, teacher) / 4


def test_half_precision_logits_are_compared_in_float32():
    student, teacher = random(4, 3, seed=1).bfloat16(), random(4, 3, seed=2).bfloat16()

    assert softened_divergence(student, teacher, axis=1, temperature=2.0).dtype == torch.float32


def test_the_output_that_is_meant_is_found_or_has_to_be_named():
    logits = random(2, 3)

    for outputs in (
        logits,
        {"logits": logits, "states": -logits},
        SimpleNamespace(logits=logits),
        (logits, None),
        {"y": logits},
    ):
        assert chosen_output(outputs) is logits
    assert chosen_output({"a": -logits, "b": logits}, "b") is logits
    assert chosen_output((-logits, logits), "output_1") is logits
    assert torch.equal(chosen_output(logits.numpy()), logits)


@pytest.mark.parametrize(
    ("outputs", "name", "said"),
    [
        ({"boxes": None}, None, "there is no tensor in an output of type mapping"),
        (
            (random(2, 3), random(2, 5)),
            None,
            r"returns output_0 \(2, 3\), output_1 \(2, 5\): say which .*output='output_0'",
        ),
        ({"a": random(2, 3)}, "b", r"there is no output 'b': the network returns a \(2, 3\)"),
    ],
)
def test_an_output_that_is_not_clear_is_an_error(outputs, name, said):
    with pytest.raises(ConfigError, match=said):
        chosen_output(outputs, name)


def test_a_teacher_with_other_classes_is_an_error():
    with pytest.raises(ConfigError, match=r"teacher's output has shape \(2, 4\), the student's \(2, 3\)"):
        softened_divergence(random(2, 3), random(2, 4), axis=1, temperature=2.0)


def test_the_teacher_is_frozen_and_the_student_untouched():
    student = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train()

    teacher = frozen_copy(student)
    with torch.no_grad():
        student[0].weight.zero_()

    assert not teacher.training
    assert student.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert teacher[0].weight.abs().sum() > 0


def test_norms_and_biases_do_not_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm(2))

    decaying, others = decay_groups(model.named_parameters(), 0.1)

    assert {id(p) for p in decaying["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert decaying["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert len(decaying["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_frozen_parameters_are_not_optimized():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)

    optimizer = build_optimizer(model, resolve(FinetuneConfig(optimizer="adamw", align=1), penalised=False), lr=0.1)

    assert [p is model.weight for group in optimizer.param_groups for p in group["params"]] == [True]
