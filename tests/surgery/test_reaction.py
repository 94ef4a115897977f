"""Which units the comparison says something of, networks that draw random numbers, and what cannot be exported."""

import random

import numpy as np
import pytest
import torch
from flow_case import EXACT, Net, closing, difference, gated_at, inputs, n_parameters, random_gates
from torch import nn

import l0prune
from l0prune.errors import EquivalenceError, ExportError
from l0prune.model_call import ModelCall
from l0prune.surgery.equivalence import same_random_numbers
from l0prune.surgery.reaction import units_that_change, units_with_gradient
from l0prune.surgery.shrink import shrink, surgery_of


def branches(join, width: int = 6) -> nn.Module:
    """`join(one, other)` of two branches of ReLU units, each read by a layer of its own."""
    torch.manual_seed(0)
    parts = {"a": nn.Linear(4, width), "b": nn.Linear(width, 2), "c": nn.Linear(4, width), "d": nn.Linear(width, 2)}
    return Net(lambda net, x: join(net.b(net.a(x).relu()), net.d(net.c(x).relu())), **parts).double().eval()


def half_closed(net: nn.Module, x):
    flow = l0prune.trace(net, x)
    return gated_at(net, flow, random_gates(flow))


def test_units_that_move_no_output_are_named():
    record = surgery_of(shrink(half_closed(branches(lambda one, other: one + 0 * other), inputs(2, 4))))

    assert record.not_compared == {"c.weight[0]": 6}


def test_where_every_unit_moves_an_output_nothing_is_left_out():
    record = surgery_of(shrink(half_closed(branches(torch.add), inputs(2, 4))))

    assert record.not_compared == {}


def test_units_whose_activation_is_shut_at_the_trained_weights_are_compared_at_others():
    net = branches(torch.add)
    with torch.no_grad():
        net.c.bias.fill_(-100)

    assert surgery_of(shrink(half_closed(net, inputs(2, 4)))).not_compared == {}


@pytest.mark.parametrize("join", [lambda one, other: one + other.detach(), lambda one, other: one + (other > 0.3)])
def test_units_that_move_an_output_without_a_gradient_are_compared(join):
    assert surgery_of(shrink(half_closed(branches(join), inputs(8, 4)))).not_compared == {}


def test_a_branch_that_closes_entirely_is_compared():
    torch.manual_seed(0)
    parts = {
        "stem": nn.Linear(4, 6),
        "a": nn.Linear(6, 6),
        "b": nn.Linear(6, 6),
        "c": nn.Linear(6, 6),
        "head": nn.Linear(6, 2),
    }

    def forward(net, x):
        x = net.stem(x)
        return net.head(x + net.c(torch.relu(net.b(torch.relu(net.a(x))))))

    net = Net(forward, **parts).double().eval()
    flow = l0prune.trace(net, inputs(2, 4))
    gated = gated_at(net, flow, closing(flow, "b.weight[0]"))
    x = ModelCall((inputs(2, 4),), {})

    alone = units_with_gradient(gated, x)

    assert not alone.all()
    assert surgery_of(shrink(gated)).not_compared == {}


def test_the_gradient_and_a_change_of_the_gates_find_the_same_units():
    net = branches(lambda one, other: one + 0 * other)
    gated, x = half_closed(net, inputs(8, 4)), ModelCall((inputs(8, 4),), {})

    found = units_with_gradient(gated, x)
    changed = units_that_change(gated, x, np.zeros(gated.n_gates, dtype=bool))

    assert found.any()
    assert not found.all()
    assert (changed | found == changed).all()
    assert changed.sum() == 6


CONSTANT = {
    "zero": lambda one, other: 0 * (one + other),
    "shut": lambda one, other: torch.relu(-(one + other).relu()),
    "one": lambda one, other: torch.ones_like(one).softmax(-1) + 0 * other,
}


@pytest.mark.parametrize("join", CONSTANT)
def test_a_network_whose_output_reacts_to_nothing_is_not_called_exact(join):
    report = l0prune.verify(branches(CONSTANT[join]), inputs(2, 4), onnx=False)

    assert not report.exact
    assert not report.conclusive
    assert report.max_abs_diff == 0.0
    assert sum(report.not_compared.values()) == report.n_gates
    assert "do not react" in report.why_not


def test_a_last_activation_that_is_shut_does_not_make_the_verdict_empty():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 1), nn.ReLU())
    nn.init.constant_(net[2].bias, -100.0)

    report = l0prune.verify(net, torch.randn(2, 3, 6, 6), onnx=False)

    assert report.exact
    assert report.not_compared == {}


SAMPLED = {
    "torch": lambda mean: mean + torch.randn_like(mean),
    "numpy": lambda mean: mean * np.random.rand(),
    "python": lambda mean: mean * random.random(),
    "gumbel": lambda mean: torch.nn.functional.gumbel_softmax(mean, dim=-1),
}


@pytest.mark.parametrize("sample", ["torch", "gumbel"])
def test_networks_that_draw_random_numbers_are_compared_with_both_drawing_the_same(sample):
    net = branches(lambda one, other: SAMPLED[sample](one) + other)
    gated = half_closed(net, inputs(2, 4))
    before = torch.get_rng_state()

    compact = shrink(gated)

    assert torch.equal(torch.get_rng_state(), before)
    report = l0prune.verify(net, inputs(2, 4), onnx=False)
    assert report.exact
    assert report.draws_random_numbers
    assert surgery_of(compact).draws_random_numbers
    assert n_parameters(compact) < n_parameters(net)


@pytest.mark.parametrize("sample", SAMPLED)
def test_every_source_of_random_numbers_is_seen_and_left_as_it_was(sample):
    one = torch.ones(3)
    drawn: list[torch.Tensor] = []
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for _ in range(2):
        with same_random_numbers() as numbers:
            drawn.append(SAMPLED[sample](one))
        assert numbers.drawn
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    with same_random_numbers() as numbers:
        one + 1

    assert torch.equal(*drawn)
    assert not numbers.drawn


def test_a_network_that_draws_as_many_numbers_as_it_has_units_is_named():
    def forward(net, x):
        y = net.up(x)
        return net.down(y * torch.rand_like(y))

    net = Net(forward, up=nn.Linear(4, 8), down=nn.Linear(8, 2)).double().eval()

    report = l0prune.verify(net, inputs(2, 4), onnx=False)

    assert report.exact or "Net draws random numbers when it is evaluated" in report.why_not


def test_a_network_that_keeps_a_state_is_named():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.down(self.up(x).relu()) * self.calls

    with pytest.raises(EquivalenceError, match="Counting gives different outputs when it is called again"):
        shrink(half_closed(Counting().double().eval(), inputs(2, 4)))


def refusing(monkeypatch, refused):
    from l0prune.onnx import export

    real = export.export_onnx

    def export_onnx(model, *args, **options):
        if refused(model):
            raise ExportError("the exporter cannot go on: no rule for aten.grouped_mm.")
        return real(model, *args, **options)

    monkeypatch.setattr(export, "export_onnx", export_onnx)


def test_the_verdict_on_the_cut_stands_where_onnx_cannot_hold_the_network(monkeypatch):
    refusing(monkeypatch, lambda model: True)

    report = l0prune.verify(branches(torch.add).float(), inputs(2, 4).float())

    assert report.exact
    assert report.onnx_max_rel_diff is None
    assert "no rule for aten.grouped_mm" in report.onnx_error


def test_a_cut_network_that_cannot_be_exported_though_the_dense_one_can_is_not_exact(monkeypatch):
    net = branches(torch.add).float()
    refusing(monkeypatch, lambda model: n_parameters(model) < n_parameters(net))

    report = l0prune.verify(net, inputs(2, 4).float())

    assert not report.exact
    assert report.max_rel_diff < 1e-6
    assert "the dense model can be exported" in report.onnx_error


def test_the_onnx_file_of_a_network_that_draws_random_numbers_is_not_compared():
    net = branches(lambda one, other: one + torch.randn_like(other) * other).float()

    report = l0prune.verify(net, inputs(2, 4).float())

    assert report.exact
    assert report.onnx_max_rel_diff is None
    assert "random numbers of its own" in report.onnx_error


def test_inputs_that_a_network_writes_into_are_the_same_for_both():
    net = (
        Net(lambda net, x: net.down(net.up(x.mul_(2)).relu()), up=nn.Linear(4, 8), down=nn.Linear(8, 2)).double().eval()
    )
    x = inputs(2, 4)
    gated = half_closed(net, x.clone())

    compact = shrink(gated, example_inputs=x)

    assert torch.equal(x, inputs(2, 4))
    assert difference(compact(x.clone()), gated(x.clone())) < EXACT
