"""Logit distillation: the dense network teaches the one that is being made smaller."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l0prune.errors import ConfigError
from l0prune.model_call import copy_of, logits_of

__all__ = ["distillation_loss", "frozen_copy"]


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` in evaluation mode whose parameters take no gradient; `model` is left as it is."""
    teacher = copy_of(model).eval()
    for parameter in teacher.parameters():
        parameter.requires_grad = False
        parameter.grad = None
    return teacher


def distillation_loss(student: Any, teacher: Any, *, temperature: float) -> Tensor:
    """How far the student's prediction is from the teacher's.

    The classes are dimension 1 of dense predictions (N, C, H, W) and the last dimension of all else. With a single
    class (regression) it is the mean squared difference.

    Args:
        student: Output of the student; gradients flow.
        teacher: Output of the teacher, of the same shape.
        temperature: T > 0, divides both logits.

    Returns:
        T^2 * KL(teacher || student), mean over all predictions, a scalar >= 0 in float32 or wider.

    Raises:
        ConfigError: if the two shapes differ.

    Source: Hinton, Vinyals, Dean (2015), arXiv:1503.02531, section 2.
    """
    predicted, wanted = logits_of(student), logits_of(teacher).detach()
    if predicted.shape != wanted.shape:
        raise ConfigError(
            f"the teacher's logits have shape {tuple(wanted.shape)}, the student's {tuple(predicted.shape)}:"
            " give a teacher with the same outputs, or set distillation=0"
        )
    if not predicted.dtype.is_floating_point or predicted.dtype.itemsize < torch.float32.itemsize:
        predicted, wanted = predicted.float(), wanted.float()
    classes = 1 if predicted.dim() == 4 else predicted.dim() - 1
    if predicted.shape[classes] == 1:
        return F.mse_loss(predicted, wanted.to(predicted.dtype))
    student_log = F.log_softmax(predicted / temperature, dim=classes)
    teacher_log = F.log_softmax(wanted.to(predicted.dtype) / temperature, dim=classes)
    divergence = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=classes)
    return divergence.mean() * temperature**2
