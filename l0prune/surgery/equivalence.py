"""Do two models compute the same? Largest differences over all tensor outputs, and random inputs to find them on."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.errors import EquivalenceError
from l0prune.model_call import ModelCall, evaluation_mode, output_tensors

__all__ = [
    "GUESSED",
    "IN_PLACE_ONLY",
    "REPORT",
    "Difference",
    "RandomNumbers",
    "compare",
    "copied",
    "difference_between",
    "outputs_of",
    "random_like",
    "require_equal",
    "same_random_numbers",
]

_SEED = 0


class RandomNumbers:
    """Whether a block drew any.

    Attributes:
        drawn: Set when the block is left.
    """

    def __init__(self) -> None:
        self.drawn = False


@contextmanager
def same_random_numbers(device: torch.device | None = None) -> Iterator[RandomNumbers]:
    """Every such block draws the same numbers from torch, numpy and Python; afterwards all go on as if nothing had been drawn.

    Args:
        device: Where the network is; None and the CPU are the same.

    Yields:
        What says afterwards whether anything was drawn.
    """
    numbers, sources = RandomNumbers(), list(_sources(device))
    states = [get() for get, _, _ in sources]
    try:
        for _, _, seed in sources:
            seed()
        started = [_plain(get()) for get, _, _ in sources]
        yield numbers
        numbers.drawn = any(_plain(get()) != before for (get, _, _), before in zip(sources, started, strict=True))
    finally:
        for (_, put, _), state in zip(sources, states, strict=True):
            put(state)


def _sources(
    device: torch.device | None,
) -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any], Callable[[], Any]]]:
    """How to read, set and seed the state of each source."""
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    for generator in generators:
        yield generator.get_state, generator.set_state, partial(generator.manual_seed, _SEED)
    yield random.getstate, random.setstate, lambda: random.seed(_SEED)
    yield np.random.get_state, np.random.set_state, lambda: np.random.seed(_SEED)


def _plain(state: Any) -> Any:
    """A state that `!=` compares at once: integers of Python as they are, the array of numpy and the tensor of torch as bytes."""
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in state)


REPORT = "please report the model: this should not happen"
GUESSED = "its layers were grouped without a graph of the model: name those that are grouped wrongly in ignore"

IN_PLACE_ONLY = (
    "there is no graph to cut instead, because torch.export cannot capture the model: name the layers that its code "
    "keeps at full size in ignore"
)


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

    redrawn: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(redraw, (args, kwargs))
    return redrawn


def outputs_of(model: nn.Module, call: ModelCall) -> tuple[list[Tensor], bool]:
    """What a model computes in evaluation mode, and whether it drew random numbers for it."""
    device = next((tensor.device for tensor in model.parameters()), None)
    with evaluation_mode(model), torch.no_grad(), same_random_numbers(device) as numbers:
        outputs = [tensor.clone() for tensor in output_tensors(copied(call)(model))]
    return outputs, numbers.drawn


def copied(call: ModelCall) -> ModelCall:
    """The same inputs again: a model may write into them."""
    copied = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (call.args, call.kwargs))
    return ModelCall(*copied)


def compare(reference: nn.Module, other: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Difference:
    """Compare two models in evaluation mode on the same inputs, as `difference_between` does, both drawing the same numbers."""
    call = ModelCall(args, kwargs)
    return difference_between(outputs_of(reference, call)[0], outputs_of(other, call)[0])


def difference_between(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Difference:
    """Compare the outputs of two models.

    Equal infinities (masked scores) are equal. A shape that differs, or an infinity or NaN in one output only, counts as
    infinitely far. Where the expected ones hold NaN nothing can be said: both differences are then NaN.
    """
    worst = Difference(0.0, 0.0, 0)
    if len(expected) != len(actual):
        return Difference(float("inf"), float("inf"), min(len(expected), len(actual)))
    for position, (a, b) in enumerate(zip(actual, expected, strict=True)):
        if a.shape != b.shape:
            return Difference(float("inf"), float("inf"), position)
        absolute, relative = _distance(_real(a), _real(b))
        if math.isnan(relative):
            return Difference(absolute, relative, position)
        if relative >= worst.max_rel:
            worst = Difference(absolute, relative, position)
    return worst


def _real(x: Tensor) -> Tensor:
    """As float64 numbers; complex ones as pairs."""
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).double()


def _distance(a: Tensor, reference: Tensor) -> tuple[float, float]:
    """Largest absolute difference, and the same relative to the largest finite value of the reference."""
    if reference.isnan().any():
        return math.nan, math.nan
    finite = a.isfinite() & reference.isfinite()
    if not (finite | (a == reference)).all():
        return math.inf, math.inf
    if not finite.any():
        return 0.0, 0.0
    absolute = float((a - reference)[finite].abs().max())
    return absolute, absolute / max(float(reference[finite].abs().max()), 1e-30)


def require_equal(
    difference: Difference, tolerance: float, what: str, *, where: str = "", remedy: str = REPORT
) -> None:
    """Raise if two models are further apart than `tolerance` (relative).

    Args:
        difference: What was found.
        tolerance: Largest difference allowed.
        what: The two models.
        where: What they were compared at, with a space before it, if it is not the obvious.
        remedy: What to do.

    Raises:
        EquivalenceError: with the difference, the tolerance and the output it was found in.
    """
    if math.isnan(difference.max_rel):
        raise EquivalenceError(
            f"output {difference.output} of the gated model holds NaN on the example inputs, so that {what} outputs cannot be "
            "compared; pass example_inputs the model is made for"
        )
    if not difference.max_rel <= tolerance:
        raise EquivalenceError(
            f"{what} outputs differ by {difference.max_rel:.1e} relative to the largest (tolerance {tolerance:.0e}) at output "
            f"{difference.output}{where}; nothing was written. {remedy[0].upper()}{remedy[1:]}"
        )
