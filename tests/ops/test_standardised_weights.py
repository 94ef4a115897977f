"""Weights that are computed from a parameter: standardised over their inputs, or reshaped."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, Net, assert_cut_exactly, difference, gated_at, gates, inputs, random_gates, ready, traced
from torch import nn

from l0prune.surgery.shrink import shrink


class Standardised(nn.Conv2d):
    """As in NFNet and BiT: every filter has mean zero and variance one, times a gain."""

    def __init__(self, *args, shift: bool = False, **options):
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))
        self.shift = nn.Parameter(torch.ones(self.out_channels)) if shift else None

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        scale = (self.gain * 0.7).view(-1)
        weight = F.batch_norm(flat, None, None, weight=scale, bias=self.shift, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding, 1, self.groups)


def net(**options) -> nn.Module:
    return nn.Sequential(
        Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 6, 3, **options), nn.ReLU(), Standardised(6, 4, 2)
    )


def test_standardised_weights_take_their_statistics_over_the_open_inputs():
    flow = assert_cut_exactly(net(), inputs(2, 3, 7, 7), seeds=range(3))

    assert flow.n_gates == 8 + 6
    assert {(c.parameter, c.dim) for c in flow.consumers} == {("2.weight", 1), ("4.weight", 1)}
    assert gates(flow, "0.gain", 0) == gates(flow, "0.weight", 0) == gates(flow, "2.weight", 1) == list(range(8))
    assert [(site.kind, len(site.gates)) for site in flow.norms] == [("batch_norm", 8 * 9), ("batch_norm", 6 * 4)]


def test_a_network_with_standardised_weights_keeps_its_class():
    model, x = net(), inputs(2, 3, 7, 7)
    flow = traced(model, x)
    gated = gated_at(model, flow, random_gates(flow))

    compact = shrink(gated, form="in-place")

    assert isinstance(compact[2], Standardised)
    assert compact[2].in_channels < 8
    assert difference(compact(x), gated(x)) < EXACT


def test_groups_of_standardised_weights_are_cut_as_wholes():
    flow = assert_cut_exactly(net(groups=2), inputs(2, 3, 7, 7))

    assert gates(flow, "0.weight", 0) == [0] * 4 + [1] * 4


def test_a_shift_after_the_standardisation_pins():
    flow = traced(net(shift=True), inputs(2, 3, 7, 7))

    assert gates(flow, "2.weight", 1) is None
    assert flow.n_gates == 6


def test_ordinary_batch_norms_without_running_statistics_are_not_mistaken_for_them():
    model = nn.Sequential(
        Standardised(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), Standardised(8, 6, 3), nn.Conv2d(6, 4, 1)
    )

    flow = assert_cut_exactly(model, inputs(2, 3, 7, 7))

    assert flow.n_gates == 8 + 6


@pytest.mark.parametrize("dim", [0, 1])
def test_a_reshaped_parameter_is_scaled_where_its_units_are(dim):
    model = Net(
        lambda net, x: net.head(F.linear(net.up(x), net.weight.view(6, 4)).relu()),
        up=nn.Linear(3, 4),
        weight=nn.Parameter(torch.ones(6, 4, 1, 1)),
        head=nn.Linear(6, 2),
    )

    flow = assert_cut_exactly(ready(model), inputs(5, 3))

    assert gates(flow, "weight", dim) == (list(range(6)) if dim == 0 else list(range(6, 10)))
