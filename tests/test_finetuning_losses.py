"""Distillation, parameter groups, moving average."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l0prune.errors import ConfigError
from l0prune.finetuning.config import FinetuneConfig
from l0prune.finetuning.distillation import distillation_loss, frozen_copy
from l0prune.finetuning.optimizers import build_optimizer, decay_groups
from l0prune.model_call import logits_of


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_student_that_agrees_loses_nothing():
    logits = random(8, 10)

    assert distillation_loss(logits, logits.clone(), temperature=3.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_loss_is_the_scaled_mean_divergence_of_the_softened_predictions(temperature):
    student, teacher = random(6, 5, seed=1), random(6, 5, seed=2)

    p, q = (torch.softmax(x / temperature, 1) for x in (teacher, student))
    by_hand = temperature**2 * (p * (p / q).log()).sum() / 6

    assert distillation_loss(student, teacher, temperature=temperature) == pytest.approx(float(by_hand))


def test_classes_are_last_in_sequences_and_second_in_dense_predictions():
    student, teacher = random(2, 3, 4, 5, seed=1), random(2, 3, 4, 5, seed=2)
    flat = [x.permute(0, 2, 3, 1).reshape(-1, 3) for x in (student, teacher)]
    tokens = [x[0].reshape(3, 4, 5) for x in (student, teacher)]

    expected = distillation_loss(*flat, temperature=2.0)
    expected_tokens = distillation_loss(*[x.reshape(12, 5) for x in tokens], temperature=2.0)

    assert distillation_loss(student, teacher, temperature=2.0) == pytest.approx(float(expected))
    assert distillation_loss(*tokens, temperature=2.0) == pytest.approx(float(expected_tokens))


def test_a_single_output_is_taught_by_the_squared_difference():
    student, teacher = random(7, 1, seed=1), random(7, 1, seed=2)

    assert distillation_loss(student, teacher, temperature=4.0) == F.mse_loss(student, teacher)


def test_half_precision_logits_are_compared_in_float32():
    student, teacher = random(4, 3, seed=1).bfloat16(), random(4, 3, seed=2).bfloat16()

    assert distillation_loss(student, teacher, temperature=2.0).dtype == torch.float32


def test_logits_are_found_in_the_usual_outputs():
    logits = random(2, 3)

    for outputs in (logits, {"logits": logits}, SimpleNamespace(logits=logits), (logits, None)):
        assert logits_of(outputs) is logits


def test_an_output_without_logits_is_an_error():
    with pytest.raises(ConfigError, match=r"no logits in an output of type dict.*distillation=0"):
        logits_of({"boxes": None})


def test_a_teacher_with_other_classes_is_an_error():
    with pytest.raises(ConfigError, match=r"teacher's logits have shape \(2, 4\), the student's \(2, 3\)"):
        distillation_loss(random(2, 3), random(2, 4), temperature=2.0)


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

    optimizer = build_optimizer(model, FinetuneConfig(optimizer="adamw"), lr=0.1)

    assert [p is model.weight for group in optimizer.param_groups for p in group["params"]] == [True]
