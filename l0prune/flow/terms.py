"""From units to what they cost: multiply-accumulates, parameters, and the dimensions that must not vanish."""

from __future__ import annotations

import numpy as np
from torch.utils import _pytree as pytree

from l0prune.flow.costs import CostTerm, Dimension, Side
from l0prune.flow.follow import Followed
from l0prune.flow.removable import input_dependent
from l0prune.flow.units import Units
from l0prune.look.capture import Captured
from l0prune.ops.tracker import IdArray

__all__ = ["dimensions_of", "macs_terms", "params_terms"]


def _side(gates: IdArray) -> Side:
    return Side(int((gates < 0).sum()), gates[gates >= 0])


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
                sides.append(_side(gates))
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
            sides = tuple(_side(gates) for gates in dims if gates is not None)
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
