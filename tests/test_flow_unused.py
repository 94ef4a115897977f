"""What the output does not depend on: a head whose result is thrown away, weights nobody asked for, assertions."""

import torch
from flow_case import Net, assert_cut_exactly, gates, inputs, traced
from torch import nn

from l0prune.flow.capture import capture


def with_a_head_for_nothing() -> nn.Module:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = net.up(x).relu()
        y + net.second(net.first(y).relu())
        return net.head(y)

    return Net(forward, up=nn.Linear(3, 8), first=nn.Linear(8, 12), second=nn.Linear(12, 8), head=nn.Linear(8, 2))


def test_a_head_whose_result_is_thrown_away_is_cut_in_place_like_any_other():
    flow = assert_cut_exactly(with_a_head_for_nothing(), inputs(5, 3), forms=["in-place", "graph"], seeds=(0, 1))

    assert flow.n_gates == 8 + 12
    assert gates(flow, "first.weight", 1) == gates(flow, "second.weight", 0) == gates(flow, "head.weight", 1)


def test_what_uses_no_parameter_of_its_own_is_left_out():
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = net.up(x)
        y.softmax(-1)
        return net.head(y)

    net = Net(forward, up=nn.Linear(3, 8), head=nn.Linear(8, 2))

    assert assert_cut_exactly(net, inputs(5, 3)).n_gates == 8


def test_what_is_only_asserted_of_memory_pins_nothing():
    """A slice at a place that the data names: torch.export asserts that it begins where it can."""

    def forward(net: nn.Module, x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        first = start.item()
        torch._check(first >= 0)
        torch._check(first < 5)
        return net.head(net.up(x)[first : first + 2])

    net, given = Net(forward, up=nn.Linear(3, 8), head=nn.Linear(8, 2)), (inputs(7, 3), torch.tensor(2))
    targets = {str(node.target) for node in capture(net, (given[0].float(), given[1])).program.graph.nodes}

    flow = traced(net, given)

    assert flow.n_gates == 8, (flow.pinned, targets)
