"""Comparison at weights drawn anew: zero and small layers hide no wrong cut."""

import copy

import pytest
import torch
from diffusion_nets import HeadsByNumber, OneHead, UNet, zeroed
from flow_case import EXACT, Net, difference, gated_at, inputs, n_parameters, random_gates
from torch import nn

import l0prune
from l0prune.kept import Kept
from l0prune.surgery.reaction import holding, with_values
from l0prune.surgery.redrawn import DrawnWeights, redrawn_weights
from l0prune.surgery.shrink import shrink, surgery_of


def half_closed(net: nn.Module, *x):
    flow = l0prune.trace(net, x)
    return gated_at(net, flow, random_gates(flow))


def as_if_trained_(gated, compact, seed: int = 7):
    """New weights in both, those of the compact model cut as the plan says."""
    plan, flow = surgery_of(compact).plan, gated.flow
    drawn = redrawn_weights(gated, seed=seed, dtype=torch.float64)
    values = gated.gate_values().double()
    with torch.no_grad():
        for name, tensor in compact.state_dict(keep_vars=True).items():
            if name in drawn:
                dense = drawn[name].clone()
                for consumer in flow.consumers:
                    if consumer.parameter == name:
                        factors = torch.cat([values, values.new_ones(1)])[torch.from_numpy(consumer.gates)]
                        dense.mul_(factors.view([-1 if d == consumer.dim else 1 for d in range(dense.dim())]))
                cut = plan.tensors.get(name)
                tensor.copy_(dense if cut is None else cut.select(dense))
        for name, tensor in gated.model.state_dict(keep_vars=True).items():
            if name in drawn:
                tensor.copy_(drawn[name])


@pytest.mark.parametrize("attention", [HeadsByNumber, OneHead])
def test_a_diffusion_network_is_cut_as_its_trained_self_needs_it(attention):
    torch.manual_seed(0)
    net = UNet(attention).double().eval()
    x = inputs(2, 3, 8, 8), torch.tensor([3.0, 40.0], dtype=torch.float64)
    gated = half_closed(net, *x)

    compact = shrink(gated)

    assert n_parameters(compact) < 0.6 * n_parameters(net)
    assert difference(compact(*x), gated(*x)) < EXACT
    as_if_trained_(gated, compact)
    assert gated(*x).abs().max() > 0.1
    assert difference(compact(*x), gated(*x)) < EXACT


SCALES = {
    "of the input": lambda net, x: x * x.shape[1] ** -0.5,
    "of a size": lambda net, x: x / x.size(1),
    "by a power": lambda net, x: (1 + x.sigmoid()).pow(1 / x.shape[1]),
    "by a number added": lambda net, x: x + 1 / x.shape[1],
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("small", [0.0, 1e-14])
def test_a_float_made_of_a_width_keeps_its_dense_value_though_the_layer_behind_is_small(scale, small):
    def forward(net, x):
        y = net.up(x)
        return net.head(y.relu()) + net.late(torch.relu(SCALES[scale](net, y)))

    torch.manual_seed(0)
    net = Net(forward, up=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 2, 1), late=nn.Conv2d(8, 2, 1)).double().eval()
    with torch.no_grad():
        net.late.weight.mul_(small)
    x = inputs(2, 3, 4, 4)
    gated = half_closed(net, x)

    compact = shrink(gated)

    assert n_parameters(compact) < n_parameters(net)
    as_if_trained_(gated, compact)
    assert difference(compact(x), gated(x)) < EXACT


def test_a_float_stored_when_the_module_was_made_stays_and_with_it_the_class():
    class Scaled(nn.Module):
        def __init__(self, width: int = 8):
            super().__init__()
            self.scale = width**-0.5
            self.up, self.down = nn.Linear(4, width), zeroed(nn.Linear(width, 4))

        def forward(self, x):
            return x + self.down(torch.relu(self.up(x)) * self.scale)

    net = Scaled().double().eval()
    gated = half_closed(net, inputs(2, 4))

    compact = shrink(gated)

    assert isinstance(compact, Scaled)
    assert compact.scale == 8**-0.5


def test_redrawn_weights_are_neither_zero_nor_out_of_range_and_come_from_their_seed():
    net = nn.Sequential(zeroed(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), nn.ReLU(), zeroed(nn.Conv2d(8, 2, 1)))
    gated = half_closed(net.double().eval(), inputs(2, 3, 6, 6))

    drawn = redrawn_weights(gated, seed=1)

    assert set(drawn) == {name for name, t in net.state_dict().items() if t.is_floating_point()}
    assert all((tensor != 0).all() for tensor in drawn.values())
    assert drawn["1.running_var"].min() >= 0.5
    assert drawn["1.running_var"].max() <= 1.5
    again, other = redrawn_weights(gated, seed=1), redrawn_weights(gated, seed=2)
    assert all(torch.equal(tensor, again[name]) for name, tensor in drawn.items())
    assert not any(torch.equal(tensor, other[name]) for name, tensor in drawn.items())
    assert all(tensor.dtype == torch.float64 for tensor in redrawn_weights(gated, seed=1, dtype=torch.float64).values())


def test_shared_weights_stay_shared_and_tables_stay():
    net = Net(lambda net, x: net.b(net.a(x) * net.table), a=nn.Linear(4, 4), b=nn.Linear(4, 4)).double().eval()
    net.b.weight = net.a.weight
    net.register_buffer("table", inputs(4))
    gated = half_closed(net, inputs(2, 4))

    drawn = redrawn_weights(gated, seed=0)

    assert drawn["a.weight"] is drawn["b.weight"]
    assert torch.equal(drawn["table"], net.table)


def test_the_models_have_their_own_weights_back_whatever_happens():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).double().eval()
    x = inputs(2, 4)
    gated = half_closed(net, x)
    compact = shrink(gated)
    kept = {id(t): t.clone() for model in (net, compact) for t in model.state_dict(keep_vars=True).values()}
    weights = DrawnWeights(gated, surgery_of(compact).plan, Kept(gated.gate_values().numpy() != 0), seed=0, dtype=None)
    before = compact(x)

    def fail():
        assert difference(compact(x), before) > 1e-3
        raise KeyError

    with pytest.raises(KeyError), weights.in_gated(), weights.in_compact(compact):
        fail()

    for model in (net, compact):
        for tensor in model.state_dict(keep_vars=True).values():
            assert torch.equal(tensor, kept[id(tensor)])


def test_other_gate_values_are_tried_without_a_look_at_the_weights(monkeypatch):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double().eval()
    x = inputs(2, 4)
    gated = half_closed(net, x)
    expected, ones = gated(x), torch.ones(gated.n_gates, dtype=torch.float64)

    with monkeypatch.context() as patched:
        patched.setattr("l0prune.gated.tensors._sums", lambda model: pytest.fail("all weights are added up"))
        opened = with_values(gated, ones.numpy())

    assert difference(opened(x), net(x)) < EXACT
    assert difference(gated(x), expected) == 0
    assert difference(gated(x), net(x)) > 1e-3


def test_what_a_module_keeps_of_its_weights_is_not_seen_at_others_nor_lost():
    net = Net(lambda net, x: x * net.doubled, a=nn.Linear(4, 4))
    net.doubled = 2 * net.a.weight.detach()[0]
    net.kept = {"bias": net.a.bias.detach() * 1}
    kept, doubled = dict(net.kept), net.doubled

    with holding(net, {"a.weight": torch.zeros(4, 4)}):
        assert not net.a.weight.any()
        assert net.kept == {}
        net.doubled = net.a.weight[0]

    assert net.doubled is doubled
    assert net.kept == kept


def test_networks_of_single_precision_are_compared_in_double_precision_too():
    """A mistake of a millionth, within what single precision allows, behind a layer that is zero."""

    def forward(net, x):
        y = net.up(x).relu()
        return net.head(y) + net.late(y * (1 + 1e-5 / y.shape[1]))

    torch.manual_seed(0)
    net = Net(forward, up=nn.Linear(3, 8), head=nn.Linear(8, 2), late=zeroed(nn.Linear(8, 2))).eval()
    x = inputs(2, 3).float()
    gated = half_closed(net, x)

    compact = shrink(gated)

    double = copy.deepcopy(compact).double()
    as_if_trained_(gated.double(), double)
    assert difference(double(x.double()), gated(x.double())) < EXACT
