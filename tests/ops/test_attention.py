"""Grouped-query attention: a key head and the query heads that share it live or die together."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, Net, assert_cut_exactly, difference, gated_at, gates, inputs, random_gates, ready, traced
from torch import nn

import l0prune
from l0prune.errors import ConfigError
from l0prune.surgery.shrink import shrink

WIDTH = 3


def heads(x: torch.Tensor, n: int) -> torch.Tensor:
    return x.unflatten(-1, (n, WIDTH)).transpose(1, 2)


def grouped(n_queries: int, n_keys: int, attend, **parts) -> nn.Module:
    """Attention of `n_queries` heads over `n_keys` key and value heads."""

    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        q, k, v = heads(net.q(x), n_queries), heads(net.k(x), n_keys), heads(net.v(x), n_keys)
        return net.out(attend(net, q, k, v).transpose(1, 2).flatten(2))

    return Net(
        forward,
        q=nn.Linear(4, n_queries * WIDTH),
        k=nn.Linear(4, n_keys * WIDTH),
        v=nn.Linear(4, n_keys * WIDTH),
        out=nn.Linear(n_queries * WIDTH, 4),
        **parts,
    )


def fused(net, q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def interleaved(net, q, k, v):
    n = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k.repeat_interleave(n, 1), v.repeat_interleave(n, 1))


def expanded(net, q, k, v):
    def repeat(x):
        return x[:, :, None].expand(-1, -1, 2, -1, -1).reshape(x.shape[0], -1, *x.shape[2:])

    return (q @ repeat(k).transpose(-1, -2)).softmax(-1) @ repeat(v)


def masked(net, q, k, v):
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


@pytest.mark.parametrize("attend", [fused, masked, interleaved, expanded])
def test_a_key_head_and_its_query_heads_are_one_unit(attend):
    flow = assert_cut_exactly(grouped(6, 3, attend), inputs(2, 5, 4), forms=["graph"], seeds=(0, 1))

    assert flow.n_gates == 3
    assert gates(flow, "k.weight", 0) == gates(flow, "v.weight", 0) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert gates(flow, "q.weight", 0) == gates(flow, "out.weight", 1) == [gate for gate in range(3) for _ in range(6)]


@pytest.mark.parametrize("attend", [fused, masked, expanded])
def test_query_heads_at_the_same_place_of_every_group_are_a_unit_on_request(attend):
    net, x = ready(grouped(6, 3, attend)), inputs(2, 5, 4)
    flow = l0prune.trace(net, x, gqa="queries")
    gated = gated_at(net, flow, random_gates(flow))

    assert flow.n_gates == 2
    assert gates(flow, "k.weight", 0) is None
    assert (
        gates(flow, "q.weight", 0)
        == gates(flow, "out.weight", 1)
        == [gate for gate in (0, 1) for _ in range(WIDTH)] * 3
    )
    for form in ("graph", "in-place"):
        compact = shrink(gated, form=form)
        assert compact.q.weight.shape[0] == compact.out.weight.shape[1] == 3 * WIDTH
        assert difference(compact(x), gated(x)) < EXACT


def test_keys_of_groups_that_stay_do_so_for_their_other_readers():
    def read_twice(net, q, k, v):
        return fused(net, q, k, v) + net.side(k.transpose(1, 2).flatten(2))[:, None]

    net, x = ready(grouped(6, 3, read_twice, side=nn.Linear(3 * WIDTH, WIDTH))), inputs(2, 5, 4)
    flow = l0prune.trace(net, x, gqa="queries")
    gated = gated_at(net, flow, random_gates(flow))

    assert gates(flow, "side.weight", 1) is None
    assert difference(shrink(gated)(x), gated(x)) < EXACT


def test_where_key_heads_are_repeated_one_by_one_groups_stay_units():
    flow = l0prune.trace(ready(grouped(6, 3, interleaved)), inputs(2, 5, 4), gqa="queries")

    assert flow.n_gates == 3


def test_another_unit_of_grouped_query_attention_is_an_error():
    with pytest.raises(ConfigError, match="gqa is 'keys'; expected 'groups' or 'queries'"):
        l0prune.trace(ready(grouped(6, 3, fused)), inputs(2, 5, 4), gqa="keys")


@pytest.mark.parametrize("n_keys", [1, 6])
def test_query_heads_that_all_share_one_key_head_or_none_are_units_of_their_own(n_keys):
    flow = assert_cut_exactly(grouped(6, n_keys, fused), inputs(2, 5, 4), forms=["graph"], seeds=(0, 1))

    assert flow.n_gates == 6
    assert (
        gates(flow, "q.weight", 0) == gates(flow, "out.weight", 1) == [gate for gate in range(6) for _ in range(WIDTH)]
    )


def test_a_bias_that_differs_by_head_goes_with_the_head():
    def biased(net, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=net.bias, enable_gqa=True)

    net = grouped(6, 3, biased, bias=nn.Parameter(torch.empty(6, 5, 5)))

    flow = assert_cut_exactly(net, inputs(2, 5, 4), forms=["graph"], seeds=(0, 1))

    assert gates(flow, "bias", 0) == [0, 0, 1, 1, 2, 2]


def test_copies_of_a_unit_go_with_it():
    net = Net(
        lambda net, x: net.head(net.up(x).repeat(1, 3)) + net.tail(net.up(x).repeat_interleave(3, -1)),
        up=nn.Linear(3, 4),
        head=nn.Linear(12, 2),
        tail=nn.Linear(12, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert gates(flow, "head.weight", 1) == [0, 1, 2, 3] * 3
    assert gates(flow, "tail.weight", 1) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_a_unit_repeated_as_data_say_is_pinned():
    net = Net(
        lambda net, x: net.head(net.up(x).repeat_interleave(torch.tensor([1, 2, 1]), -1, output_size=4)),
        up=nn.Linear(3, 3),
        head=nn.Linear(4, 2),
    )

    assert traced(net, inputs(2, 3)).n_gates == 0


@pytest.mark.parametrize("options", [{}, {"need_weights": False}, {"average_attn_weights": False}])
def test_heads_of_multihead_attention_are_units(options):
    """Its weights, averaged over the heads, are computed by default; as long as nothing takes them, the heads are free."""
    net = Net(
        lambda net, x: net.head(net.norm(net.up(x) + net.attention(net.up(x), net.up(x), net.up(x), **options)[0])),
        up=nn.Linear(6, 8),
        attention=nn.MultiheadAttention(8, 4, batch_first=True),
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 3),
    )
    x = inputs(2, 5, 6)

    flow = assert_cut_exactly(net, x, forms=["graph"], seeds=(0, 1))

    assert flow.n_gates == 8 + 4
    assert gates(flow, "attention.out_proj.weight", 1) == [gate for gate in range(8, 12) for _ in range(2)]
    gated = gated_at(net, flow, random_gates(flow))
    larger = inputs(7, 5, 6, seed=1)
    assert difference(shrink(gated, form="graph")(larger), gated(larger)) < EXACT


def test_heads_whose_weights_are_averaged_for_an_output_are_pinned():
    net = Net(
        lambda net, x: (net.head(net.attention(x, x, x)[0]), net.attention(x, x, x)[1]),
        attention=nn.MultiheadAttention(8, 4, batch_first=True),
        head=nn.Linear(8, 3),
    )

    flow = assert_cut_exactly(net, inputs(2, 5, 8), forms=["graph"])

    assert gates(flow, "attention.out_proj.weight", 1) is None


def test_a_transformer_encoder_can_be_cut():
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True, norm_first=True)
    net = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))

    flow = assert_cut_exactly(net, inputs(2, 5, 6), forms=["graph"], seeds=(0, 1))

    assert flow.n_gates == 8 + 2 * (4 + 16)


def test_attention_to_other_tokens_ties_what_one_weight_projects():
    """Queries come from one stream and keys from another, and one parameter holds the weights of both."""
    net = Net(
        lambda net, x: net.head(net.attention(net.one(x), net.other(x), net.other(x))[0]),
        one=nn.Linear(6, 8),
        other=nn.Linear(6, 8),
        attention=nn.MultiheadAttention(8, 4, batch_first=True),
        head=nn.Linear(8, 3),
    )

    flow = assert_cut_exactly(net, inputs(2, 5, 6), forms=["graph"], seeds=(0, 1))

    assert gates(flow, "one.weight", 0) == gates(flow, "other.weight", 0) == gates(flow, "attention.in_proj_weight", 1)
    assert flow.n_gates == 8 + 4 + 8


def test_a_weight_that_is_a_part_of_a_parameter_along_what_it_contracts_is_not_gated():
    net = Net(
        lambda net, x: F.linear(net.up(x), net.weight[:, :4]) + F.linear(net.up(x)[:, :2], net.weight[:, 4:]),
        up=nn.Linear(3, 4),
        weight=nn.Parameter(torch.empty(2, 6)),
    )

    assert traced(net, inputs(2, 3)).n_gates == 0
