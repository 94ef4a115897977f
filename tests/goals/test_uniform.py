"""Widths that have to be alike are chosen in bundles: every choice leaves them in proportion, within the budget."""

import numpy as np
import pytest
import torch
from torch import nn

import l0prune
from l0prune.cost.kinds import Costs
from l0prune.errors import BudgetInfeasibleError, ConfigError
from l0prune.goals.budget import Budgets
from l0prune.goals.uniform import Alike, Bundles

SEEDS = range(3)


class Chain(nn.Module):
    """Three hidden layers of 12, 24 and 10 units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 12), nn.Linear(12, 24), nn.Linear(24, 10), nn.Linear(10, 3)

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x).relu()).relu()).relu())


ALIKE = Alike(
    "the test",
    {("a.weight", 0): 1, ("b.weight", 1): 1, ("b.weight", 0): 1, ("c.weight", 1): 1, ("c.weight", 0): 2},
)


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    return l0prune.trace(Chain(), torch.ones(2, 5))


def widths(flow, is_open):
    return [int(is_open[flow.tensors[f"{name}.weight"][0]].sum()) for name in "abc"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_a_choice_keeps_the_best_of_each_in_proportion_within_the_budget(flow, seed, keep):
    scores = np.random.default_rng(seed).normal(size=flow.n_gates)
    costs = Costs(flow)
    goal = Budgets.parse(f"macs={keep}").uniform(ALIKE)

    chosen = goal.choose_open(costs, scores, np.ones(flow.n_gates, bool), align=1)

    a, b, c = widths(flow, chosen)
    assert (2 * a, 0 < a < 12) == (b, True)
    assert 0 < c <= 10
    assert keep - 0.12 < costs("macs").hard(chosen) <= keep
    for name in "abc":
        gates = flow.tensors[f"{name}.weight"][0]
        assert scores[gates][chosen[gates]].min() > scores[gates][~chosen[gates]].max(initial=-np.inf)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cost_of_bundles_is_the_cost_of_their_gates(flow, seed):
    rng = np.random.default_rng(seed)
    goal = Budgets.parse("macs=0.5,params=0.7")
    costs = Costs(flow)
    bundles = Bundles(flow, rng.normal(size=flow.n_gates), goal.bounds(costs), ALIKE)

    for _ in range(5):
        chosen = rng.random(bundles.n) < 0.5
        for bound, bundled in zip(goal.bounds(costs), bundles.bounds, strict=True):
            assert bundled.cost.hard(chosen) == pytest.approx(bound.cost.hard(bundles.gates(chosen)), abs=1e-12)
            assert float(bundled.cost.expected(torch.from_numpy(chosen).double())) == pytest.approx(
                bundled.cost.hard(chosen), abs=1e-9
            )
    assert bundles.sizes.sum() == flow.n_gates


def test_what_depends_on_something_fixed_or_on_nothing_known_stays(flow):
    scores = np.random.default_rng(0).normal(size=flow.n_gates)
    costs = Costs(flow)
    some = {key: value for key, value in ALIKE.sizes.items() if value == 1}
    fixed = Budgets.parse("macs=0.9").uniform(Alike("the test", ALIKE.sizes, frozenset({1})))
    unknown = Budgets.parse("macs=0.8").uniform(Alike("the test", some))

    assert widths(flow, fixed.choose_open(costs, scores, np.ones(flow.n_gates, bool), align=1))[:2] == [12, 24]
    assert widths(flow, unknown.choose_open(costs, scores, np.ones(flow.n_gates, bool), align=1))[2] == 10
    nothing = Budgets.parse("macs=0.9").uniform(Alike("the test", ALIKE.sizes, frozenset({1, 2})))
    with pytest.raises(ConfigError, match="the test can say no smaller size"):
        nothing.choose_open(costs, scores, np.ones(flow.n_gates, bool), align=1)


def test_a_choice_that_is_refused_gives_way_to_the_nearest_one_that_fits(flow):
    scores = np.random.default_rng(0).normal(size=flow.n_gates)
    costs = Costs(flow)
    ones = np.ones(flow.n_gates, bool)
    free = widths(flow, Budgets.parse("macs=0.6").uniform(ALIKE).choose_open(costs, scores, ones, align=1))

    def accepts(sizes, integers):
        return sizes["a.weight", 0] != free[0]

    picky = Alike("the test", ALIKE.sizes, accepts=accepts)
    chosen = Budgets.parse("macs=0.6").uniform(picky).choose_open(costs, scores, ones, align=1)

    a, b, c = widths(flow, chosen)
    assert (a, b) == (free[0] - 1, 2 * a)
    assert c > free[2]
    assert costs("macs").hard(chosen) <= 0.6
    never = Alike("the test", ALIKE.sizes, accepts=lambda sizes, integers: False)
    with pytest.raises(ConfigError, match="refuses every combination"):
        Budgets.parse("macs=0.6").uniform(never).choose_open(costs, scores, ones, align=1)


def refused_at(flow, accepts, *, align: int = 4, keep: float = 0.58):
    """Widths chosen where a class accepts only some."""
    goal = Budgets.parse(f"macs={keep}").uniform(Alike("the test", ALIKE.sizes, accepts=accepts))
    scores = np.random.default_rng(0).normal(size=flow.n_gates)
    costs = Costs(flow)
    chosen = goal.choose_open(costs, scores, np.ones(flow.n_gates, bool), align=align)
    assert costs("macs").hard(chosen) <= keep
    return widths(flow, chosen)


def test_what_gives_way_to_a_refusal_stays_on_multiples(flow):
    free = refused_at(flow, lambda sizes, integers: True)
    assert free == [8, 16, 10]

    assert refused_at(flow, lambda sizes, integers: sizes["a.weight", 0] != 8) == [4, 8, 10]


def test_several_groups_give_way_where_one_is_not_enough(flow):
    def accepts(sizes, integers):
        return sizes["a.weight", 0] <= 4 and sizes["c.weight", 0] <= 8

    assert refused_at(flow, accepts) == [4, 8, 8]


def test_a_class_that_refuses_everything_is_asked_a_few_times_and_the_error_names_the_multiple(flow):
    asked = []

    def never(sizes, integers):
        asked.append(sizes)
        return False

    with pytest.raises(ConfigError, match="in multiples of 4 near the one that fits the budget: give a smaller align"):
        refused_at(flow, never)
    assert len(asked) < 12
    asked.clear()
    with pytest.raises(ConfigError, match="near the one that fits the budget: give another budget"):
        refused_at(flow, never, align=1, keep=0.9)
    assert 32 < len(asked) <= 65


def test_errors_name_the_settings_that_stay_because_outputs_have_their_size(flow):
    sizes = ALIKE.sizes | {("d.weight", 0): 3}
    names = {1: "hidden_size", 2: "inner_size", 3: "num_labels"}
    costs, scores, ones = Costs(flow), np.zeros(flow.n_gates), np.ones(flow.n_gates, bool)

    with pytest.raises(BudgetInfeasibleError, match=r"same widths in all layers \(num_labels cannot change"):
        Budgets.parse("macs=0.01").uniform(Alike("the test", sizes, names=names)).check(costs, None)
    nothing = Budgets.parse("macs=0.9").uniform(Alike("the test", sizes, frozenset({1, 2}), names=names))
    with pytest.raises(ConfigError, match=r"cut here \(num_labels cannot change: .* outputs are\): leave uniform out"):
        nothing.choose_open(costs, scores, ones, align=1)
