"""A graph answers rightly at other sizes than those it was captured at, or not at all."""

import copy

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, Net, difference, gated_at, inputs, random_gates, traced
from torch import Tensor, nn

import l0prune
from l0prune.errors import ConfigError
from l0prune.input_sizes import input_sizes_of
from l0prune.sources.exported import load_exported
from l0prune.surgery.graph_model import GraphModel
from l0prune.surgery.shrink import shrink


def convolved(function) -> nn.Module:
    return Net(function, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 4, 3, padding=1), head=nn.Linear(8, 4))


def boxes(net, x):
    h, w = x.shape[-2:]
    return net.b(net.a(x).relu()).flatten(2).transpose(1, 2) * torch.tensor([w, h, w, h], dtype=x.dtype)


def mean_by_hand(net, x):
    y = net.a(x).relu()
    b, c, h, w = y.shape
    return net.head(y.view(b, c, -1).sum(-1) / (h * w))


def plain(net, x):
    return net.b(net.a(x).relu())


def padded_to_windows(net, x):
    y = net.a(x).relu()
    h, w = y.shape[-2:]
    y = F.pad(y, (0, -w % 4, 0, -h % 4))
    b, c, h, w = y.shape
    return net.b(y.view(b, c, h // 4, 4, w // 4, 4).mean((3, 5)))


def resized(net, x):
    return F.interpolate(net.b(net.a(x).relu()), size=x.shape[-2:][::-1])


def log_of_the_size(net, x):
    return plain(net, x) * torch.log(torch.tensor(float(x.shape[-1])))


def compact_of(function, x: Tensor, *, form: str | None = None):
    net = convolved(function)
    flow = traced(net, x)
    gated = gated_at(net, flow, random_gates(flow))
    return gated, shrink(gated, form=form)


def refuses(model: nn.Module, x: Tensor) -> bool:
    """Whether a graph says that it was captured for other sizes."""
    try:
        model(x)
    except ConfigError as error:
        return "captured for" in str(error)
    return False


@pytest.mark.parametrize("form", [None, "graph"])
@pytest.mark.parametrize(
    "function", [boxes, mean_by_hand, plain, padded_to_windows, resized, log_of_the_size], ids=lambda f: f.__name__
)
def test_images_of_another_size_are_computed_rightly_or_refused(function, form, tmp_path):
    gated, compact = compact_of(function, inputs(2, 3, 8, 8), form=form)
    loaded = l0prune.load(l0prune.save(compact, tmp_path / "compact"))

    for model in (compact, loaded, copy.deepcopy(loaded)):
        assert difference(model(inputs(3, 3, 8, 8)), gated(inputs(3, 3, 8, 8))) < EXACT
        for size in ((16, 16), (7, 13), (8, 9)):
            x = inputs(2, 3, *size)
            assert refuses(model, x) or difference(model(x), gated(x)) < EXACT


@pytest.mark.parametrize("form", [None, "graph"])
def test_a_convolutional_network_takes_images_of_any_size(form, tmp_path):
    gated, compact = compact_of(plain, inputs(2, 3, 8, 8), form=form)
    loaded = l0prune.load(l0prune.save(compact, tmp_path / "compact"))

    for size in ((16, 16), (7, 13)):
        assert difference(loaded(inputs(1, 3, *size)), gated(inputs(1, 3, *size))) < EXACT


@pytest.mark.parametrize("scaled", [lambda t: t**0.5, lambda t: round(t * 0.7), lambda t: abs(3 - t), lambda t: t])
def test_lengths_are_computed_rightly_or_refused(scaled, tmp_path):
    net = Net(lambda net, x: net.b(net.a(x).relu()) * scaled(x.shape[1]), a=nn.Linear(5, 8), b=nn.Linear(8, 2))
    x = inputs(2, 6, 5)
    flow = traced(net, x)
    compact = shrink(gated_at(net, flow, random_gates(flow)))
    loaded = l0prune.load(l0prune.save(compact, tmp_path / "compact"))

    assert difference(loaded(x), compact(x)) < EXACT
    longer = inputs(3, 11, 5)
    assert refuses(loaded, longer) or difference(loaded(longer), compact(longer)) < EXACT


def two_inputs(net, x, mask, gain):
    return net.b(net.a(x).relu() * mask[..., None]) * gain


@pytest.fixture
def with_mask():
    net = Net(two_inputs, a=nn.Linear(5, 8), b=nn.Linear(8, 2)).double().eval()
    lengths = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    given = (inputs(2, 6, 5), torch.ones(2, 6, dtype=torch.float64), 3)
    return net, torch.export.export(net, given, dynamic_shapes=((lengths, lengths, None),), strict=False)


def test_every_input_is_looked_at(with_mask, tmp_path):
    net, program = with_mask
    torch.export.save(program, tmp_path / "model.pt2")
    plain, _ = load_exported(tmp_path / "model.pt2")
    model = GraphModel(plain, plain.graph)
    x, mask = inputs(3, 4, 5), torch.ones(3, 4, dtype=torch.float64)

    assert difference(model(x, mask, 3), net(x, mask, 3)) < EXACT
    with pytest.raises(ConfigError, match=r"has size 5 in dimension 1, but must have 4, the size of input"):
        model(x, torch.ones(3, 5, dtype=torch.float64), 3)
    with pytest.raises(ConfigError, match=r"is 4, but this graph was captured for 3 only"):
        model(x, mask, 4)
    with pytest.raises(ConfigError, match=r"has size 6 in dimension 2, but this graph was captured for 5 only"):
        model(inputs(3, 4, 6), mask, 3)
    with pytest.raises(ConfigError, match=r"has size 6 in dimension 2, but this graph was captured for 5 only"):
        plain(inputs(3, 4, 6), mask, 3)
    with pytest.raises(ConfigError, match=r"has 2 dimensions, but this graph takes 3"):
        model(inputs(3, 4), mask, 3)
    with pytest.raises(TypeError):
        model(x, mask)


def test_a_graph_that_is_exported_again_keeps_its_sizes():
    _, compact = compact_of(boxes, inputs(2, 3, 8, 8), form="graph")
    sides = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}

    again = torch.export.export(compact, (inputs(2, 3, 8, 8),), dynamic_shapes=(sides,), strict=False)

    (placeholder,) = [node for node in again.graph.nodes if node.name in again.graph_signature.user_inputs]
    assert tuple(placeholder.meta["val"].shape[2:]) == (8, 8)
    assert input_sizes_of(compact) is not None
