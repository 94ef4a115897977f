"""torch's attention layers are cut in place, although torch ties the width of all heads to that of the stream."""

import copy
import itertools
from typing import Any

import pytest
import torch
from flow_case import EXACT, Net, difference, gated_at, inputs, n_parameters, random_gates, traced
from torch import nn

import l0prune
from l0prune.surgery.attention_layers import NarrowAttention
from l0prune.surgery.shrink import shrink, surgery_of

IDS = torch.randint(1, 11, (3, 6), generator=torch.Generator().manual_seed(0))
PADDED = IDS.clone()
PADDED[1, 4:] = 0
MASKS = {
    "none": lambda n: None,
    "floats": lambda n: inputs(4, 5, seed=3),
    "heads": lambda n: inputs(2 * n, 4, 5, seed=3),
    "truth": lambda n: torch.ones(4, 5, dtype=torch.bool).triu(1),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("separate", [True, False])
def test_a_narrow_layer_computes_what_that_of_torch_does_where_both_can_be(separate, mask):
    generator = torch.Generator().manual_seed(0)
    wide = 6 if separate else 8
    for batch_first, need_weights, average, pads, bias in itertools.product([True, False], repeat=5):
        layer = nn.MultiheadAttention(8, 2, batch_first=batch_first, bias=bias, kdim=wide, vdim=wide).double().eval()
        for parameter in layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
        narrow = copy.deepcopy(layer)
        narrow.__class__ = NarrowAttention
        for n in (3, None):
            query, memory = inputs(n or 1, 4, 8, seed=1), inputs(n or 1, 5, wide, seed=2)
            padding = torch.zeros(n or 1, 5, dtype=torch.bool)
            padding[0, -1] = True
            if n is None:
                query, memory, padding = query[0], memory[0], padding[0]
            elif not batch_first:
                query, memory = query.transpose(0, 1), memory.transpose(0, 1)
            options: dict[str, Any] = {
                "key_padding_mask": padding if pads and mask in ("none", "truth") else None,
                "need_weights": need_weights,
                "attn_mask": MASKS[mask](n or 1),
                "average_attn_weights": average,
            }
            (expected, weights), (found, found_weights) = (
                one(query, memory, memory, **options) for one in (layer, narrow)
            )
            torch.testing.assert_close(found, expected, atol=EXACT, rtol=0)
            assert (weights is None) == (found_weights is None)
            if weights is not None:
                torch.testing.assert_close(found_weights, weights, atol=EXACT, rtol=0)


def embedded(**parts: nn.Module) -> dict[str, nn.Module]:
    return {"embed": nn.Embedding(11, 16), **parts, "out": nn.Linear(16, 3)}


def encoder(*, norm_first: bool) -> Net:
    """Of padded texts; torch has a kernel of its own for such a stack."""
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=norm_first)

    def forward(net: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        padding = ids == 0
        states = net.stack(net.embed(ids), src_key_padding_mask=padding)
        return net.out(states.masked_fill(padding[..., None], 0).sum(1))

    return Net(forward, **embedded(stack=nn.TransformerEncoder(layer, 1, enable_nested_tensor=not norm_first)))


def decoder() -> Net:
    """Causal, over a memory of another width."""
    layer = nn.TransformerDecoderLayer(16, 4, 24)

    def forward(net: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        memory = net.memory(torch.relu(net.embed(ids.flip(1)))).transpose(0, 1)
        return net.out(net.stack(net.embed(ids).transpose(0, 1), memory, tgt_mask=causal))

    return Net(forward, **embedded(stack=nn.TransformerDecoder(layer, 1), memory=nn.Linear(16, 16)))


def whole() -> Net:
    """Encoder and decoder, with a mask whose values torch looks at, which torch.export refuses."""

    def forward(net: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], dtype=torch.float64)
        return net.out(net.stack(net.embed(ids), net.embed(ids.flip(1)), tgt_mask=mask))

    return Net(forward, **embedded(stack=nn.Transformer(16, 4, 1, 1, 24, batch_first=True)))


def crossed() -> Net:
    """Queries of one width, keys and values of another."""

    def forward(net: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        memory = net.memory(net.embed(ids))
        return net.out(net.attention(torch.relu(net.embed(ids)), memory, memory)[0])

    attention = nn.MultiheadAttention(16, 4, kdim=12, vdim=12, batch_first=True)
    return Net(forward, **embedded(attention=attention, memory=nn.Linear(16, 12)))


@pytest.mark.parametrize(
    ("build", "ids"),
    [
        pytest.param(lambda: encoder(norm_first=True), PADDED, id="pre-norm"),
        pytest.param(lambda: encoder(norm_first=False), PADDED, id="post-norm"),
        pytest.param(decoder, IDS, id="decoder", marks=pytest.mark.slow),
        pytest.param(whole, IDS, id="whole"),
    ],
)
def test_stacks_keep_their_class_with_fewer_heads_and_a_narrower_stream(build, ids):
    net = build()
    flow = traced(net, ids)
    gated = gated_at(net, flow, random_gates(flow))

    compact = shrink(gated)

    assert surgery_of(compact).form == "in-place"
    assert difference(compact(ids), gated(ids)) < EXACT
    layers = [m for m in compact.modules() if isinstance(m, nn.MultiheadAttention)]
    assert any(layer.num_heads < 4 for layer in layers)
    assert {layer.embed_dim for layer in layers} == {compact.embed.embedding_dim} != {16}
    with torch.no_grad():  # where torch would take its own kernels
        assert difference(compact(ids), gated(ids)) < EXACT


def test_a_narrow_layer_is_loaded_into_the_dense_class_and_cut_again(tmp_path):
    net = crossed()
    flow = traced(net, IDS)
    compact = shrink(gated_at(net, flow, random_gates(flow, closed=0.3)))
    assert type(compact.attention) is NarrowAttention

    l0prune.save(compact, tmp_path / "compact")
    again = l0prune.load(tmp_path / "compact", base=crossed().double().eval())
    assert difference(again(IDS), compact(IDS)) < EXACT

    flow = l0prune.trace(again, IDS)
    gated = gated_at(again, flow, random_gates(flow, closed=0.3, seed=2))
    smaller = shrink(gated)
    assert surgery_of(smaller).form == "in-place"
    assert n_parameters(smaller) < n_parameters(again)
    assert difference(smaller(IDS), gated(IDS)) < EXACT


def test_a_layer_whose_heads_fit_the_stream_again_is_one_of_torch():
    net = encoder(norm_first=False)
    flow = traced(net, PADDED)
    closed = torch.full((flow.n_gates,), 0.75)
    for dimension in flow.dimensions:
        if dimension.name == "embed.weight[1]":
            closed[torch.from_numpy(dimension.gates[:8])] = 0
        if dimension.name.endswith("in_proj_weight[0]"):
            closed[torch.from_numpy(dimension.gates).unique()[:2]] = 0
    gated = gated_at(net, flow, closed)

    compact = shrink(gated)

    layers = [m for m in compact.modules() if isinstance(m, nn.MultiheadAttention)]
    assert [(type(m), m.embed_dim, m.num_heads) for m in layers] == [(nn.MultiheadAttention, 8, 2)]
    with torch.no_grad():
        assert difference(compact(PADDED), gated(PADDED)) < EXACT
