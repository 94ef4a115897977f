"""Rules of recurrent layers: hidden units with their rows in every gate of the cell."""

import pytest
import torch
from flow_case import Net, assert_cut_exactly, gates, inputs, ready, traced
from torch import nn

KINDS = {"lstm": (nn.LSTM, 4), "gru": (nn.GRU, 3), "rnn": (nn.RNN, 1)}


def network(kind: type, *, outputs: int = 1, **options) -> nn.Module:
    return Net(
        lambda net, x: net.head(net.cell(net.up(x))[0]),
        up=nn.Linear(3, 6),
        cell=kind(6, 5, batch_first=True, **options),
        head=nn.Linear(5 * outputs, 2),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_hidden_unit_has_a_row_in_every_gate_of_the_cell(kind):
    layer, n_blocks = KINDS[kind]

    flow = assert_cut_exactly(network(layer), inputs(2, 7, 3), forms=["in-place", "graph"], seeds=(0, 1))

    hidden = gates(flow, "cell.weight_hh_l0", 1)
    assert len(set(hidden)) == 5
    assert gates(flow, "head.weight", 1) == hidden
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        assert gates(flow, f"cell.{name}", 0) == hidden * n_blocks
    assert gates(flow, "cell.weight_ih_l0", 1) == gates(flow, "up.weight", 0)
    assert flow.n_gates == 5 + 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True, "bias": False}]
)
def test_units_of_all_layers_and_directions_go_together(kind, options):
    layer, _ = KINDS[kind]
    n_directions = 1 + options.get("bidirectional", False)
    net = network(layer, outputs=n_directions, **options)

    flow = assert_cut_exactly(net, inputs(2, 7, 3), forms=["in-place", "graph"], seeds=(0, 1))

    hidden = gates(flow, "cell.weight_hh_l0", 1)
    assert flow.n_gates == 5 + 6
    assert gates(flow, "head.weight", 1) == hidden * n_directions
    if options.get("num_layers"):
        assert gates(flow, "cell.weight_ih_l1", 1) == hidden * n_directions


def test_input_and_hidden_width_may_be_equal():
    net = Net(
        lambda net, x: net.head(net.cell(net.up(x))[0]), up=nn.Linear(3, 5), cell=nn.GRU(5, 5), head=nn.Linear(5, 2)
    )

    assert assert_cut_exactly(net, inputs(7, 2, 3), forms=["in-place", "graph"], seeds=(0, 1)).n_gates == 10


def test_the_last_states_carry_the_units_too():
    net = Net(
        lambda net, x: net.head(net.cell(x)[1][0][-1]) + net.tail(net.cell(x)[1][1][-1]),
        cell=nn.LSTM(3, 5, batch_first=True),
        head=nn.Linear(5, 2),
        tail=nn.Linear(5, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 7, 3), forms=["in-place", "graph"])

    assert flow.n_gates == 5
    assert gates(flow, "head.weight", 1) == gates(flow, "tail.weight", 1)


def test_a_state_that_is_an_input_of_the_model_pins_the_units():
    net = Net(lambda net, x, h: net.head(net.cell(x, h)[0]), cell=nn.GRU(3, 5), head=nn.Linear(5, 2))

    assert traced(net, (inputs(7, 2, 3), inputs(1, 2, 5))).n_gates == 0


def test_a_learned_first_state_is_cut_with_the_units():
    net = Net(
        lambda net, x: net.head(net.cell(x, net.state.expand(-1, x.shape[1], -1))[0]),
        cell=nn.GRU(3, 5),
        state=nn.Parameter(torch.empty(1, 1, 5)),
        head=nn.Linear(5, 2),
    )

    flow = assert_cut_exactly(net, inputs(7, 2, 3), forms=["in-place", "graph"])

    assert gates(flow, "state", 2) == gates(flow, "head.weight", 1) == [0, 1, 2, 3, 4]


def test_projected_outputs_are_left_alone():
    net = Net(lambda net, x: net.head(net.cell(x)[0]), cell=nn.LSTM(3, 6, proj_size=4), head=nn.Linear(4, 2))

    assert traced(net, inputs(7, 2, 3)).n_gates == 0


def test_multiplications_of_a_cell_are_those_of_its_two_weights():
    flow = traced(network(nn.LSTM), inputs(2, 7, 3))

    assert flow.dense_cost("macs") == 7 * (3 * 6 + 4 * 5 * (6 + 5) + 5 * 2)


def test_dropout_between_layers_is_on_in_training_only():
    from flow_case import gated_at, random_gates

    from l0prune.surgery.shrink import shrink

    net = ready(network(nn.LSTM, num_layers=2, dropout=0.5))
    flow = traced(net, inputs(2, 7, 3))
    compact = shrink(gated_at(net, flow, random_gates(flow)), form="graph")

    assert torch.equal(compact(inputs(2, 7, 3)), compact(inputs(2, 7, 3)))
    compact.train()
    assert not torch.equal(compact(inputs(2, 7, 3)), compact(inputs(2, 7, 3)))
