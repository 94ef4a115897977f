"""The selection under costs that go in steps, and with branches that may close: against brute force and rounding by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from staircase import Staircase

from l0prune.cost.products import ProductCost
from l0prune.cost.widths import Widths, smallest_counts
from l0prune.errors import BudgetInfeasibleError
from l0prune.flow.branches import Branch
from l0prune.flow.costs import CostTerm, Dimension, Side
from l0prune.goals.budget import Bound, Budget
from l0prune.goals.selection import _best_ranked, select_open
from l0prune.goals.values import Values


class Residual:
    """A stream that must not vanish, and branches of one or two inner widths from it and back."""

    def __init__(self, stream, branches, *, block=4, fixed=0.0, kind=Staircase):
        sizes = [stream, *itertools.chain(*branches)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        members = [np.arange(starts[i], starts[i + 1]) for i in range(len(sizes))]
        sides = [Side(0, gates) for gates in members]
        self.n_gates, self.members = int(starts[-1]), members
        self.groups = np.repeat(np.arange(len(sizes)), sizes)
        self.block, self.fixed = block, fixed
        self.pairs, terms, removable, self.branches, width = [], [], set(), [], 1
        for number, inner in enumerate(branches):
            own = list(range(width, width + len(inner)))
            for place, (i, j) in enumerate(itertools.pairwise([0, *own, 0])):
                self.pairs.append((i, j))
                terms.append(CostTerm(f"{number}.{place}", 1.0, (sides[i], sides[j])))
            removable.add(own[-1])  # closing an earlier one alone would leave a layer without inputs
            gates = np.concatenate([members[i] for i in own])
            self.branches.append(Branch(f"b{number}", gates, (members[own[-1]],)))
            width += len(inner)
        self.widths_of = [np.unique(self.groups[branch.gates]) for branch in self.branches]
        self.dimensions = [Dimension(f"d{i}", 0, gates, i in removable) for i, gates in enumerate(members)]
        options = {"block": block, "fixed": fixed} if kind is Staircase else {}
        self.cost = kind(terms, self.n_gates, **options)

    def bound(self, keep):
        return Bound(Budget("macs", keep), self.cost)

    def select(self, scores, keep, **options):
        return select_open(
            scores, [self.bound(keep)], self.dimensions, self.groups, in_steps=True, branches=self.branches, **options
        )

    def values(self, scores, keep, salience=None):
        widths = Widths(scores, [self.cost], self.dimensions, self.groups, branches=self.branches)
        wanted, threshold = _best_ranked(widths, smallest_counts(widths), np.array([keep]))
        of_branches = None if salience is None else np.array([branch.worth(salience) for branch in self.branches])
        values = Values(
            widths, wanted=wanted, threshold=threshold, salience=salience, of_branches=of_branches, monotone=True
        )
        return values.of

    def is_whole(self, counts):
        """Whether the stream is there, and each branch either has all of its widths or none; `(n_widths, n)` -> `(n,)`."""
        there = counts > 0
        return there[0] & np.all([there[w].all(axis=0) | ~there[w].any(axis=0) for w in self.widths_of], axis=0)

    def cost_of(self, counts):
        """Fraction of dense, `(n_widths, n)` -> `(n,)`."""

        def total(counts):
            blocks = -(-counts // self.block) * self.block
            return sum(
                (blocks[i] * blocks[j] + self.fixed) * ((counts[i] > 0) & (counts[j] > 0)) for i, j in self.pairs
            )

        return total(counts) / total(np.array([[len(gates)] for gates in self.members]))

    def counts(self, is_open):
        return np.array([int(is_open[gates].sum()) for gates in self.members])


@settings(max_examples=15, deadline=None)
@given(
    branches=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=2), min_size=1, max_size=3),
    fixed=st.sampled_from([0.0, 8.0, 60.0]),
    keep=st.floats(0.35, 0.95),
    seed=st.integers(0, 2**16),
)
def test_no_selection_of_a_tiny_network_is_worth_more(branches, fixed, keep, seed):
    net, random = Residual(3, branches, block=2, fixed=fixed), np.random.default_rng(seed)
    scores, salience = random.normal(size=net.n_gates), random.random(net.n_gates)
    worth = net.values(scores, keep, salience)
    sizes = [range(len(gates) + 1) for gates in net.members]
    every = np.stack(np.meshgrid(*sizes, indexing="ij")).reshape(len(sizes), -1)
    fitting = every[:, net.is_whole(every) & (net.cost_of(every) <= keep)]

    if not fitting.size:
        with pytest.raises(BudgetInfeasibleError):
            net.select(scores, keep, salience=salience)
        return
    found = net.counts(net.select(scores, keep, salience=salience))[:, None]

    assert net.is_whole(found).all()
    assert net.cost_of(found) <= keep
    assert worth(found) >= worth(fitting).max() - 1e-9


@pytest.mark.parametrize(("seed", "fixed"), [(0, 0.0), (1, 4000.0)])
def test_it_is_never_worse_than_rounding_by_hand(seed, fixed):
    net = Residual(48, [[64], [48], [64, 32], [96], [64]], block=16, fixed=fixed)
    random = np.random.default_rng(seed)
    scores, salience = random.normal(size=net.n_gates), random.random(net.n_gates) ** 3
    worth = net.values(scores, 0.5, salience)

    found = net.counts(net.select(scores, 0.5, salience=salience))[:, None]

    sizes = np.array([len(gates) for gates in net.members])
    rounded = [
        np.minimum(sizes, -(-np.round(share * sizes).astype(int) // step) * step)
        for share in np.linspace(0.1, 1.0, 19)
        for step in (1, 4, 8, 16)
    ]
    columns = []
    for closed in [(), *((i,) for i in range(5)), *itertools.combinations(range(5), 2)]:
        gone = np.isin(np.arange(len(sizes)), [w for i in closed for w in net.widths_of[i]])
        columns += [np.where(gone, 0, counts) for counts in rounded]
    by_hand = np.stack(columns, axis=1)
    assert net.cost_of(found) <= 0.5
    assert worth(found) >= worth(by_hand[:, net.cost_of(by_hand) <= 0.5]).max()


def test_widths_end_where_steps_do_without_being_told_the_alignment():
    net = Residual(48, [[64], [80], [64]], block=16)

    counts = net.counts(net.select(np.random.default_rng(0).normal(size=net.n_gates), 0.55))

    assert all(count % 16 == 0 for count in counts)
    assert sum(counts) < net.n_gates


def test_a_branch_that_costs_much_beside_its_work_closes_first():
    cheap, dear = Residual(16, [[16]] * 4, block=4), Residual(16, [[16]] * 4, block=4, fixed=4000.0)
    scores = np.random.default_rng(1).normal(size=cheap.n_gates)

    def closed(net):
        return sum(not net.select(scores, 0.5)[branch.gates].any() for branch in net.branches)

    assert closed(cheap) == 0
    assert closed(dear) == 2


def test_what_the_units_of_a_branch_are_worth_together_decides_which_one_closes():
    net = Residual(16, [[16]] * 3, block=16, fixed=1000.0)
    scores = np.zeros(net.n_gates)

    for least in range(3):
        salience = np.full(net.n_gates, 1.0)
        salience[net.branches[least].gates] = 0.25
        found = net.select(scores, 0.7, salience=salience)
        assert [bool(found[branch.gates].any()) for branch in net.branches] == [i != least for i in range(3)]


def test_branches_close_under_smooth_costs_too_and_the_budget_is_filled():
    net = Residual(24, [[32], [32], [32, 16]], kind=ProductCost)
    scores = np.random.default_rng(3).normal(size=net.n_gates)
    scores[net.branches[1].gates] -= 6.0

    found = net.select(scores, 0.5)

    assert not found[net.branches[1].gates].any()
    assert 0.49 < net.cost.hard(found) <= 0.5


def test_several_bounds_hold_at_once():
    net = Residual(32, [[64], [64], [32]], block=16, fixed=3000.0)
    params = ProductCost([CostTerm("t", 1.0, (Side(0, gates),)) for gates in net.members], net.n_gates)
    bounds = [net.bound(0.7), Bound(Budget("params", 0.6), params)]

    found = select_open(
        np.random.default_rng(0).normal(size=net.n_gates), bounds, net.dimensions, net.groups, branches=net.branches
    )

    assert net.cost.hard(found) <= 0.7
    assert params.hard(found) <= 0.6
