"""What closing a gate costs, and closing gates one after another."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from finetuning_case import BUDGET, QUICK, SmallBatches, accuracy, assert_same_state, gated_net, run, state
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from l0prune.criteria.sensitivity import measure_salience
from l0prune.finetuning.freezing import Settling
from l0prune.finetuning.metrics import read_metrics

values = st.lists(st.sampled_from([0.0, 0.2, 1.0]), min_size=1, max_size=12)


@given(ends=values, seed=st.integers(0, 99))
def test_gates_leave_from_their_trained_values_and_arrive_at_the_decided_ones(ends, seed):
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(len(ends), generator=generator) * (torch.rand(len(ends), generator=generator) < 0.7)
    end = torch.tensor(ends)

    settling = Settling.plan(start, end, torch.rand(len(ends), generator=generator))

    path = torch.stack([settling.at(progress) for progress in torch.linspace(0, 1, 21).tolist()])
    assert torch.equal(path[0], start)
    assert torch.equal(path[-1], end)
    steps = path.diff(dim=0)
    assert ((steps >= -1e-6) | (end < start)).all()
    assert ((steps <= 1e-6) | (end > start)).all()
    assert settling.moves == bool(((start != 0) != (end != 0)).any())


def test_what_matters_least_closes_first():
    salience = torch.tensor([3.0, 1.0, 2.0, 0.5])
    settling = Settling.plan(torch.ones(4), torch.tensor([0.0, 0.0, 0.0, 1.0]), salience)

    closed = [(settling.at(progress) == 0).nonzero().flatten().tolist() for progress in (0.25, 0.4, 0.6, 0.8)]

    assert closed == [[], [1], [1, 2], [0, 1, 2]]


def objective(gated):
    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(gated(inputs), targets)

    return loss


def test_salience_is_the_square_of_the_first_order_change_of_the_loss():
    gated = gated_net().double()
    with torch.no_grad():
        gated.gates.log_alpha[:5] = torch.tensor([-8.0, -1.0, 0.3, 0.6, 1.0])
    gated.eval()
    batches = [(inputs.double(), targets) for inputs, targets in SmallBatches(2)]
    z = gated.gate_values()

    salience = measure_salience(gated, batches, objective(gated))

    assert z[0] == 0
    assert salience[0] == 0
    for gate in (2, 3, 4, 9):
        expected = 0.0
        for inputs, targets in batches:
            losses = []
            for step in (1e-5, -1e-5):
                moved = z.clone()
                moved[gate] -= 1e-4 if moved[gate] == 1 else 0  # within [0, 1]
                moved[gate] *= 1 + step
                gated.freeze(moved)
                losses.append(objective(gated)(inputs, targets).item())
            expected += ((losses[0] - losses[1]) / 2e-5) ** 2
        gated.unfreeze()
        assert salience[gate].item() == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("frozen", [False, True])
def test_measuring_leaves_everything_as_it_was(frozen):
    gated = gated_net().train()
    if frozen:
        gated.freeze(torch.linspace(0, 1, gated.n_gates))
    before, noise = state(gated), gated.gates.get_rng_state()

    salience = measure_salience(gated, SmallBatches(2), objective(gated))

    assert salience.shape == (gated.n_gates,)
    assert (salience >= 0).all()
    assert salience.any()
    assert_same_state(state(gated), before)
    assert torch.equal(gated.gates.get_rng_state(), noise)
    assert gated.training
    assert gated.frozen == frozen
    assert all(parameter.grad is None for parameter in gated.model.parameters())
    assert not gated.gates.frozen_values.requires_grad


def test_without_settling_the_network_is_cut_at_once():
    result = run(config=replace(QUICK, settle_epochs=0, salience_batches=0), evaluate=accuracy)

    assert result.budget_met
    assert [m.when for m in result.history] == ["gate", "gate", "freeze", "recovery", "recovery", "end"]


def test_gates_have_arrived_before_the_network_is_cut(tmp_path):
    result = run(config=replace(QUICK, epochs=8, gate_epochs=1, settle_epochs=3), out=tmp_path)

    settled = [record for record in read_metrics(tmp_path / "metrics.jsonl") if record["phase"] == "settle"]
    assert len(settled) == 6
    assert settled[-1]["hard_cost"] == result.hard_cost <= BUDGET.keep
    assert settled[0]["hard_cost"] > result.hard_cost
