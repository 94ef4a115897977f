"""Every gate family in a model: sampled, penalised, frozen and cut away; and what moves in a family during training."""

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import l0prune
from l0prune.gates.bank import GateBank
from l0prune.gates.families.continuous_sparsification import ContinuousSparsification
from l0prune.gates.families.exact_k import ExactK
from l0prune.gates.families.mdr_power import MdrPower
from l0prune.gates.optimizer import GateOptimizerConfig
from l0prune.gates.registry import gate_names

STEPS = 100
BY_EVIDENCE, BY_GRADIENT = GateOptimizerConfig(by_evidence=True), GateOptimizerConfig(by_evidence=False)

OTHER_FORMS = ("-st", "-stretched")  # of families that are trained by both; the slow tests train these by both too
EACH = [
    pytest.param(
        name,
        settings,
        id=f"{name}-{way}",
        marks=[pytest.mark.slow] if way == "gradient" and name.endswith(OTHER_FORMS) else [],
    )
    for name in gate_names()
    for way, settings in (("evidence", BY_EVIDENCE), ("gradient", BY_GRADIENT))
]


@cache
def traced():
    """A network with a masked norm, its flow, and a task it has learned."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
    model = model.double()
    x = torch.randn(192, 8, dtype=torch.float64)
    y = (x[:, :3] + x[:, 3:6].abs()).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, l0prune.trace(model.eval(), x[:2]), x, y


def trained(name, steps=STEPS, **settings):
    """A gated copy after a plain training loop under a budget of half of the MACs."""
    model, flow, x, y = traced()
    gated = l0prune.inject(
        copy.deepcopy(model), flow, gate=name, budget=l0prune.Budget("macs", 0.5), steps=STEPS, seed=1, **settings
    ).train()
    optimizer = torch.optim.Adam(gated.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (F.cross_entropy(gated(x), y) + gated.penalty()).backward()
        optimizer.step()
        gated.step()
    return gated


@pytest.mark.parametrize(("name", "settings"), EACH)
def test_each_gate_is_trained_to_a_budget_frozen_and_cut(name, settings):
    gated, x = trained(name, gate_optimizer=settings), traced()[2]

    assert 0.3 < float(gated.expected_cost("macs").detach()) < 0.55
    assert 0.3 < gated.hard_cost("macs") < 0.65
    within = copy.deepcopy(gated)
    compact = l0prune.shrink(within, align=4)
    torch.testing.assert_close(compact(x), within(x), atol=1e-10, rtol=0)
    assert 0.49 < within.hard_cost("macs") <= 0.5
    gated.freeze()
    gated.eval()
    compact = l0prune.shrink(gated)
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in gated.model.parameters())
    torch.testing.assert_close(compact(x), gated(x), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", gate_names())
def test_what_is_closed_does_not_depend_on_freezing(name):
    gated = trained(name, steps=10)
    gated.eval()
    before = gated(traced()[2])
    gated.freeze()
    torch.testing.assert_close(gated(traced()[2]), before)


@pytest.mark.parametrize("name", ["exact-k", "continuous-sparsification", "mdr-power"])
def test_a_resumed_run_continues_at_the_same_moment(name):
    gated = trained(name, steps=25)
    resumed = l0prune.inject(
        copy.deepcopy(gated.model), gated.flow, gate=name, budget=l0prune.Budget("macs", 0.5), steps=STEPS, seed=7
    )
    resumed.load_state_dict(gated.state_dict())
    resumed.load_training_state(gated.training_state())
    for _ in range(3):
        assert torch.equal(gated.gates.sample(), resumed.gates.sample())
    assert torch.equal(gated.open_probability(), resumed.open_probability())


def test_exactly_as_many_gates_are_open_as_the_budget_pays_for():
    gated = trained("exact-k", steps=3 * STEPS // 4)  # the target's ramp is over
    n_open = int(gated.gates.sample().sum())
    assert n_open == int(gated.gate_values().sum())
    assert 0.4 < gated.hard_cost("macs") <= 0.5
    ranked = gated.gates.log_alpha.detach().argsort(descending=True)
    one_more = torch.zeros(gated.n_gates, dtype=torch.bool)
    one_more[ranked[: n_open + 1]] = True
    assert gated.costs("macs").hard(one_more) > 0.5


def test_without_a_budget_gates_that_need_one_stay_open():
    model, flow, *_ = traced()
    gated = l0prune.inject(model, flow, gate="exact-k")
    assert (gated.gates.sample() == 1).all()


def test_annealed_gates_harden_over_the_gate_phase():
    ambiguous = [
        float(((z > 0.1) & (z < 0.9)).double().mean())
        for z in (
            trained("continuous-sparsification", steps=n, gate_optimizer=BY_GRADIENT).gates.sample()
            for n in (3 * STEPS // 4, STEPS)
        )
    ]
    assert ambiguous[1] < ambiguous[0] / 2


def test_norms_count_a_sample_without_exact_zeros_as_open_above_one_half():
    bank = GateBank(4, distribution=MdrPower())
    assert bank.train().threshold == 0.5
    assert bank.eval().threshold == 0.0
    assert GateBank(4).train().threshold == 0.0
    bank.train().freeze(torch.tensor([0.0, 0.3, 0.6, 1.0]))
    assert bank.threshold == 0.0


def test_gates_of_a_trained_network_start_open_in_every_family():
    for name in gate_names():
        gated = l0prune.inject(*traced()[:2], gate=name)
        assert gated.open_probability().min() > 0.94, name
        assert (gated.gate_values() > 0.8).all(), name


def test_moments_leave_the_family_itself_unchanged():
    family = ContinuousSparsification()
    bank = GateBank(3, distribution=family)
    bank.advance(1.0, lambda: 3)
    assert bank.distribution is family
    assert family.temperature == 1.0
    assert ExactK().at(0.5, lambda: 2).at(0.9, lambda: 1).k == 1
