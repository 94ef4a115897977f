"""Rules of ops along a dimension: a dimension of units they run along is pinned, the others pass.

Means, sums and variances over units have tests of their own, in test_statistics.py.
"""

import pytest
import torch
from flow_case import Net, assert_cut_exactly, gates, inputs, traced
from torch import nn

REDUCTIONS = {
    "mean": lambda x, d: x.mean(d),
    "sum": lambda x, d: x.sum(d),
    "amax": lambda x, d: x.amax(d),
    "max": lambda x, d: x.max(d).values,
    "min": lambda x, d: x.min(d)[0],
    "var": lambda x, d: x.var(d),
    "std": lambda x, d: x.std(d, unbiased=False),
    "prod": lambda x, d: x.prod(d),
    "linalg_vector_norm": lambda x, d: torch.linalg.vector_norm(x, dim=d),
    "logsumexp": lambda x, d: x.logsumexp(d),
    "var_mean": lambda x, d: torch.var_mean(x, d)[0],
    "median": lambda x, d: x.median(d).values,
    "kthvalue": lambda x, d: x.kthvalue(2, d).values,
    "mode": lambda x, d: x.mode(d).values,
    "aminmax": lambda x, d: x.aminmax(dim=d)[1],
    "nanmean": lambda x, d: x.nanmean(d),
}
STATISTICS = ("mean", "sum", "var", "std", "amax", "max", "min", "linalg_vector_norm")
AREA = {
    "softmax": lambda x, d: x.softmax(d),
    "log_softmax": lambda x, d: x.log_softmax(d),
    "cumsum": lambda x, d: x.cumsum(d),
    "cummax": lambda x, d: x.cummax(d).values,
    "sort": lambda x, d: x.sort(d).values,
    "argsort": lambda x, d: x.argsort(d).to(x.dtype),
    "topk": lambda x, d: x.topk(4, d).values,
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_reduction_over_positions_keeps_units_and_one_over_units_pins_them(name):
    reduce = REDUCTIONS[name]
    positions = Net(lambda net, x: net.head(reduce(net.up(x), 1)), up=nn.Linear(3, 4), head=nn.Linear(4, 2))
    units = Net(lambda net, x: net.head(reduce(net.up(x), -1)), up=nn.Linear(3, 4), head=nn.Linear(5, 2))

    flow = assert_cut_exactly(positions, inputs(2, 5, 3), forms=["graph"])

    assert gates(flow, "up.weight", 0) == gates(flow, "head.weight", 1) == [0, 1, 2, 3]
    if name not in STATISTICS:
        assert traced(units, inputs(2, 5, 3)).pinned[f"reduced by {name}"] == 4


@pytest.mark.parametrize("name", AREA)
def test_an_op_along_positions_keeps_units_and_one_along_units_pins_them(name):
    def net(dim: int) -> nn.Module:
        return Net(lambda net, x: net.head(AREA[name](net.up(x), dim)), up=nn.Linear(3, 4), head=nn.Linear(4, 2))

    flow = assert_cut_exactly(net(1), inputs(2, 5, 3), forms=["graph"])

    assert flow.n_gates == 4
    assert traced(net(-1), inputs(2, 5, 3)).pinned[f"{name} runs along it"] == 4


def test_a_reduced_dimension_of_size_one_stays_where_it_was():
    net = Net(
        lambda net, x: net.head(net.up(x) - net.up(x).mean((2, 3), keepdim=True)),
        up=nn.Conv2d(3, 4, 1),
        head=nn.Conv2d(4, 2, 1),
    )

    assert assert_cut_exactly(net, inputs(2, 3, 4, 4)).n_gates == 4


def test_several_dimensions_are_reduced_at_once():
    net = Net(lambda net, x: net.head(net.up(x).mean((-1, 2))), up=nn.Conv2d(3, 4, 1), head=nn.Linear(4, 2))

    assert assert_cut_exactly(net, inputs(2, 3, 4, 4)).n_gates == 4


@pytest.mark.parametrize("reduce", [torch.mean, torch.sum, torch.max, torch.linalg.vector_norm])
def test_a_reduction_of_everything_pins_everything(reduce):
    net = Net(lambda net, x: net.head(net.up(x)) * reduce(net.up(x)), up=nn.Linear(3, 4), head=nn.Linear(4, 2))

    assert traced(net, inputs(2, 3)).n_gates == 0


@pytest.mark.parametrize("pick", [torch.max, torch.min, torch.maximum])
def test_the_larger_of_two_tensors_ties_them(pick):
    net = Net(
        lambda net, x: net.head(pick(net.a(x), net.b(x))), a=nn.Linear(3, 4), b=nn.Linear(3, 4), head=nn.Linear(4, 2)
    )

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert gates(flow, "a.weight", 0) == gates(flow, "b.weight", 0) == [0, 1, 2, 3]


def test_the_larger_of_a_tensor_and_itself_has_its_units():
    def function(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = net.up(x)
        return net.head(torch.max(y, y))

    net = Net(function, up=nn.Linear(3, 4), head=nn.Linear(4, 2))

    assert assert_cut_exactly(net, inputs(2, 3), forms=["graph"]).n_gates == 4


def test_the_place_of_the_largest_position_is_one_number_a_unit():
    net = Net(lambda net, x: net.head(net.up(x).argmax(1).to(x.dtype)), up=nn.Linear(3, 4), head=nn.Linear(4, 2))

    assert assert_cut_exactly(net, inputs(2, 5, 3), forms=["graph"]).n_gates == 4


@pytest.mark.parametrize("cut", [torch.tril, torch.triu])
def test_a_triangle_is_cut_out_by_position(cut):
    def net(dim: int) -> nn.Module:
        return Net(
            lambda net, x: net.head(cut(net.up(x).movedim(-1, dim)).movedim(dim, -1)),
            up=nn.Linear(3, 4),
            head=nn.Linear(4, 2),
        )

    flow = assert_cut_exactly(net(1), inputs(2, 5, 5, 3))

    assert flow.n_gates == 4
    assert traced(net(2), inputs(2, 5, 5, 3)).pinned[f"{cut.__name__} cuts by position"] == 4


OF_A_NUMBER = {
    "softmax": lambda number: number.softmax(0),
    "sort": lambda number: number.sort(0).values,
    "topk": lambda number: number.topk(1, 0).values,
    "windows": lambda number: number.unfold(0, 1, 1),
    "index_fill": lambda number: number.index_fill(0, torch.tensor([0]), 0.5),
}


@pytest.mark.parametrize("name", OF_A_NUMBER)
def test_a_number_has_no_dimension_to_run_along(name):
    net = Net(
        lambda net, x: net.head(net.up(x) * OF_A_NUMBER[name](net.scale)),
        up=nn.Linear(3, 4),
        scale=nn.Parameter(torch.empty(())),
        head=nn.Linear(4, 2),
    )

    assert assert_cut_exactly(net, inputs(5, 3)).n_gates == 4


ASKED_FOR_PLACES = {
    "max": lambda y: y.max(-1).indices.to(y.dtype),
    "min and its place": lambda y: sum(y.min(-1)).to(y.dtype),
    "argmax": lambda y: y.argmax(-1).to(y.dtype),
}


@pytest.mark.parametrize("name", ASKED_FOR_PLACES)
def test_units_whose_places_are_asked_for_stay(name):
    net = Net(
        lambda net, x: net.head(net.up(x)) * ASKED_FOR_PLACES[name](net.up(x)).unsqueeze(-1),
        up=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
    )

    assert traced(net, inputs(2, 5, 3)).n_gates == 0
