"""Rules of ops that write into a part of a tensor: what is written is tied to what it replaces."""

import pytest
import torch
from flow_case import Net, assert_cut_exactly, both, gates, inputs, traced
from torch import Tensor, nn

LOOKED_UP = "indexed by position"


def net_with(function, n_out: int = 6) -> Net:
    """`up` and `other` make 6 features of 3 at each of 5 positions, `function` sees both."""
    return Net(
        lambda net, x: net.head(function(net.up(x), net.other(x)).relu()),
        up=nn.Linear(3, 6),
        other=nn.Linear(3, 6),
        head=nn.Linear(n_out, 2),
    )


def copied_over(y: Tensor, z: Tensor) -> Tensor:
    """Features 0, 1 and 2 of `z` replace features 3, 4 and 5 of `y`."""
    y = y.clone()
    y[..., 3:] = z[..., :3]
    return y


def copied_over_positions(y: Tensor, z: Tensor) -> Tensor:
    y = y.clone()
    y[:, 1:3] = z[:, 2:4]
    y[:, 0] = z[:, 4]
    return y


def put(y: Tensor, z: Tensor) -> Tensor:
    y = y.clone()
    y[:, [0, 3]] = z[:, 1:3]
    y[:, torch.tensor([[4], [2]])] = z[:, :1, None]
    return y


def put_rows(y: Tensor, z: Tensor) -> Tensor:
    y = y.clone()
    y[[0, 1], [2, 3]] = z[0, 0]
    return y


def accumulated(y: Tensor, z: Tensor) -> Tensor:
    return y.index_put((torch.tensor([0, 2, 0]),), z[:3], accumulate=True)


def masked_rows(y: Tensor, z: Tensor) -> Tensor:
    """Whole positions that a mask chooses get one row of `z`."""
    y = y.clone()
    y[torch.tensor([[True, False, True, False, True]] * 3)] = z[1, 1]
    return y


def numbers(y: Tensor, z: Tensor) -> Tensor:
    """Numbers in place of units need none."""
    y = y.clone()
    y[:, 2] = 3.0
    y[1].fill_(2.0)
    y[:, 4:].zero_()
    y[:, 0].fill_(torch.tensor(1.5, dtype=torch.float64))
    return y + z


def masked(y: Tensor, z: Tensor) -> Tensor:
    y = y.clone()
    y[y > z] = 0.5
    return y


def written_units(y: Tensor, z: Tensor) -> Tensor:
    y = y.clone()
    y[..., [0, 3]] = z[..., :2]
    return y


BY_POSITION = {
    "slices of positions": copied_over_positions,
    "index_put": put,
    "index_put, two indices": put_rows,
    "index_put, accumulated": accumulated,
    "index_put, mask of rows": masked_rows,
    "index_put, mask": masked,
    "fill": numbers,
    "copy": lambda y, z: torch.zeros_like(y).copy_(z) + y,
    "slice_scatter": lambda y, z: y.slice_scatter(z[:, 1:3], 1, 2, 4),
    "select_scatter": lambda y, z: y.select_scatter(z[:, 1], 1, 3),
    "index_copy": lambda y, z: y.index_copy(1, torch.tensor([3, 0]), z[:, :2]),
    "index_add": lambda y, z: y.index_add(1, torch.tensor([3, 0, 3]), z[:, :3]),
    "index_fill": lambda y, z: y.index_fill(1, torch.tensor([3, 0]), 0.5) + z,
    "scatter": lambda y, z: y.scatter(1, z.argsort(1)[:, :2], z[:, :2]),
    "scatter_add": lambda y, z: y.scatter_add(1, z.argsort(1), z),
    "scatter, a number": lambda y, z: y.scatter(1, z.argmax(1, keepdim=True), 0.5) + z,
    "scatter_reduce": lambda y, z: y.scatter_reduce(1, z.argsort(1), z, reduce="amax"),
}


@pytest.mark.parametrize("name", BY_POSITION)
def test_positions_may_be_written(name):
    flow = assert_cut_exactly(net_with(BY_POSITION[name]), inputs(3, 5, 3), seeds=range(2))

    assert gates(flow, "up.weight", 0) == gates(flow, "other.weight", 0) == list(range(6))
    assert gates(flow, "head.weight", 1) == list(range(6))


def test_units_that_are_copied_over_others_are_tied_to_them():
    flow = assert_cut_exactly(net_with(copied_over), inputs(3, 5, 3), seeds=range(3))

    assert gates(flow, "up.weight", 0) == gates(flow, "head.weight", 1) == [0, 1, 2, 3, 4, 5]
    assert gates(flow, "other.weight", 0) == [3, 4, 5, -1, -1, -1]


def test_units_that_are_written_into_an_empty_tensor_keep_their_order():
    def function(y, z):
        both = y.new_zeros((3, 5, 12))
        both[..., :6] = y
        both[..., 6:] = z
        return both

    flow = assert_cut_exactly(net_with(function, 12), inputs(3, 5, 3), seeds=range(2))

    assert gates(flow, "head.weight", 1) == [*gates(flow, "up.weight", 0), *gates(flow, "other.weight", 0)]


OF_UNITS = {
    "slice_scatter": (lambda y, z: y.slice_scatter(z[..., :2], 2, 1, 3), "a part of it is written"),
    "select_scatter": (lambda y, z: y.select_scatter(z[..., 0], 2, 3), "a part of it is written"),
    "index_put": (written_units, LOOKED_UP),
    "index_copy": (lambda y, z: y.index_copy(2, torch.tensor([3, 0]), z[..., :2]), LOOKED_UP),
    "index_fill": (lambda y, z: y.index_fill(2, torch.tensor([3, 0]), 0.5), LOOKED_UP),
    "scatter": (lambda y, z: y.scatter(2, z.argsort(2), z), LOOKED_UP),
    "mask": (lambda y, z: y.index_put((y > z,), z[0, 0, :1]), LOOKED_UP),
}


@pytest.mark.parametrize("name", OF_UNITS)
def test_units_among_which_positions_are_written_are_pinned(name):
    function, reason = OF_UNITS[name]

    flow = traced(net_with(function), inputs(3, 5, 3))

    assert gates(flow, "up.weight", 0) is None
    assert gates(flow, "head.weight", 1) is None
    assert flow.pinned[reason] > 0


def test_one_unit_that_is_written_over_all_others_stays():
    net = net_with(lambda y, z: y.index_put((torch.tensor([0, 2]),), z[:1, :1, :1]) + z)

    flow = assert_cut_exactly(net, inputs(3, 5, 3))

    assert gates(flow, "up.weight", 0) == gates(flow, "other.weight", 0) == [-1, 0, 1, 2, 3, 4]


def test_units_of_which_a_part_is_written_by_data_are_pinned():
    flow = traced(net_with(lambda y, z: y.scatter(1, z.argsort(1)[..., :2], z[..., :2])), inputs(3, 5, 3))

    assert gates(flow, "up.weight", 0) is None
    assert gates(flow, "other.weight", 0) is None


def test_numbers_of_positions_made_of_units_are_pinned():
    flow = traced(
        net_with(lambda y, z: y.index_copy(1, (z[0, 0, :2] > 0).long() + torch.tensor([0, 2]), z[:, :2])),
        inputs(3, 5, 3),
    )

    assert gates(flow, "other.weight", 0)[:2] == [-1, -1]


PLACES = torch.tensor([5, 0, 2, 1])


@pytest.mark.parametrize(
    "write",
    [lambda x, y: x.scatter(-1, PLACES.expand(3, 5, 4), y), lambda x, y: x.index_copy(-1, PLACES, y)],
    ids=["scatter", "index_copy"],
)
def test_units_that_are_written_to_given_places_stay(write):
    net = both(lambda net, y: write(torch.zeros(3, 5, 8, dtype=y.dtype), y), n_out=8)

    assert traced(net, inputs(3, 5, 3)).n_gates == 0
