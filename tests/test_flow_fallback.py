"""Models that torch.export refuses: torch-pruning groups their layers, and what it groups wrongly is noticed."""

import json

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from flow_case import EXACT, Net, difference, gated_at, gates, inputs, n_parameters, random_gates, ready, traced
from torch import nn

import l0prune
from l0prune.cli.main import cli
from l0prune.errors import ConfigError, EquivalenceError, PlanMismatchError, TraceError
from l0prune.flow.capture import capture
from l0prune.flow.fallback import variations
from l0prune.model_call import ModelCall
from l0prune.surgery.shrink import shrink


class Routed(nn.Module):
    """Takes one of two ways, by what the input is: torch.export cannot capture that."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.wide, self.narrow = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 12, 1)
        self.mix = nn.Conv2d(12, 12, 3, groups=12)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.stem(x)).relu()
        y = self.wide(y) if x.mean() > 0 else self.narrow(y)
        return self.head(F.adaptive_avg_pool2d(self.mix(y).relu(), 2).flatten(1))


def routed(**options):
    """The network, its trace, and the network gated at random values."""
    net = Routed()
    flow = traced(net, inputs(2, 3, 8, 8), **options)
    return net, flow, gated_at(net, flow, random_gates(flow))


def test_the_network_cannot_be_captured():
    with pytest.raises(TraceError, match="data-dependent"):
        capture(Routed(), torch.zeros(2, 3, 8, 8))


def test_layers_on_either_way_belong_together():
    net, flow, _ = routed()

    assert flow.n_gates == 8 + 12
    assert gates(flow, "norm.running_var", 0) == gates(flow, "stem.weight", 0) == gates(flow, "wide.weight", 1)
    assert gates(flow, "wide.weight", 0) == gates(flow, "narrow.bias", 0) == gates(flow, "mix.weight", 0)
    assert gates(flow, "head.weight", 1) == [unit for unit in gates(flow, "mix.bias", 0) for _ in range(4)]
    assert gates(flow, "head.weight", 0) is None
    assert flow.dense_cost("params") == n_parameters(net)
    assert flow.dense_cost("macs") == 64 * 3 * 8 * 9 + 64 * 8 * 12 + 36 * 12 * 9 + 48 * 5  # the way of the example


def test_the_trace_says_that_it_is_none_of_torch_export():
    flow = routed()[1]

    assert "torch.export cannot capture Routed" in flow.refusal
    assert "torch-pruning" in flow.summary()
    assert not flow.captured.dynamic_batch


def test_the_cut_network_takes_both_ways():
    net, _, gated = routed()

    compact = shrink(gated)

    assert isinstance(compact, Routed)
    assert n_parameters(compact) < n_parameters(net)
    ways = set()
    for call in variations(ModelCall.of(inputs(2, 3, 8, 8))):
        ways.add(bool(call.args[0].mean() > 0))
        assert difference(compact(*call.args), gated(*call.args)) < EXACT
    assert ways == {True, False}


def test_there_is_no_graph_to_cut():
    with pytest.raises(ConfigError, match=r"no graph to cut: torch\.export cannot capture"):
        shrink(routed()[2], form="graph")


def test_it_is_verified_and_saved_without_a_graph(tmp_path):
    net, _, gated = routed()
    compact = shrink(gated)
    folder = l0prune.save(compact, tmp_path / "compact")
    report = l0prune.verify(net, inputs(2, 3, 8, 8), double=True)

    assert not (folder / "model.pt2").exists()
    with pytest.raises(PlanMismatchError, match="base="):
        l0prune.load(folder)
    x = inputs(3, 3, 8, 8, seed=5)
    assert torch.equal(l0prune.load(folder, base=net)(x), compact(x))
    assert report.exact
    assert report.onnx_max_rel_diff is None
    assert report.params_after < report.params_before


def test_units_that_a_condition_reads_stay():
    net = Net(
        lambda net, x: net.head(y if (y := net.up(x).relu()).amax() > 1 else -y),
        up=nn.Linear(4, 8),
        head=nn.Linear(8, 2),
    )

    flow = traced(net, inputs(3, 4))

    assert flow.refusal
    assert flow.n_gates == 0


def test_what_torch_pruning_takes_for_elementwise_without_knowing_stays():
    net = Net(
        lambda net, x: net.head(net.up(x).softmax(1)) if x.sum() > 0 else net.head(-net.up(x).softmax(1)),
        up=nn.Linear(4, 8),
        head=nn.Linear(8, 2),
    )

    flow = traced(net, inputs(3, 4))

    assert flow.n_gates == 0
    assert "no rule for SoftmaxBackward0 (torch-pruning)" in flow.pinned


def test_a_layer_that_no_input_reaches_pins_what_is_as_wide():
    net = Net(
        lambda net, x: net.head(net.up(x).relu()) if bool((x.abs() < 1e6).all()) else net.head(net.other(x)),
        up=nn.Linear(4, 8),
        other=nn.Linear(4, 8),
        head=nn.Linear(8, 2),
    )

    assert traced(net, inputs(3, 4)).n_gates == 0
    assert traced(net, inputs(3, 4), ignore=["other"]).n_gates == 8


def test_a_wrong_grouping_is_an_error(monkeypatch):
    """As if sums along the units were elementwise."""
    known = l0prune.flow.fallback._ELEMENTWISE
    monkeypatch.setattr("l0prune.flow.fallback._ELEMENTWISE", known | {"Softmax"})
    net = Net(
        lambda net, x: net.head(net.up(x).softmax(1)) if x.sum() > 0 else net.head(net.up(x)),
        up=nn.Linear(4, 8),
        head=nn.Linear(8, 2),
    )
    flow = traced(net, inputs(3, 4))

    assert flow.n_gates == 8
    with pytest.raises(EquivalenceError, match=r"differ by .* Its layers were grouped without a graph .* ignore"):
        shrink(gated_at(net, flow, random_gates(flow)))


def test_where_neither_way_works_one_error_says_so():
    net = Net(torch.no_grad()(lambda net, x: net.up(x) if x.sum() > 0 else -net.up(x)), up=nn.Linear(4, 8))

    with pytest.raises(TraceError) as caught:
        l0prune.trace(ready(net), inputs(3, 4))

    assert "torch.export cannot capture Net" in str(caught.value)
    assert "torch-pruning cannot follow Net either" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_inspect_names_the_tracer():
    result = CliRunner().invoke(cli, ["inspect", "test_flow_fallback:Routed", "--input-shape", "3,8,8", "--json"])

    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["tracer"] == "torch-pruning"
    assert "data-dependent" in shown["refusal"]
