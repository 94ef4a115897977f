"""How far a student's prediction is from its teacher's: classes, numbers, directions; each a mean over what counts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l0prune.errors import ConfigError
from l0prune.model_call import copy_of

__all__ = ["cosine_distance", "counted_mean", "frozen_copy", "softened_divergence", "squared_difference"]


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` in evaluation mode whose parameters take no gradient; `model` is left as it is."""
    teacher = copy_of(model).eval()
    for parameter in teacher.parameters():
        parameter.requires_grad = False
        parameter.grad = None
    return teacher


def softened_divergence(
    student: Tensor, teacher: Tensor, *, axis: int, temperature: float, counted: Tensor | None = None
) -> Tensor:
    """Divergence of the student's softened classes from the teacher's.

    Args:
        student: Logits of the student; gradients flow.
        teacher: Logits of the teacher, of the same shape.
        axis: Dimension of the classes.
        temperature: T > 0, divides both logits.
        counted: Predictions that count, bool, the shape of the logits without `axis`; None counts all.

    Returns:
        T^2 * KL(teacher || student), mean over the predictions that count, a scalar >= 0 in float32 or wider.

    Raises:
        ConfigError: if the two shapes differ.

    Source: Hinton, Vinyals, Dean (2015), arXiv:1503.02531, section 2.
    """
    predicted, wanted = _alike(student, teacher)
    student_log = F.log_softmax(predicted / temperature, dim=axis)
    teacher_log = F.log_softmax(wanted / temperature, dim=axis)
    divergence = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=axis)
    return counted_mean(divergence, counted) * temperature**2


def squared_difference(student: Tensor, teacher: Tensor, *, scale: float = 1.0) -> Tensor:
    """Mean of (student - teacher)^2 / scale, a scalar >= 0 in float32 or wider.

    Args:
        student: Any tensor; gradients flow.
        teacher: Of the same shape.
        scale: What a square is measured by, > 0.

    Raises:
        ConfigError: if the two shapes differ.
    """
    predicted, wanted = _alike(student, teacher)
    loss = F.mse_loss(predicted, wanted)
    return loss if scale == 1.0 else loss / scale


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos between vectors along the last dimension, a scalar in [0, 2] in float32 or wider.

    Raises:
        ConfigError: if the two shapes differ.
    """
    predicted, wanted = _alike(student, teacher)
    return (1 - F.cosine_similarity(predicted, wanted, dim=-1)).mean()


def counted_mean(values: Tensor, counted: Tensor | None) -> Tensor:
    """Mean over the entries that count; 0 where none does, and what does not count need not be finite.

    Args:
        values: Any shape.
        counted: Of the same shape, bool; None counts all.
    """
    if counted is None:
        return values.mean()
    return values.masked_fill(~counted, 0).sum() / counted.sum().clamp_min(1)


def _alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one precision, float32 or wider; the teacher's without gradient."""
    if student.shape != teacher.shape:
        raise ConfigError(
            f"the teacher's output has shape {tuple(teacher.shape)}, the student's {tuple(student.shape)}:"
            " give a teacher with the same outputs, or set distillation=0"
        )
    wide = student.dtype.is_floating_point and student.dtype.itemsize >= torch.float32.itemsize
    predicted = student if wide else student.float()
    return predicted, teacher.detach().to(predicted.dtype)
