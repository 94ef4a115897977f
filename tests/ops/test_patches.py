"""Rules of ops that trade space for channels: windows, patches, pixel and channel shuffles."""

import pytest
import torch.nn.functional as F
from flow_case import Net, assert_cut_exactly, gates, inputs, traced
from torch import nn


def between(function, n_in: int, n_out: int) -> Net:
    return Net(
        lambda net, x: net.head(function(net.up(x)).relu()), up=nn.Conv2d(3, n_in, 1), head=nn.Conv2d(n_out, 4, 1)
    )


def test_windows_leave_channels_alone():
    net = between(lambda y: y.unfold(2, 3, 1).unfold(3, 3, 1).amax((-1, -2)), 6, 6)

    flow = assert_cut_exactly(net, inputs(2, 3, 5, 6))

    assert gates(flow, "up.weight", 0) == gates(flow, "head.weight", 1) == list(range(6))


def test_windows_along_units_pin_them():
    flow = traced(between(lambda y: y.unfold(1, 3, 1).sum(-1), 6, 4), inputs(2, 3, 5, 5))

    assert gates(flow, "up.weight", 0) is None
    assert flow.pinned["windows are cut along it"] == 6


def test_a_window_of_a_window():
    net = between(lambda y: y.unfold(-1, 2, 2).unfold(4, 2, 1).flatten(3), 6, 6)

    flow = assert_cut_exactly(net, inputs(2, 3, 4, 4), forms=["graph"])

    assert flow.n_gates == 6


def test_a_channel_goes_with_all_positions_of_its_patch():
    net = Net(lambda net, x: net.head(F.unfold(net.up(x), (2, 3)).mT), up=nn.Conv2d(3, 4, 1), head=nn.Linear(4 * 6, 5))

    flow = assert_cut_exactly(net, inputs(2, 3, 4, 4), seeds=range(2))

    assert gates(flow, "up.weight", 0) == [0, 1, 2, 3]
    assert gates(flow, "head.weight", 1) == [gate for gate in range(4) for _ in range(6)]


def test_patches_without_a_batch():
    net = Net(lambda net, x: net.head(F.unfold(net.up(x)[0], 2).mT), up=nn.Conv2d(3, 4, 1), head=nn.Linear(16, 5))

    flow = assert_cut_exactly(net, inputs(2, 3, 4, 4))

    assert flow.n_gates == 4


def test_patches_are_put_together_again():
    """What is folded comes from a linear layer, whose outputs for all positions of a channel live or die together."""
    net = Net(
        lambda net, x: net.head(F.fold(net.mix(F.unfold(net.up(x), 2, stride=2).mT).mT, (4, 4), 2, stride=2)),
        up=nn.Conv2d(3, 4, 1),
        mix=nn.Linear(16, 20),
        head=nn.Conv2d(5, 2, 1),
    )

    flow = assert_cut_exactly(net, inputs(2, 3, 4, 4), seeds=range(2))

    assert flow.n_gates == 4 + 5
    assert gates(flow, "mix.weight", 0) == [gate for gate in range(4, 9) for _ in range(4)]
    assert gates(flow, "head.weight", 1) == list(range(4, 9))


def test_channels_that_become_one_are_cut_together():
    flow = assert_cut_exactly(between(nn.PixelShuffle(2), 12, 3), inputs(2, 3, 3, 4), seeds=range(2))

    assert gates(flow, "up.weight", 0) == [0] * 4 + [1] * 4 + [2] * 4
    assert gates(flow, "head.weight", 1) == [0, 1, 2]


def test_a_channel_goes_with_those_it_becomes():
    flow = assert_cut_exactly(between(nn.PixelUnshuffle(2), 3, 12), inputs(2, 3, 6, 4), seeds=range(2))

    assert gates(flow, "up.weight", 0) == [0, 1, 2]
    assert gates(flow, "head.weight", 1) == [0] * 4 + [1] * 4 + [2] * 4


def test_shuffled_groups_lose_the_same_channels():
    flow = assert_cut_exactly(between(lambda y: F.channel_shuffle(y, 2), 6, 6), inputs(2, 3, 4, 4), seeds=range(2))

    assert gates(flow, "up.weight", 0) == [0, 1, 2, 0, 1, 2]
    assert gates(flow, "head.weight", 1) == [0, 0, 1, 1, 2, 2]


OVER_UNITS = {
    "unfold": lambda y: F.unfold(y, (2, 1)),
    "pixel_shuffle": lambda y: F.pixel_shuffle(y, 2),
    "pixel_unshuffle": lambda y: F.pixel_unshuffle(y, 2),
}


@pytest.mark.parametrize("name", OVER_UNITS)
def test_units_along_space_are_pinned(name):
    """The features of a linear layer lie along the last dimension."""
    net = Net(lambda net, x: OVER_UNITS[name](net.up(x)).flatten(1).mean(1), up=nn.Linear(3, 4), rest=nn.Linear(2, 2))

    flow = traced(net, inputs(2, 4, 6, 3))

    assert gates(flow, "up.weight", 0) is None
    assert any("mixes along it" in reason for reason in flow.pinned)


def test_units_along_the_positions_of_patches_are_pinned():
    net = Net(lambda net, x: F.fold(net.up(x), (3, 3), 2), up=nn.Linear(3, 4))

    flow = traced(net, inputs(2, 8, 3))

    assert gates(flow, "up.weight", 0) is None
    assert flow.pinned["col2im mixes along it"] == 4
