"""Rules of convolutions: plain, grouped, depthwise, transposed, in one to three dimensions."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import Net, assert_cut_exactly, gates, inputs, traced
from torch import nn

INSIDE_GROUP = "channels inside a convolution group stay together"
COMPUTED = "contracted with a computed tensor, not a parameter"


def between(middle: nn.Module, n_in: int, n_out: int) -> nn.Module:
    """Two plain convolutions with `middle` between them."""
    return nn.Sequential(nn.Conv2d(3, n_in, 1), nn.ReLU(), middle, nn.ReLU(), nn.Conv2d(n_out, 4, 1))


def test_channels_of_plain_convolutions_are_gated_where_they_are_consumed():
    net = between(nn.Conv2d(8, 6, 3, padding=1), 8, 6)

    flow = assert_cut_exactly(net, inputs(2, 3, 5, 5))

    assert flow.n_gates == 8 + 6
    assert gates(flow, "0.weight", 0) == gates(flow, "0.bias", 0) == gates(flow, "2.weight", 1) == list(range(8))
    assert gates(flow, "2.weight", 0) == gates(flow, "2.bias", 0) == gates(flow, "4.weight", 1) == list(range(8, 14))
    assert gates(flow, "0.weight", 1) is gates(flow, "4.weight", 0) is gates(flow, "2.weight", 2) is None
    assert {(c.parameter, c.dim) for c in flow.consumers} == {("2.weight", 1), ("4.weight", 1)}


@pytest.mark.parametrize(
    "options",
    [{"dilation": 2}, {"stride": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"}, {"bias": False}],
    ids=str,
)
def test_geometry_leaves_channels_alone(options):
    flow = assert_cut_exactly(between(nn.Conv2d(8, 6, 3, **options), 8, 6), inputs(2, 3, 7, 7))

    assert flow.n_gates == 8 + 6


@pytest.mark.parametrize("n_space", [1, 3])
def test_convolutions_of_other_dimensions(n_space):
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[n_space]
    up = {1: nn.ConvTranspose1d, 3: nn.ConvTranspose3d}[n_space]
    net = nn.Sequential(conv(3, 8, 3), nn.ReLU(), up(8, 6, 2, stride=2), nn.ReLU(), conv(6, 4, 1))

    flow = assert_cut_exactly(net, inputs(2, 3, *[5] * n_space))

    assert flow.n_gates == 8 + 6


def test_transposed_weights_have_their_inputs_first():
    flow = assert_cut_exactly(between(nn.ConvTranspose2d(8, 6, 3, stride=2), 8, 6), inputs(2, 3, 4, 4))

    assert flow.n_gates == 8 + 6
    assert gates(flow, "2.weight", 0) == gates(flow, "0.weight", 0)
    assert gates(flow, "2.weight", 1) == gates(flow, "2.bias", 0) == gates(flow, "4.weight", 1)
    assert {(c.parameter, c.dim) for c in flow.consumers} == {("2.weight", 0), ("4.weight", 1)}


def test_a_depthwise_channel_goes_with_its_input():
    flow = assert_cut_exactly(between(nn.Conv2d(8, 8, 3, padding=1, groups=8), 8, 8), inputs(2, 3, 4, 4))

    assert flow.n_gates == 8
    assert gates(flow, "2.weight", 0) == gates(flow, "2.bias", 0) == gates(flow, "0.weight", 0)
    assert [c.parameter for c in flow.consumers] == ["4.weight"]


def test_a_depthwise_multiplier_gives_an_input_several_outputs():
    flow = assert_cut_exactly(between(nn.Conv2d(4, 8, 3, padding=1, groups=4), 4, 8), inputs(2, 3, 4, 4))

    assert flow.n_gates == 4
    assert gates(flow, "0.weight", 0) == [0, 1, 2, 3]
    assert gates(flow, "2.weight", 0) == gates(flow, "4.weight", 1) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_unit_of_a_grouped_convolution_is_a_group():
    flow = assert_cut_exactly(between(nn.Conv2d(8, 12, 3, padding=1, groups=4), 8, 12), inputs(2, 3, 4, 4))

    assert flow.n_gates == 4
    assert gates(flow, "0.weight", 0) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert gates(flow, "2.weight", 0) == gates(flow, "2.bias", 0) == [g for g in range(4) for _ in range(3)]
    assert gates(flow, "2.weight", 1) is None
    assert flow.pinned[INSIDE_GROUP] == 2


@pytest.mark.parametrize(("n_in", "n_out"), [(8, 12), (8, 8)])
def test_a_transposed_grouped_convolution_loses_whole_groups(n_in, n_out):
    flow = assert_cut_exactly(between(nn.ConvTranspose2d(n_in, n_out, 2, 2, groups=4), n_in, n_out), inputs(2, 3, 4, 4))

    assert flow.n_gates == 4
    assert gates(flow, "2.weight", 0) == [g for g in range(4) for _ in range(n_in // 4)]
    assert gates(flow, "2.bias", 0) == [g for g in range(4) for _ in range(n_out // 4)]


def test_a_transposed_depthwise_convolution():
    flow = assert_cut_exactly(between(nn.ConvTranspose2d(8, 8, 2, 2, groups=8), 8, 8), inputs(2, 3, 4, 4))

    assert flow.n_gates == 8


@pytest.mark.parametrize("options", [{"groups": 2}, {"groups": 4}])
def test_groups_of_the_model_input_stay_and_lose_the_same_outputs(options):
    net = nn.Sequential(nn.Conv2d(4, 8, 1, **options), nn.ReLU(), nn.Conv2d(8, 3, 1))

    flow = assert_cut_exactly(net, inputs(2, 4, 4, 4))

    places = 8 // options["groups"]
    assert gates(flow, "0.weight", 0) == gates(flow, "2.weight", 1) == list(range(places)) * options["groups"]
    assert gates(flow, "0.weight", 1) is None


def test_depthwise_channels_of_the_model_input_stay():
    net = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.ReLU(), nn.Conv2d(4, 3, 1))

    assert traced(net, inputs(2, 4, 4, 4)).n_gates == 0


def halved(middle: nn.Module, n_out: int) -> Net:
    """The outputs of both groups are added, so that no group can go: split attention, as in ResNeSt, does that."""
    return Net(
        lambda net, x: net.last(net.middle(net.first(x).relu()).view(2, 2, n_out // 2, 4, 4).sum(1)),
        first=nn.Conv2d(3, 8, 1),
        middle=middle,
        last=nn.Conv2d(n_out // 2, 4, 1),
    )


def test_groups_that_have_to_stay_lose_the_same_places():
    flow = assert_cut_exactly(halved(nn.Conv2d(8, 12, 3, padding=1, groups=2), 12), inputs(2, 3, 4, 4), seeds=range(3))

    assert flow.n_gates == 4 + 6
    assert gates(flow, "first.weight", 0) == gates(flow, "middle.weight", 1) * 2 == [0, 1, 2, 3] * 2
    assert gates(flow, "middle.weight", 0) == gates(flow, "middle.bias", 0) == gates(flow, "last.weight", 1) * 2
    assert {(c.parameter, c.dim) for c in flow.consumers} == {("middle.weight", 1), ("last.weight", 1)}
    term = next(term for term in flow.terms("macs") if term.name == "middle")
    assert sorted(len(side.gates) for side in term.sides) == [4, 12]
    assert term.coefficient == 9 * 16


def test_transposed_groups_that_have_to_stay_lose_the_same_places():
    middle = nn.ConvTranspose2d(8, 12, 3, padding=1, groups=2)

    flow = assert_cut_exactly(halved(middle, 12), inputs(2, 3, 4, 4), seeds=range(3))

    assert flow.n_gates == 4 + 6
    assert gates(flow, "first.weight", 0) == gates(flow, "middle.weight", 0) == [0, 1, 2, 3] * 2
    assert gates(flow, "middle.weight", 1) * 2 == gates(flow, "middle.bias", 0) == gates(flow, "last.weight", 1) * 2


def test_a_group_with_one_output_keeps_it():
    flow = assert_cut_exactly(halved(nn.Conv2d(8, 2, 3, padding=1, groups=2), 2), inputs(2, 3, 4, 4))

    assert gates(flow, "first.weight", 0) == [0, 1, 2, 3] * 2
    assert gates(flow, "middle.weight", 0) is None


def test_outputs_are_cut_although_the_inputs_of_the_groups_stay():
    net = Net(
        lambda net, x: (
            net.last(net.middle(net.first(x)).relu()).sum((1, 2, 3)) + net.first(x).flatten(1).median(1).values
        ),
        first=nn.Conv2d(3, 8, 1),
        middle=nn.Conv2d(8, 12, 1, groups=4),
        last=nn.Conv2d(12, 4, 1),
    )

    flow = assert_cut_exactly(net, inputs(2, 3, 4, 4))

    assert gates(flow, "first.weight", 0) is None
    assert gates(flow, "middle.weight", 0) == [0, 1, 2] * 4


def test_groups_of_normed_weights_lose_the_same_places():
    """Transposed, the outputs stay: each input has a norm over those of its group."""
    norm = torch.nn.utils.parametrizations.weight_norm

    plain = assert_cut_exactly(halved(norm(nn.Conv2d(8, 12, 1, groups=2)), 12), inputs(2, 3, 4, 4))
    transposed = assert_cut_exactly(halved(norm(nn.ConvTranspose2d(8, 12, 1, groups=2)), 12), inputs(2, 3, 4, 4))

    assert plain.n_gates == 4 + 6
    assert transposed.n_gates == 4


def test_a_grouped_convolution_between_groups_of_other_sizes_ties_both():
    net = nn.Sequential(
        nn.Conv2d(3, 12, 1),
        nn.Conv2d(12, 12, 1, groups=6),
        nn.ReLU(),
        nn.Conv2d(12, 12, 1, groups=4),
        nn.Conv2d(12, 4, 1),
    )

    flow = assert_cut_exactly(net, inputs(2, 3, 4, 4))

    assert flow.n_gates == 2  # runs of two and of three channels meet every six
    assert gates(flow, "1.weight", 0) == [0] * 6 + [1] * 6


def test_the_general_convolution_op_is_followed_like_the_others():
    net = Net(
        lambda net, x: net.last(
            torch.convolution(net.first(x).relu(), net.weight, net.bias, [1, 1], [1, 1], [1, 1], False, [0, 0], 2)
        ),
        first=nn.Conv2d(3, 8, 1),
        weight=nn.Parameter(torch.empty(6, 4, 3, 3)),
        bias=nn.Parameter(torch.empty(6)),
        last=nn.Conv2d(6, 4, 1),
    )

    flow = assert_cut_exactly(net, inputs(2, 3, 5, 5))

    assert flow.n_gates == 2
    assert gates(flow, "weight", 0) == gates(flow, "bias", 0) == [0, 0, 0, 1, 1, 1]


def test_an_input_without_a_batch_dimension_pins():
    net = Net(
        lambda net, x: net.last(net.first(x).relu()[0]).sum((1, 2)), first=nn.Conv2d(3, 8, 1), last=nn.Conv2d(8, 4, 1)
    )

    flow = traced(net, inputs(1, 3, 5, 5))

    assert flow.n_gates == 0


def test_a_standardised_weight_keeps_its_inputs_and_frees_its_outputs():
    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        weight = net.middle.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
        return net.last(F.conv2d(net.first(x).relu(), weight, net.middle.bias).relu())

    net = Net(function, first=nn.Conv2d(3, 8, 1), middle=nn.Conv2d(8, 6, 3), last=nn.Conv2d(6, 4, 1))

    flow = assert_cut_exactly(net, inputs(2, 3, 5, 5))

    assert flow.n_gates == 6
    assert gates(flow, "first.weight", 0) is None
    assert gates(flow, "middle.weight", 0) == gates(flow, "middle.bias", 0) == gates(flow, "last.weight", 1)


def test_a_picture_that_is_a_parameter_loses_channels_and_nothing_else():
    net = Net(
        lambda net, x: net.conv(net.picture).mean((2, 3)) + x,
        picture=nn.Parameter(torch.empty(2, 5, 4, 6)),
        conv=nn.Conv2d(5, 3, 3),
    )

    flow = assert_cut_exactly(net, inputs(2, 3))

    assert flow.n_gates == 5
    assert gates(flow, "picture", 1) == gates(flow, "conv.weight", 1)
    assert all(gates(flow, "picture", dim) is None for dim in (0, 2, 3))
    assert flow.pinned["convolved along it"] == 4 + 6


@pytest.mark.parametrize("groups", [1, 3])
def test_units_along_space_pass_a_kernel_of_one_position(groups):
    net = Net(
        lambda net, x: net.head(net.mix(torch.stack([net.a(x), net.b(x), net.c(x)], 1)).relu()),
        a=nn.Linear(4, 6),
        b=nn.Linear(4, 6),
        c=nn.Linear(4, 6),
        mix=nn.Conv1d(3, 3, 1, groups=groups),
        head=nn.Linear(6, 2),
    )

    flow = assert_cut_exactly(net, inputs(2, 4))

    assert gates(flow, "a.weight", 0) == gates(flow, "c.weight", 0) == gates(flow, "head.weight", 1) == list(range(6))
    mixing = next(term for term in flow.terms("macs") if term.name == "mix")
    assert [len(side.gates) for side in mixing.sides] == [6]
    assert mixing.coefficient == 3 * 3 / groups


@pytest.mark.parametrize(
    "options", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 1, "stride": 2}, {"kernel_size": 1, "padding": 1}]
)
def test_units_along_space_are_pinned_where_the_kernel_moves_them(options):
    mix = nn.Conv1d(2, 1, **options)
    net = Net(
        lambda net, x: net.head(net.mix(torch.stack([net.a(x), net.b(x)], 1)).flatten(1)),
        a=nn.Linear(4, 6),
        b=nn.Linear(4, 6),
        mix=mix,
        head=nn.Linear(mix(torch.zeros(1, 2, 6)).shape[-1], 2),
    )

    flow = traced(net, inputs(2, 4))

    assert flow.n_gates == 0
    assert flow.pinned["convolved along it"] == 6
