"""What the output does not depend on: a head whose result is thrown away, weights nobody asked for, assertions."""

import torch
from flow_case import Net, assert_cut_exactly, gates, inputs, traced
from torch import nn


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


def slice_named_by_data(function) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """torch.export asserts that such a slice begins where it can."""

    def forward(net: nn.Module, x: torch.Tensor, start: torch.Tensor, stop: torch.Tensor) -> torch.Tensor:
        return function(net, net.up(x)[start.item() : stop.item()])

    net = Net(forward, up=nn.Linear(3, 8), head=nn.Linear(8, 2))
    return net, (inputs(7, 3), torch.tensor(1), torch.tensor(4))


def test_what_is_only_asserted_of_memory_pins_nothing():
    net, given = slice_named_by_data(lambda net, part: net.head(part).sum(0))

    flow = assert_cut_exactly(net, given)

    assert flow.n_gates == 8
    assert "sym_storage_offset" in str(flow.captured.program.graph)


def test_units_stay_where_their_place_in_memory_is_a_number_of_the_code():
    net, given = slice_named_by_data(lambda net, part: net.head(part).sum(0) * part.storage_offset())

    assert traced(net, given).pinned["its place in memory is used as a number"] == 8
