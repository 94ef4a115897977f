"""Rules of normalisations: per channel, over all channels with masked statistics, over groups of channels."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, Net, assert_cut_exactly, difference, gated_at, gates, inputs, random_gates, traced
from torch import nn

from l0prune.surgery.shrink import shrink

TOGETHER = "statistics are taken over it together with other dimensions"


def convolutional(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.ReLU(), nn.Conv2d(8, 4, 1))


def sites(flow) -> list[tuple[str, str | None, int]]:
    return [(site.kind, site.weight, site.order) for site in flow.norms]


def test_all_tensors_of_a_batch_norm_go_with_their_channel():
    flow = assert_cut_exactly(convolutional(nn.BatchNorm2d(8)), inputs(2, 3, 4, 4))

    assert flow.n_gates == 8
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert gates(flow, f"1.{name}", 0) == gates(flow, "0.weight", 0) == list(range(8))
    assert flow.norms == ()


def test_an_instance_norm_is_a_norm_per_channel():
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)

    flow = assert_cut_exactly(convolutional(norm), inputs(2, 3, 4, 4))

    for name in ("weight", "bias", "running_mean", "running_var"):
        assert gates(flow, f"1.{name}", 0) == list(range(8))


def test_statistics_over_units_of_another_dimension_pin_them():
    net = Net(lambda net, x: net.last(F.instance_norm(net.first(x))), first=nn.Linear(5, 8), last=nn.Linear(8, 4))

    flow = traced(net, inputs(2, 6, 5))

    assert flow.n_gates == 0
    assert flow.pinned["statistics are taken over it"] == 8


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(8), nn.LayerNorm(8, bias=False), nn.RMSNorm(8), nn.RMSNorm(8, eps=1e-3)], ids=str
)
def test_a_norm_over_units_is_a_site_known_by_its_weight(norm):
    flow = assert_cut_exactly(nn.Sequential(nn.Linear(5, 8), norm, nn.Linear(8, 4)), inputs(2, 3, 5))

    assert flow.n_gates == 8
    assert gates(flow, "1.weight", 0) == gates(flow, "0.weight", 0)
    assert [(site.weight, site.gates.tolist()) for site in flow.norms] == [("1.weight", list(range(8)))]
    assert flow.norm_gates.all()


def test_the_bias_of_a_layer_norm_goes_with_its_unit():
    flow = traced(nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 4)), inputs(2, 3, 5))

    assert gates(flow, "1.bias", 0) == gates(flow, "2.weight", 1)


def test_norms_without_a_weight_are_known_by_their_order():
    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(x, (5,))  # of the input: no units
        x = net.norm(net.a(x))
        x = F.layer_norm(net.b(x), (6,))
        return net.c(F.rms_norm(x, (6,)))

    net = Net(function, a=nn.Linear(5, 8), norm=nn.LayerNorm(8), b=nn.Linear(8, 6), c=nn.Linear(6, 4))

    flow = assert_cut_exactly(net, inputs(2, 3, 5))

    assert sites(flow) == [("layer_norm", "norm.weight", 0), ("layer_norm", None, 1), ("rms_norm", None, 0)]
    assert flow.n_gates == 8 + 6


@pytest.mark.parametrize("norm", [F.layer_norm, F.rms_norm])
def test_a_norm_over_two_dimensions_pins_and_does_not_shift_the_order_of_later_ones(norm):
    net = Net(lambda net, x: net.b(norm(net.a(norm(x, (3, 5))), (8,))), a=nn.Linear(5, 8), b=nn.Linear(8, 4))

    flow = assert_cut_exactly(net, inputs(2, 3, 5))

    assert flow.n_gates == 8
    assert [site.order for site in flow.norms] == [1]


def test_units_normalised_together_with_positions_are_pinned():
    net = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm((3, 8)), nn.Linear(8, 4))

    flow = traced(net, inputs(2, 3, 5))

    assert flow.n_gates == 0
    assert flow.pinned[TOGETHER] == 3 + 8 + 8 + 8 + 3  # positions and features of both affine tensors, and the units


def test_a_group_norm_of_one_group_has_masked_statistics():
    flow = assert_cut_exactly(convolutional(nn.GroupNorm(1, 8)), inputs(2, 3, 4, 4))

    assert flow.n_gates == 8
    assert sites(flow) == [("group_norm", "1.weight", 0)]
    assert gates(flow, "1.bias", 0) == list(range(8))


def test_the_unit_of_a_group_norm_of_several_groups_is_a_group():
    flow = assert_cut_exactly(convolutional(nn.GroupNorm(4, 8)), inputs(2, 3, 4, 4))

    assert flow.n_gates == 4
    assert gates(flow, "0.weight", 0) == gates(flow, "1.weight", 0) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert flow.norms == ()


def test_a_group_norm_of_single_channels_needs_no_mask():
    flow = assert_cut_exactly(convolutional(nn.GroupNorm(8, 8, affine=False)), inputs(2, 3, 4, 4))

    assert flow.n_gates == 8
    assert flow.norms == ()


@torch.jit.script
def compiled_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, [8], weight)


def test_a_norm_in_compiled_code_cannot_be_masked_and_pins():
    net = Net(
        lambda net, x: net.c(net.norm(net.b(compiled_norm(net.a(x), net.weight)))),
        a=nn.Linear(5, 8),
        weight=nn.Parameter(torch.empty(8)),
        b=nn.Linear(8, 6),
        norm=nn.LayerNorm(6),
        c=nn.Linear(6, 4),
    )

    flow = assert_cut_exactly(net, inputs(2, 5))

    assert flow.n_gates == 6
    assert flow.pinned["normalised inside compiled code"] == 8


class SkippingNet(nn.Module):
    """Leaves one of its equal layers out while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 8)
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in range(3)])
        self.mixes = nn.ModuleList([nn.Linear(8, 6) for _ in range(3)])
        self.backs = nn.ModuleList([nn.Linear(6, 8) for _ in range(3)])
        self.head = nn.Linear(8, 4)
        self.skipped: tuple[int, ...] = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        for index, (norm, mix, back) in enumerate(zip(self.norms, self.mixes, self.backs, strict=True)):
            if not (self.training and index in self.skipped):
                x = x + back(torch.relu(mix(norm(x))))
        return self.head(x)


def test_layers_skipped_in_training_do_not_shift_the_masks_of_the_others():
    net = SkippingNet()
    x = inputs(2, 5)
    flow = traced(net, x)
    gated = gated_at(net, flow, random_gates(flow))
    compact = shrink(gated)
    gated.model.skipped = compact.skipped = (0,)

    gated.train()
    compact.train()

    assert difference(gated(x), compact(x)) < EXACT
