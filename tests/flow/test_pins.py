"""Units that have to stay although a parameter consumes them elsewhere: no other rule would pin them."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import Net, assert_cut_exactly, both, gates, inputs, traced
from test_flow_costs import counted_macs
from torch import nn

from l0prune.ops import views

LOOKED_UP = {
    "list": lambda net, y: y[..., [3, 0, 0, 1]],
    "two indices": lambda net, y: y[:, [0, 1, 2, 2], [3, 0, 0, 1]],
    "index_select": lambda net, y: y.index_select(2, torch.tensor([2, 0, 1])),
    "select": lambda net, y: y.select(-1, 1),
    "unbind": lambda net, y: y.unbind(-1)[2],
    "gather": lambda net, y: y.gather(-1, torch.zeros(3, 5, 2, dtype=torch.long)),
    "as indices": lambda net, y: torch.arange(7.0)[(y > 0).long()],
    "as indices of gather": lambda net, y: y.new_ones(3, 5, 9)[..., :2].gather(-1, (y > 0).long()),
}


@pytest.mark.parametrize("name", LOOKED_UP)
def test_units_that_are_looked_up_stay(name):
    flow = traced(both(LOOKED_UP[name]), inputs(3, 5, 3))

    assert gates(flow, "up.weight", 0) is None
    assert flow.n_gates == 0


def test_indices_behind_units_leave_them_where_they_are():
    net = Net(
        lambda net, x: net.head(net.up(x)[:, :, [2, 0]].transpose(1, 2)),
        up=nn.Conv1d(3, 4, 1),
        head=nn.Linear(4, 2),
    )

    assert assert_cut_exactly(net, inputs(3, 3, 5), forms=["graph"]).n_gates == 4


def test_indices_apart_put_their_dimension_before_units():
    net = Net(
        lambda net, x: net.head(net.up(x)[:, :, [2, 0], :, [1, 1]].transpose(-1, -2)),
        up=nn.Conv3d(3, 4, 1),
        head=nn.Linear(4, 2),
    )

    assert assert_cut_exactly(net, inputs(2, 3, 3, 5, 2), forms=["graph"]).n_gates == 4


BOUNDS = {
    "slice": lambda net, y: y[..., : y.shape[0]].sum(-1),
    "narrow": lambda net, y: torch.narrow(y, -1, 0, y.shape[0]).sum(-1),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_units_cut_off_where_the_batch_ends_stay(name):
    flow = traced(both(BOUNDS[name], width=6), inputs(3, 5, 3))

    assert gates(flow, "up.weight", 0) is None


@pytest.mark.parametrize("groups", [1, 4])
def test_a_weight_that_is_an_input_of_the_model_pins_and_is_counted(groups):
    net = Net(
        lambda net, x, w: (net.tail(net.up(x)), F.conv2d(net.up(x), w, groups=groups)),
        up=nn.Conv2d(3, 4, 1),
        tail=nn.Conv2d(4, 2, 1),
    )
    x = (inputs(1, 3, 5, 6), inputs(8, 4 // groups, 3, 1))

    flow = traced(net, x)

    assert flow.n_gates == 0
    assert flow.dense_cost("macs") == counted_macs(lambda pair: net(*pair), x)


def test_a_picture_without_a_batch_has_no_rule():
    net = both(lambda net, y: net.conv(y.transpose(0, 1)[:, 0]), width=4)
    net.conv = nn.Conv1d(3, 2, 1)

    flow = traced(net, inputs(5, 3, 3))

    assert "aten.conv1d.default" in flow.unknown_ops


def test_a_stride_or_padding_of_one_axis_is_that_of_the_axis():
    """Three positions of units: every other of five with a border of one each side are three again, but other ones."""

    def function(net: nn.Module, y: torch.Tensor) -> torch.Tensor:  # y: (2, 5, 3 units)
        return F.conv2d(y[:, None], y.new_ones(1, 1, 1, 1), stride=(1, 2), padding=(0, 1))

    assert traced(both(function, width=3, n_out=3), inputs(2, 5, 3)).n_gates == 0


def test_positions_of_a_kernel_are_not_reported():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, (2, 1)))

    flow = traced(net, inputs(2, 3, 6, 6))

    assert set(flow.pinned.values()) == {3, 4}
    assert flow.n_gates == 8


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 4), nn.GroupNorm(1, 4), nn.InstanceNorm1d(4), nn.BatchNorm1d(4)], ids=str
)
def test_units_along_which_statistics_are_taken_stay(norm):
    net = both(lambda net, y: net.norm(y), width=6, n_out=6)
    net.norm = norm

    assert gates(traced(net, inputs(3, 4, 3)), "up.weight", 0) is None


def test_units_beside_a_norm_over_space_are_free():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm((5, 6)), nn.Conv2d(4, 2, 1))

    assert assert_cut_exactly(net, inputs(2, 3, 5, 6), forms=["graph"]).n_gates == 4


def test_units_of_an_rms_norm_over_several_dimensions_stay():
    net = both(lambda net, y: F.rms_norm(y, (5, 4)), n_out=4)

    assert traced(net, inputs(3, 5, 3)).n_gates == 0


@pytest.mark.parametrize("left", [False, True])
def test_units_of_matrices_that_broadcast_stay(left):
    """A single unit along the batch of matrices, next to several."""

    def function(net: nn.Module, y: torch.Tensor) -> torch.Tensor:
        one = y[..., :1].movedim(-1, 1)[..., None].expand(-1, -1, -1, 5)
        many = y.new_ones(1).expand(y.shape[0], 3, 5, 5)
        return one @ many if left else many @ one

    flow = assert_cut_exactly(both(function), inputs(2, 5, 3), forms=["graph"])

    assert gates(flow, "up.weight", 0) == [-1, 0, 1, 2]


@pytest.mark.parametrize("left", [False, True])
def test_units_contracted_with_an_input_stay(left):
    def function(net: nn.Module, y: torch.Tensor) -> torch.Tensor:
        other = y.new_ones(1).expand(y.shape[0], 4, 5)
        return other.transpose(1, 2) @ y.transpose(1, 2) if left else y @ other

    assert traced(both(function), inputs(2, 5, 3)).n_gates == 0


def test_multiplications_with_a_weight_that_is_an_input_are_counted():
    net = Net(lambda net, x, w: F.linear(net.up(x), w), up=nn.Linear(3, 4))
    x = (inputs(5, 3), inputs(7, 4))

    assert traced(net, x).dense_cost("macs") == 5 * 3 * 4 + 5 * 4 * 7


def test_parts_that_are_joined_may_be_vectors_or_nothing():
    net = Net(
        lambda net, x: net.head(torch.cat([torch.zeros(0, dtype=x.dtype), net.up(x) + torch.cat([net.a, net.b])], 1)),
        up=nn.Linear(3, 8),
        a=nn.Parameter(torch.empty(5)),
        b=nn.Parameter(torch.empty(3)),
        head=nn.Linear(8, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 3), forms=["graph"])

    assert gates(flow, "a", 0) == [0, 1, 2, 3, 4]
    assert gates(flow, "b", 0) == [5, 6, 7]


def test_slices_and_moved_dimensions_of_a_parameter_are_consumers():
    net = Net(
        lambda net, x: F.linear(net.up(x), net.sliced[2:]) + F.linear(net.up(x), net.moved.movedim(0, 1)),
        up=nn.Linear(3, 8),
        sliced=nn.Parameter(torch.empty(6, 8)),
        moved=nn.Parameter(torch.empty(8, 4)),
    )

    flow = assert_cut_exactly(net, inputs(2, 3), forms=["graph"])

    assert flow.n_gates == 8
    assert {(consumer.parameter, consumer.dim) for consumer in flow.consumers} == {("sliced", 1), ("moved", 0)}


def with_cell(cell: nn.Module, function=lambda net, y: net.cell(y)[0]) -> Net:
    net = both(function)
    net.cell = cell
    return net


RECURRENT = {
    "a single hidden unit": with_cell(nn.GRU(4, 1)),
    "a single projected output": with_cell(nn.LSTM(4, 6, proj_size=1)),
    "a single hidden unit that is projected": with_cell(nn.LSTM(4, 2, proj_size=1)),
    "a single hidden unit of a cell": with_cell(nn.GRUCell(4, 1), lambda net, y: net.cell(y[:, 0])),
    "along time": with_cell(nn.GRU(5, 3, batch_first=True), lambda net, y: net.cell(y.transpose(1, 2))[0]),
    "along the batch": with_cell(nn.GRU(5, 3), lambda net, y: net.cell(y.transpose(1, 2))[0]),
    "steps of packed sequences": with_cell(
        nn.Identity(),
        lambda net, y: torch._VF._pad_packed_sequence(y[0].t(), torch.tensor([2, 1, 1]), False, 0.0, 3)[0],
    ),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_units_that_a_recurrent_layer_cannot_lose_stay(name):
    assert traced(RECURRENT[name], inputs(2, 5, 3)).n_gates == 0


def test_inputs_of_a_cell_are_counted():
    flow = traced(Net(lambda net, x: net.cell(x)[0], cell=nn.GRU(4, 5, batch_first=True)), inputs(2, 7, 4))

    assert flow.dense_cost("macs") == 7 * 3 * 5 * (4 + 5)


def test_layers_of_a_first_state_are_not_reported():
    net = Net(
        lambda net, x: net.head(net.cell(x, net.state.expand(-1, x.shape[1], -1))[0]),
        cell=nn.GRU(3, 5, num_layers=2),
        state=nn.Parameter(torch.empty(2, 1, 5)),
        head=nn.Linear(5, 4),
    )

    assert 2 not in traced(net, inputs(7, 2, 3)).pinned.values()


DECLINED = {
    "random by units": lambda net, y: torch.bernoulli(y.sigmoid()),
    "nothing of them": lambda net, y: y[:, :0].reshape(y.shape[0], 4, 0),
    "take_along_dim of all": lambda net, y: y.take_along_dim(torch.tensor([1, 5])),
    "nothing of them, and flat": lambda net, y: y[:, :0].reshape(y.shape[0], 0),
}


@pytest.mark.parametrize("name", DECLINED)
def test_uses_that_a_rule_declines_pin_the_units(name):
    assert traced(both(DECLINED[name]), inputs(2, 5, 3)).n_gates == 0


def test_units_in_a_view_too_large_to_follow_stay(monkeypatch):
    monkeypatch.setattr(views, "LARGEST_BLOCK", 8)

    assert traced(both(lambda net, y: y.flatten(1), n_out=20), inputs(2, 5, 3)).n_gates == 0


THREE_OF_FOUR = {
    "index_select": lambda y: y.index_select(-1, torch.tensor([2, 0, 1])),
    "windows": lambda y: y.unfold(-1, 2, 1).amax(-1),
    "topk": lambda y: y.topk(3).values,
}


@pytest.mark.parametrize("name", THREE_OF_FOUR)
def test_units_joined_to_what_is_left_of_others_keep_their_places(name):
    net = Net(
        lambda net, x: net.head(torch.cat([THREE_OF_FOUR[name](net.a(x)), net.b(x)], -1)),
        a=nn.Linear(3, 4),
        b=nn.Linear(3, 5),
        head=nn.Linear(8, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert flow.n_gates == 5
    assert gates(flow, "head.weight", 1) == [-1, -1, -1, 0, 1, 2, 3, 4]


UNTIL_THE_BATCH_ENDS = {
    "slice": lambda table, n: table[:n],
    "narrow": lambda table, n: table.narrow(0, 0, n),
    "flat for a while": lambda table, n: table[:n].flatten().unflatten(0, (-1, 4)),
}


@pytest.mark.parametrize("name", UNTIL_THE_BATCH_ENDS)
def test_a_table_of_which_the_batch_takes_as_much_as_it_needs_keeps_its_units(name):
    net = Net(
        lambda net, x: net.head(net.up(x) + UNTIL_THE_BATCH_ENDS[name](net.table, x.shape[0])),
        up=nn.Linear(3, 4),
        table=nn.Parameter(torch.empty(8, 4)),
        head=nn.Linear(4, 2),
    )

    flow = assert_cut_exactly(net, inputs(5, 3), forms=["graph"])

    assert gates(flow, "table", 1) == gates(flow, "up.weight", 0) == [0, 1, 2, 3]
