"""Rules of ops that move dimensions about: permutations, sizes of one, repetition."""

import pytest
import torch
from flow_case import EXACT, Net, assert_cut_exactly, difference, gated_at, gates, inputs, traced
from torch import nn

from l0prune.flow.trace import trace_program
from l0prune.surgery.shrink import shrink

MOVES = {
    "permute": lambda x: x.permute(0, 2, 1),
    "permute, negative": lambda x: x.permute(0, -1, -2),
    "transpose": lambda x: x.transpose(1, -1),
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "swapdims": lambda x: x.swapdims(1, 2),
    "movedim": lambda x: x.movedim(-1, 1),
    "moveaxis": lambda x: x.moveaxis(-1, 1),
    "movedim, several": lambda x: x.movedim((2, 1), (1, 2)),
    "mT": lambda x: x.mT,
    "contiguous": lambda x: x.transpose(1, 2).contiguous().clone().detach(),
    "unsqueeze": lambda x: x.unsqueeze(1).unsqueeze(-1).squeeze(1).squeeze(-1).transpose(1, 2),
    "to": lambda x: x.to(torch.float32).to(torch.float64).transpose(1, 2).type_as(x),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_units_move_with_their_dimension(move):
    """Channels arrive at dimension 1, where the convolution consumes them."""
    net = Net(lambda net, x: net.head(move(net.up(x))), up=nn.Linear(5, 8), head=nn.Conv1d(8, 3, 1))

    flow = assert_cut_exactly(net, inputs(2, 4, 5), forms=["graph"] if "to" in str(move) else [None])

    assert flow.n_gates == 8
    assert gates(flow, "head.weight", 1) == gates(flow, "up.weight", 0) == list(range(8))


def test_a_matrix_is_turned_over():
    net = Net(lambda net, x: net.b.t() @ torch.relu((x @ net.a).t()), a=weight(5, 8), b=weight(8, 3))

    flow = assert_cut_exactly(net, inputs(4, 5))

    assert flow.n_gates == 8


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


@pytest.mark.parametrize(
    "squeeze", [lambda x: x.squeeze(), lambda x: x.squeeze(1).squeeze((2, 3)), lambda x: torch.squeeze(x, -1)[..., 0]]
)
def test_a_dimension_cut_down_to_one_unit_is_not_squeezed_away(squeeze):
    net = Net(
        lambda net, x: net.head(squeeze(net.conv(x).mean((2, 3), keepdim=True))),
        conv=nn.Conv2d(3, 4, 1),
        head=nn.Linear(4, 2),
    )
    x = inputs(3, 3, 2, 2)
    flow = traced(net, x)
    gated = gated_at(net, flow, torch.tensor([0.0, 0.7, 0.0, 0.0]))

    compact = shrink(gated)

    assert sorted(p.shape[0] for p in compact.parameters()) == [1, 1, 2, 2]
    assert difference(compact(x), gated(x)) < EXACT


def test_a_sole_unit_that_is_squeezed_away_is_pinned():
    net = Net(
        lambda net, x: net.head(net.up(x)) + net.up(x)[:, 1:2].squeeze(1)[:, None],
        up=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
    )

    flow = assert_cut_exactly(net, inputs(3, 3))

    assert gates(flow, "up.weight", 0) == [0, -1, 1, 2]
    assert flow.pinned["a single unit's dimension is squeezed away"] == 1


def test_a_parameter_is_expanded_along_dimensions_it_does_not_have():
    net = Net(
        lambda net, x: net.head(torch.relu(net.conv(x) * net.scale.expand(x.shape[0], 8, 3, 3))),
        conv=nn.Conv2d(3, 8, 1),
        scale=weight(1, 8, 1, 1),
        head=nn.Conv2d(8, 2, 1),
    )

    flow = assert_cut_exactly(net, inputs(2, 3, 3, 3))

    assert flow.n_gates == 8
    assert gates(flow, "scale", 1) == gates(flow, "conv.weight", 0)


def test_a_class_token_is_expanded_over_the_batch():
    net = Net(
        lambda net, x: net.head(torch.cat([net.token.expand(x.shape[0], -1, -1), net.up(x)], 1)[:, 0]),
        up=nn.Linear(5, 8),
        token=weight(1, 1, 8),
        head=nn.Linear(8, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 3, 5))

    assert flow.n_gates == 8
    assert gates(flow, "token", 2) == gates(flow, "head.weight", 1)


def test_a_single_unit_repeated_over_a_dimension_is_pinned_and_its_copies_go_with_what_they_meet():
    net = Net(
        lambda net, x: net.head(net.up(x)[:, :1].expand(-1, 4) * net.other(x)),
        up=nn.Linear(3, 5),
        other=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 3), forms=["graph"])

    assert flow.n_gates == 4
    assert gates(flow, "other.weight", 0) == gates(flow, "head.weight", 1) == [0, 1, 2, 3]
    assert flow.pinned["a single unit is broadcast over a dimension"] == 1


def test_repetition_over_the_batch_keeps_units_and_along_a_dimension_of_one_pins_it():
    along_batch = Net(lambda net, x: net.head(net.up(x).repeat(2, 1)), up=nn.Linear(3, 4), head=nn.Linear(4, 2))
    single = Net(
        lambda net, x: net.head(net.up(x)[:, :1].repeat(1, 5)) + net.tail(net.up(x)),
        up=nn.Linear(3, 4),
        head=nn.Linear(5, 2),
        tail=nn.Linear(4, 2),
    )

    assert assert_cut_exactly(along_batch, inputs(2, 3)).n_gates == 4
    assert gates(assert_cut_exactly(single, inputs(2, 3)), "up.weight", 0) == [-1, 0, 1, 2]


@pytest.mark.parametrize(("move", "name"), [(lambda x, d: x.roll(1, d), "roll"), (lambda x, d: x.flip(d), "flip")])
def test_moving_positions_keeps_units_and_moving_units_pins_them(move, name):
    def net(dim: int) -> nn.Module:
        return Net(lambda net, x: net.head(move(net.up(x), dim)), up=nn.Linear(3, 4), head=nn.Linear(4, 2))

    assert assert_cut_exactly(net(1), inputs(2, 5, 3)).n_gates == 4
    assert traced(net(2), inputs(2, 5, 3)).pinned[f"{name} moves indices along it"] == 4
    assert traced(net(-1), inputs(2, 5, 3)).n_gates == 0


def test_rolling_without_a_dimension_moves_everything():
    net = Net(lambda net, x: net.head(net.up(x).roll(1)), up=nn.Linear(3, 4), head=nn.Linear(4, 2))

    assert traced(net, inputs(2, 3)).n_gates == 0


def test_a_length_of_units_that_is_used_as_a_number_stays():
    """torch.export asks the inputs for sizes; a program written by hand may ask any tensor."""
    net = Net(lambda net, x: net.head(net.up(x)) * x.shape[0], up=nn.Linear(3, 4), head=nn.Linear(4, 2))
    captured = traced(net, inputs(5, 3)).captured
    up, _ = captured.program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    (size,) = captured.program.graph.find_nodes(op="call_function", target=torch.ops.aten.sym_size.int)
    up.append(size)
    size.args = (up, 1)

    flow = trace_program(captured)

    assert flow.n_gates == 0
    assert flow.pinned["its size is used as a number"] == 4
