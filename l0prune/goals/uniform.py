"""The same widths in all layers: gates that have to stay in step are bundled, and a bundle opens and closes like a gate."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from l0prune.cost.cost import Cost, FloatArray, IntArray, Sides
from l0prune.cost.widths import Widths
from l0prune.errors import BudgetInfeasibleError, ConfigError
from l0prune.flow.costs import Dimension
from l0prune.goals.selection import require_feasible
from l0prune.kept import GateArray, Kept

if TYPE_CHECKING:
    from l0prune.flow.channel_flow import ChannelFlow
    from l0prune.goals.budget import Bound

__all__ = ["Alike", "Bundles"]

BoolArray = npt.NDArray[np.bool_]
Accepts = Callable[[Mapping[tuple[str, int], int], Mapping[int, Collection[int]]], bool]


_MOST_QUESTIONS = 64
"""Choices that are tried for one that can be had, as a class of models may have to be built for each."""


def _always(sizes: Mapping[tuple[str, int], int], integers: Mapping[int, Collection[int]]) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class Alike:
    """Sizes of tensors that have to stay in proportion.

    Attributes:
        of: What decides (who to name in errors).
        sizes: (tensor, dimension) -> what its size depends on: those that depend on the same keep the same share.
        fixed: What a size depends on that nothing changes.
        accepts: Whether all of them can be had at once, by (tensor, dimension) -> size; and by sizes in calls, dense -> cut.
        names: What a size depends on -> what it is called.
    """

    of: str
    sizes: Mapping[tuple[str, int], Hashable]
    fixed: frozenset[Hashable] = frozenset()
    accepts: Accepts = _always
    names: Mapping[Hashable, str] = field(default_factory=dict)


class Bundles:
    """Gates of widths that stay in proportion, in bundles: the best of each width, then the next best, and so on.

    Two heads of a layer with 12, and of another with 12, and 64 of 384 channels may be a bundle. Whichever bundles stay, the best
    ones first, all sizes that have to be alike are.

    Args:
        flow: Of the network.
        scores: Rank of the gates, higher is kept first, shape `(n_gates,)`.
        bounds: Of costs, at least one.
        alike: What has to stay in proportion.

    Raises:
        ConfigError: nothing can go in proportion.

    Attributes:
        of_gate: Bundle of each gate, shape `(n_gates,)`, -1 where it stays in any case.
        n: Number of bundles.
        scores: Mean score of each, shape `(n,)`.
        sizes: Gates in each, shape `(n,)`.
        groups: Bundles of one number are alike, shape `(n,)`.
        dimensions: As of the network, in bundles; none may vanish.
        bounds: The same, of costs as functions of the bundles.
    """

    def __init__(self, flow: ChannelFlow, scores: FloatArray, bounds: Sequence[Bound], alike: Alike) -> None:
        self._flow, self._alike = flow, alike
        widths = Widths(scores, [bound.cost for bound in bounds], flow.dimensions, flow.gate_group)
        together = _in_step(flow, widths, alike)
        self.of_gate: IntArray = np.full(len(scores), -1, np.int64)
        self.groups: IntArray = np.zeros(0, np.int64)
        for group in np.unique(together[together >= 0]):
            members = np.flatnonzero(together == group)
            n_steps = math.gcd(*(int(widths.sizes[width]) for width in members))
            for width in members:
                gates = widths.order[widths.starts[width] : widths.starts[width + 1]]
                self.of_gate[gates] = len(self.groups) + np.arange(len(gates)) // (len(gates) // n_steps)
            self.groups = np.append(self.groups, np.full(n_steps, group))
        if not len(self.groups):
            raise ConfigError(
                f"{alike.of} can say no smaller size for all layers at once of what can be cut here{self._of_held}:"
                " leave uniform out"
            )
        self.n = len(self.groups)
        self.sizes: FloatArray = self.sums(np.ones(len(scores)))
        self.scores: FloatArray = self.sums(scores) / self.sizes
        self.dimensions = tuple(self._bundled(dimension) for dimension in flow.dimensions)
        self.bounds = tuple(bound._replace(cost=_BundledCost(bound.cost, self)) for bound in bounds)

    def require_feasible(self) -> None:
        """See that some choice meets the bounds.

        Raises:
            BudgetInfeasibleError: none does; says what stays as it is.
        """
        try:
            require_feasible(self.bounds, self.dimensions)
        except BudgetInfeasibleError as error:
            raise BudgetInfeasibleError(
                f"{error} This is with the same widths in all layers{self._of_held}."
            ) from error

    @property
    def _of_held(self) -> str:
        """What the sizes that stay as they are depend on, as the end of a sentence; empty where nothing is known of it."""
        held = {
            self._alike.names[depends_on]
            for (name, dim), depends_on in self._alike.sizes.items()
            if depends_on in self._alike.names and _is_held(self._flow, name, dim)
        }
        what = ", ".join(sorted(held))
        return (
            f" ({what} cannot change: units of that size are pinned, as those of the model's outputs are)"
            if held
            else ""
        )

    def sums(self, values: npt.ArrayLike) -> FloatArray:
        """Sum of what each gate has, shape `(n_gates,)` -> `(n,)`."""
        inside = self.of_gate >= 0
        return np.bincount(self.of_gate[inside], np.asarray(values, np.float64)[inside], self.n).astype(np.float64)

    def accepted(self, bundles: BoolArray, *, align: int = 1) -> BoolArray:
        """The nearest choice of bundles that can be had: fewer of some groups, and of others as many as the bounds allow.

        Args:
            bundles: A choice within the bounds, shape `(n,)`; it is returned where it can be had.
            align: Kept sizes that change are multiples of this.

        Raises:
            ConfigError: no such choice was found among those nearest.
        """
        counts = np.bincount(self.groups[bundles], minlength=int(self.groups.max()) + 1)
        questions = iter(range(_MOST_QUESTIONS))
        if self._can_have(counts):
            return bundles
        found: list[tuple[float, IntArray]] = []
        for group in np.unique(self.groups):
            for count in self._counts_below(counts, int(group), align):
                fewer = counts.copy()
                fewer[group] = count
                if next(questions, None) is None:
                    break
                if self._can_have(fewer):
                    filled = self._filled(fewer, int(group), align, questions)
                    found.append((float(self._weight(filled)), filled))
                    break
        if not found:
            found = self._of_several(counts, align, questions)
        if not found:
            multiples = f" in multiples of {align}" if align > 1 else ""
            remedy = "a smaller align or another budget" if align > 1 else "another budget"
            raise ConfigError(
                f"{self._alike.of} refuses every combination of sizes{multiples} near the one that fits the budget: give"
                f" {remedy}, or leave uniform out"
            )
        return self._open(max(found, key=lambda pair: pair[0])[1])

    def _counts_below(self, counts: IntArray, group: int, align: int) -> list[int]:
        """Smaller counts of a group at which its sizes are multiples of `align`, the largest first."""
        steps = self._steps(group, align)
        return list(range((int(counts[group]) - 1) // steps * steps, 0, -steps))

    def _of_several(self, counts: IntArray, align: int, questions: Iterator[int]) -> list[tuple[float, IntArray]]:
        """The heaviest choice of fewer bundles in several groups that can be had; none if it is not among the first ones."""
        waiting = [(-self._weight(counts), tuple(int(count) for count in counts))]
        seen = set(waiting)
        while waiting:
            weight, given = heapq.heappop(waiting)
            n_fewer = sum(a < b for a, b in zip(given, counts, strict=True))
            if n_fewer > 1:
                if next(questions, None) is None:
                    return []
                if self._can_have(np.array(given)):
                    return [(-weight, np.array(given))]
            for group in np.unique(self.groups):
                fewer = np.array(given)
                for count in self._counts_below(fewer, int(group), align)[:1]:
                    fewer[group] = count
                    entry = (-self._weight(fewer), tuple(int(count) for count in fewer))
                    if entry not in seen:
                        seen.add(entry)
                        heapq.heappush(waiting, entry)
        return []

    def _filled(self, counts: IntArray, group: int, align: int, questions: Iterator[int]) -> IntArray:
        """More bundles of the other groups, while the bounds allow it and questions are left."""
        counts = counts.copy()
        for other in np.unique(self.groups):
            steps, whole = self._steps(int(other), align), int((self.groups == other).sum())
            while other != group:
                more = counts.copy()
                more[other] = min((int(more[other]) // steps + 1) * steps, whole)
                within = more[other] > counts[other] and all(
                    bound.cost.hard(self._open(more)) <= bound.keep for bound in self.bounds
                )
                if not within or next(questions, None) is None or not self._can_have(more):
                    break
                counts = more
        return counts

    def _steps(self, group: int, align: int) -> int:
        """Bundles of a group that make up a multiple of `align`."""
        return max(1, align // math.gcd(align, self._indices_each(group)))

    def _indices_each(self, group: int) -> int:
        """How many indices of a dimension a bundle of a group stands for, the most common dimension deciding."""
        each = [int((self.groups[d.gates] == group).sum()) for d in self.dimensions]
        each = [n // int((self.groups == group).sum()) for n in each if n]
        return max(1, min(each, default=1))

    def _weight(self, counts: IntArray) -> float:
        """Gates that stay, each as a share of its group."""
        return float(sum(counts[group] / (self.groups == group).sum() for group in np.unique(self.groups)))

    def _open(self, counts: IntArray) -> BoolArray:
        """The best bundles of each group, shape `(n,)`."""
        rank = np.arange(self.n) - np.searchsorted(self.groups, self.groups)
        return np.asarray(rank < counts[self.groups])

    def _can_have(self, counts: IntArray) -> bool:
        """Whether all sizes can be had at once that this leaves."""
        kept = Kept(self.gates(self._open(counts)))
        sizes = {}
        for name, dim in self._alike.sizes:
            dims = self._flow.tensors.get(self._flow.aliases.get(name, name))
            gates = None if dims is None else dims[dim]
            if gates is not None:
                sizes[name, dim] = kept.count(gates)
        integers: dict[int, set[int]] = defaultdict(set)
        for gates in _of_nodes(list(self._flow.nodes.values())):
            if (left := kept.count(gates)) != len(gates):
                integers[len(gates)].add(left)
        return self._alike.accepts(sizes, integers)

    def gates(self, bundles: BoolArray) -> BoolArray:
        """The gates that are open when these bundles are, `(n,)` -> `(n_gates,)`."""
        return np.append(bundles, True)[self.of_gate]

    def _bundled(self, dimension: Dimension) -> Dimension:
        """A dimension in bundles."""
        of = self.of_gate[dimension.gates]
        return Dimension(
            dimension.name, dimension.n_ungated + int((of < 0).sum()), np.sort(of[of >= 0]), removable=False
        )


class _BundledCost(Cost):
    """A cost as a function of bundles."""

    def __init__(self, cost: Cost, bundles: Bundles) -> None:
        self._cost, self._of_gate = cost, bundles.of_gate
        self.layers, self.layer_sides, self.dense = cost.layers, cost.layer_sides, cost.dense
        inside = bundles.of_gate >= 0
        of_class = sparse.csr_array(
            (np.ones(int(inside.sum())), (cost.sides.gate_class[inside], bundles.of_gate[inside])),
            shape=(cost.sides.per_class.shape[1], bundles.n),
        )
        per_bundle = np.asarray((sparse.csr_array(cost.sides.per_class) @ of_class).todense(), np.float64)
        always = np.bincount(cost.sides.gate_class[~inside], minlength=cost.sides.per_class.shape[1])
        _, first, inverse = np.unique(per_bundle, axis=1, return_index=True, return_inverse=True)
        ungated = cost.sides.ungated + cost.sides.per_class @ always
        self.sides = Sides(ungated, inverse.reshape(-1).astype(np.int64), per_bundle[:, first])

    def layer_costs(self, counts: FloatArray) -> FloatArray:
        """As of the cost itself, which depends on the same counts."""
        return self._cost.layer_costs(counts)

    def expected(self, open_probability: Tensor) -> Tensor:
        """As if the gates of a bundle were independent of each other."""
        padded = open_probability.new_ones(self.n_gates + 1)
        padded[:-1] = open_probability
        return self._cost.expected(padded[self._of_gate])


def _of_nodes(dims: Iterable[Any]) -> Iterator[GateArray]:
    """Gates of the dimensions of nodes, those with several outputs among them."""
    for inner in dims:
        if isinstance(inner, np.ndarray):
            yield inner
        elif inner is not None:
            yield from _of_nodes(inner)


def _is_held(flow: ChannelFlow, name: str, dim: int) -> bool:
    """Whether a dimension of a tensor has an index that no gate removes."""
    dims = flow.tensors.get(flow.aliases.get(name, name))
    gates = None if dims is None else dims[dim]
    return gates is None or bool((gates < 0).any())


def _in_step(flow: ChannelFlow, widths: Widths, alike: Alike) -> IntArray:
    """Widths of the same number keep the same share of their gates, shape `(n_widths,)`; -1 where all of them stay.

    What a size depends on ties the widths in all dimensions that depend on it. Where one of these has an index that no gate
    removes, none of them can shrink.
    """
    tied: dict[Hashable, set[int]] = {}
    fixed: set[Hashable] = set(alike.fixed)
    known: set[int] = set()
    for (name, dim), depends_on in alike.sizes.items():
        dims = flow.tensors.get(flow.aliases.get(name, name))
        gates = None if dims is None else dims[dim]
        if _is_held(flow, name, dim):
            fixed.add(depends_on)
        if gates is not None:
            tied.setdefault(depends_on, set()).update(widths.of_gate[gates[gates >= 0]].tolist())
    for members in tied.values():
        known |= members
    edges = [(min(members), width) for members in tied.values() if members for width in members]
    rows, columns = np.array(edges, np.int64).reshape(-1, 2).T
    graph = sparse.coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(widths.n, widths.n))
    _, component = connected_components(graph, directed=False)
    stays = {int(component[width]) for of in fixed for width in tied.get(of, ())}
    stays |= {int(component[width]) for width in range(widths.n) if width not in known}
    return np.where(np.isin(component, sorted(stays)), -1, component).astype(np.int64)
