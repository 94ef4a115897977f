"""Models that can neither be captured nor recorded: torch-pruning groups their layers, and what it groups wrongly is noticed."""

import pytest
import torch
from branching_task import Routed
from flow_case import EXACT, Net, difference, gated_at, gates, inputs, n_parameters, random_gates, ready, traced
from torch import Tensor, nn

from l0prune.errors import EquivalenceError, TraceError
from l0prune.flow import fallback
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.flow.trace import trace_modules
from l0prune.look.recording import record
from l0prune.model_call import ModelCall
from l0prune.surgery.shrink import shrink


def grouped(net: nn.Module, x: Tensor, **options) -> ChannelFlow:
    """The trace by torch-pruning alone."""
    return trace_modules(ready(net), x, refusal="it is not asked", **options)


def nested_sum(x: Tensor) -> Tensor:
    """By way of a nested tensor, which has no sizes that could be recorded."""
    return torch.nested.to_padded_tensor(torch.nested.nested_tensor([x]), 0.0).sum()


def test_a_model_that_cannot_be_recorded_is_cut_by_its_layers():
    net = Net(
        lambda net, x: net.head(net.mid(net.up(x).relu()).relu() * (1 if nested_sum(x) > 0 else 2)),
        up=nn.Linear(4, 8),
        mid=nn.Linear(8, 6),
        head=nn.Linear(6, 2),
    )
    x = inputs(3, 4)
    with pytest.raises(TraceError, match="Net cannot be recorded while it runs"):
        record(ready(net), ModelCall.of(x))

    flow = traced(net, x)
    gated = gated_at(net, flow, random_gates(flow))
    compact = shrink(gated)

    assert flow.tracer == "torch-pruning"
    assert "torch-pruning" in flow.summary()
    assert flow.n_gates == 8 + 6
    assert n_parameters(compact) < n_parameters(net)
    assert difference(compact(x), gated(x)) < EXACT
    assert difference(compact(-x), gated(-x)) < EXACT


def test_layers_on_either_way_belong_together():
    net = Routed()
    flow = grouped(net, inputs(2, 3, 8, 8))

    assert flow.n_gates == 8 + 12
    assert gates(flow, "norm.running_var", 0) == gates(flow, "stem.weight", 0) == gates(flow, "wide.weight", 1)
    assert gates(flow, "wide.weight", 0) == gates(flow, "narrow.bias", 0) == gates(flow, "mix.weight", 0)
    assert gates(flow, "head.weight", 1) == [unit for unit in gates(flow, "mix.bias", 0) for _ in range(4)]
    assert gates(flow, "head.weight", 0) is None
    assert flow.dense_cost("params") == n_parameters(net)
    assert flow.dense_cost("macs") == 64 * 3 * 8 * 9 + 64 * 8 * 12 + 36 * 12 * 9 + 48 * 5  # the way of the example


def test_units_that_a_condition_reads_stay():
    net = Net(
        lambda net, x: net.head(y if (y := net.up(x).relu()).amax() > 1 else -y),
        up=nn.Linear(4, 8),
        head=nn.Linear(8, 2),
    )

    assert grouped(net, inputs(3, 4)).n_gates == 0


def test_what_torch_pruning_takes_for_elementwise_without_knowing_stays():
    net = Net(
        lambda net, x: net.head(net.up(x).softmax(1)) if x.sum() > 0 else net.head(-net.up(x).softmax(1)),
        up=nn.Linear(4, 8),
        head=nn.Linear(8, 2),
    )

    flow = grouped(net, inputs(3, 4))

    assert flow.n_gates == 0
    assert "no rule for SoftmaxBackward0 (torch-pruning)" in flow.pinned


def test_a_layer_that_no_input_reaches_pins_what_is_as_wide():
    net = Net(
        lambda net, x: net.head(net.up(x).relu()) if bool((x.abs() < 1e6).all()) else net.head(net.other(x)),
        up=nn.Linear(4, 8),
        other=nn.Linear(4, 8),
        head=nn.Linear(8, 2),
    )

    assert grouped(net, inputs(3, 4)).n_gates == 0
    assert grouped(net, inputs(3, 4), ignore=["other"]).n_gates == 8


def test_a_wrong_grouping_is_an_error(monkeypatch):
    """As if sums along the units were elementwise."""
    monkeypatch.setattr(fallback, "_ELEMENTWISE", fallback._ELEMENTWISE | {"Softmax"})
    net = Net(
        lambda net, x: net.head(net.up(x).softmax(1)) if x.sum() > 0 else net.head(net.up(x)),
        up=nn.Linear(4, 8),
        head=nn.Linear(8, 2),
    )
    flow = grouped(net, inputs(3, 4))

    assert flow.n_gates == 8
    with pytest.raises(EquivalenceError, match=r"differ by .* Its layers were grouped without a graph .* ignore"):
        shrink(gated_at(net, flow, random_gates(flow)))
