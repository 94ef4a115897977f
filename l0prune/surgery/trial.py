"""One call on which compact models are compared with a gated one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from l0prune.errors import L0PruneError
from l0prune.gated.model import GatedModel
from l0prune.look.watching import Path
from l0prune.model_call import ModelCall
from l0prune.surgery.equivalence import Difference, copied, difference_between, outputs_of
from l0prune.surgery.reaction import Units, units_that_change, units_with_gradient
from l0prune.surgery.redrawn import DrawnWeights

__all__ = [
    "COARSE",
    "TOLERANCE",
    "Outcome",
    "Trial",
    "WatchPrecision",
]

TOLERANCE = {torch.float64: 1e-9}
"""Largest relative difference allowed between gated and compact outputs, by the coarsest dtype; `COARSE` for the others."""

COARSE = 1e-4


class WatchPrecision(TorchDispatchMode):
    """Inside this block it is seen whether anything is computed in less than double precision.

    Attributes:
        is_coarse: Whether some op gave such numbers, made of others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_coarse = False

    @property
    def tolerance(self) -> float:
        """Largest relative difference allowed after what was seen."""
        return COARSE if self.is_coarse else TOLERANCE[torch.float64]

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Make the call, and look at what comes out of it."""
        result = func(*args, **(kwargs or {}))
        if not self.is_coarse and _any_floating(result, coarse=True):
            self.is_coarse = _any_floating((args, kwargs), coarse=False)
        return result


def _any_floating(values: Any, *, coarse: bool) -> bool:
    return any(
        isinstance(leaf, Tensor) and leaf.is_floating_point() and not (coarse and leaf.dtype == torch.float64)
        for leaf in pytree.tree_leaves(values)
    )


@dataclass(frozen=True)
class Outcome:
    """What comparing a compact model with the gated one came to.

    Attributes:
        difference: The largest.
        tolerance: Largest relative difference allowed.
        redrawn: Whether the weights were re-drawn.
        error: What the compact model raised instead.
    """

    difference: Difference
    tolerance: float
    redrawn: bool = False
    error: Exception | None = None

    @property
    def agrees(self) -> bool:
        """Whether the two models compute the same."""
        return self.difference.max_rel <= self.tolerance

    @property
    def excess(self) -> float:
        """The difference in units of what is allowed."""
        return self.difference.max_rel / self.tolerance


@dataclass(frozen=True)
class _Run:
    """What the gated model computes.

    Attributes:
        outputs: Its outputs.
        drew: Whether it drew random numbers.
        path: The ops that it went through, where that is asked for.
        tolerance: What may differ by the precision that was seen.
    """

    outputs: list[Tensor]
    drew: bool
    path: tuple[Any, ...]
    tolerance: float


class Trial:
    """One call of the gated model, at its own or at other weights, and of compact models for comparison.

    Args:
        reference: The gated model, its gates at the values to compare at.
        call: The inputs.
        tolerance: Largest relative difference allowed; for weights in double precision it is found out.
        weights: To compare at; None stands for those that the models have.
    """

    def __init__(
        self, reference: GatedModel, call: ModelCall, tolerance: float, weights: DrawnWeights | None = None
    ) -> None:
        self._reference, self._tolerance, self._weights = reference, tolerance, weights
        self._call = call if weights is None else weights.inputs(call)

    @cached_property
    def run(self) -> _Run:
        """The gated model's side, computed once."""
        model = self._reference.model
        double = self._weights is not None and self._weights.dtype is not None
        with ExitStack() as inside:
            gated = inside.enter_context(self._in_gated())
            path = Path(model) if self._reference.flow.tracer == "recording" else None
            precision = WatchPrecision()
            inside.enter_context(path or (precision if double else nullcontext()))
            outputs, drew = outputs_of(gated, self._call)
        steps = () if path is None else tuple(path.steps)
        return _Run(outputs, drew, steps, precision.tolerance if double else self._tolerance)

    @property
    def is_accepted(self) -> bool:
        """Whether the gated model runs, and gives numbers."""
        try:
            return not any(output.isnan().any() for output in self.run.outputs)
        except Exception:  # noqa: BLE001 - whatever a model raises that is not made for such inputs, weights or precision
            return False

    def outcome(self, compact: nn.Module) -> Outcome:
        """How a compact model compares; infinitely far, with the error, if it does not run: its code may have sizes of its own.

        Raises:
            L0PruneError: what is wrong with the inputs, not with the model.
        """
        redrawn = self._weights is not None
        try:
            expected, tolerance = self.run.outputs, self.run.tolerance
            with nullcontext(compact) if self._weights is None else self._weights.in_compact(compact) as model:
                found, _ = outputs_of(model, self._call)
            return Outcome(difference_between(expected, found), tolerance, redrawn)
        except L0PruneError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a class raises whose layers do not fit together
            return Outcome(Difference(math.inf, math.inf, 0), self._tolerance, redrawn, error)

    def reacting(self) -> Units:
        """Units whose gate moves an output, by the gradient, shape `(n_gates,)`."""
        with self._in_gated() as gated:
            return units_with_gradient(gated, copied(self._call))

    def reacting_after_all(self, known: Units) -> Units:
        """The units in `known`, those hidden by a branch that is closed entirely, and those that show without a gradient."""
        with self._in_gated() as gated:
            if known.any():
                known = known | units_with_gradient(gated, copied(self._call), all_open=True)
            return known if known.all() else units_that_change(gated, copied(self._call), known)

    def _in_gated(self) -> AbstractContextManager[GatedModel]:
        return nullcontext(self._reference) if self._weights is None else self._weights.in_gated()
