"""Rules of matrix products: linear layers, matmul with parameters and activations, attention."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import Net, assert_cut_exactly, gated_at, gates, inputs, random_gates, traced
from torch import nn

from l0prune.surgery.shrink import shrink

SCORES = "attention scores contract it without a parameter"
COMPUTED = "contracted with a computed tensor, not a parameter"


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


def consumed(flow) -> set[tuple[str, int]]:
    return {(consumer.parameter, consumer.dim) for consumer in flow.consumers}


def test_hidden_units_of_two_linear_layers_are_gated_at_the_second():
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))

    flow = assert_cut_exactly(net, inputs(3, 5))

    assert flow.n_gates == 8
    assert gates(flow, "0.weight", 0) == gates(flow, "0.bias", 0) == gates(flow, "2.weight", 1) == list(range(8))
    assert gates(flow, "0.weight", 1) is gates(flow, "2.weight", 0) is gates(flow, "2.bias", 0) is None
    assert consumed(flow) == {("2.weight", 1)}


def test_units_pass_along_the_leading_dimensions_of_a_linear_layer():
    net = Net(
        lambda net, x: net.head(net.tokens(net.up(x).transpose(1, 2)).transpose(1, 2)),
        up=nn.Linear(5, 8),
        tokens=nn.Linear(6, 7),
        head=nn.Linear(8, 4),
    )

    flow = assert_cut_exactly(net, inputs(2, 6, 5))

    assert flow.n_gates == 8
    assert gates(flow, "up.weight", 0) == gates(flow, "head.weight", 1)
    assert gates(flow, "tokens.weight", 0) is gates(flow, "tokens.weight", 1) is None


def test_a_parameter_may_stand_on_either_side_of_a_product():
    net = Net(
        lambda net, x: net.last @ torch.relu(net.left @ (torch.relu(x @ net.a) @ net.b)),
        a=weight(5, 8),
        b=weight(8, 4),
        left=weight(7, 6),
        last=weight(3, 7),
    )

    flow = assert_cut_exactly(net, inputs(2, 6, 5))

    assert flow.n_gates == 8 + 7
    assert gates(flow, "a", 1) == gates(flow, "b", 0)
    assert gates(flow, "left", 0) == gates(flow, "last", 1)
    assert consumed(flow) == {("b", 0), ("last", 1)}


def test_a_transposed_parameter_is_consumed_along_its_own_dimension():
    net = Net(
        lambda net, x: F.linear(torch.relu(torch.relu(x @ net.a.t()) @ net.b.transpose(0, 1)), net.c.permute(1, 0)),
        a=weight(8, 5),
        b=weight(7, 8),
        c=weight(7, 3),
    )

    flow = assert_cut_exactly(net, inputs(2, 5))

    assert consumed(flow) == {("b", 1), ("c", 0)}
    assert flow.n_gates == 8 + 7


def test_addmm_ties_its_bias_to_the_columns():
    net = Net(
        lambda net, x: torch.addmm(net.d, torch.relu(torch.addmm(net.b, x, net.a)), net.c),
        a=weight(5, 8),
        b=weight(8),
        c=weight(8, 4),
        d=weight(4),
    )

    flow = assert_cut_exactly(net, inputs(3, 5))

    assert flow.n_gates == 8
    assert gates(flow, "a", 1) == gates(flow, "b", 0) == gates(flow, "c", 0)


def test_products_of_activations_pin_what_they_contract():
    net = Net(
        lambda net, x: torch.relu(net.q(x)) @ torch.relu(net.k(x)).transpose(1, 2) @ net.v(x),
        q=nn.Linear(5, 6),
        k=nn.Linear(5, 6),
        v=nn.Linear(5, 4),
    )

    flow = traced(net, inputs(2, 3, 5))

    assert flow.n_gates == 0
    assert flow.pinned[SCORES] == 6  # unit i of q and unit i of k are one


def test_attention_with_scores_by_hand_is_gated_in_its_values_only():
    net = Net(
        lambda net, x: net.out((net.q(x) @ net.k(x).transpose(1, 2)).softmax(-1) @ net.v(x)),
        q=nn.Linear(5, 6),
        k=nn.Linear(5, 6),
        v=nn.Linear(5, 8),
        out=nn.Linear(8, 4),
    )

    flow = assert_cut_exactly(net, inputs(2, 3, 5))

    assert flow.n_gates == 8
    assert gates(flow, "v.weight", 0) == gates(flow, "out.weight", 1)
    assert gates(flow, "q.weight", 0) is gates(flow, "k.weight", 0) is None


def heads(x: torch.Tensor, n: int) -> torch.Tensor:
    return x.reshape(x.shape[0], x.shape[1], n, -1).transpose(1, 2)


def attention(net: Net, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    q, k, v = (heads(layer(x), 3) for layer in (net.q, net.k, net.v))
    return net.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


def test_the_unit_of_scaled_dot_product_attention_is_a_head():
    net = Net(attention, q=nn.Linear(5, 6), k=nn.Linear(5, 6), v=nn.Linear(5, 12), out=nn.Linear(12, 4))

    flow = assert_cut_exactly(net, inputs(2, 7, 5))

    assert flow.n_gates == 3
    assert gates(flow, "q.weight", 0) == gates(flow, "k.bias", 0) == [0, 0, 1, 1, 2, 2]
    assert gates(flow, "v.weight", 0) == gates(flow, "out.weight", 1) == [0] * 4 + [1] * 4 + [2] * 4


def test_a_bias_on_attention_scores_goes_with_its_head():
    net = Net(
        lambda net, x: attention(net, x, net.bias),
        q=nn.Linear(5, 6),
        k=nn.Linear(5, 6),
        v=nn.Linear(5, 12),
        out=nn.Linear(12, 4),
        bias=weight(3, 7, 7),
    )

    flow = assert_cut_exactly(net, inputs(2, 7, 5))

    assert flow.n_gates == 3
    assert gates(flow, "bias", 0) == [0, 1, 2]
    assert gates(flow, "bias", 1) is gates(flow, "bias", 2) is None


def test_value_features_flow_through_attention_of_one_head():
    net = Net(
        lambda net, x: net.out(F.scaled_dot_product_attention(net.q(x), net.k(x), net.v(x))),
        q=nn.Linear(5, 6),
        k=nn.Linear(5, 6),
        v=nn.Linear(5, 8),
        out=nn.Linear(8, 4),
    )

    flow = assert_cut_exactly(net, inputs(2, 7, 5))

    assert flow.n_gates == 8
    assert flow.pinned[SCORES] == 6


def grouped_queries(net: Net, x: torch.Tensor) -> torch.Tensor:
    q, k, v = heads(net.q(x), 4), heads(net.k(x), 2), heads(net.v(x), 2)
    k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for t in (k, v))
    return net.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_query_heads_that_share_keys_go_with_them():
    net = Net(grouped_queries, q=nn.Linear(5, 8), k=nn.Linear(5, 4), v=nn.Linear(5, 4), out=nn.Linear(8, 3))

    flow = assert_cut_exactly(net, inputs(2, 7, 5))

    assert flow.n_gates == 2
    assert gates(flow, "q.weight", 0) == gates(flow, "out.weight", 1) == [0] * 4 + [1] * 4
    assert gates(flow, "k.weight", 0) == gates(flow, "v.weight", 0) == [0, 0, 1, 1]


def test_a_weight_that_is_not_zero_where_its_parameter_is_pins_its_inputs():
    net = Net(
        lambda net, x: net.c(torch.relu(F.linear(net.a(x), torch.exp(net.b)))),
        a=nn.Linear(5, 8),
        b=weight(6, 8),
        c=nn.Linear(6, 4),
    )

    flow = assert_cut_exactly(net, inputs(3, 5))

    assert flow.n_gates == 6  # its outputs are free
    assert gates(flow, "a.weight", 0) is None
    assert gates(flow, "b", 0) == gates(flow, "c.weight", 1)
    assert flow.pinned[COMPUTED] == 8


class FixedProjection(nn.Module):
    """A product with a buffer, saved or not, of whatever type."""

    def __init__(self, buffer: torch.Tensor, *, persistent: bool):
        super().__init__()
        self.up = nn.Linear(5, 8)
        self.register_buffer("projection", buffer, persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.relu(self.up(x)), self.projection.to(x.dtype))


def test_a_saved_buffer_can_consume_units():
    net = FixedProjection(torch.empty(3, 8), persistent=True)

    flow = assert_cut_exactly(net, inputs(2, 5))

    assert consumed(flow) == {("projection", 1)}


def test_a_buffer_that_is_not_saved_pins_its_inputs_because_gates_folded_into_it_would_be_lost():
    assert traced(FixedProjection(torch.empty(3, 8), persistent=False), inputs(2, 5)).n_gates == 0


def test_integer_weights_pin_their_inputs_because_gates_cannot_scale_them():
    buffer = torch.arange(24, dtype=torch.int8).view(3, 8)

    assert traced(FixedProjection(buffer, persistent=True), inputs(2, 5)).n_gates == 0


def test_an_embedding_that_also_classifies_is_cut_once():
    net = Net(
        lambda net, tokens: F.linear(torch.tanh(net.mix(net.embed(tokens))), net.embed.weight),
        embed=nn.Embedding(11, 8),
        mix=nn.Linear(8, 8),
    )

    flow = assert_cut_exactly(net, torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0)))

    assert gates(flow, "embed.weight", 1) == gates(flow, "mix.weight", 0) == gates(flow, "mix.weight", 1)
    assert flow.n_gates == 8


@pytest.mark.parametrize("bias", [True, False])
def test_a_bilinear_layer_consumes_both_of_its_inputs(bias):
    net = Net(
        lambda net, x, y: net.tail(net.both(net.a(x).relu(), net.b(y).relu())),
        a=nn.Linear(3, 6),
        b=nn.Linear(4, 5),
        both=nn.Bilinear(6, 5, 7, bias=bias),
        tail=nn.Linear(7, 2),
    )

    flow = assert_cut_exactly(net, (inputs(2, 9, 3), inputs(2, 9, 4)), forms=["in-place", "graph"], seeds=range(2))

    assert flow.n_gates == 6 + 5 + 7
    assert gates(flow, "both.weight", 0) == gates(flow, "tail.weight", 1)
    assert gates(flow, "both.weight", 1) == gates(flow, "a.weight", 0)
    assert gates(flow, "both.weight", 2) == gates(flow, "b.weight", 0)
    assert flow.dense_cost("macs") == 9 * (3 * 6 + 4 * 5 + 6 * 5 * 7 + 5 * 7 + 7 * 2)


def test_units_that_a_bilinear_layer_meets_on_both_sides_are_the_same():
    net = Net(
        lambda net, x: net.tail(net.both(net.a(x).relu(), net.a(x).tanh())),
        a=nn.Linear(3, 6),
        both=nn.Bilinear(6, 6, 4),
        tail=nn.Linear(4, 2),
    )
    flow = assert_cut_exactly(net, inputs(5, 3), forms=["in-place", "graph"], seeds=range(2))

    layer = shrink(gated_at(net, flow, random_gates(flow)), form="in-place").both

    assert flow.n_gates == 6 + 4
    assert (layer.out_features, layer.in1_features, layer.in2_features) == tuple(layer.weight.shape)
