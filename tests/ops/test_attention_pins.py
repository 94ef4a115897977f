"""Units that attention needs whole: they stay although a parameter consumes them elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import Net, assert_cut_exactly, both, gates, inputs, traced
from torch import nn

BROADCAST = "a single unit is broadcast over a dimension"
SCORES = "attention scores contract it without a parameter"


def attending(make_q, make_k, make_v, **options) -> Net:
    """Attention between what `up`, consumed by `tail` too, gives and the inputs; (batch, heads, positions, width)."""

    def function(net: nn.Module, y: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(make_q(y), make_k(y), make_v(y), **options)

    return both(function, width=6)


def fixed(heads: int = 6, positions: int = 6, width: int = 6):
    def make(y: torch.Tensor) -> torch.Tensor:
        return y.new_ones(1).expand(y.shape[0], heads, positions, width)

    return make


def units_along(dim: int, n: int = 6):
    def make(y: torch.Tensor) -> torch.Tensor:  # y: (2, 6, 6 units)
        return y[:, None].expand(-1, n, -1, -1).movedim(-1, dim)

    return make


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("part", ["query", "key"])
def test_units_along_scores_or_positions_stay(part, dim):
    made = units_along(dim)
    net = attending(*(made if name == part else fixed() for name in ("query", "key", "value")))

    assert traced(net, inputs(2, 6, 3)).n_gates == 0


def test_units_along_positions_of_values_stay():
    assert traced(attending(fixed(), fixed(), units_along(2)), inputs(2, 6, 3)).n_gates == 0


def test_key_heads_with_queries_that_cannot_follow_stay():
    net = attending(fixed(12), units_along(1), units_along(1), enable_gqa=True)

    assert traced(net, inputs(2, 6, 3)).n_gates == 0


def test_key_heads_that_meet_queries_from_outside_stay():
    make_keys = units_along(1)

    def function(net: nn.Module, x: torch.Tensor, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = net.up(x)
        return F.scaled_dot_product_attention(queries, make_keys(y), make_keys(y), enable_gqa=True), net.tail(y)

    net = Net(function, up=nn.Linear(3, 6), tail=nn.Linear(6, 2))

    assert traced(net, (inputs(2, 6, 3), inputs(2, 12, 5, 6))).n_gates == 0


def test_the_only_key_head_stays():
    def function(net: nn.Module, y: torch.Tensor) -> torch.Tensor:
        keys = y.movedim(-1, 1)[:, :1, :, None].expand(-1, -1, -1, 3)
        queries = y.movedim(-1, 1)[:, 2:, :, None].expand(-1, -1, -1, 3)
        return net.out(F.scaled_dot_product_attention(queries, keys, keys, enable_gqa=True).movedim(1, -1))

    net = both(function, width=6)
    net.out = nn.Linear(4, 2)

    flow = assert_cut_exactly(net, inputs(2, 6, 3), forms=["graph"])

    assert gates(flow, "up.weight", 0) == [-1, 0, 1, 2, 3, 4]
    assert BROADCAST in flow.pinned


@pytest.mark.parametrize("shape", ["queries", "values"])
def test_heads_that_broadcast_have_no_rule(shape):
    one, many = fixed(1), units_along(1)
    parts = (one, many, many) if shape == "queries" else (many, many, one)

    flow = traced(attending(*parts), inputs(2, 6, 3))

    assert flow.n_gates == 0
    assert "aten.scaled_dot_product_attention.default" in flow.unknown_ops


def test_units_along_the_positions_of_a_mask_stay():
    def function(net: nn.Module, y: torch.Tensor) -> torch.Tensor:
        q = y.new_ones(1).expand(y.shape[0], 2, 6, 3)
        return F.scaled_dot_product_attention(q, q, q, attn_mask=y[:, None])

    assert traced(both(function, width=6), inputs(2, 6, 3)).n_gates == 0


def test_a_single_unit_that_masks_all_heads_stays():
    def function(net: nn.Module, y: torch.Tensor) -> torch.Tensor:
        q = y.new_ones(1).expand(y.shape[0], 2, 6, 3)
        return F.scaled_dot_product_attention(
            q, q, q, attn_mask=y[..., :1].movedim(-1, 1)[..., None].expand(-1, -1, -1, 6)
        )

    flow = assert_cut_exactly(both(function, width=6), inputs(2, 6, 3), forms=["graph"])

    assert gates(flow, "up.weight", 0) == [-1, 0, 1, 2, 3, 4]
    assert BROADCAST in flow.pinned


@pytest.mark.parametrize(
    "scores",
    [lambda q, k: q @ k.transpose(1, 2), lambda q, k: F.scaled_dot_product_attention(q, k, torch.ones_like(k))],
    ids=["product", "fused"],
)
def test_units_that_scores_contract_stay_on_both_sides(scores):
    net = Net(
        lambda net, x: (scores(net.q(x), net.k(x)), net.q_tail(net.q(x)), net.k_tail(net.k(x))),
        q=nn.Linear(3, 6),
        k=nn.Linear(3, 6),
        q_tail=nn.Linear(6, 2),
        k_tail=nn.Linear(6, 2),
    )

    flow = traced(net, inputs(2, 5, 3))

    assert flow.n_gates == 0
    assert flow.pinned[SCORES] == 6
