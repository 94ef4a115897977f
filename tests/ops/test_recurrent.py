"""Rules of recurrent layers: hidden units with their rows in every gate of the cell."""

import pytest
import torch
from flow_case import Net, assert_cut_exactly, gated_at, gates, inputs, random_gates, ready, traced
from torch import nn
from torch.nn.utils import rnn

from l0prune.surgery.shrink import shrink

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


PROJECTED = {"plain": {}, "no biases": {"bias": False}, "several": {"num_layers": 2, "bidirectional": True}}


@pytest.mark.parametrize("options", PROJECTED.values(), ids=PROJECTED)
def test_projected_outputs_are_units_beside_those_of_the_cells(options):
    n_directions = 1 + options.get("bidirectional", False)
    net = Net(
        lambda net, x: net.head(net.cell(net.up(x))[0]),
        up=nn.Linear(3, 6),
        cell=nn.LSTM(6, 5, proj_size=4, **options),
        head=nn.Linear(4 * n_directions, 2),
    )

    flow = assert_cut_exactly(net, inputs(7, 2, 3), forms=["in-place", "graph"], seeds=(0, 1))

    cells, outputs = gates(flow, "cell.weight_hr_l0", 1), gates(flow, "cell.weight_hr_l0", 0)
    assert flow.n_gates == 6 + 5 + 4
    assert (len(set(cells)), len(set(outputs))) == (5, 4)
    assert gates(flow, "cell.weight_hh_l0", 0) == gates(flow, "cell.weight_ih_l0", 0) == cells * 4
    assert gates(flow, "cell.weight_hh_l0", 1) == outputs
    assert gates(flow, "head.weight", 1) == outputs * n_directions
    if options.get("bias", True):
        assert gates(flow, "cell.bias_ih_l0", 0) == gates(flow, "cell.bias_hh_l0", 0) == cells * 4
    if "num_layers" in options:
        assert gates(flow, "cell.weight_ih_l1", 1) == outputs * 2
        assert gates(flow, "cell.weight_hr_l1_reverse", 0) == outputs


def test_the_last_states_of_projected_outputs_are_outputs_and_cells():
    net = Net(
        lambda net, x: (net.head(net.cell(x)[1][0][-1]), net.tail(net.cell(x)[1][1][-1])),
        cell=nn.LSTM(3, 5, proj_size=4),
        head=nn.Linear(4, 2),
        tail=nn.Linear(5, 2),
    )

    flow = assert_cut_exactly(net, inputs(7, 2, 3), forms=["in-place", "graph"])

    assert gates(flow, "head.weight", 1) == gates(flow, "cell.weight_hr_l0", 0)
    assert gates(flow, "tail.weight", 1) == gates(flow, "cell.weight_hr_l0", 1)


def test_cut_layers_know_their_new_widths():
    net = Net(
        lambda net, x: net.head(net.cell(net.up(x))[0]),
        up=nn.Linear(3, 6),
        cell=nn.LSTM(6, 5, proj_size=4),
        head=nn.Linear(4, 2),
    )
    flow = traced(net, inputs(7, 2, 3))

    cell = shrink(gated_at(net, flow, random_gates(flow)), form="in-place").cell

    assert (cell.proj_size, cell.hidden_size) == tuple(cell.weight_hr_l0.shape)
    assert cell.input_size == cell.weight_ih_l0.shape[1] < 6
    assert cell.hidden_size < 5


def test_multiplications_of_projected_outputs():
    cell = nn.LSTM(3, 5, proj_size=4, batch_first=True)
    net = Net(lambda net, x: net.head(net.cell(x)[0]), cell=cell, head=nn.Linear(4, 2))

    assert traced(net, inputs(2, 7, 3)).dense_cost("macs") == 7 * (4 * 5 * (3 + 4) + 5 * 4 + 4 * 2)


def in_steps(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A cell called once for each step, from a first state that is learned."""
    state = net.state.expand(x.shape[0], -1)
    states, outputs = (state, state), []
    for step in net.up(x).unbind(1):
        if isinstance(net.cell, nn.LSTMCell):
            states = net.cell(step, states)
        else:
            states = (net.cell(step, states[0]),)
        outputs.append(states[0])
    return net.head(torch.stack(outputs, 1))


CELLS = {"lstm": (nn.LSTMCell, 4), "gru": (nn.GRUCell, 3), "rnn": (nn.RNNCell, 1)}


@pytest.mark.parametrize("options", [{}, {"bias": False}])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_that_are_called_step_by_step_are_cut(kind, options):
    layer, n_blocks = CELLS[kind]
    net = Net(
        in_steps,
        up=nn.Linear(3, 6),
        cell=layer(6, 5, **options),
        state=nn.Parameter(torch.empty(1, 5)),
        head=nn.Linear(5, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 4, 3), forms=["in-place", "graph"], seeds=(0, 1))

    hidden = gates(flow, "head.weight", 1)
    assert flow.n_gates == 6 + 5
    assert gates(flow, "cell.weight_hh", 1) == gates(flow, "state", 1) == hidden
    assert gates(flow, "cell.weight_ih", 1) == gates(flow, "up.weight", 0)
    for name in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if not options else ())):
        assert gates(flow, f"cell.{name}", 0) == hidden * n_blocks
    assert flow.dense_cost("macs") == 4 * (3 * 6 + n_blocks * 5 * (6 + 5) + 5 * 2)


def test_cells_make_their_first_states_as_wide_as_they_are_cut():
    net = Net(
        lambda net, x: net.head(net.cell(x, x.new_zeros(x.shape[0], net.cell.hidden_size))),
        cell=nn.RNNCell(3, 5, nonlinearity="relu"),
        head=nn.Linear(5, 2),
    )

    assert assert_cut_exactly(net, inputs(2, 3), forms=["in-place", "graph"]).n_gates == 5


@pytest.mark.parametrize("kind", CELLS)
def test_a_state_of_a_cell_that_is_an_input_of_the_model_pins_the_units(kind):
    cell = CELLS[kind][0](3, 5)
    net = Net(
        lambda net, x, h: net.head(net.cell(x, (h, h.new_zeros(2, 5)))[0] if kind == "lstm" else net.cell(x, h)),
        cell=cell,
        head=nn.Linear(5, 2),
    )

    assert traced(net, (inputs(2, 3), inputs(2, 5))).n_gates == 0


def test_the_state_inside_a_cell_is_a_unit_too():
    net = Net(
        lambda net, x: net.head(net.cell(x, (x.new_zeros(2, net.cell.hidden_size), net.memory(x)))[1]),
        cell=nn.LSTMCell(3, 5),
        memory=nn.Linear(3, 5),
        head=nn.Linear(5, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 3), forms=["in-place"])

    assert gates(flow, "memory.weight", 0) == gates(flow, "cell.weight_hh", 1) == gates(flow, "head.weight", 1)


def test_rows_of_a_cell_that_are_units_go_with_those_of_its_state():
    """Channels serve as the batch of the cell: the ones of its input are the ones of its state."""
    net = Net(
        lambda net, x: net.tail(net.cell(net.up(x).t(), net.beside(x).t()).t()),
        up=nn.Linear(3, 6),
        beside=nn.Linear(3, 6),
        cell=nn.GRUCell(2, 2),
        tail=nn.Linear(6, 4),
    )

    flow = assert_cut_exactly(net, inputs(2, 3), forms=["in-place", "graph"])

    assert gates(flow, "up.weight", 0) == gates(flow, "beside.weight", 0) == gates(flow, "tail.weight", 1)
    assert flow.n_gates == 6


def packed(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Sequences of several lengths."""
    cut = rnn.pack_padded_sequence(net.up(x), net.lengths, batch_first=True, enforce_sorted=False)
    outputs, state = net.cell(cut)
    outputs, lengths = rnn.pad_packed_sequence(outputs, batch_first=True)
    state = state[0] if isinstance(state, tuple) else state
    return net.head(outputs) / lengths[:, None, None], net.tail(state[-1])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("kind", [*KINDS, "projected"])
def test_packed_sequences_are_cut(kind, options):
    layer, _ = KINDS.get(kind, (nn.LSTM, 4))
    n_out = 4 if kind == "projected" else 5
    net = Net(
        packed,
        up=nn.Linear(3, 6),
        cell=layer(6, 5, batch_first=True, **options, **({"proj_size": 4} if kind == "projected" else {})),
        head=nn.Linear(n_out * (2 if options else 1), 2),
        tail=nn.Linear(n_out, 2),
    )
    net.register_buffer("lengths", torch.tensor([4, 7, 5]))

    flow = assert_cut_exactly(net, inputs(3, 7, 3), forms=["in-place"], seeds=(0, 1))

    assert flow.n_gates == 6 + 5 + (4 if kind == "projected" else 0)
    assert gates(flow, "cell.weight_ih_l0", 1) == gates(flow, "up.weight", 0)
    assert gates(flow, "tail.weight", 1) == gates(flow, "cell.weight_hh_l0", 1)


def test_multiplications_of_packed_sequences_are_those_of_their_steps():
    net = Net(
        lambda net, x: net.head(net.cell(rnn.pack_padded_sequence(x, net.lengths, batch_first=True))[1][-1]),
        cell=nn.GRU(3, 5),
        head=nn.Linear(5, 2),
    )
    net.register_buffer("lengths", torch.tensor([7, 4]))

    assert traced(net, inputs(2, 7, 3)).dense_cost("macs") == (7 + 4) / 2 * 3 * 5 * (3 + 5) + 5 * 2


def test_units_that_are_steps_of_packed_sequences_stay():
    net = Net(
        lambda net, x: (
            rnn.pad_packed_sequence(net.cell(rnn.pack_padded_sequence(net.up(x).t()[:, :, None], net.lengths))[0])[0],
            net.tail(net.up(x)),
        ),
        up=nn.Linear(3, 4),
        cell=nn.GRU(1, 5),
        tail=nn.Linear(4, 2),
    )
    net.register_buffer("lengths", torch.tensor([4, 3]))

    assert gates(traced(net, inputs(2, 3)), "up.weight", 0) is None


def test_multiplications_of_a_cell_are_those_of_its_two_weights():
    flow = traced(network(nn.LSTM), inputs(2, 7, 3))

    assert flow.dense_cost("macs") == 7 * (3 * 6 + 4 * 5 * (6 + 5) + 5 * 2)


def test_dropout_between_layers_is_on_in_training_only():
    net = ready(network(nn.LSTM, num_layers=2, dropout=0.5))
    flow = traced(net, inputs(2, 7, 3))
    compact = shrink(gated_at(net, flow, random_gates(flow)), form="graph")

    assert torch.equal(compact(inputs(2, 7, 3)), compact(inputs(2, 7, 3)))
    compact.train()
    assert not torch.equal(compact(inputs(2, 7, 3)), compact(inputs(2, 7, 3)))
