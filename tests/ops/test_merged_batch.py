"""Heads that are merged with the batch, and copies made for them: what is cut still takes any batch."""

import pytest
import torch
from flow_case import EXACT, Net, assert_cut_exactly, difference, gated_at, gates, inputs, random_gates, traced
from torch import nn

from l0prune.surgery.shrink import shrink

HEADS, WIDTH, TOKENS = 4, 3, 5


def per_head(x: torch.Tensor) -> torch.Tensor:
    batch, n, _ = x.shape
    return x.view(batch, n, HEADS, WIDTH).permute(0, 2, 1, 3).reshape(-1, n, WIDTH)


def attention(net: nn.Module, x: torch.Tensor, scores) -> torch.Tensor:
    """Attention with bmm over (batch times heads), as DeBERTa has it."""
    q, k, v = per_head(net.q(x)), per_head(net.k(x)), per_head(net.v(x))
    out = scores(net, q, torch.bmm(q, k.transpose(1, 2))).softmax(-1) @ v
    return net.out(out.view(-1, HEADS, TOKENS, WIDTH).permute(0, 2, 1, 3).reshape(x.shape[0], TOKENS, -1))


def attending(scores, **parts) -> nn.Module:
    width = HEADS * WIDTH
    return Net(
        lambda net, x: attention(net, x, scores),
        q=nn.Linear(6, width),
        k=nn.Linear(6, width),
        v=nn.Linear(6, width),
        out=nn.Linear(width, 6),
        **parts,
    )


def assert_any_batch(net: nn.Module, n_gates: int = HEADS) -> None:
    x = inputs(2, TOKENS, 6)
    flow = assert_cut_exactly(net, x, forms=["graph"], seeds=(0, 1))
    assert flow.n_gates == n_gates
    assert gates(flow, "q.weight", 0) == gates(flow, "out.weight", 1)
    assert flow.captured.dynamic_batch
    gated = gated_at(net, flow, random_gates(flow))
    larger = inputs(7, TOKENS, 6, seed=1)
    assert difference(shrink(gated, form="graph")(larger), gated(larger)) < EXACT


def test_heads_merged_with_the_batch_are_units():
    assert_any_batch(attending(lambda net, q, scores: scores))


def test_a_table_looked_up_for_every_head_is_cut_with_the_heads():
    """Relative positions: scores against a table, gathered with one pattern that is expanded over batch times heads."""

    def relative(net, q, scores):
        n_batch = q.shape[0] // HEADS
        table = per_head(net.position(net.table[None])).repeat(n_batch, 1, 1)
        pattern = (torch.arange(TOKENS)[:, None] + torch.arange(TOKENS)).expand(q.shape[0], -1, -1)
        return scores + torch.gather(torch.bmm(q, table.transpose(1, 2)), -1, pattern)

    net = attending(relative, table=nn.Parameter(torch.empty(9, 6)), position=nn.Linear(6, HEADS * WIDTH))

    assert_any_batch(net, n_gates=HEADS + 6)  # and the features of the table
    assert len(set(gates(traced(net, inputs(2, TOKENS, 6)), "position.weight", 0))) == HEADS


def test_copies_of_one_index_are_as_many_as_the_units_they_meet():
    net = Net(
        lambda net, x: net.head(net.up(x) * x.mean(-1, keepdim=True).expand(-1, -1, 8)),
        up=nn.Linear(3, 8),
        head=nn.Linear(8, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 5, 3), forms=["graph"])

    assert flow.n_gates == 8
    assert "no parameter consumes it" not in flow.pinned


def test_copies_that_meet_nothing_are_not_reported():
    net = Net(
        lambda net, x: net.head(net.up(x)) + x.mean(-1, keepdim=True).expand(-1, -1, 2).sum(-1, keepdim=True),
        up=nn.Linear(3, 8),
        head=nn.Linear(8, 2),
    )

    assert set(traced(net, inputs(2, 5, 3)).pinned.values()) == {2, 3}  # outputs and inputs of the model


def test_what_is_gathered_by_data_is_pinned_and_what_lies_beside_it_flows():
    def net(dim: int) -> nn.Module:
        def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
            shape = [1, 1, 1]
            shape[dim] = -1
            order = torch.tensor([2, 0, 3, 1]).view(shape).expand(x.shape[0], 4, 4)
            return net.head(net.up(x).gather(dim, order))

        return Net(forward, up=nn.Linear(3, 4), head=nn.Linear(4, 2))

    assert assert_cut_exactly(net(1), inputs(2, 4, 3), forms=["graph"]).n_gates == 4
    assert traced(net(2), inputs(2, 4, 3)).n_gates == 0


def test_gathering_fewer_than_there_are_pins_them():
    net = Net(
        lambda net, x: net.head(net.up(x).gather(1, torch.zeros(2, 1, 3, dtype=torch.long))) + net.tail(net.up(x)),
        up=nn.Linear(3, 4),
        head=nn.Linear(3, 2),
        tail=nn.Linear(4, 2),
    )

    assert traced(net, inputs(2, 5, 3)).n_gates == 0


def test_heads_times_batch_may_be_sliced_as_a_whole():
    """As `y[:, :4]` does: the first slice takes everything."""
    assert_any_batch(attending(lambda net, q, scores: scores + q[:, :, :1] * scores[:, :4].sum(1, keepdim=True)))


PARTS = {
    "slice": lambda y: y[1:].sum(0),
    "narrow": lambda y: y.narrow(0, 1, 2).sum(0),
    "chunk": lambda y: y.chunk(2)[1].sum(0),
    "split": lambda y: y.split([2, y.shape[0] - 2])[0].sum(0),
}


@pytest.mark.parametrize("name", PARTS)
def test_heads_of_a_part_of_the_batch_stay(name):
    """How many of them a part has depends on the batch; the features of the values may still go."""
    net = attending(lambda net, q, scores: scores + PARTS[name](scores))

    flow = assert_cut_exactly(net, inputs(2, TOKENS, 6), forms=["graph"])

    assert gates(flow, "q.weight", 0) is None
    assert gates(flow, "v.weight", 0) == list(range(WIDTH)) * HEADS
