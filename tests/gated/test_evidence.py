"""Gates that are placed by what their units are worth: what is seen, where it puts them, and at which cost."""

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import l0prune
from l0prune.errors import ConfigError
from l0prune.gated.evidence import _within
from l0prune.gates.optimizer import GateOptimizerConfig

HALF = l0prune.Budget("macs", 0.5)


@cache
def learned():
    """A network that has learned noisy classes, its flow, and the data."""
    torch.manual_seed(3)
    x = torch.randn(256, 8, dtype=torch.float64)
    y = (x[:, :3] + x[:, 3:6].abs() + 0.5 * torch.randn(256, 3, dtype=torch.float64)).argmax(1)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, l0prune.trace(model.eval(), x[:2]), x, y


def injected(*budgets, steps=60, **settings):
    model, flow, *_ = learned()
    return l0prune.inject(
        copy.deepcopy(model),
        flow,
        budget=budgets or HALF,
        steps=steps,
        gate_optimizer=GateOptimizerConfig(by_evidence=True, **settings),
        seed=5,
    ).train()


def train(gated, steps, *, batch=32, start=0):
    """Move the gates; the weights stay."""
    _, _, x, y = learned()
    for step in range(start, start + steps):
        rows = torch.arange(step * batch, (step + 1) * batch) % len(x)
        (F.cross_entropy(gated(x[rows]), y[rows]) + gated.penalty()).backward()
        gated.step()
        gated.zero_grad()


def test_effects_are_z_times_the_gradient_of_z_summed_over_backward_passes():
    _, _, x, y = learned()
    gated = injected()
    weight = gated.model[2].weight
    expected = torch.zeros(gated.n_gates, dtype=torch.float64)
    (consumer,) = (c for c in gated.flow.consumers if c.parameter == "2.weight")

    for rows in (slice(0, 64), slice(64, 96)):
        gated.zero_grad()
        F.cross_entropy(gated(x[rows]), y[rows]).backward()
        # What the weight counts in the loss, its gate included: w dL/dw = z w dL/d(z w).
        expected[torch.from_numpy(consumer.gates)] += (weight * weight.grad).sum(0).detach()

    effects = gated.gates.take_effects()
    torch.testing.assert_close(effects.double()[consumer.gates], expected[consumer.gates], rtol=1e-5, atol=1e-8)
    assert gated.gates.take_effects() is None


@pytest.mark.parametrize("gate", ["hard-concrete", "concrete", "mdr-power"])
def test_the_expected_cost_follows_the_target_from_step_to_step(gate):
    model, flow, *_ = learned()
    gated = l0prune.inject(copy.deepcopy(model), flow, gate=gate, budget=HALF, steps=40, seed=5).train()

    for step in range(40):
        target = gated.constraints["macs"].target
        train(gated, 1, start=step)
        if step:  # which sets the cost that the ramp begins at
            assert float(gated.expected_cost("macs").detach()) == pytest.approx(target, abs=2e-3)
    assert gated.constraints["macs"].target == 0.5


def test_gates_rank_by_what_their_units_are_worth_for_their_cost():
    gated = injected(memory=1e6)
    worth = torch.rand(gated.n_gates, generator=torch.Generator().manual_seed(0)) + 0.1
    gated.observe(worth, 1e6)
    with torch.no_grad():
        gated.gates.log_alpha.fill_(3.0)
    costs = gated._gate_training.pursuit.marginal(gated.open_probability())[0]

    train(gated, 1)

    # One step beside a million does not change the order.
    value = (worth / costs.cpu()).log()
    order, placed = value.argsort(), gated.gates.locations.cpu()
    distance = (placed[order][1:] - placed[order][:-1])[(value[order][1:] - value[order][:-1]) > 1e-3]
    assert len(distance) > 5
    assert (distance > 0).all()


def test_units_the_loss_does_not_depend_on_close_first():
    gated = injected(sharpness=4.0)
    with torch.no_grad():
        gated.model[2].weight[:, :6] = 0  # nothing listens to the first six hidden units

    train(gated, 60)

    closed = gated.gate_values()[:6] == 0
    assert closed.all()
    assert (gated.gate_values()[6:24] != 0).any()


def test_several_budgets_hold_together():
    gated = injected(l0prune.Budget("macs", 0.6), l0prune.Budget("params", 0.4), steps=60)

    train(gated, 60)

    assert float(gated.expected_cost("macs").detach()) <= 0.6 + 2e-3
    assert float(gated.expected_cost("params").detach()) == pytest.approx(0.4, abs=2e-3)


def test_resumed_gates_go_on_as_if_nothing_had_happened():
    whole, first = injected(), injected()
    train(whole, 30)
    train(first, 12)
    second = injected()
    second.load_state_dict(first.state_dict())
    second.load_training_state(first.training_state())

    train(second, 18, start=12)

    assert torch.equal(second.gates.locations, whole.gates.locations)
    assert second.constraints["macs"].state_dict() == whole.constraints["macs"].state_dict()


def test_evidence_that_was_gathered_before_decides_where_nothing_else_was_seen():
    worth = torch.arange(1.0, injected().n_gates + 1)
    ascending, descending = injected(), injected()
    ascending.observe(worth, 20)
    descending.observe(worth.flip(0), 20)

    for gated in (ascending, descending):
        train(gated, 30)

    difference = ascending.gates.locations - descending.gates.locations
    assert torch.corrcoef(torch.stack([difference.cpu(), worth]))[0, 1] > 0.3


def test_of_what_was_seen_before_the_first_step_the_proportions_count_alone():
    worth = torch.rand(injected().n_gates, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    quiet, loud, blind = injected(), injected(), injected()
    quiet.observe(1e-5 * worth, 20.0)
    loud.observe(worth, 20.0)

    for gated in (quiet, loud, blind):
        train(gated, 5)

    torch.testing.assert_close(quiet.gates.locations, loud.gates.locations, rtol=1e-4, atol=1e-4)
    correlation = [torch.corrcoef(torch.stack([gated.worth, worth]))[0, 1] for gated in (quiet, blind)]
    assert correlation[0] > correlation[1] + 0.1


def test_gates_follow_the_gradient_where_a_step_saw_no_loss():
    gated = injected(steps=5)
    before = gated.gates.locations.clone()

    gated.penalty().backward()
    gated.step()  # the multiplier is 0 before it
    gated.penalty().backward()
    gated.step()

    assert (gated.gates.locations < before).all()


def test_locations_keep_their_order_however_far_they_are_from_the_bound():
    raw = torch.tensor([-1e4, -300, -50, -8.5, -8, -6, -1, 0, 5, 6, 7, 9, 100, 5e3], dtype=torch.float64)
    placed = _within(raw, 8.0).float()

    assert (placed.diff() > 0).all()
    assert placed.abs().max() < 8
    assert torch.equal(placed[6:9], raw[6:9].float())


@pytest.mark.parametrize("settings", [{"memory": 0.5}, {"sharpness": 0.0}, {"sharpness": float("nan")}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        GateOptimizerConfig(**settings)
