"""Arguments of ops that are no numbers in the graph: sizes that grow with the batch, and rules that do not expect them."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, Net, assert_cut_exactly, difference, gated_at, gates, inputs, random_gates, traced
from torch import nn

from l0prune.ops import operation
from l0prune.ops.contractions import contract
from l0prune.ops.operation import Op, Operation
from l0prune.surgery.shrink import shrink

N_OUT = 6


def grouped(net: nn.Module, x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Every image is convolved with kernels of its own: as many groups as images."""
    n, c, h, w = x.shape
    return F.conv2d(x.reshape(1, n * c, h, w), kernels.reshape(n * N_OUT, c, 3, 3), groups=n).view(n, N_OUT, 4, 4)


def modulated(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A style scales the inputs of a kernel, whose outputs are normed again."""
    x = net.stem(x).relu()
    kernels = net.kernel * net.style(x.mean((2, 3)))[:, None, :, None, None]
    kernels = kernels * torch.rsqrt(kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    return net.head(grouped(net, x, kernels).relu())


def mixed(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Every image has its mixture of a few kernels."""
    x = net.stem(x).relu()
    shares = net.router(x.mean((2, 3))).softmax(-1)
    return net.head(grouped(net, x, shares @ net.kernels.flatten(1)).relu())


STEM, HEAD = (3, 8, 1), (N_OUT, 2, 1)


def test_kernels_that_a_style_scales_are_cut_on_both_sides():
    net = Net(
        modulated,
        stem=nn.Conv2d(*STEM),
        style=nn.Linear(8, 8),
        kernel=nn.Parameter(torch.empty(1, N_OUT, 8, 3, 3)),
        head=nn.Conv2d(*HEAD),
    )
    x = inputs(3, 3, 6, 6)

    flow = assert_cut_exactly(net, x, seeds=range(3))

    assert flow.captured.dynamic_batch
    assert flow.n_gates == 8 + N_OUT
    assert gates(flow, "kernel", 2) == gates(flow, "stem.weight", 0) == gates(flow, "style.weight", 0)
    assert gates(flow, "kernel", 1) == gates(flow, "head.weight", 1)
    gated = gated_at(net, flow, random_gates(flow))
    others = inputs(5, 3, 6, 6, seed=1)
    assert difference(shrink(gated)(others), gated(others)) < EXACT


@pytest.mark.parametrize("form", ["in-place", "graph"])
def test_outputs_of_kernels_that_are_mixed_are_cut(form):
    net = Net(
        mixed,
        stem=nn.Conv2d(*STEM),
        router=nn.Linear(8, 4),
        kernels=nn.Parameter(torch.empty(4, N_OUT, 8, 3, 3)),
        head=nn.Conv2d(*HEAD),
    )
    x = inputs(3, 3, 6, 6)

    flow = assert_cut_exactly(net, x, forms=[form], seeds=range(3))

    assert flow.captured.dynamic_batch
    assert flow.n_gates == 8
    assert gates(flow, "kernels", 2) == gates(flow, "stem.weight", 0) == gates(flow, "router.weight", 1)


def test_groups_without_units_in_them_leave_kernels_to_be_cut():
    net = Net(
        lambda net, x: net.head(grouped(net, x, net.kernel.repeat(x.shape[0], 1, 1, 1, 1)).relu()),
        kernel=nn.Parameter(torch.empty(1, N_OUT, 3, 3, 3)),
        head=nn.Conv2d(*HEAD),
    )

    flow = assert_cut_exactly(net, inputs(3, 3, 6, 6), forms=["graph"])

    assert gates(flow, "kernel", 1) == gates(flow, "head.weight", 1) == list(range(N_OUT))


VARYING = {
    "places": lambda net, y: y.roll(y.shape[0], 1),
    "a part": lambda net, y: y.narrow(1, 0, y.shape[0]),
    "one": lambda net, y: y.select(1, y.shape[0] - 1)[:, None],
    "padding": lambda net, y: F.pad(y, (0, 0, 0, y.shape[0])),
    "the best": lambda net, y: y.topk(y.shape[0], dim=1)[0],
    "every so many": lambda net, y: y[:, :: y.shape[0]],
    "frequencies": lambda net, y: torch.fft.rfft(y, n=y.shape[0], dim=1).real,
}


@pytest.mark.parametrize("name", VARYING)
def test_units_stay_that_an_op_takes_as_many_of_as_the_batch_has_entries(name):
    net = Net(
        lambda net, x: (VARYING[name](net, net.up(x)), net.tail(net.up(x))),
        up=nn.Conv1d(3, 8, 1),
        tail=nn.Conv1d(8, 2, 1),
    )

    flow = traced(net, inputs(3, 3, 5))

    assert flow.captured.dynamic_batch
    assert gates(flow, "up.weight", 0) is None


BESIDE = {
    "repeated": lambda y: y.repeat(1, 1, y.shape[0]),
    "split": lambda y: y.split(y.shape[0], dim=2)[0],
    "a part": lambda y: y.narrow(2, 0, y.shape[0]),
    "padded": lambda y: F.pad(y, (0, y.shape[0])),
    "moved": lambda y: y.roll(y.shape[0], 2),
    "added": lambda y: y + torch.full((y.shape[0], 1, 1), y.shape[0], dtype=y.dtype),
    "a power": lambda y: y.relu() ** y.shape[0],
}


@pytest.mark.parametrize("name", BESIDE)
def test_units_go_beside_a_dimension_that_varies_with_the_batch(name):
    net = Net(lambda net, x: net.tail(BESIDE[name](net.up(x))), up=nn.Conv1d(3, 8, 1), tail=nn.Conv1d(8, 2, 1))

    assert assert_cut_exactly(net, inputs(3, 3, 5)).n_gates == 8


def failing(op: Op) -> list:
    """A rule that gets half of its work done."""
    contract(op, op.labels(op.arg("input"))[-1], op.arg("weight"), 1)
    raise IndexError("no such thing")


@pytest.mark.usefixtures("failing_rules_pin")
def test_a_rule_that_fails_pins_what_it_touches_and_leaves_no_trace(monkeypatch):
    net = Net(lambda net, x: net.tail(net.up(x).relu()[:, :, None]), up=nn.Linear(3, 8), tail=nn.Conv1d(8, 2, 1))
    monkeypatch.setitem(operation._BY_NAME, "linear", Operation("linear", failing))

    flow = traced(net, inputs(5, 3))

    reason = "the rule for aten.linear.default fails: IndexError: no such thing"
    assert flow.n_gates == 0
    assert flow.pinned[reason] == 8 + 8  # rows of the weight, and the bias; the inputs were pinned before it failed
    assert not flow.consumers
    assert flow.unknown_ops == {"aten.linear.default": 1}


def test_a_rule_that_fails_is_seen_by_tests(monkeypatch):
    monkeypatch.setitem(operation._BY_NAME, "linear", Operation("linear", failing))

    with pytest.raises(IndexError):
        traced(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), inputs(5, 3))
