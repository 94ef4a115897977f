"""Gates under a budget do not run past its target."""

import pytest
import torch
from test_in_models import BY_GRADIENT, traced

import l0prune
from l0prune.gated import training
from l0prune.gates.bank import GateBank
from l0prune.gates.families.concrete import BinaryConcrete
from l0prune.gates.families.hard_concrete import HardConcrete
from l0prune.gates.optimizer import hold_
from l0prune.gates.registry import gate_distribution, gate_names

HELD = [name for name in gate_names() if gate_distribution(name).held_below > 60]


def spread(n: int = 50) -> GateBank:
    """Locations from -3 to 2."""
    bank = GateBank(n, distribution=BinaryConcrete())
    with torch.no_grad():
        bank.log_alpha.copy_(torch.linspace(-3, 2, n))
    return bank


def test_all_locations_rise_alike_until_the_cost_is_at_the_floor():
    bank = spread()
    before = bank.log_alpha.detach().clone()

    assert hold_(bank, torch.mean, 0.6)

    rise = bank.log_alpha.detach() - before
    torch.testing.assert_close(rise, rise[:1].expand_as(rise), atol=1e-5, rtol=0)
    assert float(rise[0]) > 0
    assert float(bank.open_probability().detach().mean()) == pytest.approx(0.6, abs=1e-4)


def test_at_the_floor_nothing_moves():
    bank = spread()
    before = bank.log_alpha.detach().clone()

    assert not hold_(bank, torch.mean, float(bank.open_probability().detach().mean()))
    assert torch.equal(bank.log_alpha, before)


def test_a_floor_out_of_reach_opens_all_gates_within_their_bounds():
    bank = spread()

    assert hold_(bank, torch.mean, 2.0)
    assert (bank.log_alpha == bank.bound).all()


def test_only_exactly_k_is_not_held_in_short_phases():
    assert set(gate_names()) - set(HELD) == {"exact-k"}


@pytest.mark.parametrize("name", HELD)
def test_a_short_phase_ends_at_its_budget(name):
    """Free, most families ended 0.1 to 0.5 under it."""
    model, flow, x, y = traced()
    steps = 60
    gated = l0prune.inject(
        model, flow, gate=name, budget=l0prune.Budget("macs", 0.5), steps=steps, gate_optimizer=BY_GRADIENT
    ).train()

    for _ in range(steps):
        (torch.nn.functional.cross_entropy(gated(x), y) + gated.penalty()).backward()
        gated.step()
        assert (
            float(gated.expected_cost("macs").detach())
            > gated.constraints["macs"].target - gated.constraints["macs"].config.slack - 1e-5
        )
    model.zero_grad()

    assert 0.48 < float(gated.expected_cost("macs").detach()) < 0.52


def test_gates_that_begin_under_the_budget_are_not_lifted_to_it():
    model, flow, x, y = traced()
    gated = l0prune.inject(
        model, flow, gate="concrete", budget=l0prune.Budget("macs", 0.9), steps=20, gate_optimizer=BY_GRADIENT
    ).train()
    with torch.no_grad():
        gated.gates.log_alpha.fill_(0.0)

    for _ in range(5):
        (torch.nn.functional.cross_entropy(gated(x), y) + gated.penalty()).backward()
        gated.step()
    model.zero_grad()

    assert float(gated.expected_cost("macs").detach()) < 0.6


def test_hard_concrete_gates_are_free_in_phases_of_300_steps_and_more(monkeypatch):
    """Bit by bit: what the default was measured with does not change."""
    model, flow, x, y = traced()

    def locations() -> torch.Tensor:
        gated = l0prune.inject(
            model, flow, budget=l0prune.Budget("macs", 0.5), steps=300, seed=2, gate_optimizer=BY_GRADIENT
        ).train()
        for _ in range(30):
            (torch.nn.functional.cross_entropy(gated(x), y) + gated.penalty()).backward()
            gated.step()
            gated.gates.log_alpha.data.sub_(0.3)  # far past the target
        model.zero_grad()
        return gated.gates.log_alpha.detach().clone()

    as_it_is = locations()
    monkeypatch.setattr(training.GateTraining, "_hold", None)
    without = locations()
    monkeypatch.undo()
    monkeypatch.setattr(HardConcrete, "held_below", 301)

    assert torch.equal(as_it_is, without)
    assert not torch.equal(locations(), without)
