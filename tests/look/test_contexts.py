"""Regions without gradients or under autocast: what is inside is followed and cut like anything else."""

import pytest
import torch
from flow_case import EXACT, Net, assert_cut_exactly, difference, gated_at, gates, inputs, random_gates, ready, traced
from torch import nn

from l0prune.compact import load, save
from l0prune.flow.trace import trace
from l0prune.look.program import open_contexts_
from l0prune.surgery.shrink import shrink, surgery_of


def net_with(context, **parts: nn.Module) -> Net:
    """The middle layer is called inside `context()`."""

    def function(net, x):
        y = net.up(x).relu()
        with context():
            y = net.middle(y.to(y.dtype)).tanh()
        return net.head(y)

    return Net(function, up=nn.Linear(3, 8), middle=nn.Linear(8, 6), head=nn.Linear(6, 2))


CONTEXTS = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
    "autocast on": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_layers_inside_a_context_are_cut(name):
    flow = assert_cut_exactly(net_with(CONTEXTS[name]), inputs(4, 3), seeds=range(2))

    assert flow.n_gates == 8 + 6
    assert flow.unknown_ops == {}
    assert gates(flow, "up.weight", 0) == gates(flow, "middle.weight", 1) == list(range(8))
    assert gates(flow, "middle.weight", 0) == gates(flow, "head.weight", 1) == list(range(8, 14))


def test_contexts_inside_one_another():
    def function(net, x):
        with torch.enable_grad():
            y = net.up(x)
            with torch.autocast("cpu", enabled=False):
                z = net.middle(y.relu())
            with torch.no_grad():
                scale = y.abs().mean(-1, keepdim=True) + z.mean(-1, keepdim=True)
        return net.head(z * scale), scale

    net = Net(function, up=nn.Linear(3, 8), middle=nn.Linear(8, 6), head=nn.Linear(6, 2))

    flow = assert_cut_exactly(net, inputs(4, 3))

    assert flow.n_gates == 8 + 6


@pytest.mark.parametrize("name", CONTEXTS)
def test_an_opened_graph_has_the_values_and_gradients_of_the_model(name):
    net, x = ready(net_with(CONTEXTS[name])), inputs(4, 3)
    program = torch.export.export(net, (x,), strict=False)

    open_contexts_(program)

    targets = [str(node.target) for node in program.graph.nodes]
    assert not any("wrap_with" in target for target in targets)
    opened = program.module()
    for model in (net, opened):
        model.zero_grad()
        model(x).square().sum().backward()
    assert difference(opened(x), net(x)) < EXACT
    others = dict(opened.named_parameters())
    for key, parameter in net.named_parameters():
        assert (parameter.grad is None) == (others[key].grad is None) == (name == "no_grad" and "head" not in key)
        assert parameter.grad is None or difference(parameter.grad, others[key].grad) < EXACT


def test_autocast_stays_off_where_the_model_turns_it_off():
    """Rotary positions, say, are computed in single precision whatever the precision around them is."""

    def function(net, x):
        y = net.up(x).relu()
        with torch.autocast("cpu", enabled=False):
            return net.middle(x), y

    net, x = Net(function, up=nn.Linear(3, 8), middle=nn.Linear(3, 6)).eval(), torch.randn(4, 3)
    program = torch.export.export(net, (x,), strict=False)

    open_contexts_(program)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [out.dtype for out in program.module()(x)] == [torch.float32, torch.bfloat16]


def test_a_cut_graph_with_contexts_is_saved_and_loaded(tmp_path):
    net, x = net_with(CONTEXTS["autocast off"]), inputs(4, 3)
    flow = traced(net, x)
    compact = shrink(gated_at(net, flow, random_gates(flow)), form="graph")

    save(compact, tmp_path / "compact")

    assert difference(load(tmp_path / "compact")(x), compact(x)) < EXACT


def test_a_region_that_writes_in_place_is_left_alone_and_pinned():
    def function(net, x):
        y = net.up(x)
        with torch.enable_grad():
            y = y.clone().mul_(2.0)
        return net.head(y)

    net = Net(function, up=nn.Linear(3, 8), head=nn.Linear(8, 2))

    flow = traced(net, inputs(4, 3))

    assert flow.n_gates == 0
    assert list(flow.unknown_ops) == ["wrap_with_set_grad_enabled"]


def test_the_outputs_of_a_region_may_be_those_of_the_model():
    def function(net, x):
        with torch.autocast("cpu", enabled=False):
            return net.head(net.up(x).relu())

    net = Net(function, up=nn.Linear(3, 8), head=nn.Linear(8, 2))

    assert assert_cut_exactly(net, inputs(4, 3)).n_gates == 8


def test_an_empty_region_leaves_nothing_behind():
    def function(net, x):
        y = net.up(x)
        with torch.autocast("cpu", enabled=False):
            pass
        return net.head(y)

    graph = traced(Net(function, up=nn.Linear(3, 8), head=nn.Linear(8, 2)), inputs(4, 3)).captured.program.graph

    assert [node.name for node in graph.nodes if node.op == "call_function"] == ["linear", "linear_1"]


class Cast(nn.Module):
    """A region in lower precision, and a tensor outside the state dict, for which it is cut in its graph."""

    def __init__(self):
        super().__init__()
        self.up, self.middle, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.shift = torch.linspace(-1, 1, 6)

    def forward(self, x):
        x = self.up(x).tanh()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.middle(x).tanh()  # unlike a ReLU, it never shuts
        return self.head(x.float() + self.shift)


def test_a_graph_with_a_region_in_lower_precision_is_saved_and_loaded(tmp_path):
    net, x = Cast().eval(), torch.randn(3, 5)
    flow = trace(net, x)
    compact = shrink(gated_at(net, flow, random_gates(flow)))
    assert surgery_of(compact).form == "graph"

    loaded = load(save(compact, tmp_path / "compact"))

    assert torch.equal(loaded(x), compact(x))
    assert not torch.equal(loaded(x), loaded.double()(x.double()).float())
