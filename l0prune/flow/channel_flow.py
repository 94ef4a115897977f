"""The result of tracing: which indices of which tensors live and die together, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from l0prune.errors import ConfigError
from l0prune.flow.branches import Branch
from l0prune.flow.costs import CostTerm, Dimension
from l0prune.kept import DimensionGates, GateArray
from l0prune.look.capture import Captured

__all__ = ["FOLLOWED_BY", "ChannelFlow", "Consumer", "NormSite", "Unit", "gate_groups"]


@dataclass(frozen=True, eq=False)
class Consumer:
    """A parameter that contracts gated units along `dim`: the gates multiply its slices.

    Attributes:
        parameter: Name of the parameter in the dense model.
        dim: Contracting dimension.
        gates: Gate of every index along it, shape `(size,)`, -1 where not gated.
    """

    parameter: str
    dim: int
    gates: GateArray


@dataclass(frozen=True, eq=False)
class NormSite:
    """A normalisation whose statistics span gated units, so that they must be taken over the open ones only.

    Attributes:
        node: Name of the graph node.
        kind: "layer_norm", "rms_norm" or "group_norm" (one group).
        weight: Name of its weight, by which the call is known; None if it has none or a computed one.
        order: Without a weight: which of the calls of its kind without one it is, from zero.
        gates: Gate of every index, shape `(size,)`, -1 where not gated.
    """

    node: str
    kind: str
    weight: str | None
    order: int
    gates: GateArray


@dataclass(frozen=True, repr=False)
class Unit:
    """One removable index class.

    Attributes:
        gate: Number of its gate.
        places: Where it lives: (tensor name, dimension, number of indices).
    """

    gate: int
    places: tuple[tuple[str, int, int], ...]

    def __repr__(self) -> str:
        """The gate and the first places."""
        shown = ", ".join(f"{name}[{dim}]" for name, dim, _ in self.places[:_SHOWN])
        more = len(self.places) - _SHOWN
        return f"<Unit {self.gate}: {shown}{f' and {more} more' if more > 0 else ''}>"


_SHOWN = 3

FOLLOWED_BY = {
    "recording": "a recording of the paths that inputs were found to take",
    "torch-pruning": "torch-pruning's dependency graph",
}
"""For people: what a model that torch.export refuses is followed by."""


class _Units(Sequence[Unit]):
    """Units that are put together when they are asked for: a large model has hundreds of thousands."""

    def __init__(self, tensors: Mapping[str, tuple[DimensionGates, ...]], n_gates: int) -> None:
        self._dims = [(name, d) for name, dims in tensors.items() for d, gates in enumerate(dims) if gates is not None]
        found = [
            np.unique(gates[gates >= 0], return_counts=True)
            for name, d in self._dims
            if (gates := tensors[name][d]) is not None
        ]
        gates = np.concatenate([part for part, _ in found]) if found else np.zeros(0, dtype=np.int64)
        order = np.argsort(gates, kind="stable")
        self._starts = np.searchsorted(gates[order], np.arange(n_gates + 1))
        self._places = np.repeat(np.arange(len(found)), [len(part) for part, _ in found])[order]
        self._counts = np.concatenate([counts for _, counts in found])[order] if found else gates

    def __len__(self) -> int:
        """Number of units."""
        return len(self._starts) - 1

    def __repr__(self) -> str:
        """How many there are."""
        return f"<{len(self)} units>"

    @overload
    def __getitem__(self, gate: int) -> Unit: ...
    @overload
    def __getitem__(self, gate: slice) -> Sequence[Unit]: ...
    def __getitem__(self, gate: int | slice) -> Unit | Sequence[Unit]:
        """The unit of a gate, or those of several."""
        if isinstance(gate, slice):
            return [self[i] for i in range(*gate.indices(len(self)))]
        number = range(len(self))[gate]
        own = slice(self._starts[number], self._starts[number + 1])
        places = zip(self._places[own].tolist(), self._counts[own].tolist(), strict=True)
        return Unit(number, tuple((*self._dims[place], count) for place, count in places))


@dataclass(frozen=True, eq=False, repr=False)
class ChannelFlow:
    """Units of a model: where each one is, what consumes it, what it costs, and which could not be gated and why.

    Attributes:
        captured: The exported program it was found in.
        n_gates: Number of removable units.
        tensors: Name of a parameter, buffer or constant -> gates of each of its dimensions.
        nodes: Name of a graph node -> gates of each dimension of its output (a list for several outputs).
        consumers: Parameters that gates multiply.
        norms: Normalisations that need masked statistics.
        cost_terms: "macs" (multiply-accumulates at batch 1) and "params" (parameter counts), as sums of products of counts.
        dimensions: All distinct dimensions with gates; those not `removable` must not vanish.
        gate_group: Width of each gate, shape `(n_gates,)`: gates that belong to the same dimensions form one width.
        pinned: Reason -> number of units that could not be gated.
        unreached: Reason, with the op in brackets -> number of parameters that no gate can remove for that reason.
        unknown_ops: Ops without a rule that touched units -> number of uses.
        aliases: Other names of shared tensors -> the name used here.
        parameters: Names of the trainable tensors among `tensors`.
        sizes: Shape of every tensor in `tensors`.
        refusal: Why torch.export cannot capture the model; `tracer` then says where the units come from instead, and the
            model can only be cut in place.
        branches: Residual branches, which can close as a whole; each before those that are nested in it.
    """

    captured: Captured
    n_gates: int
    tensors: dict[str, tuple[DimensionGates, ...]]
    nodes: dict[str, list]
    consumers: tuple[Consumer, ...]
    norms: tuple[NormSite, ...]
    cost_terms: dict[str, tuple[CostTerm, ...]]
    dimensions: tuple[Dimension, ...]
    gate_group: GateArray
    pinned: dict[str, int]
    unreached: dict[str, int]
    unknown_ops: dict[str, int]
    aliases: dict[str, str]
    parameters: frozenset[str]
    sizes: dict[str, tuple[int, ...]]
    refusal: str = ""
    branches: tuple[Branch, ...] = ()

    @property
    def tracer(self) -> str:
        """Where the units come from: "torch.export", a "recording" of its paths, or "torch-pruning" (without nodes)."""
        if not self.refusal:
            return "torch.export"
        return "recording" if self.nodes else "torch-pruning"

    def __repr__(self) -> str:
        """One line: units, and what is in reach."""
        return f"<ChannelFlow by {self.tracer}: {self._reach}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> ChannelFlow:
        """Immutable, so a copy of a model shares it."""
        return self

    def terms(self, metric: str) -> tuple[CostTerm, ...]:
        """Cost terms of "macs" or "params".

        Raises:
            ConfigError: another metric.
        """
        if metric not in self.cost_terms:
            raise ConfigError(f"metric {metric!r} is unknown; choose {' or '.join(map(repr, self.cost_terms))}")
        return self.cost_terms[metric]

    def dense_cost(self, metric: str) -> float:
        """Cost of the dense model: MACs at batch 1, or parameters."""
        return sum(
            t.coefficient * float(np.prod([s.n_ungated + len(s.gates) for s in t.sides])) for t in self.terms(metric)
        )

    @cached_property
    def norm_gates(self) -> npt.NDArray[np.bool_]:
        """Gates whose units take part in masked statistics, shape `(n_gates,)`."""
        mask = np.zeros(self.n_gates, dtype=bool)
        for site in self.norms:
            mask[site.gates[site.gates >= 0]] = True
        return mask

    @cached_property
    def gate_names(self) -> Sequence[str]:
        """For people: the first dimension each gate appears in, `(n_gates,)` names."""
        names = np.full(self.n_gates, "", dtype=object)
        for dimension in reversed(self.dimensions):
            names[dimension.gates] = dimension.name
        return [str(name) for name in names]

    @cached_property
    def units(self) -> Sequence[Unit]:
        """All removable units with their places."""
        return _Units(self.tensors, self.n_gates)

    @cached_property
    def prunable_fraction(self) -> float:
        """Share of the parameters that some gate can remove, in [0, 1]."""
        total = reached = 0.0
        for name in self.parameters:
            size = float(np.prod(self.sizes[name]))
            fixed = 1.0
            for gates in self.tensors[name]:
                if gates is not None:
                    fixed *= float((gates < 0).mean())
            has_gates = any(gates is not None for gates in self.tensors[name])
            total += size
            reached += size * (1.0 - fixed) if has_gates else 0.0
        return reached / total if total else 0.0

    @property
    def _reach(self) -> str:
        return (
            f"{self.n_gates} removable units in {len(np.unique(self.gate_group))} widths,"
            f" {self.prunable_fraction:.1%} of {self.dense_cost('params'):,.0f} parameters in reach"
        )

    def summary(self) -> str:
        """A few lines for people: units, reach, costs, and what is pinned."""
        lines = [f"{self._reach}, {self.dense_cost('macs') / 1e6:,.2f} M MACs"]
        lines += [
            f"  pinned: {count:6d}  {reason}" for reason, count in sorted(self.pinned.items(), key=lambda x: -x[1])
        ]
        if self.refusal:
            lines.append(f"  followed by {FOLLOWED_BY[self.tracer]}, because {self.refusal}")
        return "\n".join(lines)


def gate_groups(dimensions: Sequence[Dimension], n_gates: int) -> GateArray:
    """Number the widths: gates with the same number of indices in every dimension get the same number."""
    signature = np.zeros((n_gates, 2), dtype=np.uint64)
    generator = np.random.default_rng(0)
    for dimension in dimensions:
        key = generator.integers(1, 2**63, size=2, dtype=np.uint64)
        counts = np.bincount(dimension.gates, minlength=n_gates).astype(np.uint64)
        signature += counts[:, None] * key[None, :]
    _, first, inverse = np.unique(signature, axis=0, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.ravel()]
