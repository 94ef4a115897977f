"""Rules of sums of products over named indices: which are tied, which a parameter consumes, which stay."""

import pytest
import torch
from flow_case import Net, assert_cut_exactly, gates, inputs, traced
from torch import nn

SCORES = "attention scores contract it without a parameter"


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


EQUATIONS = {
    "a linear layer": ("bti,oi->bto", (6, 4)),
    "weight first": ("oi,bti->bto", (6, 4)),
    "spaces": (" b t i , o i -> b t o ", (6, 4)),
    "ellipsis": ("...i,oi->...o", (6, 4)),
    "ellipsis in the middle": ("b...i,oi->b...o", (6, 4)),
    "no arrow": ("bti,iz->btz", (4, 6)),
    "no arrow, ellipsis": ("...i,iz->...z", (4, 6)),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_an_index_that_a_parameter_contracts_is_consumed_by_it(name):
    equation, shape = EQUATIONS[name]

    def function(net, x):
        operands = (net.weight, net.up(x)) if name == "weight first" else (net.up(x), net.weight)
        return net.head(torch.einsum(equation, *operands).relu())

    net = Net(function, up=nn.Linear(3, 4), weight=weight(*shape), head=nn.Linear(6, 2))

    flow = assert_cut_exactly(net, inputs(2, 5, 3), seeds=range(2))

    contracted = shape.index(4)
    assert flow.n_gates == 4 + 6
    assert gates(flow, "weight", contracted) == gates(flow, "up.weight", 0)
    assert gates(flow, "weight", 1 - contracted) == gates(flow, "head.weight", 1)
    assert {(c.parameter, c.dim) for c in flow.consumers} == {("weight", contracted), ("head.weight", 1)}


def test_a_head_projection_contracts_heads_and_their_features():
    """As in the output projection of attention written with einsum: both indices are consumed by one parameter."""
    net = Net(
        lambda net, x: torch.einsum("bthd,hde->bte", torch.einsum("bti,ihd->bthd", x, net.up).relu(), net.down),
        up=weight(3, 4, 5),
        down=weight(4, 5, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 6, 3), seeds=range(3))

    assert flow.n_gates == 4 + 5
    assert {(c.parameter, c.dim) for c in flow.consumers} == {("down", 0), ("down", 1)}


def test_heads_of_attention_are_tied_and_their_scores_pinned():
    def attend(net, x):
        q, k, v = (torch.einsum("bti,ihd->bhtd", x, w) for w in (net.q, net.k, net.v))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
        return torch.einsum("bhqd,hde->bqe", torch.einsum("bhqk,bhkd->bhqd", scores, v), net.out)

    net = Net(attend, q=weight(3, 4, 5), k=weight(3, 4, 5), v=weight(3, 4, 5), out=weight(4, 5, 2))

    flow = assert_cut_exactly(net, inputs(2, 6, 3), seeds=range(2))

    assert gates(flow, "q", 1) == gates(flow, "k", 1) == gates(flow, "v", 1) == gates(flow, "out", 0)
    assert gates(flow, "q", 2) is gates(flow, "k", 2) is None
    assert gates(flow, "v", 2) == gates(flow, "out", 1)
    assert flow.pinned[SCORES] == 5


def test_three_operands_are_multiplied_one_after_another():
    net = Net(
        lambda net, x: torch.einsum("bi,ij,jk->bk", net.up(x), net.a, net.b),
        up=nn.Linear(3, 4),
        a=weight(4, 5),
        b=weight(5, 2),
    )

    flow = assert_cut_exactly(net, inputs(6, 3), seeds=range(3))

    assert flow.n_gates == 4 + 5
    assert flow.dense_cost("macs") == 3 * 4 + 4 * 5 + 5 * 2


PINNED = {
    "summed over": (lambda net, y: torch.einsum("bti,bto->bto", y, y), "summed over"),
    "summed over alone": (lambda net, y: torch.einsum("bti->bt", y)[..., None].expand(-1, -1, 4), "summed over"),
    "a diagonal": (
        lambda net, y: torch.einsum("tii->ti", torch.stack([y[0]] * 4, -1)),
        "no rule for aten.einsum.default",
    ),
    "broadcast": (
        lambda net, y: torch.einsum("bti,bti->bti", y[..., :1], y),
        "a single unit is broadcast over a dimension",
    ),
}


@pytest.mark.parametrize("name", PINNED)
def test_other_sums_pin(name):
    function, reason = PINNED[name]
    net = Net(lambda net, x: net.head(function(net, net.up(x))), up=nn.Linear(3, 4), head=nn.Linear(4, 2))

    flow = traced(net, inputs(4, 4, 3))

    found = gates(flow, "up.weight", 0)
    assert found is None if name != "broadcast" else found == [-1, 0, 1, 2]
    assert flow.pinned[reason] > 0


def test_an_operand_of_size_one_is_broadcast():
    net = Net(
        lambda net, x: torch.einsum("bi,io->bo", net.up(x) * torch.einsum("bi,ai->bi", net.up(x), net.scale), net.down),
        up=nn.Linear(3, 4),
        scale=weight(1, 4),
        down=weight(4, 2),
    )

    flow = assert_cut_exactly(net, inputs(6, 3))

    assert gates(flow, "scale", 1) == gates(flow, "up.weight", 0) == gates(flow, "down", 0) == [0, 1, 2, 3]


OF_VECTORS = {
    "mv": (lambda net, y: torch.mv(y[0], net.vector), True),
    "matmul with a vector": (lambda net, y: y @ net.vector, True),
    "vector first": (lambda net, y: net.vector @ y.mT, True),
    "vectors": (lambda net, y: (net.vector @ y[0, 0])[None], True),
    "dot": (lambda net, y: torch.dot(y[0, 0], net.vector)[None], True),
    "inner": (lambda net, y: torch.inner(y, net.vector), True),
    "tensordot": (lambda net, y: torch.tensordot(y, net.vector, dims=1), True),
    "tensordot, dimensions": (lambda net, y: torch.tensordot(net.vector, y, dims=([0], [-1])), True),
    "outer": (lambda net, y: torch.outer(y[0, :, 0], net.vector) @ net.vector, False),
}


@pytest.mark.parametrize("name", OF_VECTORS)
def test_products_with_a_vector(name):
    function, consumed = OF_VECTORS[name]
    net = Net(lambda net, x: function(net, net.up(x)), up=nn.Linear(3, 4), vector=weight(4))

    flow = traced(net, inputs(5, 6, 3))

    assert gates(flow, "vector", 0) == [0, 1, 2, 3]
    if consumed:
        assert_cut_exactly(net, inputs(5, 6, 3))
        assert gates(flow, "up.weight", 0) == [0, 1, 2, 3]
    assert [(c.parameter, c.dim) for c in flow.consumers] == [("vector", 0)]


def test_positions_contracted_with_a_vector_leave_units_in_place():
    net = Net(
        lambda net, x: net.head(net.up(x).mT @ net.places), up=nn.Linear(3, 4), places=weight(6), head=nn.Linear(4, 2)
    )

    assert assert_cut_exactly(net, inputs(5, 6, 3)).n_gates == 4


def test_given_dimensions_of_two_tensors_are_contracted_and_the_others_stay_in_order():
    net = Net(
        lambda net, x: net.head(torch.tensordot(net.up(x), net.weight, dims=([2], [0]))),
        up=nn.Linear(3, 4),
        weight=weight(4, 6),
        head=nn.Linear(6, 2),
    )

    flow = assert_cut_exactly(net, inputs(5, 7, 3))

    assert gates(flow, "weight", 0) == gates(flow, "up.weight", 0) == [0, 1, 2, 3]
    assert gates(flow, "weight", 1) == gates(flow, "head.weight", 1) == [4, 5, 6, 7, 8, 9]


def test_the_inner_product_with_a_number_has_no_rule():
    net = Net(
        lambda net, x: net.head(torch.inner(net.up(x), net.scale)),
        up=nn.Linear(3, 4),
        scale=nn.Parameter(torch.tensor(0.5)),
        head=nn.Linear(4, 2),
    )

    flow = traced(net, inputs(5, 3))

    assert flow.n_gates == 0
    assert "aten.inner.default" in flow.unknown_ops
