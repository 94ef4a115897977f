"""What each criterion counts, by hand; and the ranks that scores become."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from finetuning_case import SmallBatches, assert_same_state, gated_net, state
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import l0prune
from l0prune.criteria.criterion import Evidence, score
from l0prune.criteria.ranking import SPREAD, place_, quantiles
from l0prune.criteria.registry import criterion_names, load_criterion
from l0prune.errors import ConfigError
from l0prune.gated.decision import choose_open
from l0prune.goals.budget import Budgets


def scored(name, gated, n_batches=2):
    dtype = next(gated.model.parameters()).dtype
    batches = [(inputs.to(dtype), targets) for inputs, targets in SmallBatches(n_batches)]
    return score(load_criterion(name), gated, Evidence(batches, lambda x, y: F.cross_entropy(gated(x), y)))


@pytest.mark.parametrize("name", criterion_names())
def test_scoring_leaves_everything_as_it_was(name):
    gated = gated_net().train()
    gated.model.conv1.requires_grad_(False)
    before, noise = state(gated), gated.gates.get_rng_state()

    scores = scored(name, gated)

    assert scores.shape == (gated.n_gates,)
    assert (scores >= 0).all()
    assert scores.unique().numel() > 4
    assert_same_state(state(gated), before)
    assert torch.equal(gated.gates.get_rng_state(), noise)
    assert gated.training
    assert not gated.frozen
    assert [p.requires_grad for p in gated.model.parameters()] == [False, False] + [True] * 8
    assert all(parameter.grad is None for parameter in gated.model.parameters())


def test_a_magnitude_is_the_norm_of_all_that_goes_with_the_unit():
    gated = gated_net()
    net = gated.model

    scores = scored("magnitude", gated)

    for unit in (0, 5):
        parts = [net.conv1.weight[unit], net.conv1.bias[unit], net.bn1.weight[unit], net.bn1.bias[unit]]
        parts += [net.conv2.weight[:, unit]]
        expected = torch.cat([part.reshape(-1) for part in parts]).norm()
        assert scores[unit].item() == pytest.approx(expected.item())


def test_taylor_adds_up_what_closing_a_unit_does_in_first_order():
    gated = gated_net().double()
    effects = []
    for inputs, targets in SmallBatches(2):
        losses = []
        for step in (0.0, -1e-5):
            values = torch.ones(gated.n_gates)
            values[3] += step
            gated.freeze(values)
            losses.append(F.cross_entropy(gated.eval()(inputs.double()), targets).item())
        effects.append((losses[0] - losses[1]) / 1e-5)
    gated.unfreeze()

    assert scored("taylor", gated)[3].item() == pytest.approx(sum(map(abs, effects)), rel=1e-2)
    assert scored("fisher", gated)[3].item() == pytest.approx(sum(effect**2 for effect in effects), rel=1e-2)


def test_the_scale_of_a_norm_is_the_mean_of_its_gammas():
    class TwoNorms(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.norm1, self.norm2 = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

        def forward(self, x):
            x = self.norm1(self.first(x))
            return self.last(x + self.norm2(self.second(x).relu()))

    net = TwoNorms().eval()
    with torch.no_grad():
        net.norm1.weight.copy_(-torch.arange(6.0))
        net.norm2.weight.copy_(torch.arange(6.0) ** 2)
    gated = l0prune.inject(net, l0prune.trace(net, torch.randn(2, 4)))

    scores = score(load_criterion("bn-scale"), gated, Evidence([], None))

    assert scores.tolist() == [(unit + unit**2) / 2 for unit in range(6)]


def test_a_network_without_norms_has_no_scale_to_rank_by():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    gated = l0prune.inject(net, l0prune.trace(net, torch.randn(2, 4)))

    with pytest.raises(ConfigError, match="'bn-scale' ranks units by the scale of their norm, and none of the 6"):
        load_criterion("bn-scale").check(gated)


@pytest.mark.parametrize(
    ("name", "importance"),
    [
        ("tp-group-norm", tp.importance.GroupMagnitudeImportance(p=2)),
        ("tp-lamp", tp.importance.LAMPImportance()),
        ("tp-fpgm", tp.importance.FPGMImportance()),
        ("tp-group-taylor", tp.importance.GroupTaylorImportance()),
    ],
)
def test_torch_pruning_says_the_same_of_the_groups_that_it_finds_itself(name, importance):
    gated = gated_net()
    net = copy.deepcopy(gated.model).eval()
    for inputs, targets in SmallBatches(2):
        F.cross_entropy(net(inputs), targets).backward()
    graph = tp.DependencyGraph().build_dependency(net, torch.randn(2, 3, 6, 6))
    expected = [
        importance(graph.get_pruning_group(layer, tp.prune_conv_out_channels, list(range(layer.out_channels))))
        for layer in (net.conv1, net.conv2)
    ]

    torch.testing.assert_close(scored(name, gated).float(), torch.cat(expected), rtol=1e-4, atol=1e-6)


def test_torch_pruning_scores_heads_as_whole_units():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
            self.head = nn.Linear(12, 3)

        def forward(self, x):
            q, k, v = (layer(x).view(*x.shape[:2], 4, 3).transpose(1, 2) for layer in (self.q, self.k, self.v))
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.head(self.out(mixed).mean(1))

    torch.manual_seed(0)
    net = Attention().eval()
    gated = l0prune.inject(net, l0prune.trace(net, torch.randn(2, 5, 12)))
    heads = [gate for gate, name in enumerate(gated.flow.gate_names) if name.startswith(("q", "k", "v"))]
    with torch.no_grad():
        for layer in (net.q, net.k, net.v):
            layer.weight[3:6] *= 3
        net.out.weight[:, 3:6] *= 3

    scores = score(load_criterion("tp-group-norm"), gated, Evidence([], None))

    assert len(heads) == 4
    assert scores[heads].argmax() == 1
    assert scores[heads].mean() == pytest.approx(1)


def test_units_that_torch_pruning_does_not_know_are_an_error_that_names_one():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.Parameter(torch.randn(4, 4)) for _ in range(2))

        def forward(self, x):
            return (x @ self.first).relu() @ self.second

    net = Bare().eval()
    gated = l0prune.inject(net, l0prune.trace(net, torch.randn(2, 4)))

    with pytest.raises(ConfigError, match=r"does not fit this network: 4 of 4 units .* the first in 'first\[1\]'"):
        load_criterion("tp-group-norm").check(gated)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 99))
def test_quantiles_are_ranks_of_which_equal_scores_go_by_their_number(scores, seed):
    widths = np.random.default_rng(seed).integers(0, 3, len(scores))

    found = quantiles(scores, widths)

    for width in np.unique(widths):
        members = np.flatnonzero(widths == width)
        n = len(members)
        ranked = sorted(members, key=lambda i: (scores[i], -i))
        assert [found[i] for i in ranked] == pytest.approx([(place + 0.5) / n for place in range(n)])
    assert quantiles([7.0, 7.0, 1.0]).tolist() == pytest.approx([5 / 6, 1 / 2, 1 / 6])


@pytest.mark.parametrize("name", ["magnitude", "random"])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_all_widths_lose_the_same_share_of_their_units(name, keep):
    torch.manual_seed(0)
    sizes = (20, 60, 36, 12)
    layers = [layer for a, b in zip((8, *sizes), sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(12, 5)).eval()
    gated = l0prune.inject(net, l0prune.trace(net, torch.randn(2, 8)))
    criterion = load_criterion(name)
    place_(gated, criterion, score(criterion, gated, Evidence([], None)))

    is_open = choose_open(gated, Budgets.of(l0prune.Budget("params", keep)), align=1)

    widths = torch.from_numpy(gated.flow.gate_group)
    shares = [is_open[widths == width].double().mean().item() for width in widths.unique()]
    assert min(shares) > 0
    assert max(shares) < 1
    assert all(abs(share - np.mean(shares)) <= 1.5 / size for share, size in zip(shares, sizes))


def test_of_units_that_are_missed_alike_the_cheaper_one_stays_where_a_criterion_counts_costs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 5)).eval()
    gated = l0prune.inject(net, l0prune.trace(net, torch.randn(2, 8)))
    scores, costs = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([2.0, 1.0, 0.0])

    ranks = {}
    for name in ("fisher", "taylor"):
        place_(gated, load_criterion(name), scores, costs=costs)
        ranks[name] = gated.gates.locations.argsort(descending=True).tolist()

    assert ranks == {"fisher": [2, 1, 0], "taylor": [0, 1, 2]}  # what costs nothing stays


@pytest.mark.parametrize("gate", ["hard-concrete", "concrete", "exact-k", "mdr-power"])
def test_gates_are_placed_around_where_their_distribution_starts(gate):
    net = gated_net().model
    gated = l0prune.inject(net, l0prune.trace(net, torch.randn(2, 3, 6, 6)), gate=gate)
    criterion = load_criterion("fisher")
    scores = scored("fisher", gated)

    place_(gated, criterion, scores)

    found = gated.gates.locations - gated.gates.distribution.initial_log_alpha
    assert torch.equal(found.argsort(), scores.argsort())
    assert found.max().item() == pytest.approx(-found.min().item())
    assert found.max().item() == pytest.approx(SPREAD / 2 * (1 - 1 / gated.n_gates))


def test_a_score_that_is_no_number_names_its_unit():
    gated = gated_net()
    with torch.no_grad():
        gated.model.conv2.weight[0, 3] = float("nan")

    with pytest.raises(ConfigError, match=r"'magnitude' gives gate 3, of 'conv1\.weight\[0\]', the score nan"):
        scored("magnitude", gated)
