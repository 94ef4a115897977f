"""Weight normalisation: units go along the dimension of its norms, and along the one that is contracted."""

import pytest
import torch
from flow_case import EXACT, Net, assert_cut_exactly, difference, gated_at, gates, inputs, random_gates, traced
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as hooked_spectral
from torch.nn.utils import weight_norm as hooked

from l0prune.surgery.shrink import shrink

STATISTICS = "statistics are taken over it"


def between(middle: nn.Module, n_in: int = 8, n_out: int = 6, dims: int = 1) -> nn.Module:
    conv = {1: nn.Conv1d, 2: nn.Conv2d}[dims]
    return nn.Sequential(conv(3, n_in, 1), nn.ReLU(), middle, nn.ReLU(), conv(n_out, 4, 1))


LAYERS = {
    "convolution": lambda: nn.Conv1d(8, 6, 3),
    "dilated": lambda: nn.Conv1d(8, 6, 3, dilation=2, bias=False),
    "linear": lambda: nn.Linear(8, 6),
}


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, hooked])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_inputs_and_outputs_of_a_normed_weight_are_cut(name, norm):
    layer = norm(LAYERS[name]())
    if name == "linear":
        net = Net(
            lambda net, x: net.head(net.layer(net.up(x)).relu()), up=nn.Linear(3, 8), layer=layer, head=nn.Linear(6, 2)
        )
    else:
        net = between(layer)
    v, g = sorted(
        (n for n, p in net.named_parameters() if p.shape[:2] == (6, 8) or p.shape[:2] == (6, 1)), reverse=True
    )

    flow = assert_cut_exactly(net, inputs(2, 7, 3) if name == "linear" else inputs(2, 3, 7), seeds=range(3))

    assert flow.n_gates == 8 + 6
    assert gates(flow, v, 1) == list(range(8))
    assert gates(flow, v, 0) == gates(flow, g, 0) == list(range(8, 14))
    assert (v, 1) in {(c.parameter, c.dim) for c in flow.consumers}


def test_a_chain_of_normed_weights():
    norm = parametrizations.weight_norm
    net = nn.Sequential(
        norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), norm(nn.Conv2d(8, 6, 3)), nn.ReLU(), norm(nn.Conv2d(6, 4, 1))
    )

    flow = assert_cut_exactly(net, inputs(2, 3, 7, 7), seeds=range(3))

    assert flow.n_gates == 8 + 6
    assert [site.kind for site in flow.norms] == ["weight_norm"] * 2


def test_norms_along_the_contracted_dimension_leave_the_scale_to_their_second_parameter():
    """A transposed convolution has its inputs first: each input has a norm of its own, over all outputs, which stay."""
    net = between(parametrizations.weight_norm(nn.ConvTranspose1d(8, 6, 3)))

    flow = assert_cut_exactly(net, inputs(2, 3, 7), seeds=range(3))

    assert flow.n_gates == 8
    assert ("2.parametrizations.weight.original0", 0) in {(c.parameter, c.dim) for c in flow.consumers}
    assert gates(flow, "4.weight", 1) is None
    assert flow.pinned[STATISTICS] == 6


def test_a_transposed_convolution_with_norms_of_its_outputs_is_cut_on_both_sides():
    flow = assert_cut_exactly(
        between(parametrizations.weight_norm(nn.ConvTranspose1d(8, 6, 3), dim=1)), inputs(2, 3, 7)
    )

    assert flow.n_gates == 8 + 6


@pytest.mark.parametrize("dim", [1, 2, None])
def test_norms_over_the_outputs_pin_them(dim):
    flow = traced(between(parametrizations.weight_norm(nn.Conv1d(8, 6, 3), dim=dim)), inputs(2, 3, 7))

    assert gates(flow, "4.weight", 1) is None
    assert (gates(flow, "0.weight", 0) is None) == (dim is None)


@pytest.mark.parametrize("groups", [8, 2])
def test_groups_with_a_normed_weight_are_cut_as_wholes(groups):
    layer = nn.Conv1d(8, 8, 3, groups=groups)

    flow = assert_cut_exactly(between(parametrizations.weight_norm(layer), 8, 8), inputs(2, 3, 7))

    assert flow.n_gates == groups


def test_groups_with_norms_over_all_of_them_are_pinned():
    flow = traced(between(parametrizations.weight_norm(nn.Conv1d(8, 8, 3, groups=8), dim=2), 8, 8), inputs(2, 3, 7))

    assert flow.n_gates == 0
    assert flow.pinned[STATISTICS] == 8


def test_a_normed_weight_that_is_used_otherwise_is_pinned():
    net = Net(
        lambda net, x: net.head(net.layer(net.up(x)) * net.layer.weight.abs().amax(1)),
        up=nn.Linear(3, 8),
        layer=parametrizations.weight_norm(nn.Linear(8, 6)),
        head=nn.Linear(6, 2),
    )

    flow = traced(net, inputs(5, 3))

    assert gates(flow, "up.weight", 0) is None


def test_a_branch_whose_norms_would_vanish_is_not_removable():
    def net(layer: nn.Module) -> nn.Module:
        return Net(
            lambda net, x: net.head(net.stem(x) + net.down(net.up(net.stem(x)).relu())),
            stem=nn.Linear(3, 6),
            up=nn.Linear(6, 5),
            down=layer,
            head=nn.Linear(6, 2),
        )

    normed = traced(net(parametrizations.weight_norm(nn.Linear(5, 6))), inputs(4, 3))
    plain = traced(net(nn.Linear(5, 6)), inputs(4, 3))

    assert not any(dimension.removable for dimension in normed.dimensions)
    assert any(dimension.removable for dimension in plain.dimensions)


def test_weights_of_which_all_inputs_are_closed_are_zero():
    net, x = between(parametrizations.weight_norm(nn.Conv1d(8, 6, 3))), inputs(2, 3, 7)
    flow = traced(net, x)
    values = torch.ones(flow.n_gates, dtype=torch.float64)
    values[torch.tensor(gates(flow, "0.weight", 0))] = 0.0
    values.requires_grad_()

    gated = gated_at(net, flow, values.detach())
    out = gated(x)

    assert torch.isfinite(out).all()
    assert difference(out, net[4](net[2].bias.relu().view(1, 6, 1).expand(2, 6, 5))) < EXACT
    out.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


SPECTRAL = {
    "linear": (
        lambda norm: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 2)),
        (5, 3),
    ),
    "convolution": (lambda norm: between(norm(nn.Conv1d(8, 6, 3))), (2, 3, 7)),
    "a chain": (
        lambda norm: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU(), norm(nn.Conv2d(8, 6, 3)), nn.ReLU(), norm(nn.Conv2d(6, 2, 1))
        ),
        (2, 3, 5, 5),
    ),
}


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, hooked_spectral])
@pytest.mark.parametrize("name", SPECTRAL)
def test_a_spectral_norm_is_that_of_the_units_that_stay(name, norm):
    make, shape = SPECTRAL[name]

    flow = assert_cut_exactly(make(norm), inputs(*shape), forms=["in-place", "graph"], seeds=range(3))

    assert flow.n_gates == 8 + 6


def test_layers_with_a_spectral_norm_know_their_new_widths():
    net = nn.Sequential(
        nn.Linear(3, 8), nn.ReLU(), parametrizations.spectral_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 2)
    )
    flow = traced(net, inputs(5, 3))

    compact = shrink(gated_at(net, flow, random_gates(flow)), form="in-place")

    assert (compact[2].out_features, compact[2].in_features) == tuple(compact[2].weight.shape)
    assert compact[2].in_features < 8


NUMBERS = {
    "over": lambda weight: weight / 2.0,
    "times": lambda weight: 0.5 * weight,
    "over one of a tensor": lambda weight: weight / torch.tensor(2.0, dtype=torch.float64),
    "both": lambda weight: 3 * weight.view_as(weight) / 2,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_weight_scaled_by_a_constant_is_cut(name):
    class Layer(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, NUMBERS[name](self.weight), self.bias)

    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), Layer(8, 6), nn.ReLU(), nn.Linear(6, 2))

    assert assert_cut_exactly(net, inputs(5, 3), forms=["in-place", "graph"]).n_gates == 8 + 6


def test_a_weight_over_a_number_that_depends_on_all_of_it_stays():
    class Layer(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight / self.weight.norm(), self.bias)

    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), Layer(8, 6), nn.ReLU(), nn.Linear(6, 2))

    assert traced(net, inputs(5, 3)).n_gates == 0


@pytest.mark.parametrize("scale", [torch.div, torch.mul])
def test_a_weight_scaled_by_a_number_for_each_input_is_computed(scale):
    class Layer(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, scale(self.weight, self.weight.detach()[:1].exp()), self.bias)

    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), Layer(8, 6))

    assert traced(net, inputs(5, 3)).n_gates == 0
