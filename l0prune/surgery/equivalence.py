"""Do two models compute the same? Largest differences over all tensor outputs, on random inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.errors import EquivalenceError
from l0prune.model_call import evaluation_mode, output_tensors

__all__ = ["Difference", "compare", "random_like", "require_equal"]


@dataclass(frozen=True)
class Difference:
    """How far two sets of outputs are apart.

    Attributes:
        max_abs: Largest absolute difference.
        max_rel: The same relative to the largest absolute value of the reference output.
        output: Number of the output it was found in.
    """

    max_abs: float
    max_rel: float
    output: int


def random_like(args: tuple[Any, ...], kwargs: dict[str, Any], *, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Normal noise in place of every floating-point input; other inputs stay."""
    generator = torch.Generator().manual_seed(seed)

    def redraw(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        return value

    return tuple(redraw(v) for v in args), {k: redraw(v) for k, v in kwargs.items()}


@torch.no_grad()
def compare(reference: nn.Module, other: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Difference:
    """Compare in evaluation mode; a shape that differs or a value that is not finite counts as infinitely far."""
    with evaluation_mode(reference):
        expected = output_tensors(reference(*args, **kwargs))
    with evaluation_mode(other):
        actual = output_tensors(other(*args, **kwargs))
    worst = Difference(0.0, 0.0, 0)
    if len(expected) != len(actual):
        return Difference(float("inf"), float("inf"), min(len(expected), len(actual)))
    for position, (a, b) in enumerate(zip(actual, expected, strict=True)):
        if a.shape != b.shape:
            return Difference(float("inf"), float("inf"), position)
        if b.numel() == 0:
            continue
        absolute = float((a.double() - b.double()).abs().max())
        relative = absolute / max(float(b.double().abs().max()), 1e-30)
        if not torch.isfinite(a).all():
            absolute = relative = float("inf")
        if relative >= worst.max_rel:
            worst = Difference(absolute, relative, position)
    return worst


def require_equal(difference: Difference, tolerance: float, what: str) -> None:
    """Raise if two models are further apart than `tolerance` (relative).

    Raises:
        EquivalenceError: with the difference, the tolerance and the output it was found in.
    """
    if not difference.max_rel <= tolerance:
        raise EquivalenceError(
            f"{what} outputs differ by {difference.max_rel:.1e} relative to the largest (tolerance {tolerance:.0e}) at output "
            f"{difference.output}; nothing was written. Please report the model: this must not happen"
        )
