"""What a layer costs, written in gates: multiply-accumulates, parameters, and the dimensions that must not vanish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch.utils import _pytree as pytree

from l0prune.flow.removable import input_dependent

if TYPE_CHECKING:  # whoever only loads a compact model needs no scipy
    from l0prune.flow.follow import Followed
    from l0prune.flow.units import Units
    from l0prune.look.capture import Captured
    from l0prune.ops.tracker import IdArray

__all__ = ["CostTerm", "Dimension", "Side", "dimensions_of", "macs_terms", "params_terms"]


@dataclass(frozen=True, eq=False)
class Side:
    """One dimension of a layer, as a count of indices: `n_ungated + number of open entries of gates`.

    Attributes:
        n_ungated: indices that no gate can remove, >= 0.
        gates: gate ids, shape `(n,)`, int64, one entry per gated index; a gate that owns 8 indices appears 8 times.
    """

    n_ungated: int
    gates: npt.NDArray[np.int64]

    @classmethod
    def of(cls, gates: IdArray) -> Side:
        """The side of a dimension with these gates, negative where an index has none."""
        return cls(int((gates < 0).sum()), gates[gates >= 0])


@dataclass(frozen=True, eq=False)
class CostTerm:
    """One summand of the model's cost: `coefficient * product over sides of the side's count`.

    Attributes:
        name: dotted module name, for people.
        coefficient: MACs at batch 1, or parameters, per combination of one index from every side; >= 0.
        sides: none for a constant cost, one for a bias or a depthwise layer, two for most layers, rarely three.
    """

    name: str
    coefficient: float
    sides: tuple[Side, ...]


@dataclass(frozen=True, eq=False)
class Dimension:
    """A set of indices that must not vanish entirely, unless `removable`.

    Attributes:
        name: dotted parameter name and axis, for example `layer1.0.conv1.weight[0]`.
        n_ungated: indices that no gate can remove, >= 0.
        gates: gate ids, shape `(n,)`, int64, one entry per gated index, as in `Side`.
        removable: closing all of it only drops a residual branch, so it may become empty.
    """

    name: str
    n_ungated: int
    gates: npt.NDArray[np.int64]
    removable: bool


def macs_terms(captured: Captured, followed: Followed, units: Units) -> tuple[CostTerm, ...]:
    """Multiply-accumulates at batch 1, a term for each product."""
    batched = _batched_nodes(captured)
    terms = []
    for product in followed.tracker.multiplications:
        coefficient = product.coefficient / (captured.batch_size if product.node in batched else 1)
        sides = []
        for ids in product.sides:
            gates = units.gates(ids)
            if gates is None:
                coefficient *= len(ids)
            else:
                sides.append(Side.of(gates))
        terms.append(CostTerm(product.name, coefficient, tuple(sides)))
    return tuple(terms)


def _batched_nodes(captured: Captured) -> frozenset[str]:
    """Nodes whose work grows with the batch; others (a table of position weights, say) do theirs once a call."""
    graph = captured.program.graph
    if not captured.dynamic_batch:
        return frozenset(
            n.name for n in input_dependent(graph, frozenset(captured.program.graph_signature.user_inputs))
        )
    return frozenset(
        node.name
        for node in graph.nodes
        for value in pytree.tree_leaves(node.meta.get("val"))
        if captured.free.depends_on_batch(value)
    )


def params_terms(
    tensors: dict[str, tuple[IdArray | None, ...]], parameters: frozenset[str], sizes: dict[str, tuple[int, ...]]
) -> tuple[CostTerm, ...]:
    """Parameter counts, a term for each parameter."""
    terms = []
    for name, dims in tensors.items():
        if name in parameters:
            fixed = [size for size, gates in zip(sizes[name], dims, strict=True) if gates is None]
            sides = tuple(Side.of(gates) for gates in dims if gates is not None)
            terms.append(CostTerm(name, float(np.prod(fixed)), sides))
    return tuple(terms)


def dimensions_of(tensors: dict[str, tuple[IdArray | None, ...]]) -> tuple[Dimension, ...]:
    """One entry for every distinct set of indices; the first tensor that has it gives the name."""
    found: dict[tuple[int, bytes], Dimension] = {}
    for name, dims in tensors.items():
        for dim, gates in enumerate(dims):
            if gates is not None:
                ungated = int((gates < 0).sum())
                members = np.sort(gates[gates >= 0])
                found.setdefault(
                    (ungated, members.tobytes()), Dimension(f"{name}[{dim}]", ungated, members, removable=False)
                )
    return tuple(found.values())
