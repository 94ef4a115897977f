"""Means, sums and variances over units: taken over the open ones, as in norms that are written by hand."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, Net, assert_cut_exactly, closing, difference, gated_at, gates, inputs, ready, traced
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import l0prune
from l0prune.errors import TraceError
from l0prune.ops.reductions import masked_statistic, statistic_of_open

STATISTICS = {
    "mean": lambda x, dim: x.mean(dim),
    "mean kept": lambda x, dim: torch.mean(x, dim, keepdim=True).squeeze(dim),
    "mean by name": lambda x, dim: torch.mean(input=x, dim=dim),
    "mean along an axis": lambda x, dim: x.mean(axis=dim, dtype=torch.float64),
    "sum": lambda x, dim: x.sum(dim),
    "sum of several": lambda x, dim: torch.sum(x, (dim,), True).squeeze(dim),
    "var": lambda x, dim: x.var(dim),
    "biased var": lambda x, dim: x.var(dim, unbiased=False),
    "biased var by place": lambda x, dim: torch.var(x, dim, False),
    "corrected var": lambda x, dim: torch.var(x, dim=dim, correction=2, keepdim=True).squeeze(dim),
    "std": lambda x, dim: x.std(dim),
    "biased std": lambda x, dim: torch.std(x, dim, unbiased=False),
    "amax": lambda x, dim: x.amax(dim),
    "amax kept": lambda x, dim: torch.amax(x, (dim,), True).squeeze(dim),
    "amin": lambda x, dim: torch.amin(x, dim=dim),
    "max": lambda x, dim: x.max(dim).values,
    "max kept": lambda x, dim: torch.max(x, dim, keepdim=True)[0].squeeze(dim),
    "min by name": lambda x, dim: torch.min(x, dim=dim)[0],
    "norm": lambda x, dim: x.norm(dim=dim),
    "norm by place": lambda x, dim: torch.norm(x, 3, dim),
    "sum of magnitudes": lambda x, dim: torch.linalg.vector_norm(x, 1, dim),
    "largest magnitude": lambda x, dim: torch.linalg.vector_norm(x, ord=float("inf"), dim=(dim,)),
    "linear algebra's norm": lambda x, dim: torch.linalg.norm(x, dim=dim, keepdim=True).squeeze(dim),
    "normalised": lambda x, dim: F.normalize(x, dim=dim).sum(dim),
    "normalised by place": lambda x, dim: (F.normalize(x, 1.0, dim) * x).sum(dim),
}
FUNCTIONS = {
    "mean": lambda x, dims, correction: x.mean(dims),
    "sum": lambda x, dims, correction: x.sum(dims),
    "var": lambda x, dims, correction: x.var(dims, correction=correction),
    "std": lambda x, dims, correction: x.std(dims, correction=correction),
    "amax": lambda x, dims, correction: x.amax(dims),
    "amin": lambda x, dims, correction: x.amin(dims),
}


class RootMeanSquareNorm(nn.Module):
    """As decoders of language models write it."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x):
        variance = x.to(torch.float64).pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + 1e-6)).to(x.dtype)


class ChannelNorm(nn.Module):
    """LayerNorm over channels that come first, as ConvNeXt writes it."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * (x - mean) / torch.sqrt(variance + 1e-6) + self.bias[:, None, None]


def decoder() -> nn.Module:
    return Net(
        lambda net, ids: net.head(net.last(net.block(net.embed(ids)) + net.embed(ids))),
        embed=nn.Embedding(9, 6),
        block=nn.Sequential(RootMeanSquareNorm(6), nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 6)),
        last=RootMeanSquareNorm(6),
        head=nn.Linear(6, 9),
    )


def test_a_residual_stream_through_hand_written_norms_can_be_cut():
    ids = torch.arange(8).reshape(2, 4)

    flow = assert_cut_exactly(decoder(), ids, forms=["in-place", "graph"], seeds=(0, 1, 2))

    assert gates(flow, "embed.weight", 1) == gates(flow, "last.weight", 0) == gates(flow, "head.weight", 1)
    assert flow.n_gates == 6 + 8
    assert flow.prunable_fraction > 0.9


def test_a_norm_over_channels_that_come_first_can_be_cut():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), ChannelNorm(6), nn.Conv2d(6, 2, 1))

    flow = assert_cut_exactly(net, inputs(2, 3, 4, 4), forms=["in-place", "graph"], seeds=(0, 1))

    assert gates(flow, "0.weight", 0) == gates(flow, "1.bias", 0) == gates(flow, "2.weight", 1) == list(range(6))


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_is_that_of_the_open_units_however_it_is_written(name):
    statistic = STATISTICS[name]
    net = Net(
        lambda net, x: (
            net.head(net.up(x)) * statistic(net.up(x), -1).unsqueeze(-1),
            net.head(net.up(x)) * statistic(net.up(x), 2).unsqueeze(-1),
        ),
        up=nn.Linear(3, 12),
        head=nn.Linear(12, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 5, 3), seeds=(0, 1))

    assert flow.n_gates == 12


def test_a_statistic_may_run_over_space_as_well():
    net = Net(
        lambda net, x: net.head(net.up(x)) / net.up(x).std((1, 2, 3), keepdim=True),
        up=nn.Conv2d(3, 6, 1),
        head=nn.Conv2d(6, 2, 1),
    )

    assert assert_cut_exactly(net, inputs(2, 3, 4, 5)).n_gates == 6


def test_units_that_cannot_be_told_from_positions_by_their_number_are_pinned():
    net = Net(
        lambda net, x: net.head(net.up(x)) / net.up(x).std((1, 2, 3), keepdim=True),
        up=nn.Conv2d(3, 6, 1),
        head=nn.Conv2d(6, 2, 1),
    )

    assert traced(net, inputs(2, 3, 6, 5)).pinned["reduced by std"] == 6


def test_a_mean_over_two_dimensions_of_units_pins_both():
    net = Net(
        lambda net, x: (
            net.head(net.up(x)) * (net.up(x).unsqueeze(-1) * net.other(x).unsqueeze(-2)).mean((-1, -2))[..., None]
        ),
        up=nn.Linear(3, 4),
        other=nn.Linear(3, 5),
        head=nn.Linear(4, 2),
    )

    assert traced(net, inputs(2, 3)).pinned["reduced by mean"] == 9


def test_a_mean_of_everything_does_not_disturb_the_order_of_the_others():
    net = Net(
        lambda net, x: net.head(net.up(x)) * net.up(x).mean(-1, keepdim=True) + x.mean() + x.sum(dim=-1).mean(),
        up=nn.Linear(3, 7),
        head=nn.Linear(7, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 2, 3))

    assert flow.n_gates == 7


def test_a_forward_pass_with_another_number_of_means_is_an_error():
    net = ready(
        Net(
            lambda net, x: (
                net.head(net.up(x)) * net.up(x).mean(-1, keepdim=True) + (x.mean(-1).mean() if net.training else 0)
            ),
            up=nn.Linear(3, 4),
            head=nn.Linear(4, 2),
        )
    )
    gated = l0prune.inject(net, l0prune.trace(net, inputs(2, 3))).train()

    with pytest.raises(TraceError, match="calls mean without a weight 2 times, the traced one 1 times"):
        gated(inputs(2, 3))


def test_a_mean_over_another_number_of_units_is_an_error():
    net = ready(
        Net(
            lambda net, x: net.head(net.up(x)) * (x if net.training else net.up(x)).mean(-1, keepdim=True),
            up=nn.Linear(3, 4),
            head=nn.Linear(4, 2),
        )
    )
    gated = l0prune.inject(net, l0prune.trace(net, inputs(2, 3))).train()

    with pytest.raises(TraceError, match=r"a mean of the forward pass runs over dimensions of lengths \[3\]"):
        gated(inputs(2, 3))


def test_means_that_a_library_takes_inside_its_own_functions_are_not_confused_with_the_others():
    """Attention averages its weights over heads inside a function that is one call from outside."""
    net = Net(
        lambda net, x: (
            net.head(net.up(x)) * net.up(x).mean(-1, keepdim=True) + net.attention(x, x, x)[1].mean(-1)[..., None]
        ),
        up=nn.Linear(4, 6),
        head=nn.Linear(6, 2),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
    )

    flow = traced(net, inputs(2, 5, 4))

    assert flow.pinned["normalised inside compiled code"] == 6


def test_what_a_closed_unit_would_overflow_to_is_left_out():
    net = ready(
        Net(
            lambda net, x: net.head(net.up(x).exp()) * net.up(x).exp().sum(-1, keepdim=True).log(),
            up=nn.Linear(3, 4),
            head=nn.Linear(4, 2),
        )
    )
    with torch.no_grad():
        net.up.bias[1] = 1e4
    flow = l0prune.trace(net, inputs(2, 3))
    values = closing(flow)
    values[1] = 0
    total = net.up(inputs(2, 3)).exp()[:, [0, 2, 3]].sum(-1)

    assert difference(masked_statistic("sum", net.up(inputs(2, 3)).exp(), values != 0, [-1]), total) < EXACT
    assert gated_at(net, flow, values).n_gates == 4


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    mask=st.lists(st.booleans(), min_size=1, max_size=9).filter(lambda bits: sum(bits) > 1).map(torch.tensor),
    kind=st.sampled_from(sorted(FUNCTIONS)),
    others=st.sampled_from([(), (0,), (0, 2)]),
    correction=st.sampled_from([0, 1]),
    seed=st.integers(0, 99),
)
def test_a_masked_statistic_is_the_statistic_of_the_open_units(mask, kind, others, correction, seed):
    x = inputs(11, len(mask), 12, seed=seed)
    dims = (*others, 1)

    for keepdim in (False, True):
        out = masked_statistic(kind, x, mask, dims, keepdim=keepdim, correction=correction)
        expected = FUNCTIONS[kind](x[:, mask], dims, correction)

        assert out.dim() == (3 if keepdim else 3 - len(dims))
        assert difference(out.reshape(expected.shape), expected) < EXACT


def test_vectors_over_their_norm_are_those_of_the_open_units():
    net = Net(lambda net, x: net.head(F.normalize(net.up(x), dim=-1)), up=nn.Linear(3, 8), head=nn.Linear(8, 2))

    flow = assert_cut_exactly(net, inputs(2, 5, 3), forms=["in-place", "graph"], seeds=(0, 1, 2))

    assert flow.n_gates == 8
    assert [site.kind for site in flow.norms] == ["linalg_vector_norm"]


def test_channels_are_normalised_by_default():
    net = Net(lambda net, x: net.head(F.normalize(net.up(x))), up=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 2, 1))

    assert assert_cut_exactly(net, inputs(2, 3, 4, 5), seeds=(0, 1)).n_gates == 8


PINNED_NORMS = {
    "of order zero or less": lambda y: torch.linalg.vector_norm(y, -1, -1),
    "of a matrix": lambda y: torch.linalg.norm(y, 1, (-2, -1)),
    "of everything": lambda y: y.norm(),
}


@pytest.mark.parametrize("name", PINNED_NORMS)
def test_norms_to_which_zeros_add_something_pin(name):
    net = Net(
        lambda net, x: net.head(net.up(x)) * PINNED_NORMS[name](net.up(x)).sum(),
        up=nn.Linear(3, 8),
        head=nn.Linear(8, 2),
    )

    assert traced(net, inputs(2, 5, 3)).n_gates == 0


def test_the_largest_of_two_tensors_is_no_statistic():
    net = Net(
        lambda net, x: net.head(torch.max(net.up(x), net.up(x).square()) + net.up(x).amax(-1, keepdim=True)),
        up=nn.Linear(3, 8),
        head=nn.Linear(8, 2),
    )

    assert assert_cut_exactly(net, inputs(2, 5, 3), seeds=(0, 1)).n_gates == 8


@pytest.mark.parametrize("pick", [torch.max, torch.min])
def test_places_of_masked_extremes_are_those_among_all_units(pick):
    x, mask = inputs(4, 6), torch.tensor([True, False, True, True, False, True])
    kind = pick.__name__

    found = statistic_of_open(kind, pick, mask, x, 1, keepdim=True)
    expected = pick(x[:, mask], 1, keepdim=True)

    assert torch.equal(found.values, expected.values)
    assert torch.equal(x.gather(1, found.indices), expected.values)
    assert not statistic_of_open(kind, pick, torch.zeros_like(mask), x, 1).values.any()


def test_a_norm_over_another_width_than_traced_is_an_error():
    with pytest.raises(TraceError, match="another path"):
        statistic_of_open("linalg_vector_norm", F.normalize, torch.ones(5, dtype=torch.bool), inputs(2, 6), dim=1)
