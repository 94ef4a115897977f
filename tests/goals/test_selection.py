"""The exact selection: budget, window, floors and alignment against brute force over all counts."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from l0prune.cost.products import ProductCost
from l0prune.cost.widths import Floor
from l0prune.errors import BudgetInfeasibleError, ConfigError
from l0prune.flow.costs import CostTerm, Dimension, Side
from l0prune.goals.budget import Bound, Budget
from l0prune.goals.selection import align_open, select_open


class Net:
    """A small made-up network: widths, dimensions over them, and terms over pairs of dimensions."""

    def __init__(self, sizes, dimension_widths, terms, *, ungated=None, repeats=None, removable=()):
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self.members = [np.arange(starts[i], starts[i + 1]) for i in range(len(sizes))]
        self.n_gates = int(starts[-1])
        self.groups = np.repeat(np.arange(len(sizes)), sizes)
        repeats = repeats or [1] * len(dimension_widths)
        ungated = ungated or [0] * len(dimension_widths)
        gates = [
            np.repeat(np.concatenate([self.members[w] for w in widths]), times)
            for widths, times in zip(dimension_widths, repeats, strict=True)
        ]
        self.dimensions = [Dimension(f"d{i}", ungated[i], members, i in removable) for i, members in enumerate(gates)]
        sides = [Side(ungated[i], members) for i, members in enumerate(gates)]
        self.terms = [CostTerm(f"t{i}", float(c), tuple(sides[j] for j in of)) for i, (c, of) in enumerate(terms)]
        self.costs = ProductCost(self.terms, self.n_gates)

    def kept(self, is_open):
        return [dimension.n_ungated + int(is_open[dimension.gates].sum()) for dimension in self.dimensions]

    def all_counts(self, scores):
        """Every selection that keeps the best gates of each width, as boolean vectors."""
        ranked = [members[np.argsort(-scores[members], kind="stable")] for members in self.members]
        for counts in itertools.product(*(range(len(members) + 1) for members in ranked)):
            is_open = np.zeros(self.n_gates, bool)
            for members, count in zip(ranked, counts, strict=True):
                is_open[members[:count]] = True
            yield is_open

    def legal(self, is_open):
        return all(
            dimension.removable or kept >= 1 or kept == dimension.n_ungated + len(dimension.gates)
            for dimension, kept in zip(self.dimensions, self.kept(is_open), strict=True)
        )

    def aligned(self, is_open, align):
        totals = [dimension.n_ungated + len(dimension.gates) for dimension in self.dimensions]
        return all(kept % align == 0 or kept == total for kept, total in zip(self.kept(is_open), totals, strict=True))

    def select(self, scores, keep, **options):
        """Within one share, or within bounds."""
        bounds = keep if isinstance(keep, list) else [Bound(Budget("macs", keep), self.costs)]
        return select_open(scores, bounds, self.dimensions, self.groups, **options)

    def align(self, is_open, scores, *, keep=None, **options):
        bounds = () if keep is None else [Bound(Budget("macs", keep), self.costs)]
        return align_open(is_open, scores, self.dimensions, self.groups, bounds=bounds, **options)


@st.composite
def nets(draw, max_widths=3, smallest=1, largest=5, max_combinations=220):
    widths = draw(st.lists(st.integers(smallest, largest), min_size=1, max_size=max_widths))
    assume(np.prod([size + 1 for size in widths]) <= max_combinations)
    n = len(widths)
    dimension_widths = [[i] for i in range(n)]
    dimension_widths += (
        draw(st.lists(st.lists(st.integers(0, n - 1), min_size=2, max_size=n, unique=True), max_size=2))
        if n > 1
        else []
    )
    count = len(dimension_widths)
    terms = [(draw(st.integers(1, 9)), (i, draw(st.integers(0, count - 1)))) for i in range(count)]
    return Net(
        widths,
        dimension_widths,
        terms,
        ungated=draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)),
        repeats=draw(st.lists(st.integers(1, 2), min_size=count, max_size=count)),
        removable=draw(st.sets(st.integers(0, count - 1))),
    )


def scores_of(net, seed):
    """float32 scores on a coarse grid, so that there are ties."""
    return np.random.default_rng(seed).integers(-6, 7, net.n_gates).astype(np.float32) / 2


def salience_of(net, seed, measured):
    """Skewed, some zero, as gates that training has closed have it; None where nobody measured."""
    rng = np.random.default_rng(seed)
    return rng.exponential(size=net.n_gates) ** 3 * (rng.random(net.n_gates) < 0.7) if measured else None


seeds = st.integers(0, 2**16)
keeps = st.floats(0.03, 1.0).map(lambda x: round(x, 2))
quick = settings(max_examples=60, deadline=None)


@quick
@given(net=nets(), seed=seeds, keep=keeps, align=st.sampled_from([1, 2, 3, 4]), measured=st.booleans())
def test_selection_never_exceeds_the_budget_and_lands_in_the_window_where_any_does(net, seed, keep, align, measured):
    scores = scores_of(net, seed)
    reachable = [net.costs.hard(o) for o in net.all_counts(scores) if net.legal(o)]
    if min(reachable) > keep:
        with pytest.raises(BudgetInfeasibleError):
            net.select(scores, keep, align=align)
        return

    is_open = net.select(scores, keep, align=align, salience=salience_of(net, seed, measured))

    assert is_open.dtype == bool
    assert net.costs.hard(is_open) <= keep
    assert net.legal(is_open)
    if any(keep - 0.01 < cost <= keep for cost in reachable):
        assert net.costs.hard(is_open) > keep - 0.01


@quick
@given(net=nets(), seed=seeds, first=keeps, second=keeps, align=st.sampled_from([1, 2, 4]), measured=st.booleans())
def test_several_bounds_hold_together_and_one_is_filled_where_any_selection_fills_one(
    net, seed, first, second, align, measured
):
    rng, scores = np.random.default_rng(seed), scores_of(net, seed)
    other = ProductCost([replace(term, coefficient=float(rng.integers(1, 10))) for term in net.terms], net.n_gates)
    bounds = [Bound(Budget("macs", first), net.costs), Bound(Budget("params", second), other)]
    legal = [o for o in net.all_counts(scores) if net.legal(o)]
    fitting = [o for o in legal if all(bound.cost.hard(o) <= bound.keep for bound in bounds)]
    if not fitting:
        alone = [min(bound.cost.hard(o) for o in legal) <= bound.keep for bound in bounds]
        named = "together" if all(alone) else f"^{bounds[alone.index(False)].budget} cannot be met: with"
        with pytest.raises(BudgetInfeasibleError, match=named):
            net.select(scores, bounds, align=align)
        return

    is_open = net.select(scores, bounds, align=align, salience=salience_of(net, seed, measured))

    assert all(bound.cost.hard(is_open) <= bound.keep for bound in bounds)
    assert net.legal(is_open)
    if any(bound.keep - 0.01 < bound.cost.hard(o) for o in fitting for bound in bounds):
        assert any(bound.keep - 0.01 < bound.cost.hard(is_open) for bound in bounds)


def test_a_bound_that_others_imply_changes_nothing():
    net = chain([32, 64, 64, 128])
    scores = np.random.default_rng(0).normal(size=net.n_gates)
    tight, loose = Bound(Budget("macs", 0.4), net.costs), Bound(Budget("params", 0.99), net.costs)
    for align in (1, 8):
        np.testing.assert_array_equal(
            net.select(scores, [loose, tight], align=align), net.select(scores, 0.4, align=align)
        )


def test_an_amount_bounds_as_the_share_it_is_of_the_dense_cost():
    net = chain([16, 16])
    scores = np.random.default_rng(0).normal(size=net.n_gates)
    amount = Bound(Budget("macs", net.costs.dense / 2), net.costs)
    more = Bound(Budget("macs", 2 * net.costs.dense), net.costs)

    np.testing.assert_array_equal(net.select(scores, [amount]), net.select(scores, 0.5))
    assert net.select(scores, [more]).all()


@quick
@given(net=nets(smallest=2, largest=6), seed=seeds, align=st.sampled_from([2, 3]), measured=st.booleans())
def test_every_dimension_is_aligned_where_some_aligned_selection_lands(net, seed, align, measured):
    scores, salience = scores_of(net, seed), salience_of(net, seed, measured)
    assume(all(dimension.n_ungated + len(dimension.gates) > align for dimension in net.dimensions))
    goals = [o for o in net.all_counts(scores) if net.legal(o) and net.aligned(o, align) and net.costs.hard(o) > 0]
    keep = net.costs.hard(goals[seed % len(goals)])

    is_open = net.select(scores, keep, align=align, salience=salience)

    assert net.aligned(is_open, align)
    assert keep - 0.01 < net.costs.hard(is_open) <= keep


@quick
@given(
    net=nets(max_widths=5, max_combinations=5000),
    seed=seeds,
    keep=keeps,
    align=st.sampled_from([1, 4]),
    measured=st.booleans(),
)
def test_the_best_gates_of_each_width_are_kept_and_the_result_is_repeatable(net, seed, keep, align, measured):
    scores, salience = scores_of(net, seed), salience_of(net, seed, measured)
    try:
        is_open = net.select(scores, keep, align=align, salience=salience)
    except BudgetInfeasibleError:
        return
    for members in net.members:
        if is_open[members].any() and not is_open[members].all():
            assert scores[members][is_open[members]].min() >= scores[members][~is_open[members]].max()
    np.testing.assert_array_equal(is_open, net.select(scores.astype(np.float64), keep, align=align, salience=salience))


@quick
@given(net=nets(smallest=2, largest=6), seed=seeds, align=st.sampled_from([2, 3, 4]), share=st.floats(0, 1))
def test_aligning_keeps_what_is_aligned_and_fits_a_bound_that_the_selection_met(net, seed, align, share):
    rng = np.random.default_rng(seed)
    scores, is_open = scores_of(net, seed), rng.uniform(size=net.n_gates) < share
    assume(net.legal(is_open))
    cost = net.costs.hard(is_open)
    keep = max(cost, float(rng.uniform(cost, 1)))

    raised, within = net.align(is_open, scores, align=align), net.align(is_open, scores, align=align, keep=keep)

    assert net.legal(raised)
    assert net.legal(within)
    assert net.costs.hard(within) <= keep
    if all(kept % align == 0 for kept in net.kept(is_open)):
        assert (raised == is_open).all()
        assert (within == is_open).all()


# --- single cases


def chain(sizes, **options):
    """A plain chain of layers: 3 inputs, one dimension a width, 10 outputs."""
    n = len(sizes)
    dims = [[i] for i in range(n)]
    terms = [(9, (i, i + 1)) for i in range(n - 1)] + [(27, (0,)), (10, (n - 1,))]
    return Net(sizes, dims, terms, **options)


def test_within_one_width_the_top_scores_stay():
    net = Net([10], [[0]], [(1, (0,))])
    scores = np.array([5, 1, 9, 3, 7, 2, 8, 4, 6, 0], np.float32)
    np.testing.assert_array_equal(net.select(scores, 0.4), scores >= 6)


def test_ties_are_broken_by_gate_number():
    net = Net([6], [[0]], [(1, (0,))])
    assert np.flatnonzero(net.select(np.zeros(6, np.float32), 0.5)).tolist() == [0, 1, 2]


def test_keeping_everything_is_allowed_whatever_the_alignment():
    net = chain([5, 7, 3])
    assert net.select(np.zeros(15), 1.0, align=4).all()


def test_alignment_follows_the_multiplicity_of_a_gate():
    """A gate that owns four indices of a dimension is aligned to 8 in pairs."""
    net = Net([16, 32], [[0], [0], [1]], [(1, (1, 2)), (1, (0,))], repeats=[1, 4, 1])
    is_open = net.select(np.random.default_rng(0).normal(size=48), 0.5, align=8)
    assert [kept % 8 for kept in net.kept(is_open)] == [0, 0, 0]


def test_ungated_indices_count_towards_a_multiple():
    net = Net([13, 32], [[0], [1]], [(1, (0, 1))], ungated=[3, 0])
    is_open = net.select(np.random.default_rng(1).normal(size=45), 0.5, align=4)
    assert [kept % 4 for kept in net.kept(is_open)] == [0, 0]
    assert 0.49 < net.costs.hard(is_open) <= 0.5


def test_unions_of_widths_are_aligned_as_a_whole():
    """A stream that widens: 61 + 3 indices in one dimension, 64 more in the next."""
    net = Net([61, 3, 64], [[0, 1], [0, 1, 2]], [(9, (0, 0)), (9, (1, 1)), (9, (0, 1))])
    is_open = net.select(np.random.default_rng(2).normal(size=128), 0.5, align=8)
    assert [kept % 8 for kept in net.kept(is_open)] == [0, 0]
    assert 0.49 < net.costs.hard(is_open) <= 0.5


def test_a_removable_dimension_may_vanish_and_another_may_not():
    scores = np.concatenate([np.full(8, -5.0), np.full(8, 5.0)])
    branch = Net([8, 8], [[0], [1]], [(1, (0,)), (1, (1,))], removable=(0,))
    assert branch.kept(branch.select(scores, 0.5)) == [0, 8]
    layer = Net([8, 8], [[0], [1]], [(1, (0,)), (1, (1,))])
    assert layer.kept(layer.select(scores, 0.5)) == [1, 7]


def test_a_coarse_grid_is_refined_on_one_width_only():
    """Two layers of 32, aligned to 16: only 1/2 and 1 are on the grid, so 0.7 needs a finer width."""
    net = Net([32, 320], [[0], [1]], [(300, (0,)), (1, (1,))])
    is_open = net.select(np.random.default_rng(3).normal(size=352), 0.7, align=16)
    assert 0.69 < net.costs.hard(is_open) <= 0.7
    assert sum(kept % 16 != 0 for kept in net.kept(is_open)) == 1


@pytest.mark.parametrize("align", [1, 4])
def test_selected_cost_grows_with_the_budget(align):
    net = chain([32, 64, 64, 128])
    scores = np.random.default_rng(0).normal(size=net.n_gates)
    costs = [net.costs.hard(net.select(scores, keep, align=align)) for keep in np.linspace(0.1, 1.0, 19)]
    assert (np.diff(costs) > 0).all()


def test_rounding_up_stays_when_it_fits_and_rounds_down_when_it_does_not():
    net = chain([16, 16])
    scores = np.arange(32, dtype=np.float32)
    is_open = np.zeros(32, bool)
    is_open[[15, 14, 13, 12, 11, 31, 30, 29, 28, 27]] = True  # five of each
    assert net.kept(net.align(is_open, scores, align=4)) == [8, 8]
    assert net.kept(net.align(is_open, scores, align=4, keep=1.0)) == [8, 8]
    tight = net.align(is_open, scores, align=4, keep=net.costs.hard(is_open))
    assert net.kept(tight) == [4, 4]
    assert is_open[tight].all()


def test_rounding_up_opens_the_best_closed_gates():
    net = Net([8], [[0]], [(1, (0,))])
    scores = np.array([0, 9, 1, 8, 2, 7, 3, 6], np.float32)
    opened = net.align(scores == 0, scores, align=4)
    assert np.flatnonzero(opened).tolist() == [0, 1, 3, 5]


def test_units_are_taken_where_the_loss_suffers_least():
    net = Net([8, 8], [[0], [1]], [(1, (0,)), (1, (1,))])
    scores = np.full(16, 8.0)
    scores[[5, 6, 7, 13, 14, 15]] = -8.0
    salience = np.where(scores > 0, 1.0, 0.0)
    for cheap, dear in ((0, 1), (1, 0)):
        weighed = salience.copy()
        weighed[net.members[cheap]] *= 0.5

        is_open = net.select(scores, 0.75, align=4, salience=weighed)

        assert [int(is_open[net.members[width]].sum()) for width in (cheap, dear)] == [4, 8]


@pytest.mark.parametrize("measured", [False, True])
def test_a_large_network_takes_under_a_second(measured):
    rng = np.random.default_rng(0)
    sizes = [int(size) for size in rng.choice([256, 384, 512, 640], size=60)]
    dims = [[i] for i in range(60)]
    terms = [(9, (i, int(rng.integers(60)))) for i in range(60)] + [(1, (i, int(rng.integers(60)))) for i in range(40)]
    net = Net(sizes, dims, terms)
    assert net.n_gates > 25_000
    scores = np.clip(rng.normal(0, 4, net.n_gates), -8, 8).astype(np.float32)
    begin = time.process_time()
    is_open = net.select(scores, 0.5, align=16, salience=salience_of(net, 1, measured))
    assert time.process_time() - begin < 1.0
    assert net.aligned(is_open, 16)
    assert 0.49 < net.costs.hard(is_open) <= 0.5


# --- messages


def test_an_infeasible_budget_names_the_layers_that_hold_the_floor():
    net = Net([8], [[0], [0]], [(1, (0,)), (15, ()), (2, ())])
    with pytest.raises(BudgetInfeasibleError) as caught:
        net.select(np.zeros(8), 0.1)
    assert str(caught.value) == (
        "macs=0.1 cannot be met: with every gate closed that can be, 0.72 of the dense MACs is left "
        "(t1 0.6, t2 0.08). Ask for macs=0.72 or more, or make 't1' prunable."
    )
    assert net.costs.hard(net.select(np.zeros(8), 0.72)) == 0.72


def test_the_floor_is_the_least_cost_over_all_selections():
    net = Net([3, 4, 2], [[0], [1], [0, 2], [1, 2]], [(5, (0, 1)), (2, (2, 3)), (1, (3,))], removable=(0, 1))
    floor = Floor.of(net.costs, net.dimensions)
    assert floor.fraction == min(net.costs.hard(o) for o in net.all_counts(np.zeros(9)) if net.legal(o))
    assert sum(share for _, share in floor.held_by) == pytest.approx(floor.fraction)


def test_the_smallest_share_that_the_message_names_can_be_met():
    net = chain([7, 5, 3])
    with pytest.raises(BudgetInfeasibleError) as caught:
        net.select(np.zeros(15), 0.01)
    named = float(str(caught.value).split("Ask for macs=")[1].split(" ")[0])
    assert net.costs.hard(net.select(np.zeros(15), named)) <= named


def test_a_network_without_gates_meets_only_the_whole_budget():
    costs = ProductCost([CostTerm("fixed", 5.0, (Side(3, np.empty(0, np.int64)),))], 0)
    empty = np.empty(0)
    assert select_open(empty, [Bound(Budget("params", 1.0), costs)], (), empty).shape == (0,)
    with pytest.raises(BudgetInfeasibleError, match="1 of the dense parameters is left \\(fixed 1\\)"):
        select_open(empty, [Bound(Budget("params", 0.9), costs)], (), empty)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.zeros(3)}, r"scores have shape \(3,\); expected \(8,\)"),
        ({"scores": np.full(8, np.nan)}, "gate 0 has score nan"),
        ({"groups": np.zeros(3)}, r"groups have shape \(3,\); expected \(8,\)"),
        ({"align": 0}, "align is 0"),
        ({"align": 2.5}, "align is 2.5"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"salience": np.ones(3)}, r"salience has shape \(3,\)"),
        ({"salience": np.full(8, -1.0)}, r"least -1.0; expected 8 finite numbers >= 0"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    net = Net([8], [[0]], [(1, (0,))])
    arguments = {"scores": np.zeros(8), "groups": net.groups, "align": 1, "tolerance": 0.01, "salience": None, **change}
    with pytest.raises(ConfigError, match=message):
        select_open(
            arguments["scores"],
            [Bound(Budget("macs", 0.5), net.costs)],
            net.dimensions,
            arguments["groups"],
            align=arguments["align"],
            tolerance=arguments["tolerance"],
            salience=arguments["salience"],
        )
