"""Latency as a cost: the staircase of a profile, what a dropped branch leaves, and the smooth floor that is trained with."""

import numpy as np
import pytest
import torch
from profile_example import WIDTH, branching_net, hand_made_profile, times_of

import l0prune
from l0prune.cost.kinds import Costs
from l0prune.cost.widths import Floor
from l0prune.errors import BudgetInfeasibleError, ConfigError


@pytest.fixture(scope="module")
def traced():
    model, x = branching_net()
    return model, l0prune.trace(model, x)


@pytest.fixture(scope="module")
def cost(traced):
    _, flow = traced
    return Costs(flow)("latency", hand_made_profile(flow))


def gates_of(flow, name):
    return flow.tensors[name][0]


def opened(flow, inner, stream):
    """The first so many units of the branch and of the stream."""
    is_open = np.zeros(flow.n_gates, bool)
    is_open[gates_of(flow, "first.weight")[:inner]] = True
    is_open[gates_of(flow, "second.weight")[:stream]] = True
    return is_open


def by_hand(inner, stream):
    """Milliseconds, from the rule of the kernels."""
    second = times_of(inner, stream) if inner else 3.0 + 0.5 * stream
    first = times_of(stream, inner) if inner else 0.0
    head = 2.0 + 2.0 * (stream - 1) / (WIDTH - 1)
    return (times_of(3, stream) + first + second + head + 7.0) / 1000


@pytest.mark.parametrize(
    ("inner", "stream"), [(16, 16), (12, 16), (9, 14), (4, 8), (3, 5), (1, 1), (0, 16), (0, 7), (15, 13)]
)
def test_the_hard_latency_is_the_staircase_of_the_kernels(traced, cost, inner, stream):
    _, flow = traced

    assert cost.hard(opened(flow, inner, stream)) * cost.dense == pytest.approx(by_hand(inner, stream), rel=1e-9)


def test_many_widths_at_once_cost_what_they_cost_alone(traced, cost):
    _, flow = traced
    pairs = [(16, 16), (0, 3), (5, 9)]
    counts = np.stack([cost.sides.counts(opened(flow, *pair)) for pair in pairs], axis=1)

    together = cost.of_counts(counts)

    np.testing.assert_allclose(together * cost.dense, [by_hand(*pair) for pair in pairs], rtol=1e-12)


def test_a_closed_branch_costs_what_is_left_of_it(traced, cost):
    _, flow = traced
    layers = dict(zip(cost.layers, cost.hard_layers(opened(flow, 0, 16)) * cost.dense * 1000, strict=True))

    assert layers["first"] == 0
    assert layers["second"] == pytest.approx(3.0 + 0.5 * 16)


def test_the_expected_latency_of_open_gates_is_the_dense_one(cost):
    assert float(cost.expected(torch.ones(cost.n_gates, dtype=torch.float64))) == pytest.approx(1)


def floor_by_hand(inner, stream):
    """The least time of widths at least as large, linear between edges of blocks."""
    edges = np.array([1, 2, 3, 4, 8, 12, 16])

    def time(first, second, rule):
        best = np.array([[rule(a, b) for b in edges] for a in edges])  # which rises along both sides
        rows = np.array([np.interp(second, edges, row) for row in best])
        return np.interp(first, edges, rows)

    closed = np.interp(stream, edges, 3.0 + 0.5 * edges)
    conv = time(stream, inner, times_of) + time(inner, stream, times_of) if inner else closed
    head = np.interp(stream, [1, 16], [2.0, 4.0])
    return (np.interp(stream, edges, [times_of(3, e) for e in edges]) + conv + head + 7.0) / 1000


def test_the_expected_latency_is_the_mean_floor_of_random_widths(traced, cost):
    """Counts are taken as normal, so within 1 %, and 5 % where a width is almost gone, of the mean over independent gates.

    Fixed seed; the standard error of the mean is below 0.3 %.
    """
    _, flow = traced
    rng = np.random.default_rng(0)
    floors = np.array([[floor_by_hand(inner, max(stream, 1)) for stream in range(17)] for inner in range(17)])
    names = ("first.weight", "second.weight")
    for share, bound in ((0.9, 0.01), (0.5, 0.01), (0.2, 0.05)):
        p = np.clip(rng.normal(share, 0.05, flow.n_gates), 0, 1)
        inner, stream = ((rng.uniform(size=(4000, WIDTH)) < p[gates_of(flow, name)]).sum(axis=1) for name in names)
        draws = floors[inner, stream]

        expected = float(cost.expected(torch.from_numpy(p))) * cost.dense

        assert expected == pytest.approx(np.mean(draws), rel=bound)


def test_the_expected_latency_is_the_mean_floor_where_the_branch_closes_now_and_then(traced, cost):
    """Fixed seed; the branch is gone in 4 to 70 % of the draws. Few units are no normal distribution, hence within 3 %."""
    _, flow = traced
    rng = np.random.default_rng(1)
    floors = np.array([[floor_by_hand(inner, max(stream, 1)) for stream in range(17)] for inner in range(17)])
    inner, stream = (gates_of(flow, name) for name in ("first.weight", "second.weight"))
    for share in (0.02, 0.08, 0.2):
        p = np.full(flow.n_gates, 0.9)
        p[inner] = share
        open_inner, open_stream = (
            (rng.uniform(size=(8000, WIDTH)) < p[gates]).sum(axis=1) for gates in (inner, stream)
        )
        assert 0.02 < (open_inner == 0).mean() < 0.8

        expected = float(cost.expected(torch.from_numpy(p))) * cost.dense

        assert expected == pytest.approx(np.mean(floors[open_inner, open_stream]), rel=0.03)


def test_the_expected_latency_of_a_branch_that_may_close_is_between_that_with_and_without_it(traced, cost):
    _, flow = traced
    p = torch.ones(flow.n_gates, dtype=torch.float64)
    inner = gates_of(flow, "first.weight")
    p[inner] = 0.0
    closed = float(cost.expected(p))
    p[inner[0]] = 0.3
    expected = float(cost.expected(p))

    one = cost.hard(opened(flow, 1, 16))
    assert closed == pytest.approx(cost.hard(opened(flow, 0, 16)), rel=1e-3)
    assert expected == pytest.approx(0.7 * closed + 0.3 * one, rel=1e-3)


def test_the_gradient_of_the_expected_latency_is_that_of_finite_differences(cost):
    torch.manual_seed(0)
    p = (0.2 + 0.6 * torch.rand(cost.n_gates, dtype=torch.float64)).requires_grad_()
    cost.expected(p).backward()

    step = torch.zeros_like(p.detach())
    for gate in (0, 7, 20, 31):
        step.zero_()[gate] = 1e-6
        with torch.no_grad():
            slope = (cost.expected(p + step) - cost.expected(p - step)) / 2e-6
        assert float(p.grad[gate]) == pytest.approx(float(slope), rel=1e-4)
        assert float(p.grad[gate]) >= 0


def test_the_floor_says_what_cannot_go(traced, cost):
    _, flow = traced
    floor = Floor.of(cost, flow.dimensions)

    assert floor.fraction * cost.dense == pytest.approx(by_hand(0, 1))
    assert floor.held_by[0][0] == "stem"


def test_a_budget_of_latency_selects_within_it(traced):
    model, flow = traced
    profile = hand_made_profile(flow)
    budgets = [l0prune.Budget("latency", 0.5, profile=profile), l0prune.Budget("params", 0.9)]
    gated = l0prune.inject(model, flow, budget=budgets, steps=10)

    compact = l0prune.shrink(gated)

    assert gated.hard_cost("latency") <= 0.5
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in model.parameters())
    assert set(gated.constraints) == {"latency", "params"}


def test_an_amount_is_compared_with_the_dense_latency(traced):
    _, flow = traced
    profile = hand_made_profile(flow)
    costs = Costs(flow)
    for text in ("latency=0.6ms", "latency=600us", "latency=0.0006s"):
        (bound,) = l0prune.goals.budget.Budgets.parse(text).by(profile).bounds(costs)
        assert bound.keep == pytest.approx(0.6 / costs("latency").dense)


def test_a_budget_without_a_profile_says_how_to_make_one(traced):
    model, flow = traced
    with pytest.raises(ConfigError, match="l0prune profile MODEL --out PROFILE"):
        l0prune.inject(model, flow, budget=l0prune.Budget("latency", 0.5), steps=10)


def test_a_latency_out_of_reach_names_the_floor_and_what_holds_it(traced):
    model, flow = traced
    budget = l0prune.Budget("latency", "1us", profile=hand_made_profile(flow))
    with pytest.raises(BudgetInfeasibleError, match=r"latency=1us cannot be met.*us of the dense .* latency.*stem"):
        l0prune.inject(model, flow, budget=budget, steps=10)


def test_a_profile_of_another_network_is_refused(traced):
    _, flow = traced
    profile = hand_made_profile(flow)
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with pytest.raises(ConfigError, match="of another network"):
        Costs(l0prune.trace(other, torch.randn(2, 3)))("latency", profile)


def test_a_profile_is_for_latency_alone(traced):
    _, flow = traced
    with pytest.raises(ConfigError, match="needs no profile"):
        l0prune.Budget("macs", 0.5, profile=hand_made_profile(flow))
