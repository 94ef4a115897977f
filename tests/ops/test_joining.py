"""Rules of ops that join, cut and pad along a dimension."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import Net, assert_cut_exactly, gates, inputs, traced
from torch import nn


def test_concatenated_channels_are_consumed_side_by_side():
    net = Net(
        lambda net, x: net.head(torch.cat([net.a(x), net.b(x), net.a(x)], 1)),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 2, 1),
        head=nn.Conv2d(10, 3, 1),
    )

    flow = assert_cut_exactly(net, inputs(2, 3, 3, 3))

    assert flow.n_gates == 4 + 2
    assert gates(flow, "head.weight", 1) == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]


STACKS = {
    "hstack": torch.hstack,
    "column_stack": torch.column_stack,
    "dstack": lambda parts: torch.dstack([part.movedim(1, 2) for part in parts]).movedim(2, 1),
    "vstack": torch.vstack,
}


@pytest.mark.parametrize("name", STACKS)
def test_other_ways_to_join(name):
    """Side by side along channels; one behind the other along the batch, where channels are tied."""
    net = Net(
        lambda net, x: net.head(STACKS[name]([net.a(x), net.b(x)])),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 4, 1),
        head=nn.Conv2d(4 if name == "vstack" else 8, 3, 1),
    )

    flow = assert_cut_exactly(net, inputs(2, 3, 3, 5), forms=["graph"])

    assert gates(flow, "head.weight", 1) == list(range(flow.n_gates))
    assert flow.n_gates == (4 if name == "vstack" else 8)


def test_vectors_that_are_stacked_have_no_rule():
    net = Net(
        lambda net, x: net.head(torch.vstack([net.up(x)[0], net.up(x)[1]])), up=nn.Linear(3, 4), head=nn.Linear(4, 2)
    )

    flow = traced(net, inputs(3, 3))

    assert list(flow.unknown_ops) == ["aten.vstack.default"]
    assert flow.n_gates == 0


@pytest.mark.parametrize("dim", [1, -3])
def test_the_halves_of_a_gated_linear_unit_are_tied(dim):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GLU(dim), nn.Conv2d(4, 2, 1))

    flow = assert_cut_exactly(net, inputs(2, 3, 3, 3), seeds=range(2))

    assert gates(flow, "0.weight", 0) == [0, 1, 2, 3, 0, 1, 2, 3]
    assert gates(flow, "2.weight", 1) == [0, 1, 2, 3]


def test_halves_of_positions_keep_all_channels():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GLU(3), nn.Conv2d(8, 2, 1))

    assert assert_cut_exactly(net, inputs(2, 3, 3, 4)).n_gates == 8


def test_the_input_joined_to_units_stays():
    net = Net(lambda net, x: net.head(torch.cat([x, net.a(x)], -1)), a=nn.Linear(3, 4), head=nn.Linear(7, 2))

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert gates(flow, "head.weight", 1) == [-1, -1, -1, 0, 1, 2, 3]
    assert flow.pinned["joined to units"] == 3


def test_joining_along_positions_ties_channels():
    net = Net(
        lambda net, x: net.head(torch.cat([net.a(x), net.b(x)], 1)),
        a=nn.Linear(3, 4),
        b=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 5, 3))

    assert flow.n_gates == 4
    assert gates(flow, "a.weight", 0) == gates(flow, "b.weight", 0) == [0, 1, 2, 3]


def test_stacked_tensors_are_tied():
    net = Net(
        lambda net, x: net.head(torch.stack([net.a(x), net.b(x)], -2).sum(-2)),
        a=nn.Linear(3, 4),
        b=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert gates(flow, "a.weight", 0) == gates(flow, "b.weight", 0) == gates(flow, "head.weight", 1) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "cut",
    [lambda x: x.chunk(2, -1), lambda x: x.split(4, -1), lambda x: torch.tensor_split(x, 2, -1)],
    ids=["chunk", "split", "tensor_split"],
)
def test_equal_parts_are_tied_part_to_part(cut):
    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        left, right = cut(net.up(x))
        return net.head(left) + net.other(right)

    net = Net(function, up=nn.Linear(3, 8), head=nn.Linear(4, 2), other=nn.Linear(4, 2))

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert flow.n_gates == 4
    assert gates(flow, "up.weight", 0) == [0, 1, 2, 3] * 2
    assert gates(flow, "head.weight", 1) == gates(flow, "other.weight", 1) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "cut", [lambda x: x.split([3, 5], -1), lambda x: torch.tensor_split(x, [3], -1)], ids=["sizes", "places"]
)
def test_unequal_parts_are_free_of_each_other(cut):
    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        left, right = cut(net.up(x))
        return net.head(left) + net.other(right)

    net = Net(function, up=nn.Linear(3, 8), head=nn.Linear(3, 2), other=nn.Linear(5, 2))

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert flow.n_gates == 8
    assert gates(flow, "head.weight", 1) == [0, 1, 2]
    assert gates(flow, "other.weight", 1) == [3, 4, 5, 6, 7]


def test_parts_along_positions_keep_all_channels():
    net = Net(lambda net, x: net.head(net.up(x).chunk(2, 1)[1]), up=nn.Linear(3, 8), head=nn.Linear(8, 2))

    assert assert_cut_exactly(net, inputs(2, 4, 3)).n_gates == 8


@pytest.mark.parametrize(
    ("cut", "chosen"),
    [
        (lambda x: x[:, :5], [0, 1, 2, 3, 4]),
        (lambda x: x[:, -3:], [5, 6, 7]),
        (lambda x: x[:, 1:8:3], [1, 4, 7]),
        (lambda x: x.narrow(1, 2, 3), [2, 3, 4]),
        (lambda x: x.narrow(-1, -3, 2), [5, 6]),
        (lambda x: x.narrow(-1, -2, 2), [6, 7]),
    ],
    ids=["first", "last", "strided", "narrow", "narrow from the end", "narrow up to the end"],
)
def test_a_slice_takes_its_units_along(cut, chosen):
    net = Net(
        lambda net, x: net.head(net.up(x)) + net.part(cut(net.up(x))),
        up=nn.Linear(3, 8),
        head=nn.Linear(8, 2),
        part=nn.Linear(len(chosen), 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 3), seeds=(0, 1, 2))

    assert flow.n_gates == 8
    assert gates(flow, "part.weight", 1) == chosen


def test_padded_channels_are_units_of_their_own():
    """The shortcut of CIFAR ResNets: every other position, zeros for the new channels."""
    net = Net(
        lambda net, x: net.head(torch.relu(net.wide(net.up(x)) + F.pad(net.up(x)[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)))),
        up=nn.Conv2d(3, 4, 1),
        wide=nn.Conv2d(4, 7, 1, stride=2),
        head=nn.Conv2d(7, 2, 1),
    )

    flow = assert_cut_exactly(net, inputs(2, 3, 4, 4), seeds=(0, 1, 2))

    assert flow.n_gates == 7
    narrow, wide = gates(flow, "up.weight", 0), gates(flow, "wide.weight", 0)
    assert narrow == wide[1:5]
    assert len(set(wide)) == 7
    assert wide == gates(flow, "head.weight", 1)


def test_padding_that_repeats_channels_pins_them():
    net = Net(
        lambda net, x: net.head(F.pad(net.up(x).transpose(1, 2), (1, 1), mode="circular").transpose(1, 2)),
        up=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
    )
    along_units = Net(
        lambda net, x: net.head(F.pad(net.up(x), (1, 1), mode="circular")), up=nn.Linear(3, 4), head=nn.Linear(6, 2)
    )

    assert assert_cut_exactly(net, inputs(2, 5, 3)).n_gates == 4
    assert traced(along_units, inputs(2, 5, 3)).n_gates == 0


def test_cropping_channels_by_negative_padding_pins_them():
    net = Net(lambda net, x: net.head(F.pad(net.up(x), (-1, 0))), up=nn.Linear(3, 5), head=nn.Linear(4, 2))

    assert traced(net, inputs(2, 3)).n_gates == 0


def written(part: slice):
    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.up(x)
        y[:, part].add_(net.other(x))
        return net.head(torch.relu(y))

    return Net(function, up=nn.Linear(3, 8), other=nn.Linear(3, 4), head=nn.Linear(8, 2))


def test_units_written_into_a_slice_are_tied_to_it():
    flow = assert_cut_exactly(written(slice(2, 6)), inputs(2, 3))

    assert flow.n_gates == 8
    assert gates(flow, "other.weight", 0) == [2, 3, 4, 5]


def test_a_strided_slice_that_is_written_pins_its_dimension():
    flow = traced(written(slice(0, 8, 2)), inputs(2, 3))

    assert flow.n_gates == 0
    assert flow.pinned["every so many of it are written in place"] == 8


def test_a_strided_slice_of_what_is_written_later_pins_its_dimension():
    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.up(x)
        every_other = y[:, ::2]
        y.mul_(2)
        return net.head(every_other)

    flow = traced(Net(function, up=nn.Linear(3, 8), head=nn.Linear(4, 2)), inputs(2, 3))

    assert flow.n_gates == 0
