"""The hard decision: which gates stay open so that the cut network meets its budgets, with widths the hardware likes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from l0prune.cost.cost import FloatArray, IntArray
from l0prune.cost.kinds import rounded_up
from l0prune.cost.widths import Floor, Widths, smallest_counts
from l0prune.errors import BudgetInfeasibleError, ConfigError
from l0prune.flow.branches import Branch
from l0prune.flow.costs import Dimension
from l0prune.goals.grids import Grids, finer_alignments, full_grids
from l0prune.goals.search import CountSearch
from l0prune.goals.staircase import most_valuable
from l0prune.goals.values import Values

if TYPE_CHECKING:
    from l0prune.goals.budget import Bound

__all__ = ["align_open", "covered", "require_feasible", "select_open"]

BoolArray = npt.NDArray[np.bool_]


def select_open(
    scores: npt.ArrayLike,
    bounds: Sequence[Bound],
    dimensions: Sequence[Dimension],
    groups: npt.ArrayLike,
    *,
    align: int = 1,
    tolerance: float = 0.01,
    salience: npt.ArrayLike | None = None,
    in_steps: bool = False,
    branches: Sequence[Branch] = (),
    weights: FloatArray | None = None,
) -> BoolArray:
    """The best-ranked gates whose exact costs are at or under the bounds, one of them within `tolerance` where reachable.

    Without alignment the gates are ranked together and the lowest are closed until the costs fit. With alignment each
    width is then rounded to a multiple of `align`, losing as little as possible of the widths' capacity
    (`CountSearch`) and, where it is given, of the salience. Where no such widths land in (keep - tolerance, keep],
    as few widths as possible take a finer alignment: align / 2, ... down to 1.

    Where a cost goes in steps, or whole branches may close, the most valuable counts are looked for
    among the ends of these steps (`most_valuable`): the costs decide which widths suit the hardware.

    Args:
        scores: rank of the gates, higher is kept first, shape `(n_gates,)`; equal scores rank by gate number. Trained
            gates are ranked by `log_alpha`, into which the budget's multiplier has already priced their cost.
        bounds: upper bounds of costs, at least one; all of them hold.
        dimensions: dimensions to align; those that are not removable keep at least one index.
        groups: widths, shape `(n_gates,)`: gates with different numbers are never traded for one another.
        align: kept indices of each dimension should be multiples of this, >= 1. A dimension kept whole is always fine.
        tolerance: how far below the budget the cost may end, > 0.
        salience: estimate of how much the loss suffers when a gate closes, >= 0, shape `(n_gates,)`. Ranks saturate:
            among gates that training left wide open they say little about which width can spare some.
        in_steps: whether a cost goes in the steps that hardware takes.
        branches: sets of gates that may close together; each before those that are nested in it.
        weights: units that a gate stands for, > 0, shape `(n_gates,)`; None for one each.

    Returns:
        Open gates, shape `(n_gates,)`, bool. Equal arguments give equal results.

    Raises:
        BudgetInfeasibleError: if closing every gate that may close still costs more than a bound.
        ConfigError: if an argument has the wrong shape or range.
    """
    if not tolerance > 0:
        raise ConfigError(
            f"tolerance is {tolerance!r}; expected a positive fraction of the dense cost, 0.01 by default"
        )
    costs = [bound.cost for bound in bounds]
    widths, keep = Widths(scores, costs, dimensions, groups, branches=branches), _keep(bounds)
    least = _feasible_counts(widths, bounds, dimensions, branches)
    counts, threshold = _best_ranked(widths, least, keep)
    measured = None if salience is None else _checked("salience", salience, len(widths.scores))
    by_steps = in_steps or bool(branches)
    values = Values(
        widths,
        wanted=counts,
        threshold=threshold,
        salience=measured,
        of_branches=None if measured is None else np.array([branch.worth(measured) for branch in branches]),
        monotone=by_steps,
        weights=weights,
    )
    if by_steps:
        return widths.best_gates(most_valuable(CountSearch(widths, keep, np.inf, values), counts, least, align=align))
    search = CountSearch(widths, keep, tolerance, values)
    exact = _landed(search, counts, full_grids(widths.sizes), Grids(widths, 1, counts))
    alignment = Grids(widths, align, counts)
    if alignment.align > 1 and alignment.n_misaligned(exact):
        exact = _aligned(search, alignment, least, counts, exact)
    return widths.best_gates(exact)


def align_open(
    open_gates: npt.ArrayLike,
    scores: npt.ArrayLike,
    dimensions: Sequence[Dimension],
    groups: npt.ArrayLike,
    *,
    align: int,
    bounds: Sequence[Bound] = (),
) -> BoolArray:
    """Change a selection so that its widths become multiples of `align`: up where the costs allow it, else down.

    Args:
        open_gates: the selection, shape `(n_gates,)`, bool. Rounding up opens the best-ranked closed gates of a width,
            rounding down closes the lowest-ranked open ones.
        scores: rank of the gates, shape `(n_gates,)`.
        dimensions: dimensions to align; those that are not removable keep at least one index.
        groups: widths, shape `(n_gates,)`.
        align: >= 1.
        bounds: upper bounds of costs; none rounds every width up.

    Returns:
        Open gates, shape `(n_gates,)`, bool.

    Raises:
        BudgetInfeasibleError: if even closing every gate that may close costs more than a bound.
        ConfigError: if an argument has the wrong shape or range.
    """
    is_open = np.asarray(open_gates).astype(bool)
    n_gates = len(np.atleast_1d(groups))
    if is_open.shape != (n_gates,):
        raise ConfigError(f"open gates have shape {is_open.shape}; expected ({n_gates},)")
    widths, keep = Widths(scores, [bound.cost for bound in bounds], dimensions, groups, first=is_open), _keep(bounds)
    counts = widths.counts_of(is_open)
    alignment = Grids(widths, align, counts)
    raised = counts if not alignment.n_misaligned(counts) else alignment.rounded(counts, up=True)
    if widths.covers(counts) and not widths.covers(raised):
        raised = np.maximum(raised, counts)
    if (widths.cost(raised) <= keep).all():
        return widths.best_gates(raised)
    least = _feasible_counts(widths, bounds, dimensions)
    search = CountSearch(widths, keep, keep, Values(widths, wanted=counts, threshold=_threshold(widths, is_open)))
    for step in finer_alignments(alignment.align):
        nearby = Grids(widths, step, counts)
        ends = (nearby.rounded(counts, up=False), nearby.rounded(counts, up=True))
        lowered = search.reduce(raised, [np.unique(pair) for pair in np.stack(ends, axis=1)])
        if search.fits(lowered):
            return widths.best_gates(lowered)
    return widths.best_gates(search.reduce(np.maximum(counts, least), full_grids(widths.sizes)))


def covered(open_gates: BoolArray, scores: FloatArray, dimensions: Sequence[Dimension]) -> BoolArray:
    """The same gates, and the best-ranked of each dimension that would be empty and must not be.

    Args:
        open_gates: Shape `(n_gates,)`, bool; not changed.
        scores: Rank of the gates, higher is kept first, shape `(n_gates,)`.
        dimensions: Those that are not removable keep at least one index.
    """
    chosen = open_gates.copy()
    for dimension in dimensions:
        gates = dimension.gates
        if not dimension.removable and not dimension.n_ungated and len(gates) and not chosen[gates].any():
            chosen[gates[scores[gates].argmax()]] = True
    return chosen


def require_feasible(bounds: Sequence[Bound], dimensions: Sequence[Dimension], branches: Sequence[Branch] = ()) -> None:
    """See that some set of gates costs no more than every bound.

    Raises:
        BudgetInfeasibleError: says which cannot be met, what can, and which layers stand in the way.
    """
    alike = np.zeros(bounds[0].cost.n_gates)
    widths = Widths(alike, [bound.cost for bound in bounds], dimensions, alike, branches=branches)
    _feasible_counts(widths, bounds, dimensions, branches)


def _feasible_counts(
    widths: Widths, bounds: Sequence[Bound], dimensions: Sequence[Dimension], branches: Sequence[Branch] = ()
) -> IntArray:
    """The smallest counts, which meet every bound.

    Raises:
        BudgetInfeasibleError: as `require_feasible`.
    """
    least = smallest_counts(widths, _keep(bounds))
    if (widths.cost(least) <= _keep(bounds)).all():
        return least
    for bound in bounds:
        floor = Floor.of(bound.cost, dimensions, branches)
        if floor.fraction > bound.keep:
            raise BudgetInfeasibleError(_what_is_left(bound, floor))
    raise BudgetInfeasibleError(
        f"{','.join(str(bound.budget) for bound in bounds)} cannot be met together, though each alone can: raise one of them"
    )


def _what_is_left(bound: Bound, floor: Floor) -> str:
    largest = [held for held in floor.held_by[:3] if held[1] >= 0.1 * floor.fraction] or list(floor.held_by[:1])
    left, ask = bound.told(rounded_up(floor.fraction))
    return (
        f"{bound.budget} cannot be met: with every gate closed that can be, {left} is left "
        f"({', '.join(f'{name} {share:.2g}' for name, share in largest)}). Ask for {ask} or more, "
        f"or make {largest[0][0]!r} prunable."
    )


def _keep(bounds: Sequence[Bound]) -> FloatArray:
    return np.array([bound.keep for bound in bounds])


def _checked(name: str, given: npt.ArrayLike, n: int) -> FloatArray:
    values = np.asarray(given, dtype=np.float64)
    if values.shape != (n,) or not (np.isfinite(values) & (values >= 0)).all():
        raise ConfigError(
            f"{name} has shape {values.shape}, least {values.min(initial=0.0)}; expected {n} finite numbers >= 0"
        )
    return values


def _best_ranked(widths: Widths, least: IntArray, keep: FloatArray) -> tuple[IntArray, float]:
    """Counts of the longest prefix of the ranking that fits, and the score of the first gate left out."""
    n_gates = len(widths.scores)
    ranking = np.lexsort((np.arange(n_gates), -widths.scores))
    head = _best_cover(widths, ranking)
    if (widths.cost(widths.counts_of(head)) > keep).any():
        head = widths.best_gates(least)
    ranking = np.concatenate([np.flatnonzero(head), ranking[~head[ranking]]])

    def counts(length: int) -> IntArray:
        return np.bincount(widths.of_gate[ranking[:length]], minlength=widths.n).astype(np.int64)

    low, high = int(head.sum()), n_gates
    while low < high:
        middle = (low + high + 1) // 2
        if (widths.cost(counts(middle)) <= keep).all():
            low = middle
        else:
            high = middle - 1
    if low == n_gates:
        return counts(low), float(widths.scores.min(initial=0.0)) - 1.0
    return counts(low), float(widths.scores[ranking[low]])


def _best_cover(widths: Widths, ranking: IntArray) -> BoolArray:
    """The best-ranked gate of every required dimension that has no ungated index, shape `(n_gates,)`."""
    best = np.full(widths.n, len(ranking))
    np.minimum.at(best, widths.of_gate[ranking], np.arange(len(ranking)))
    chosen = np.zeros(len(ranking), bool)
    kept = widths.ungated.copy()
    for dimension in np.flatnonzero(kept < widths.required):
        if kept[dimension] < widths.required[dimension]:
            inside = np.flatnonzero(widths.in_dimensions[dimension])
            width = int(inside[best[inside].argmin()])
            chosen[ranking[best[width]]] = True
            kept += widths.in_dimensions[:, width]
    return chosen


def _landed(search: CountSearch, counts: IntArray, grids: list[IntArray], alignment: Grids) -> IntArray:
    """Bring counts that fit into the window, if any change that is tried does."""
    counts = search.extend(counts, grids)
    if search.lands(counts):
        return search.fill(counts, grids)
    found = search.land_by_one(counts, grids)
    if found is None:
        found = search.land_by_two(counts, grids, grids, reach=8)
    if found is None:
        found = search.enumerate(grids, alignment)
    return counts if found is None else found


def _aligned(search: CountSearch, alignment: Grids, least: IntArray, start: IntArray, unaligned: IntArray) -> IntArray:
    """Aligned counts in the window; with as few and as coarse exceptions as are needed to get there."""
    widths = search.widths
    rounded = _nearest(search, alignment, start)
    rounded = np.maximum(rounded, np.where(least > 0, alignment.rounded(least, up=True), 0))
    if not widths.covers(rounded):
        rounded = np.maximum(rounded, least)  # a required dimension too small for any multiple
    landed = search.reduce(rounded, alignment.grids)
    if search.fits(landed):
        landed = _landed(search, landed, alignment.grids, alignment)
        if search.lands(landed):
            landed = search.fill(search.polish(landed, alignment.grids), alignment.grids)
            if not alignment.n_misaligned(landed):
                return landed
    else:
        for step in finer_alignments(alignment.align)[1:]:
            landed = search.reduce(landed, Grids(widths, step, landed).grids)
    candidates = [landed, unaligned, *_with_exceptions(search, alignment, landed)]
    everything = search.enumerate(full_grids(widths.sizes), alignment)
    if everything is not None:
        candidates.append(everything)

    def rank(counts: IntArray) -> tuple[float, int, float]:
        return float(search.shortfall(counts)), int(alignment.n_misaligned(counts)), -search.value(counts)

    return min((counts for counts in candidates if search.fits(counts) and widths.covers(counts)), key=rank)


def _nearest(search: CountSearch, alignment: Grids, counts: IntArray) -> IntArray:
    """Each width rounded up or down, whichever loses less capacity."""
    low, high = alignment.rounded(counts, up=False), alignment.rounded(counts, up=True)
    result = counts.copy()
    for width in range(len(counts)):
        down, up = counts.copy(), counts.copy()
        down[width], up[width] = low[width], high[width]
        result[width] = low[width] if search.value(down) > search.value(up) else high[width]
    return result


def _with_exceptions(search: CountSearch, alignment: Grids, counts: IntArray) -> list[IntArray]:
    """The first change that lands: one width on a finer grid, alone or together with an aligned one, then two."""
    for step in finer_alignments(alignment.align)[1:]:
        finer = Grids(search.widths, step, counts).grids
        found = search.land_by_one(counts, finer)
        if found is None:
            found = search.land_by_two(counts, finer, alignment.grids, reach=2 * alignment.align // step)
        if found is not None:
            return [found]
    found = search.land_by_two(counts, full_grids(search.widths.sizes), full_grids(search.widths.sizes), reach=8)
    return [] if found is None else [found]


def _threshold(widths: Widths, is_open: BoolArray) -> float:
    """A score between the open and the closed gates."""
    lowest = widths.scores[is_open].min(initial=np.inf)
    highest = widths.scores[~is_open].max(initial=-np.inf)
    ends = [float(end) for end in (lowest, highest) if np.isfinite(end)]
    return sum(ends) / len(ends) if ends else 0.0
