"""Rules of views: how units go through merging and splitting dimensions."""

import torch
import torch.nn.functional as F
from flow_case import Net, assert_cut_exactly, gates, inputs, traced
from torch import nn

from l0prune.ops.views import blocks


def test_blocks_are_the_smallest_runs_that_hold_as_many_elements():
    assert list(blocks((2, 12, 5), (2, 3, 4, 5))) == [([0], [0]), ([1], [1, 2]), ([2], [3])]
    assert list(blocks((2, 3, 4, 5), (6, 20))) == [([0, 1], [0]), ([2, 3], [1])]
    assert list(blocks((4, 6), (3, 8))) == [([0, 1], [0, 1])]
    assert list(blocks((7, 1), (7,))) == [([0], [0]), ([1], [])]


def test_flattening_gives_a_channel_all_its_positions():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6, 5))

    flow = assert_cut_exactly(net, inputs(2, 3, 2, 3))

    assert flow.n_gates == 4
    assert gates(flow, "3.weight", 1) == [channel for channel in range(4) for _ in range(6)]


def test_flattening_with_channels_last_interleaves_them():
    net = Net(
        lambda net, x: net.head(net.conv(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1)),
        conv=nn.Conv2d(3, 4, 1),
        head=nn.Linear(4 * 6, 5),
    )

    flow = assert_cut_exactly(net, inputs(2, 3, 2, 3))

    assert gates(flow, "head.weight", 1) == [0, 1, 2, 3] * 6


def test_dimensions_of_size_one_come_and_go():
    net = Net(
        lambda net, x: net.head(net.conv(x[:, :, None, None]).view(-1, 4, 1).flatten(1)),
        conv=nn.Conv2d(3, 4, 1),
        head=nn.Linear(4, 5),
    )

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert flow.n_gates == 4
    assert gates(flow, "head.weight", 1) == gates(flow, "conv.weight", 0)


def test_a_sole_unit_that_is_reshaped_away_is_pinned():
    net = Net(
        lambda net, x: net.head(net.up(x)) + net.up(x)[:, 2:3].reshape(-1, 1), up=nn.Linear(3, 4), head=nn.Linear(4, 5)
    )

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert gates(flow, "up.weight", 0) == [0, 1, -1, 2]
    assert flow.pinned["a single unit's dimension is reshaped away"] == 1


def fused(net: Net, x: torch.Tensor) -> torch.Tensor:
    batch, n, _ = x.shape
    q, k, v = net.qkv(x).reshape(batch, n, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return net.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, n, 8))


def test_queries_wait_until_fused_keys_and_values_are_split_along_heads():
    def apart(net: Net, x: torch.Tensor) -> torch.Tensor:
        batch, n, _ = x.shape
        k, v = net.kv(x).reshape(batch, n, 2, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        q = net.q(x).reshape(batch, n, 2, 4).transpose(1, 2)
        scores = (q @ k.transpose(-2, -1)).softmax(-1)
        return net.out((scores @ v).transpose(1, 2).reshape(batch, n, 8))

    net = Net(apart, q=nn.Linear(5, 8), kv=nn.Linear(5, 16), out=nn.Linear(8, 3))

    flow = assert_cut_exactly(net, inputs(2, 3, 5))

    assert gates(flow, "out.weight", 1) == [0] * 4 + [1] * 4
    assert gates(flow, "q.weight", 0) == [0] * 4 + [1] * 4
    assert gates(flow, "kv.weight", 0) == ([0] * 4 + [1] * 4) * 2


def test_heads_are_found_in_fused_queries_keys_and_values():
    net = Net(fused, qkv=nn.Linear(5, 24), out=nn.Linear(8, 3))

    flow = assert_cut_exactly(net, inputs(2, 6, 5))

    assert flow.n_gates == 2
    assert gates(flow, "qkv.weight", 0) == ([0] * 4 + [1] * 4) * 3
    assert gates(flow, "out.weight", 1) == [0] * 4 + [1] * 4


def test_a_split_dimension_carries_units_on_one_axis_and_ties_across_the_other():
    net = Net(
        lambda net, x: net.head(net.up(x).unflatten(1, (2, 6)).flip(0).flatten(1)),
        up=nn.Linear(3, 12),
        head=nn.Linear(12, 5),
    )

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert flow.n_gates == 2
    assert gates(flow, "up.weight", 0) == gates(flow, "head.weight", 1) == [0] * 6 + [1] * 6


def test_where_the_outer_axis_pins_everything_the_next_one_carries_the_units():
    net = Net(lambda net, x: net.head(net.up(x).view(-1, 2, 6).mean(1)), up=nn.Linear(3, 12), head=nn.Linear(6, 5))

    flow = assert_cut_exactly(net, inputs(4, 3))

    assert flow.n_gates == 6
    assert gates(flow, "up.weight", 0) == [0, 1, 2, 3, 4, 5] * 2
    assert gates(flow, "head.weight", 1) == [0, 1, 2, 3, 4, 5]


def test_a_view_of_which_no_axis_can_carry_units_pins_them():
    net = Net(
        lambda net, x: net.head(net.up(x).view(-1, 2, 6).softmax(1).softmax(2).flatten(1)),
        up=nn.Linear(3, 12),
        head=nn.Linear(12, 5),
    )

    flow = traced(net, inputs(4, 3))

    assert flow.n_gates == 0
    assert flow.pinned["no axis of a view can carry it"] > 0


def test_of_two_dimensions_of_units_that_merge_one_goes_on():
    net = Net(
        lambda net, x: net.head((net.rows[None, :, None] * net.up(x)[:, None, :]).flatten(1)),
        rows=nn.Parameter(torch.empty(3)),
        up=nn.Linear(3, 4),
        head=nn.Linear(12, 5),
    )

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert flow.n_gates == 3
    assert gates(flow, "rows", 0) == [0, 1, 2]
    assert gates(flow, "up.weight", 0) is None
    assert gates(flow, "head.weight", 1) == [row for row in range(3) for _ in range(4)]
    assert flow.pinned["merged with another dimension of units"] == 4


def test_of_two_dimensions_that_merge_the_one_that_is_free_goes_on():
    net = Net(
        lambda net, x: (net.head((net.rows[None, :, None] * net.up(x)[:, None, :]).flatten(1)), net.rows * 2),
        rows=nn.Parameter(torch.empty(3)),
        up=nn.Linear(3, 4),
        head=nn.Linear(12, 5),
    )

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert gates(flow, "rows", 0) is None
    assert gates(flow, "up.weight", 0) == [0, 1, 2, 3]
    assert gates(flow, "head.weight", 1) == [0, 1, 2, 3] * 3


def shuffled(net: Net, x: torch.Tensor) -> torch.Tensor:
    left, right = net.up(x).chunk(2, 1)
    x = torch.cat([left, net.branch(right)], 1)
    x = x.view(-1, 2, 4, 3, 3).transpose(1, 2).reshape(-1, 8, 3, 3)
    return net.head(x)


def test_a_channel_shuffle_permutes_units():
    net = Net(shuffled, up=nn.Conv2d(3, 8, 1), branch=nn.Conv2d(4, 4, 1), head=nn.Conv2d(8, 3, 1))

    flow = assert_cut_exactly(net, inputs(2, 3, 3, 3))

    assert flow.n_gates == 4
    assert gates(flow, "up.weight", 0) == [0, 1, 2, 3] * 2
    assert gates(flow, "branch.weight", 0) == gates(flow, "branch.weight", 1) == [0, 1, 2, 3]
    assert gates(flow, "head.weight", 1) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_windows_cut_from_positions_leave_channels_alone():
    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.up(x)
        batch = x.shape[0]
        windows = x.view(batch, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
        return net.head(torch.relu(windows).mean(1)).view(batch, 4, 3)

    net = Net(function, up=nn.Linear(5, 8), head=nn.Linear(8, 3))

    flow = assert_cut_exactly(net, inputs(2, 4, 4, 5))

    assert flow.n_gates == 8
