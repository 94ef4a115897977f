"""The state that rules write to: fresh unit ids, ties between them, pins, consumers, norm sites and costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["INERT", "NO_UNIT", "Consumption", "IdArray", "Labels", "Multiplication", "NormUse", "Place", "Places", "Split",
           "Tracker"]  # fmt: skip

IdArray = npt.NDArray[np.int64]
NO_UNIT = "no unit at all, e.g. a position in a kernel"
"""Pins for this reason are not reported: nobody would expect a gate there."""

INERT = "meets a dimension without parameters (model input, positions, space)"

Labels = list[IdArray | None]
"""One entry a dimension: the unit ids of its indices, or None where no parameter is behind the dimension."""


@dataclass(frozen=True, eq=False)
class Place:
    """A dimension of a parameter or buffer, with its units, shape `(size,)`."""

    parameter: str
    dim: int
    ids: IdArray
    learned: bool


Places: TypeAlias = list[Place] | None
"""Places of which all together make a slice zero; None if there are none such."""


@dataclass(frozen=True, eq=False)
class Consumption:
    """A parameter whose dimension `dim` is contracted with the units `ids`."""

    parameter: str
    dim: int
    ids: IdArray


@dataclass(frozen=True, eq=False)
class NormUse:
    """A normalisation whose statistics span the units `ids`.

    `weight` names its weight; where that is None, `order` counts the calls of its kind without one.
    """

    node: str
    kind: str
    weight: str | None
    order: int
    ids: IdArray


@dataclass(frozen=True, eq=False)
class Multiplication:
    """Multiply-accumulates of one node: `coefficient` times the product of the counts of the `sides`.

    `name` is that of the module, for people; `node` that of the graph node.
    """

    name: str
    node: str
    coefficient: float
    sides: tuple[IdArray, ...]


@dataclass(frozen=True, eq=False)
class Split:
    """A view that had several axes to carry the ids along; `n_choices` axes, then giving up (pin)."""

    key: str
    n_choices: int
    ids: IdArray


@dataclass(eq=False)
class Tracker:
    """Collects what the rules find out, in the order of the graph.

    `choices` says, for each ambiguous view (by key), which candidate axis to take; the default is the outermost. `op` names
    the op whose rule is writing; pins carry it. With `query_heads`, the units of grouped-query attention are the query heads
    at one place of every group, not whole groups.
    """

    choices: dict[str, int] = field(default_factory=dict)
    query_heads: bool = False
    n_ids: int = 0
    ties: list[tuple[IdArray, IdArray]] = field(default_factory=list)
    pins: list[tuple[IdArray, str, str]] = field(default_factory=list)
    op: str = ""
    consumptions: list[Consumption] = field(default_factory=list)
    norms: list[NormUse] = field(default_factory=list)
    norm_weights: set[str] = field(default_factory=set)
    n_other_norms: dict[str, int] = field(default_factory=dict)
    multiplications: list[Multiplication] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    unreported: list[IdArray] = field(default_factory=list)

    @property
    def recorded(self) -> tuple[int, int, int]:
        """How many consumers, norms and multiplications are recorded so far."""
        return len(self.consumptions), len(self.norms), len(self.multiplications)

    def forget_since(self, recorded: tuple[int, int, int]) -> None:
        """Take back consumers, norms and multiplications of a rule that failed half-way; what it tied stays tied."""
        for found, length in zip((self.consumptions, self.norms, self.multiplications), recorded, strict=True):
            del found[length:]  # type: ignore[attr-defined]

    def count_norm(self, kind: str, weight: str | None) -> None:
        """A normalisation is called, with the named weight, or as one more of its kind without one."""
        if weight is not None:
            self.norm_weights.add(weight)
        else:
            self.n_other_norms[kind] = self.n_other_norms.get(kind, 0) + 1

    def fresh(self, n: int) -> IdArray:
        """`n` new ids, shape `(n,)`."""
        ids = np.arange(self.n_ids, self.n_ids + n, dtype=np.int64)
        self.n_ids += n
        return ids

    def copies(self, n: int) -> IdArray:
        """`n` new ids for copies of one index: nobody would expect a gate there, but they may go with what they meet."""
        ids = self.fresh(n)
        self.unreported.append(ids)
        return ids

    def are_copies(self, ids: IdArray) -> bool:
        """Whether ids are all of those that `copies` gave for one dimension."""
        return any(copies is ids or np.array_equal(copies, ids) for copies in self.unreported)

    def fresh_labels(self, shape: tuple[int, ...]) -> Labels:
        """New ids for every dimension longer than one."""
        return [self.fresh(size) if size > 1 else None for size in shape]

    def consume(self, parameter: str, dim: int, ids: IdArray) -> None:
        """Parameter `parameter` contracts the units `ids` along `dim`."""
        self.consumptions.append(Consumption(parameter, dim, ids))

    def pin(self, ids: IdArray | None, reason: str) -> None:
        """Units that can never be removed, and why."""
        if ids is not None and ids.size:
            self.pins.append((ids.ravel(), reason, self.op))

    def pin_all(self, labels: Labels, reason: str) -> None:
        """Pin every dimension of a tensor."""
        for ids in labels:
            self.pin(ids, reason)

    def tie(self, a: IdArray | None, b: IdArray | None, reason: str = INERT) -> IdArray | None:
        """Units of `a` and `b` live or die together, index by index; returns the ids to carry on."""
        if a is None or b is None:
            self.pin(a, reason)
            self.pin(b, reason)
            return a if a is not None else b
        if len(a) != len(b):
            self.pin(a, "meets a dimension of another length")
            self.pin(b, "meets a dimension of another length")
            return a
        if a is not b:
            self.ties.append((a, b))
        return a

    def tie_rows(self, rows: IdArray) -> None:
        """Tie the ids of each row of a 2-d array to each other."""
        if rows.shape[1] > 1:
            first = np.repeat(rows[:, 0], rows.shape[1] - 1)
            self.ties.append((first, np.ascontiguousarray(rows[:, 1:]).ravel()))
