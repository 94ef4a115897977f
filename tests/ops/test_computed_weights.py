"""Weights that are made of parameters when they are used: gates multiply what makes their slices zero."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import Net, assert_cut_exactly, gated_at, gates, inputs, n_parameters, random_gates, ready, traced
from torch import nn
from torch.nn.utils import parametrize, prune

import l0prune
from l0prune.model_call import copy_of
from l0prune.surgery.shrink import shrink

COMPUTED = "contracted with a computed tensor, not a parameter"
WIDTH, OUT = 8, 6


class Computed(nn.Linear):
    """A layer whose weight is a function of its parameters."""

    def __init__(self, function, **parts):
        super().__init__(WIDTH, OUT)
        self.function = function
        for name, shape in parts.items():
            setattr(self, name, nn.Parameter(torch.empty(*shape)))

    def forward(self, x):
        return F.linear(x, self.function(self), self.bias)


def between(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, WIDTH), nn.ReLU(), layer, nn.ReLU(), nn.Linear(OUT, 2))


def directions(weight, dim):
    return weight / weight.norm(dim=dim, keepdim=True)


# Function of the layer, shapes of its parameters beside `weight`, and where the gates of its inputs go.
CUT = {
    "a power": (lambda net: net.weight**3 + net.weight.square(), {}, {"weight": 1}),
    "by itself": (lambda net: net.weight * net.weight, {}, {"weight": 1}),
    "clamped": (lambda net: net.weight.clamp(-0.5, 0.5), {}, {"weight": 1}),
    "clamped above": (lambda net: net.weight.clamp(max=0.5), {}, {"weight": 1}),
    "signs with a scale": (lambda net: net.weight.sign() * net.weight.abs().sum(1, keepdim=True), {}, {"weight": 1}),
    "straight through": (lambda net: net.weight + (net.weight.sign() - net.weight).detach(), {}, {"weight": 1}),
    "masked": (lambda net: net.weight.masked_fill(net.weight.abs() < 0.1, 0.0), {}, {"weight": 1}),
    "chosen": (lambda net: torch.where(net.weight > 0.1, net.weight, 0.0), {}, {"weight": 1}),
    "chosen or zero": (
        lambda net: torch.where(net.weight > 0.1, net.weight, torch.zeros_like(net.weight)),
        {},
        {"weight": 1},
    ),
    "scales of inputs": (lambda net: net.weight * net.s.exp(), {"s": (WIDTH,)}, {"weight": 1}),
    "scales of inputs first": (lambda net: net.s.exp() * net.weight, {"s": (WIDTH,)}, {"weight": 1}),
    "over scales of inputs": (lambda net: net.weight / net.s.exp(), {"s": (WIDTH,)}, {"weight": 1}),
    "scales over it": (lambda net: net.s / net.weight, {"s": (WIDTH,)}, {"s": 0}),
    "directions": (lambda net: directions(net.weight, 1), {}, {"weight": 1}),
    "normalised": (lambda net: F.normalize(net.weight, dim=1), {}, {"weight": 1}),
    "an adapter": (
        lambda net: net.weight + 0.5 * (net.b @ net.a),
        {"a": (2, WIDTH), "b": (OUT, 2)},
        {"weight": 1, "a": 1},
    ),
    "an adapter the other way": (
        lambda net: net.weight - (net.a @ net.b).t(),
        {"a": (WIDTH, 2), "b": (2, OUT)},
        {"weight": 1, "a": 0},
    ),
    "an adapter as a layer": (
        lambda net: net.weight + F.linear(net.b, net.a),
        {"a": (WIDTH, 2), "b": (OUT, 2)},
        {"weight": 1, "a": 0},
    ),
    "an adapter with directions": (
        lambda net: net.m * directions(net.weight + net.b @ net.a, 1),
        {"a": (2, WIDTH), "b": (OUT, 2), "m": (OUT, 1)},
        {"weight": 1, "a": 1},
    ),
    "a product of two": (lambda net: net.b @ net.a, {"a": (2, WIDTH), "b": (OUT, 2)}, {"a": 1}),
    "a product of three": (
        lambda net: (net.b * net.s) @ net.a,
        {"a": (2, WIDTH), "b": (OUT, 2), "s": (2,)},
        {"a": 1},
    ),
    "a product by name": (
        lambda net: torch.einsum("or,ri->oi", net.b, net.a),
        {"a": (2, WIDTH), "b": (OUT, 2)},
        {"a": 1},
    ),
    "a batch of products": (
        lambda net: (net.b @ net.a)[0],
        {"a": (2, 3, WIDTH), "b": (2, OUT, 3)},
        {"a": 2},
    ),
    "a product for each input": (
        lambda net: (net.a @ net.b)[..., 0].t(),
        {"a": (WIDTH, OUT, 2), "b": (WIDTH, 2, 1)},
        {"a": 0},
    ),
    "a mixture": (
        lambda net: (net.s.softmax(0).view(3, 1, 1) * net.a).sum(0),
        {"a": (3, OUT, WIDTH), "s": (3,)},
        {"a": 2},
    ),
    "a mean": (lambda net: net.a.mean(1), {"a": (OUT, 3, WIDTH)}, {"a": 2}),
    "joined outputs": (lambda net: torch.cat([net.a, net.b]), {"a": (2, WIDTH), "b": (4, WIDTH)}, {"a": 1, "b": 1}),
    "joined inputs": (lambda net: torch.cat([net.a, net.b], 1), {"a": (OUT, 3), "b": (OUT, 5)}, {"a": 1, "b": 1}),
    "a part of the outputs": (lambda net: net.a.abs()[:OUT], {"a": (OUT + 3, WIDTH)}, {"a": 1}),
    "a half": (lambda net: net.a.abs().chunk(2)[1], {"a": (2 * OUT, WIDTH)}, {"a": 1}),
    "with other dimensions": (
        lambda net: net.a.abs().transpose(0, 1).unsqueeze(0).contiguous().squeeze(0),
        {"a": (WIDTH, OUT)},
        {"a": 0},
    ),
}


@pytest.mark.parametrize("name", CUT)
def test_a_weight_whose_slices_parameters_make_zero_is_cut_on_both_sides(name):
    function, parts, consumed = CUT[name]
    net = between(Computed(function, **parts))

    flow = assert_cut_exactly(net, inputs(5, 3), forms=["in-place", "graph"], seeds=range(2))

    width = set(gates(flow, "0.weight", 0))
    assert len(width) == WIDTH
    assert len(set(gates(flow, "4.weight", 1))) == OUT
    places = {c.parameter.removeprefix("2."): c.dim for c in flow.consumers if width & set(c.gates.tolist())}
    assert places == consumed


def test_places_inside_a_product_of_two_are_units_of_their_own():
    net = between(Computed(lambda net: net.b @ net.a, a=(4, WIDTH), b=(OUT, 4)))

    flow = assert_cut_exactly(net, inputs(5, 3), forms=["in-place", "graph"])

    assert flow.n_gates == WIDTH + 4 + OUT
    assert gates(flow, "2.a", 0) == gates(flow, "2.b", 1)


# The inputs of these stay: a closed one would leave something behind, or what is left could not be computed.
PINNED = {
    "an exponential": (lambda net: net.weight.exp(), {}),
    "a number added": (lambda net: net.weight + 1, {}),
    "a shift of outputs": (lambda net: net.weight + net.s[:, None], {"s": (OUT,)}),
    "clamped away from zero": (lambda net: net.weight.clamp(min=0.1), {}),
    "clamped below zero": (lambda net: net.weight.clamp(max=-0.1), {}),
    "clamped by a tensor": (lambda net: net.weight.clamp(max=net.s), {"s": (WIDTH,)}),
    "the power of zero": (lambda net: net.weight**0, {}),
    "the power of a tensor": (lambda net: net.weight.abs() ** net.s.exp(), {"s": (WIDTH,)}),
    "filled with ones": (lambda net: net.weight.masked_fill(net.weight.abs() < 0.1, 1.0), {}),
    "chosen or one": (lambda net: torch.where(net.weight > 0.1, net.weight, 1.0), {}),
    "directions of inputs": (lambda net: directions(net.weight, 0), {}),
    "times its inverse": (lambda net: net.weight * net.weight.reciprocal(), {}),
    "an inverse": (lambda net: 1 / net.weight, {}),
    "less its mean": (lambda net: net.weight - net.weight.mean(1, keepdim=True), {}),
    "a softmax": (lambda net: net.weight.softmax(1), {}),
    "its own product": (lambda net: (net.a @ net.a.t())[:OUT], {"a": (WIDTH, 3)}),
    "of a layer with a bias": (
        lambda net: F.linear(net.b, net.a, net.s),
        {"a": (WIDTH, 2), "b": (OUT, 2), "s": (WIDTH,)},
    ),
    "written later": (lambda net: [w := net.weight * 2, w.add_(1)][0], {}),
    "joined to something else": (lambda net: torch.cat([net.a, net.b.exp()]), {"a": (2, WIDTH), "b": (4, WIDTH)}),
}


@pytest.mark.parametrize("name", PINNED)
def test_inputs_of_a_weight_stay_where_closing_them_would_leave_something_behind(name):
    function, parts = PINNED[name]
    net = between(Computed(function, **parts))

    flow = traced(net, inputs(5, 3))

    assert gates(flow, "0.weight", 0) is None


def test_a_weight_with_one_slice_for_all_inputs_is_no_parameter():
    net = between(Computed(lambda net: net.a.expand(-1, WIDTH), a=(OUT, 1)))

    assert gates(traced(net, inputs(5, 3)), "0.weight", 0) is None


def test_norms_of_a_computed_weight_are_those_of_what_is_open():
    """Sums over units and kernel together, as demodulation has them: slices of zeros add nothing."""
    layer = Net(
        lambda net, x: net.head(
            F.conv2d(net.up(x).relu(), net.w / (net.w * net.s).square().sum((1, 2, 3), keepdim=True)).relu()
        ),
        up=nn.Conv2d(3, WIDTH, 1),
        w=nn.Parameter(torch.empty(OUT, WIDTH, 3, 3)),
        s=nn.Parameter(torch.empty(1, WIDTH, 1, 1)),
        head=nn.Conv2d(OUT, 2, 1),
    )

    assert assert_cut_exactly(layer, inputs(2, 3, 5, 5), seeds=range(2)).n_gates == WIDTH + OUT


def test_dimensions_of_a_parameter_that_are_summed_over_alone_are_units():
    net = Net(
        lambda net, x: net.tail(net.up(x).relu() * net.p.square().sum((1, 2))),
        up=nn.Linear(3, 4),
        p=nn.Parameter(torch.empty(4, 5, 6)),
        tail=nn.Linear(4, 2),
    )

    flow = assert_cut_exactly(net, inputs(7, 3), forms=["in-place", "graph"], seeds=range(2))

    assert flow.n_gates == 4 + 5 + 6
    assert {(c.parameter, c.dim) for c in flow.consumers} == {("p", 1), ("p", 2), ("tail.weight", 1)}


def test_a_sum_over_kernels_of_activations_is_no_sum_of_zeros():
    net = Net(
        lambda net, x: (net.up(x).sum((1, 2)), net.tail(net.up(x))), up=nn.Conv1d(3, 5, 1), tail=nn.Conv1d(5, 2, 1)
    )

    assert gates(traced(net, inputs(2, 3, 5)), "up.weight", 0) is None


LAYERS = {
    "linear": (lambda: between(nn.Linear(WIDTH, OUT)), "2", (5, 3), WIDTH + OUT),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, OUT, 3), nn.Conv2d(OUT, 2, 1)),
        "2",
        (2, 3, 5, 5),
        WIDTH + OUT,
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv1d(3, WIDTH, 1), nn.ConvTranspose1d(WIDTH, OUT, 3), nn.Conv1d(OUT, 2, 1)),
        "1",
        (2, 3, 5),
        WIDTH + OUT,
    ),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv1d(3, WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH), nn.Conv1d(WIDTH, 2, 1)),
        "1",
        (2, 3, 5),
        WIDTH,
    ),
    "groups": (
        lambda: nn.Sequential(nn.Conv1d(3, WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 3, groups=4), nn.Conv1d(WIDTH, 2, 1)),
        "1",
        (2, 3, 5),
        4,
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv1d(3, WIDTH, 1), nn.BatchNorm1d(WIDTH), nn.Conv1d(WIDTH, 2, 1)),
        "1",
        (2, 3, 5),
        WIDTH,
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(3, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)),
        "1",
        (5, 3),
        WIDTH,
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv1d(3, WIDTH, 1), nn.GroupNorm(4, WIDTH), nn.Conv1d(WIDTH, 2, 1)),
        "1",
        (2, 3, 5),
        4,
    ),
}

MASKS = {
    "weight": lambda layer: prune.random_unstructured(layer, "weight", 0.3),
    "bias": lambda layer: prune.random_unstructured(layer, "bias", 0.3),
    "both, twice": lambda layer: [
        prune.random_unstructured(layer, name, 0.3) for name in ("weight", "bias", "weight", "bias")
    ],
}


def with_masks(net: nn.Module, *, seed: int = 0) -> nn.Module:
    """Masks of zeros and ones, of which some of each stay."""
    net = ready(net, seed)
    for name, buffer in net.named_buffers():
        if name.endswith("_mask"):
            buffer.copy_((torch.arange(buffer.numel()) % 3 > 0).reshape(buffer.shape))
    return net


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_a_mask_is_cut_as_without(name, mask, monkeypatch):
    make, path, shape, n_gates = LAYERS[name]
    net = make()
    MASKS[mask](net.get_submodule(path))
    monkeypatch.setattr("flow_case.ready", lambda net, seed=0: with_masks(net, seed=seed))

    flow = assert_cut_exactly(net, inputs(*shape), forms=["in-place", "graph"], seeds=range(2))

    assert flow.n_gates == n_gates
    assert not any(consumer.parameter.endswith("_mask") for consumer in flow.consumers)


def test_layers_with_masks_know_their_new_widths_and_can_lose_their_masks():
    net = LAYERS["convolution"][0]()
    for layer in (net[0], net[2], net[3]):
        prune.ln_structured(layer, "weight", 0.25, n=2, dim=0)
    net = net.double()
    x = inputs(2, 3, 5, 5)
    flow = traced(with_masks(net), x)
    compact = shrink(gated_at(net, flow, random_gates(flow)), form="in-place")
    expected = compact(x)

    for layer in (compact[0], compact[2], compact[3]):
        prune.remove(layer, "weight")

    assert n_parameters(compact) < n_parameters(net)
    assert [(layer.out_channels, layer.in_channels) for layer in (compact[0], compact[2], compact[3])] == [
        tuple(layer.weight.shape[:2]) for layer in (compact[0], compact[2], compact[3])
    ]
    assert torch.equal(compact(x), expected)


class Tanh(nn.Module):
    def forward(self, weight):
        return weight.tanh()


def test_a_parametrization_of_ones_own_is_cut():
    net = between(nn.Linear(WIDTH, OUT))
    parametrize.register_parametrization(net[2], "weight", Tanh())

    flow = assert_cut_exactly(net, inputs(5, 3), forms=["in-place", "graph"], seeds=range(2))

    assert flow.n_gates == WIDTH + OUT
    assert {c.parameter for c in flow.consumers} == {"2.parametrizations.weight.original", "4.weight"}


def test_an_orthogonal_weight_keeps_its_outputs():
    net = between(nn.utils.parametrizations.orthogonal(nn.Linear(WIDTH, OUT)))

    flow = traced(net, inputs(5, 3))

    assert gates(flow, "4.weight", 1) is None
    assert gates(flow, "2.parametrizations.weight.original", 1) is None


def test_one_weight_that_is_used_both_ways_is_cut():
    net = Net(
        lambda net, x: net.head(F.linear(F.linear(net.up(x), net.w * net.m).relu(), (net.w * net.m).t())),
        up=nn.Linear(3, WIDTH),
        w=nn.Parameter(torch.empty(OUT, WIDTH)),
        m=nn.Parameter(torch.empty(OUT, WIDTH)),
        head=nn.Linear(WIDTH, 2),
    )

    assert assert_cut_exactly(net, inputs(5, 3), forms=["in-place", "graph"]).n_gates == WIDTH + OUT


def test_a_model_that_holds_what_it_computed_is_copied_verified_and_taught():
    """After a step of training a masked layer holds the weight of that step, which torch does not copy."""
    net = LAYERS["convolution"][0]()
    for layer in (net[0], net[2]):
        prune.l1_unstructured(layer, "weight", 0.25)
    x = torch.randn(2, 3, 5, 5)
    net.train()(x).sum().backward()

    report = l0prune.verify(net, x)
    copied = copy_of(net)

    assert report.exact
    assert report.n_gates == WIDTH + OUT
    assert torch.equal(copied(x), net(x))
    assert copied[0].weight is not net[0].weight
