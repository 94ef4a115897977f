"""One network at inputs of several sizes: what it costs is the mean over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from l0prune.errors import TraceError
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.flow.costs import CostTerm, Side
from l0prune.model_call import ModelCall

__all__ = ["with_mean_costs"]

Key = tuple[str, tuple[tuple[int, bytes], ...]]


def with_mean_costs(flow: ChannelFlow, others: Sequence[ChannelFlow]) -> ChannelFlow:
    """The flow, with costs that are the mean over it and the others.

    Args:
        flow: At some inputs.
        others: Of the same model at inputs of other sizes.

    Raises:
        TraceError: at one of them the model has other units.
    """
    for other in others:
        if not _same_units(flow, other):
            shapes = ", ".join(
                str(tuple(tensor.shape)) for tensor in ModelCall(other.captured.args, other.captured.kwargs).tensors
            )
            raise TraceError(
                f"with inputs of shape {shapes} the model has other units, so that no mean cost is of one network"
            )
    terms = {metric: _mean([one.terms(metric) for one in (flow, *others)]) for metric in flow.cost_terms}
    return replace(flow, cost_terms=terms)


def _same_units(one: ChannelFlow, other: ChannelFlow) -> bool:
    """Whether every parameter has the same gates."""
    if one.n_gates != other.n_gates or one.parameters != other.parameters:
        return False
    pairs = (zip(one.tensors[name], other.tensors[name], strict=True) for name in one.parameters)
    return all(
        (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))
        for dims in pairs
        for a, b in dims
    )


def _mean(several: Sequence[Sequence[CostTerm]]) -> tuple[CostTerm, ...]:
    """Terms of the mean; those of the same layer and sides are one."""
    found: dict[Key, tuple[float, tuple[Side, ...]]] = {}
    for term in (term for terms in several for term in terms):
        key = (term.name, tuple((side.n_ungated, side.gates.tobytes()) for side in term.sides))
        known, _ = found.get(key, (0.0, ()))
        found[key] = (known + term.coefficient / len(several), term.sides)
    return tuple(CostTerm(name, coefficient, sides) for (name, _), (coefficient, sides) in found.items())
