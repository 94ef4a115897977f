"""Rules of pooling and resampling: they mix positions and leave channels alone."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import Net, assert_cut_exactly, both, gates, inputs, traced
from torch import nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
OPS = {
    "max_pool1d": (1, lambda y: F.max_pool1d(y, 2)),
    "max_pool2d": (2, lambda y: F.max_pool2d(y, 3, 2, 1, ceil_mode=True)),
    "max_pool2d with indices": (2, lambda y: F.max_pool2d(y, 2, return_indices=True)[0]),
    "max_pool3d": (3, lambda y: F.max_pool3d(y, 2)),
    "avg_pool2d": (2, lambda y: F.avg_pool2d(y, 2)),
    "adaptive_avg_pool1d": (1, lambda y: F.adaptive_avg_pool1d(y, 2)),
    "adaptive_avg_pool2d": (2, lambda y: F.adaptive_avg_pool2d(y, (2, 1))),
    "adaptive_max_pool2d": (2, lambda y: F.adaptive_max_pool2d(y, 1)),
    "nearest": (2, lambda y: F.interpolate(y, scale_factor=2)),
    "nearest-exact": (2, lambda y: F.interpolate(y, scale_factor=2, mode="nearest-exact")),
    "nearest-exact 1d": (1, lambda y: F.interpolate(y, scale_factor=2, mode="nearest-exact")),
    "nearest-exact 3d": (3, lambda y: F.interpolate(y, scale_factor=2, mode="nearest-exact")),
    "linear": (1, lambda y: F.interpolate(y, scale_factor=2, mode="linear")),
    "bilinear": (2, lambda y: F.interpolate(y, size=(7, 5), mode="bilinear", align_corners=True)),
    "bicubic": (2, lambda y: F.interpolate(y, size=(7, 5), mode="bicubic")),
    "antialiased": (2, lambda y: F.interpolate(y, size=(3, 3), mode="bilinear", antialias=True)),
    "trilinear": (3, lambda y: F.interpolate(y, scale_factor=2, mode="trilinear")),
    "reflection": (2, lambda y: F.pad(y, (1, 1, 2, 1), mode="reflect")),
    "replication": (1, lambda y: F.pad(y, (1, 2), mode="replicate")),
    "zeros": (2, lambda y: F.pad(y, (1, 1, 0, 2))),
}


@pytest.mark.parametrize("name", OPS)
def test_channels_pass_through(name):
    n_space, function = OPS[name]
    convolution = CONVOLUTIONS[n_space]
    net = Net(lambda net, x: net.head(function(net.up(x))), up=convolution(3, 4, 1), head=convolution(4, 2, 1))

    flow = assert_cut_exactly(net, inputs(2, 3, *[4] * n_space), forms=["graph"])

    assert flow.n_gates == 4
    assert flow.unknown_ops == {}


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda y: F.avg_pool1d(y, 3, 1, 1), "avg_pool1d"),
        (lambda y: F.max_pool2d(y, 3, 1, 1), "max_pool2d"),  # of three dimensions: channels, height, width
        (lambda y: F.interpolate(y, size=4), "upsample_nearest1d"),
    ],
    ids=["pool", "pool without a batch", "resample"],
)
def test_units_that_are_mixed_like_positions_are_pinned(function, op):
    net = Net(lambda net, x: net.head(function(net.up(x))), up=nn.Linear(3, 4), head=nn.Linear(4, 2))

    flow = traced(net, inputs(2, 5, 3))

    assert flow.n_gates == 0
    assert flow.pinned[f"{op} mixes along it"] == 4


def test_local_response_norm_mixes_channels_and_pins_them():
    net = Net(
        lambda net, x: net.head(F.local_response_norm(net.up(x), 3)), up=nn.Conv2d(3, 4, 1), head=nn.Conv2d(4, 2, 1)
    )

    assert traced(net, inputs(2, 3, 4, 4)).n_gates == 0


def test_a_u_net_joins_what_it_kept():
    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        kept = torch.relu(net.first(x))
        deep = torch.relu(net.deep(F.max_pool2d(kept, 2)))
        return net.last(torch.cat([kept, net.up(deep), F.interpolate(deep, scale_factor=2)], 1))

    net = Net(
        function,
        first=nn.Conv2d(3, 4, 3, padding=1),
        deep=nn.Conv2d(4, 6, 3, padding=1),
        up=nn.ConvTranspose2d(6, 5, 2, 2),
        last=nn.Conv2d(15, 2, 1),
    )

    assert assert_cut_exactly(net, inputs(2, 3, 4, 4)).n_gates == 4 + 6 + 5


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5)])
def test_channels_are_sampled_at_the_places_of_a_grid(shape):
    n = len(shape)
    net = Net(
        lambda net, x: net.head(F.grid_sample(net.up(x), x.movedim(1, -1)[..., :n].tanh(), align_corners=False)),
        up=CONVOLUTIONS[n](4, 6, 1),
        head=CONVOLUTIONS[n](6, 2, 1),
    )

    assert assert_cut_exactly(net, inputs(2, 4, *shape)).n_gates == 6


def test_places_of_a_grid_that_are_units_are_pinned():
    net = Net(
        lambda net, x: net.head(F.grid_sample(net.up(x), net.places(x.movedim(1, -1)), align_corners=False)),
        up=nn.Conv2d(4, 6, 1),
        places=nn.Linear(4, 2),
        head=nn.Conv2d(6, 2, 1),
    )

    flow = assert_cut_exactly(net, inputs(2, 4, 3, 5))

    assert flow.n_gates == 6
    assert flow.pinned["grid_sampler mixes along it"] == 2


def test_units_along_the_space_that_a_grid_looks_at_stay():
    grid = inputs(2, 5, 3, 2).tanh()
    net = both(lambda net, y: F.grid_sample(y, grid, align_corners=False), width=6, n_out=3)

    assert traced(net, inputs(2, 4, 5, 3)).n_gates == 0


POOLS_OF_ONE = {
    "avg_pool2d": lambda y: F.avg_pool2d(y.unsqueeze(1), (2, 1)).squeeze(1),
    "max_pool2d": lambda y: F.max_pool2d(y.unsqueeze(1), (3, 1), (2, 1), (1, 0)).squeeze(1),
    "one option for all": lambda y: F.max_pool2d(y.unsqueeze(1), 1, 1).squeeze(1),
}


@pytest.mark.parametrize("name", POOLS_OF_ONE)
def test_a_pool_leaves_a_dimension_alone_whose_positions_it_takes_one_by_one(name):
    net = Net(lambda net, x: net.head(POOLS_OF_ONE[name](net.up(x))), up=nn.Linear(3, 4), head=nn.Linear(4, 2))

    assert assert_cut_exactly(net, inputs(2, 6, 3)).n_gates == 4


POOLS = {
    "a window": lambda y: F.avg_pool2d(y.unsqueeze(1), (1, 2)),
    "steps": lambda y: F.max_pool2d(y.unsqueeze(1), 1, (1, 2)),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_with_windows_or_steps_along_units_pins_them(name):
    net = both(lambda net, y: POOLS[name](y))

    assert traced(net, inputs(2, 6, 3)).n_gates == 0


UNPOOLED = {1: (nn.Conv1d, F.max_pool1d, F.max_unpool1d), 2: (nn.Conv2d, F.max_pool2d, F.max_unpool2d),
            3: (nn.Conv3d, F.max_pool3d, F.max_unpool3d)}  # fmt: skip


@pytest.mark.parametrize("dims", UNPOOLED)
def test_what_was_pooled_goes_back_to_its_place_channel_by_channel(dims):
    conv, pool, unpool = UNPOOLED[dims]

    def there_and_back(net, x):
        y, places = pool(net.up(x).relu(), 2, return_indices=True)
        return net.tail(unpool(net.middle(y).relu(), places, 2))

    net = Net(there_and_back, up=conv(3, 6, 1), middle=conv(6, 6, 1), tail=conv(6, 2, 1))

    flow = assert_cut_exactly(net, inputs(2, 3, *([4] * dims)), seeds=range(2))

    assert flow.n_gates == 6
    assert gates(flow, "up.weight", 0) == gates(flow, "middle.weight", 0) == gates(flow, "tail.weight", 1)


@pytest.mark.parametrize("name", ["values", "places"])
def test_units_along_the_space_of_an_unpooling_stay(name):
    def function(net, y):
        y = y[:, None]
        if name == "values":
            return F.max_unpool2d(y, torch.zeros(3, 1, 5, 4, dtype=torch.long), (1, 2))
        return F.max_unpool2d(torch.ones_like(inputs(3, 1, 5, 4)), (y > 0).long(), (1, 2))

    assert gates(traced(both(function), inputs(3, 5, 3)), "up.weight", 0) is None
