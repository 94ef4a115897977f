"""Integers of modules that are changed with the cut, where more than one fits."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, difference, gated_at, inputs, random_gates, ready, traced
from torch import nn

import l0prune
from l0prune.surgery.shrink import shrink, surgery_of

WIDTH = 6


class Layer(nn.Module):
    """A linear layer as GPT-2 has it: it names its output before its input, and uses the output's width only."""

    def __init__(self, n_out: int, n_in: int):
        super().__init__()
        self.n_out = n_out
        self.n_in = n_in
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, x):
        y = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return y.view(*x.shape[:-1], self.n_out)


class Attention(nn.Module):
    """Heads whose number stands in a configuration that all layers share."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(WIDTH, 3 * config.heads * config.head_width)
        self.out = nn.Linear(config.heads * config.head_width, WIDTH)

    def forward(self, x):
        width = self.config.heads * self.config.head_width
        q, k, v = (
            part.unflatten(-1, (-1, self.config.head_width)).transpose(1, 2)
            for part in (self.qkv(x)[..., :width], self.qkv(x)[..., width : 2 * width], self.qkv(x)[..., 2 * width :])
        )
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return x + self.out(mixed.transpose(1, 2).flatten(2))


def test_of_two_integers_that_are_equal_each_gets_its_own_width():
    net = nn.Sequential(nn.Linear(4, 8), Layer(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x = inputs(2, 5, 4)
    flow = traced(net, x)
    values = torch.ones(flow.n_gates)
    values[[0, 1, 2, 8]] = 0
    gated = gated_at(net, flow, values)

    compact = shrink(gated, form="in-place")

    assert (compact[1].n_in, compact[1].n_out) == (5, 7)
    assert difference(compact(x), gated(x)) < EXACT


def attending() -> nn.Module:
    config = SimpleNamespace(heads=4, head_width=3)
    return nn.Sequential(Attention(config), Attention(config), nn.Linear(WIDTH, 2))


def test_a_configuration_that_layers_share_becomes_each_layers_own(tmp_path):
    net, x = attending(), inputs(2, 5, WIDTH)
    flow = traced(net, x)
    values = random_gates(flow)
    values[:] = 1
    values[[0, 4, 5]] = 0  # one head of the first layer, two of the second
    gated = gated_at(net, flow, values)

    compact = shrink(gated, form="in-place")
    l0prune.save(compact, tmp_path / "compact")
    loaded = l0prune.load(tmp_path / "compact", base=copy.deepcopy(net))

    assert [layer.config.heads for layer in compact[:2]] == [3, 2]
    assert [layer.config.heads for layer in net[:2]] == [4, 4]
    assert {c.attribute for c in surgery_of(compact).plan.attributes} == {"config.heads"}
    assert difference(compact(x), gated(x)) < EXACT
    assert difference(loaded(x), gated(x)) < EXACT


class Parts(nn.Module):
    """Sizes that stand in sequences, in integers of a layer of one's own, and in what the layer has computed before."""

    def __init__(self):
        super().__init__()
        self.parts = [3, 4, 1]
        self.others = [torch.ones(3), 4, None]
        self.in_channels = 3
        self.channels = 8
        self.up = nn.Linear(6, 8)
        self.head = nn.Linear(8, 2)
        self.bias = nn.Parameter(torch.empty(8))
        self.filters = nn.Parameter(torch.empty(8, 1, 1))
        self.computed = {}
        self.forward_of = None

    def forward(self, x):
        return self.head(self.forward_of(self, self.up(x)))


def split_by_a_list(net, y):
    a, b, c = y.split(net.parts, dim=-1)
    return torch.cat([a.relu(), b, c.tanh()], -1)


def sliced_by_an_integer(net, y):
    return torch.cat([y[:, : net.in_channels].relu(), y[:, net.in_channels :]], 1)


def grouped_by_an_integer(net, y):
    return F.conv1d(y[..., None], net.filters, groups=net.channels).flatten(1).relu()


def transposed_by_an_integer(net, y):
    return F.conv_transpose1d(y[..., None], net.filters, groups=net.channels).flatten(1).relu()


def broadcast_by_an_integer(net, y):
    return y.relu() * net.bias.broadcast_to(y.shape[0], net.channels)


def made_by_an_integer(net, y):
    return y.relu() + y.new_full((y.shape[0], net.channels), 0.5)


def filled_by_an_integer(net, y):
    return y.relu() + torch.empty(net.channels, dtype=y.dtype).fill_(0.5)


def computed_before(net, y):
    if "bias" not in net.computed:
        net.computed["bias"] = net.bias.exp()
    return y.relu() + net.computed["bias"]


@pytest.mark.parametrize(
    ("function", "attribute"),
    [
        (split_by_a_list, "parts"),
        (sliced_by_an_integer, "in_channels"),
        (grouped_by_an_integer, "channels"),
        (transposed_by_an_integer, "channels"),
        (broadcast_by_an_integer, "channels"),
        (made_by_an_integer, "channels"),
        (filled_by_an_integer, "channels"),
        (computed_before, None),
    ],
)
def test_integers_that_other_calls_take(function, attribute):
    net, x = ready(Parts()), inputs(2, 6)
    net.forward_of = function
    net(x)
    flow = l0prune.trace(net, x)
    gated = gated_at(net, flow, random_gates(flow))
    dense = copy.copy(vars(net))

    compact = shrink(gated, form="in-place")

    plan = surgery_of(compact).plan
    assert not plan.calls
    assert attribute is None or type(getattr(compact, attribute)) is type(dense[attribute])
    assert attribute is None or attribute in {change.attribute for change in plan.attributes}
    assert compact.up.out_features < 8
    assert difference(compact(x), gated(x)) < EXACT
    assert all(dense[name] is value for name, value in vars(net).items())


class HeadsBesideTheBatch(nn.Module):
    """Attention whose heads are rows of the batch; `n_places`, of the same value as their number, stays."""

    def __init__(self, heads: int, width: int, n_places: int):
        super().__init__()
        self.num_heads, self.head_width, self.n_places = heads, width, n_places
        self.qkv = nn.Linear(5, 3 * heads * width)
        self.out = nn.Linear(heads * width, 5)

    def forward(self, x):
        rows = x.shape[0]
        q, k, v = (
            part.reshape(rows, self.n_places, self.num_heads, self.head_width)
            .transpose(1, 2)
            .reshape(rows * self.num_heads, self.n_places, self.head_width)
            for part in self.qkv(x).chunk(3, -1)
        )
        mixed = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).view(rows, self.num_heads, self.n_places, -1)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("n_places", [6, 4])
def test_heads_that_are_rows_of_the_batch_are_an_integer_of_the_module(n_places):
    net = nn.Sequential(HeadsBesideTheBatch(4, 3, n_places), nn.Linear(5, 2))
    x = inputs(3, n_places, 5)
    flow = traced(net, x)
    gated = gated_at(net, flow, random_gates(flow))

    compact = shrink(gated, form="in-place")

    assert 0 < compact[0].num_heads < 4
    assert compact[0].n_places == n_places
    assert difference(compact(x), gated(x)) < EXACT


class Window(nn.Module):
    """Its width, its longest sequence, and a number that only training needs, are the same."""

    def __init__(self, size: int = 16):
        super().__init__()
        self.width = self.longest = self.n_draws = size
        self.into, self.out = nn.Linear(5, size), nn.Linear(size, 2)

    def forward(self, x):
        if self.training:
            assert self.n_draws == 16
        y = self.into(x).relu().view(x.shape[0], -1, self.width)
        return self.out(y[:, -self.longest :])


@pytest.mark.parametrize("length", [3, 6, 12])
def test_integers_that_happen_to_be_as_large_as_a_width_stay(length):
    net, x = Window(), inputs(2, length, 5)
    flow = traced(net, x)
    values = torch.ones(flow.n_gates)
    values[:8] = 0
    gated = gated_at(net, flow, values)

    compact = shrink(gated, form="in-place")

    assert (compact.width, compact.longest, compact.n_draws) == (8, 16, 16)
    assert [change.attribute for change in surgery_of(compact).plan.attributes] == ["width"]
    for longer in (inputs(2, 14, 5), inputs(3, 20, 5)):
        assert difference(compact(longer), gated(longer)) < EXACT
    compact.train()(x)


class Checking(nn.Module):
    """A block that compares widths with integers before it computes: what comes in, and what a part of it returns."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.dim, self.hidden, self.n_checks = dim, hidden, 2
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        if x.shape[-1] != self.dim:
            raise ValueError(f"expected {self.dim} features, found {x.shape[-1]}")
        y = torch.relu(self.up(x))
        assert y.shape[-1] == self.hidden
        return x + self.down(y)


class Convolving(nn.Module):
    """The same of channels, where both widths have one value."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.in_channels, self.conv, self.num_features = n_in, nn.Conv1d(n_in, n_out, 1), n_out

    def forward(self, x):
        _, channels, _ = x.size()
        assert channels == self.in_channels
        return torch.relu(self.conv(x))


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (nn.Sequential(nn.Linear(4, 16), Checking(16, 20), Checking(16, 12), nn.Linear(16, 3)), inputs(2, 4)),
        (nn.Sequential(Convolving(3, 8), Convolving(8, 8), Convolving(8, 5)), inputs(2, 3, 6)),
    ],
    ids=["features", "channels"],
)
def test_code_that_checks_its_widths_finds_those_of_the_cut(net, x, tmp_path):
    flow = traced(net, x)
    gated = gated_at(net, flow, random_gates(flow))

    compact = shrink(gated, form="in-place")

    assert difference(compact(x), gated(x)) < EXACT
    for block in compact:
        if isinstance(block, Checking):
            assert (block.dim, block.hidden, block.n_checks) == (block.up.in_features, block.up.out_features, 2)
            assert block.hidden < 20
    l0prune.save(compact, tmp_path / "compact")
    again = l0prune.load(tmp_path / "compact", base=copy.deepcopy(net))
    assert difference(again(x), compact(x)) < EXACT
