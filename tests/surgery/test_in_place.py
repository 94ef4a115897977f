"""Cutting a copy of the user's own modules: the class, its integers, shared and frozen tensors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, Net, closing, difference, gated_at, inputs, n_parameters, random_gates, ready, traced
from torch import nn

import l0prune
from l0prune.errors import ConfigError, EquivalenceError
from l0prune.surgery.shrink import absorb_, shrink, surgery_of

FORMS = ["in-place", "graph"]
TOKENS = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))


class TiedNet(nn.Module):
    """The embedding is also the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.classify = nn.Linear(8, 11, bias=False)
        self.classify.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.classify(torch.relu(self.mix(self.embed(tokens))))


def half_open(net: nn.Module, x):
    flow = traced(net, x)
    return gated_at(net, flow, random_gates(flow))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def test_layers_know_their_new_sizes():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.GroupNorm(1, 8),
        nn.ConvTranspose2d(8, 6, 2, 2),
        nn.InstanceNorm2d(6, affine=True),
        nn.Conv2d(6, 12, 1, groups=3),
        nn.Conv2d(12, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 2),
    )
    x = inputs(2, 3, 4, 4)
    gated = half_open(net, x)

    compact = shrink(gated, form="in-place")

    assert type(compact) is nn.Sequential
    first, norm, act, depthwise, group, up, instance, grouped, last, _, _, linear = compact
    kept = first.out_channels
    assert kept == norm.num_features == act.num_parameters == depthwise.in_channels == depthwise.groups
    assert kept == group.num_channels == up.in_channels < 8
    assert up.out_channels == instance.num_features == grouped.in_channels == 2 * grouped.groups < 6
    assert grouped.out_channels == last.in_channels == 4 * grouped.groups
    assert last.out_channels == linear.in_features < 5
    assert linear.out_features == 2
    assert "in_features=" + str(linear.in_features) in repr(compact)


def test_norms_without_weights_know_their_new_sizes():
    net = nn.Sequential(
        nn.Conv1d(3, 8, 1),
        nn.GroupNorm(1, 8, affine=False),
        nn.Conv1d(8, 8, 1),
        nn.GroupNorm(4, 8, affine=False),
        nn.Conv1d(8, 6, 1),
        nn.InstanceNorm1d(6),
        nn.Conv1d(6, 5, 1),
        nn.BatchNorm1d(5, affine=False),
        nn.Conv1d(5, 8, 1),
        nn.Flatten(),
        nn.Linear(8 * 4, 10),
        nn.LayerNorm(10, elementwise_affine=False),
        nn.Linear(10, 9),
        nn.RMSNorm(9, elementwise_affine=False),
        nn.Linear(9, 2),
    )
    x = inputs(2, 3, 4)
    gated = half_open(net, x)

    compact = shrink(gated, form="in-place")

    assert difference(compact(x), gated(x)) < EXACT
    widths = [len(compact[i].weight) for i in (0, 2, 4, 6, 10, 12)]
    assert [compact[1].num_channels, compact[3].num_channels, compact[5].num_features, compact[7].num_features,
            *compact[11].normalized_shape, *compact[13].normalized_shape] == widths  # fmt: skip
    assert compact[3].num_groups == widths[1] // 2
    assert all(width < dense for width, dense in zip(widths, (8, 8, 6, 5, 10, 9), strict=True))


def test_numbers_of_heads_are_attributes_that_change():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n_heads = 3
            self.qkv = nn.Linear(6, 18)
            self.out = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, 2)).permute(2, 0, 3, 1, 4)
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    net, x = Attention(), inputs(2, 7, 6)
    flow = traced(net, x)

    compact = shrink(gated_at(net, flow, torch.tensor([0.5, 0.0, 0.75])), form="in-place")

    assert compact.n_heads == 2
    assert net.n_heads == 3


def test_the_dense_model_has_the_tensors_it_had_and_is_in_evaluation_mode():
    net, x = plain(), inputs(2, 6)
    gated = half_open(net, x)
    net.train()
    net[0].eval()
    before = copy.deepcopy(net.state_dict())
    tensors = dict(net.named_parameters())

    for form in FORMS:
        shrink(gated, form=form)

    assert not any(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter is tensors[name] for name, parameter in net.named_parameters())


def test_gates_at_one_leave_every_tensor_bit_identical():
    net, x = plain(), inputs(2, 6)
    gated = gated_at(net, traced(net, x), torch.ones(8))

    for form in FORMS:
        compact = shrink(gated, form=form)
        assert torch.equal(compact(x), net(x))
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in compact.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_shared_tensors_stay_shared(form):
    gated = half_open(TiedNet(), TOKENS)

    compact = shrink(gated, form=form)

    assert compact.get_parameter("classify.weight") is compact.get_parameter("embed.weight")
    assert n_parameters(compact) < n_parameters(gated.model)


@pytest.mark.parametrize("form", FORMS)
def test_shared_tensors_stay_shared_on_disk(form, tmp_path):
    compact = shrink(half_open(TiedNet(), TOKENS), form=form)
    l0prune.save(compact, tmp_path / "compact")
    bases = [None, ready(TiedNet(), seed=7)] if form == "in-place" else [None]

    for base in bases:
        loaded = l0prune.load(tmp_path / "compact", base=base)

        assert loaded.get_parameter("classify.weight") is loaded.get_parameter("embed.weight")
        assert difference(loaded(TOKENS), compact(TOKENS)) < EXACT


@pytest.mark.parametrize("form", FORMS)
def test_frozen_parameters_stay_frozen(form, tmp_path):
    net = plain()
    net[0].weight.requires_grad_(False)
    gated = half_open(net, inputs(2, 6))
    net[2].bias.requires_grad_(False)  # after it was traced

    compact = shrink(gated, form=form)
    l0prune.save(compact, tmp_path / "compact")

    for model in (compact, l0prune.load(tmp_path / "compact")):
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trainable == {"0.bias", "2.weight"}


@pytest.mark.parametrize("form", FORMS)
def test_tensors_that_the_forward_pass_does_not_use_survive(form, tmp_path):
    net = Net(
        lambda net, x: net.head(torch.relu(net.up(x))), up=nn.Linear(6, 8), head=nn.Linear(8, 4), unused=nn.Linear(8, 3)
    )
    net.register_buffer("steps", torch.arange(3))
    gated = half_open(net, inputs(2, 6))

    compact = shrink(gated, form=form)
    l0prune.save(compact, tmp_path / "compact")

    for model in (compact, l0prune.load(tmp_path / "compact")):
        assert model.state_dict().keys() == net.state_dict().keys()
        assert torch.equal(model.state_dict()["unused.weight"], net.unused.weight)
    assert gated.flow.dense_cost("params") == n_parameters(net)


@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_used_twice_is_cut_once(form):
    net = Net(
        lambda net, x: net.head(torch.relu(net.shared(torch.relu(net.shared(net.up(x)))))),
        up=nn.Conv2d(3, 6, 1),
        shared=nn.Conv2d(6, 6, 3, padding=1),
        head=nn.Conv2d(6, 2, 1),
    )
    x = inputs(2, 3, 4, 4)
    gated = half_open(net, x)

    compact = shrink(gated, form=form)

    assert gated.n_gates == 6
    assert difference(compact(x), gated(x)) < EXACT


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo):
        raise NotADirectoryError("this cannot be copied")


def test_a_model_that_cannot_be_copied_is_cut_in_its_graph():
    net, x = nn.Sequential(Uncopyable(6, 8), nn.ReLU(), nn.Linear(8, 4)), inputs(2, 6)
    gated = half_open(net, x)

    compact = shrink(gated)

    assert surgery_of(compact).form == "graph"
    assert difference(compact(x), gated(x)) < EXACT
    with pytest.raises(ConfigError, match="cannot be cut in place; use form='graph'"):
        shrink(gated, form="in-place")


def test_a_model_that_scales_by_its_own_width_is_cut_in_its_graph():
    """In place it would run, and compute something else."""
    net = Net(lambda net, x: net.head(net.up(x) / net.up(x).shape[-1] ** 0.5), up=nn.Linear(6, 8), head=nn.Linear(8, 4))
    x = inputs(2, 6)
    gated = half_open(net, x)

    compact = shrink(gated)

    assert surgery_of(compact).form == "graph"
    assert difference(compact(x), gated(x)) < EXACT
    with pytest.raises(EquivalenceError, match="shrunk and gated outputs differ by"):
        shrink(gated, form="in-place")


def closed_branch(forward):
    """A gated network whose branch of `a` and `b` is closed, and its input."""
    net = Net(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 6), head=nn.Linear(6, 2))
    x = inputs(2, 6)
    flow = traced(net, x)
    return gated_at(net, flow, closing(flow, "a.weight[0]")), x


def test_a_closed_branch_leaves_the_class_where_modules_make_it():
    gated, x = closed_branch(lambda net, x: net.head(x + net.b(torch.relu(net.a(x)))))

    compact = shrink(gated, form="in-place")

    assert type(compact) is Net
    assert difference(compact(x), gated(x)) < EXACT
    assert not [name for name in compact.state_dict() if name.startswith("a.")]


def test_a_closed_branch_that_code_makes_of_parameters_is_cut_in_the_graph_only():
    gated, x = closed_branch(
        lambda net, x: net.head(x + torch.relu(x @ net.a.weight.T + net.a.bias) @ net.b.weight.T + net.b.bias)
    )
    compact = shrink(gated)

    assert surgery_of(compact).form == "graph"
    assert difference(compact(x), gated(x)) < EXACT
    with pytest.raises(ConfigError, match="cannot be cut in place"):
        shrink(gated, form="in-place")


@pytest.mark.parametrize("form", FORMS)
def test_absorbing_keeps_shared_tensors_consistent(form):
    gated = half_open(TiedNet(), TOKENS)
    compact = shrink(gated, form=form)
    with torch.no_grad():
        for parameter in compact.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))

    absorb_(gated, compact)

    assert gated.model.classify.weight is gated.model.embed.weight
    assert difference(gated(TOKENS), compact(TOKENS)) < EXACT
