"""The constraint: its target, its multiplier, resuming, and a simulated pruning run."""

import importlib.util
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from l0prune.cost.products import ProductCost
from l0prune.errors import ConfigError
from l0prune.flow.costs import CostTerm, Side
from l0prune.gates.bank import GateBank
from l0prune.gates.registry import gate_distribution
from l0prune.goals.lagrangian import PLACED, ConstrainedPursuit, Constraint, ConstraintConfig

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "constraint_simulation.py"


def run(constraint, costs):
    """Feed a sequence of expected costs; the targets and multipliers after each."""
    targets, multipliers = [], []
    for cost in costs:
        constraint.step(float(cost), float(cost))
        targets.append(constraint.target)
        multipliers.append(constraint.multiplier)
    return np.array(targets), np.array(multipliers)


def test_the_target_of_gates_that_are_placed_falls_by_a_cubic_law():
    steps = 100
    targets, _ = run(Constraint(0.4, steps, PLACED), np.full(steps, 1.0))

    left = (1 - np.arange(1, steps + 1) / (0.9 * steps)).clip(0)
    assert targets == pytest.approx(0.4 + 0.6 * left**3)


def test_target_goes_down_from_the_initial_cost_to_the_budget_and_stays():
    targets, _ = run(Constraint(0.4, 100, ConstraintConfig(ramp=0.7)), np.full(100, 0.98))
    assert (np.diff(targets) <= 0).all()
    assert targets[0] == pytest.approx(0.98, abs=0.01)
    assert targets[34] == pytest.approx((0.98 + 0.4) / 2, abs=1e-9)
    assert (targets[70:] == 0.4).all()


def test_a_linear_ramp_is_a_line():
    targets, _ = run(Constraint(0.5, 100, ConstraintConfig(ramp=0.5, smoothness=0.0)), np.full(50, 1.0))
    np.testing.assert_allclose(targets, 1 - 0.01 * np.arange(1, 51))


def test_a_budget_above_the_initial_cost_asks_for_nothing():
    targets, multipliers = run(Constraint(0.99, 50), np.full(50, 0.9))
    assert (targets == 0.99).all()
    assert (multipliers == 0).all()


def test_multiplier_is_never_negative_grows_while_violated_and_is_zero_when_feasible():
    constraint = Constraint(0.5, 200, ConstraintConfig(ramp=0.0))
    _, violated = run(constraint, np.full(50, 0.52))
    assert (np.diff(violated) > 0).all()
    assert (violated > 0).all()
    _, feasible = run(constraint, np.full(50, 0.45))
    assert (feasible == 0).all()
    _, again = run(constraint, np.full(10, 0.52))
    assert (again > 0).all()


def test_a_falling_cost_lowers_the_multiplier_before_the_target_is_met():
    no_integral = ConstraintConfig(ramp=0.0, integral_time=1e9)
    steady, falling = Constraint(0.5, 200, no_integral), Constraint(0.5, 200, no_integral)
    run(steady, np.full(30, 0.52))
    run(falling, np.linspace(0.53, 0.52, 30))
    assert 0 < falling.multiplier < steady.multiplier


def test_multiplier_stays_finite_when_the_target_is_out_of_reach():
    _, multipliers = run(Constraint(0.1, 100), np.full(1000, 1.0))
    assert np.isfinite(multipliers).all()


def test_penalty_is_the_multiplier_times_the_violation_and_pulls_by_the_multiplier():
    constraint = Constraint(0.5, 100, ConstraintConfig(ramp=0.0))
    constraint.step(0.7, 0.7)
    cost = torch.tensor(0.8, requires_grad=True)
    penalty = constraint.penalty(cost)
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(constraint.multiplier * 0.3, rel=1e-6)
    assert float(cost.grad) == pytest.approx(constraint.multiplier)


def test_resuming_repeats_the_next_steps_exactly():
    costs = np.linspace(0.98, 0.45, 120) + 0.01 * np.random.default_rng(0).normal(size=120)
    constraint, resumed = Constraint(0.5, 120), Constraint(0.5, 120)
    run(constraint, costs[:60])
    state = constraint.state_dict()
    assert all(type(value) is float for value in state.values())
    resumed.load_state_dict(state)
    np.testing.assert_array_equal(run(constraint, costs[60:]), run(resumed, costs[60:]))


def test_a_state_with_other_keys_is_refused_and_changes_nothing():
    constraint = Constraint(0.5, 10)
    before = constraint.state_dict()
    with pytest.raises(ConfigError, match="unknown keys: integral"):
        constraint.load_state_dict({**before, "integral": 1.0})
    assert constraint.state_dict() == before


@pytest.mark.parametrize(("keep", "steps"), [(0.0, 10), (1.5, 10), (0.5, 0)])
def test_impossible_constraints_are_refused(keep, steps):
    with pytest.raises(ConfigError, match="expected"):
        Constraint(keep, steps)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ramp", 1.5),
        ("smoothness", -0.1),
        ("steepness", 0.5),
        ("gain", -1.0),
        ("lookahead", float("nan")),
        ("initial_multiplier", 0.0),
        ("integral_time", 0.0),
        ("slack", float("inf")),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value}.* is out of range"):
        ConstraintConfig(**{**asdict(ConstraintConfig()), name: value})


# --- several budgets


def pursued(budgets, *, steps=300, scale=1.0):
    """Gates of a chain of layers, trained by gradients of their costs and a task that wants all of them open."""
    flow_gates, rng = 48, np.random.default_rng(0)
    sides = [Side(0, np.arange(16 * i, 16 * i + 16)) for i in range(3)]
    shapes = {"macs": (1.0, 9.0, 4.0), "params": (6.0, 1.0, 1.0)}
    costs = {
        metric: ProductCost(
            [CostTerm(f"{i}", c, (sides[i], sides[(i + 1) % 3])) for i, c in enumerate(coefficients)], flow_gates
        )
        for metric, coefficients in shapes.items()
    }
    bank = GateBank(flow_gates, distribution=gate_distribution("hard-concrete"), seed=0)
    pursuit = ConstrainedPursuit([(metric, costs[metric], keep) for metric, keep in budgets.items()], steps)
    optimizer = torch.optim.Adam([bank.log_alpha], lr=30 / steps)
    worth = torch.from_numpy(scale * rng.exponential(size=flow_gates)).float()
    for _ in range(steps):
        optimizer.zero_grad()
        is_open = bank.open_probability()
        (pursuit.penalty(is_open) - torch.dot(worth, is_open) / flow_gates).backward()
        optimizer.step()
        bank.clamp_()
        pursuit.step(bank)
    with torch.no_grad():
        return {metric: float(costs[metric].expected(bank.open_probability())) for metric in budgets}, pursuit


@pytest.mark.parametrize("budgets", [{"macs": 0.5, "params": 0.4}, {"macs": 0.35, "params": 0.7}])
def test_several_budgets_are_met_with_a_multiplier_each(budgets):
    reached, pursuit = pursued(budgets)

    assert all(reached[metric] < keep + 0.01 for metric, keep in budgets.items())
    assert any(reached[metric] > keep - 0.05 for metric, keep in budgets.items())
    assert set(pursuit.constraints) == set(budgets)


def test_several_constraints_resume_and_a_single_one_of_an_older_version_does():
    _, whole = pursued({"macs": 0.5, "params": 0.4}, steps=20)
    _, fresh = pursued({"macs": 0.5, "params": 0.4}, steps=1)
    fresh.load_state_dict(whole.state_dict())
    assert fresh.state_dict() == whole.state_dict()
    _, single = pursued({"macs": 0.5}, steps=20)
    _, again = pursued({"macs": 0.5}, steps=1)
    again.load_state_dict(single.constraints["macs"].state_dict())
    assert again.state_dict() == single.state_dict()


# --- simulated pruning with a known best selection; seeds are fixed, so these repeat exactly


@pytest.fixture(scope="module")
def simulation():
    spec = importlib.util.spec_from_file_location("constraint_simulation", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules["constraint_simulation"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["constraint_simulation"]


@pytest.mark.parametrize(
    ("steps", "keep", "scale"),
    [(300, 0.7, 1.0), (300, 0.25, 10.0), (1000, 0.5, 0.1), (1000, 0.5, 100.0), (1000, 0.25, 1.0)],
)
def test_expected_cost_follows_the_target_and_ends_at_the_budget(simulation, steps, keep, scale):
    network = simulation.MadeUpNetwork()
    outcome = simulation.simulate(
        network, keep=keep, steps=steps, scale=scale, gate_lr=30 / steps, best_loss=network.best_loss(keep)
    )
    assert -0.03 < outcome.end < 0.01
    assert abs(outcome.hard) < 0.03
    assert -0.04 < outcome.below <= outcome.above < 0.05
    assert outcome.ambiguous < 0.1
    assert outcome.lost < 1.25
