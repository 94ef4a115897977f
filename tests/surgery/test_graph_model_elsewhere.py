"""Models in graph form as other code treats them: pickled, and converted to another precision."""

import io

import pytest
import torch
from flow_case import EXACT, Net, difference, gated_at, inputs, random_gates, traced
from torch import nn

import l0prune
from l0prune.errors import ConfigError
from l0prune.surgery.shrink import shrink, surgery_of


def gated_net(function, x, **parts):
    net = Net(function, **(parts or {"up": nn.Linear(6, 8), "norm": nn.BatchNorm1d(8), "head": nn.Linear(8, 4)}))
    flow = traced(net, x)
    return gated_at(net, flow, random_gates(flow))


def plain(net, x):
    return net.head(net.norm(net.up(x)).relu())


def scaled_by_its_length(net, x):
    return {"sum": net.head(net.up(x).relu()) * x.shape[1], 0: (x, None)}


def pickled(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(("function", "shape"), [(plain, (4, 6)), (scaled_by_its_length, (4, 5, 6))])
def test_a_pickled_graph_is_the_same_model(function, shape, tmp_path):
    x = inputs(*shape)
    compact = shrink(gated_net(function, x), form="graph")
    loaded = l0prune.load(l0prune.save(compact, tmp_path / "compact"))

    for model in (compact, loaded, loaded.train()):
        again = pickled(model)
        assert difference(again.eval()(x), compact(x)) < EXACT
        assert again.state_dict().keys() == model.state_dict().keys()
        assert surgery_of(again).plan.fingerprint == surgery_of(compact).plan.fingerprint
        with pytest.raises(ConfigError, match="captured for"):
            again(inputs(*shape[:-1], 7))
    assert pickled(loaded.train()).training


def masked(net, x):
    mask = torch.zeros_like(x[..., 0], dtype=x.dtype).masked_fill(x[..., 0] > 1, torch.finfo(x.dtype).min)
    return net.head((net.up(x) + torch.ones(8, dtype=x.dtype)).relu() * mask.softmax(-1)[..., None])


@pytest.mark.parametrize("new", [torch.float64, torch.bfloat16, torch.float16])
def test_a_converted_graph_computes_in_the_new_precision(new, tmp_path):
    x = inputs(4, 5, 6)
    gated = gated_net(masked, x, up=nn.Linear(6, 8), head=nn.Linear(8, 4))
    exact = gated(x)
    single = shrink(gated, form="graph").float()
    loaded = l0prune.load(l0prune.save(single, tmp_path / "compact"))

    for model in (single, loaded):
        found = model.to(new)(x.to(new))
        assert found.dtype == new
        tolerance = 1e-5 if new == torch.float64 else 3e-2
        assert difference(found.double(), exact) < tolerance * float(exact.abs().max())


def test_a_gated_model_that_was_converted_is_cut_in_its_graph():
    net = Net(masked, up=nn.Linear(6, 8), head=nn.Linear(8, 4)).eval()
    x = inputs(4, 5, 6)
    flow = l0prune.trace(net, x.float())
    gated = gated_at(net, flow, random_gates(flow)).double()

    assert difference(shrink(gated, form="graph")(x), gated(x)) < EXACT


def test_a_lower_precision_is_refused_where_the_code_may_have_asked_for_single():
    net = Net(lambda net, x: net.head(net.up(x).relu().float().softmax(-1)), up=nn.Linear(6, 8), head=nn.Linear(8, 4))
    x = inputs(4, 6).float()
    flow = l0prune.trace(net.eval(), x)
    compact = shrink(gated_at(net, flow, random_gates(flow)), form="graph")
    before = compact(x)

    with pytest.raises(ConfigError, match="base="):
        compact.half()
    assert torch.equal(compact(x), before)
    assert difference(compact.double()(x.double()), before) < 1e-5
