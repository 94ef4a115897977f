"""Costs of the flow against independent counters: torch's own FLOP counter and `numel()`."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import Net, gated_at, inputs, n_parameters, random_gates, ready, traced
from hypothesis import HealthCheck, given, settings
from small_nets import PICTURE_BLOCKS, SEQUENCE_BLOCKS, Recipe, small_nets
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import l0prune
from l0prune.errors import ConfigError
from l0prune.surgery.shrink import shrink


def counted_macs(model: nn.Module, x: torch.Tensor) -> int:
    """Multiply-accumulates of one call, by torch's counter: a FLOP is half of one.

    The counter has no entry for attention fused for the CPU: it is computed in its parts.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() // 2


def assert_costs_are_those_counted(net: nn.Module, x: torch.Tensor, seed: int = 0) -> None:
    """For the dense network, and for one cut at random, which is what the gates said it would cost."""
    flow = l0prune.trace(net, x)
    one = x[:1]
    assert flow.dense_cost("macs") == counted_macs(net, one)
    assert flow.dense_cost("params") == n_parameters(net)

    gated = gated_at(net, flow, random_gates(flow, seed=seed))
    compact = shrink(gated)
    assert round(flow.dense_cost("macs") * gated.hard_cost("macs"), 6) == counted_macs(compact, one)
    assert round(flow.dense_cost("params") * gated.hard_cost("params"), 6) == n_parameters(compact)


@settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(recipe=small_nets(2))
def test_costs_of_any_network_are_those_counted(recipe):
    assert_costs_are_those_counted(recipe.build(), recipe.example, recipe.seed)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(recipe=small_nets(4))
def test_costs_of_larger_networks_are_those_counted(recipe):
    assert_costs_are_those_counted(recipe.build(), recipe.example, recipe.seed)


@pytest.mark.parametrize(
    "name", ["Grouped", "Multiplied", "Transposed", "UNet", "FusedAttention", "SeparateAttention", "Mixer"]
)
def test_costs_of_a_block_are_those_counted(name):
    pictures, sequences = ((name,), ()) if name in PICTURE_BLOCKS else ((), (name,))
    assert name in PICTURE_BLOCKS or name in SEQUENCE_BLOCKS
    recipe = Recipe(6, pictures, sequences, "flat", seed=2)

    assert_costs_are_those_counted(recipe.build(), recipe.example)


def terms(flow, metric: str) -> dict[str, tuple[float, list[int]]]:
    return {t.name: (t.coefficient, [s.n_ungated + len(s.gates) for s in t.sides]) for t in flow.terms(metric)}


def test_terms_of_a_convolution_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))

    flow = traced(net, inputs(4, 3, 8, 6))

    assert terms(flow, "macs") == {"0": (4 * 3 * 9 * 3, [8]), "2": (4 * 3 * 5, [8])}
    assert terms(flow, "params") == {
        "0.weight": (3 * 9, [8]),
        "0.bias": (1, [8]),
        "2.weight": (5, [8]),
        "2.bias": (5, []),
    }
    assert flow.dense_cost("macs") == 12 * 27 * 8 + 12 * 8 * 5


def test_a_depthwise_convolution_costs_once_a_channel():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.Conv2d(8, 2, 1))

    flow = traced(net, inputs(2, 3, 5, 5))

    assert terms(flow, "macs")["1"] == (25 * 9, [8])
    assert {tuple(s.gates.tolist()) for t in flow.terms("macs") if t.name == "1" for s in t.sides} == {
        (0, 0, 1, 1, 2, 2, 3, 3)
    }


def test_a_square_layer_of_a_residual_stream_names_the_same_gates_on_both_sides():
    net = Net(
        lambda net, x: net.head(net.up(x) + net.square(net.up(x))),
        up=nn.Linear(3, 6),
        square=nn.Linear(6, 6),
        head=nn.Linear(6, 2),
    )

    flow = traced(net, inputs(2, 3))

    term = next(t for t in flow.terms("macs") if t.name == "square")
    assert [side.gates.tolist() for side in term.sides] == [list(range(6))] * 2


def test_what_does_not_depend_on_the_input_is_counted_once_and_not_once_a_row():
    net = Net(
        lambda net, x: net.head(x + torch.relu(net.up(net.table)) @ net.down),
        table=nn.Parameter(torch.empty(5, 6)),
        up=nn.Linear(6, 8),
        down=nn.Parameter(torch.empty(8, 7)),
        head=nn.Linear(7, 4),
    )
    x = inputs(3, 5, 7)

    flow = traced(net, x)

    assert flow.dense_cost("macs") == 5 * 6 * 8 + 5 * 8 * 7 + 5 * 7 * 4 == counted_macs(net, x[:1])


def test_a_batch_that_cannot_vary_still_counts_one_row():
    net = Net(lambda net, x: net.head(net.up(x).reshape(4, 8, 9).mean(2)), up=nn.Conv2d(3, 8, 1), head=nn.Linear(8, 2))

    flow = traced(net, inputs(4, 3, 3, 3))

    assert not flow.captured.dynamic_batch
    assert flow.dense_cost("macs") == 9 * 3 * 8 + 8 * 2


def test_attention_costs_scores_and_values():
    net = Net(
        lambda net, x: net.out(F.scaled_dot_product_attention(net.q(x), net.k(x), net.v(x))),
        q=nn.Linear(5, 6),
        k=nn.Linear(5, 6),
        v=nn.Linear(5, 8),
        out=nn.Linear(8, 4),
    )

    flow = traced(net, inputs(2, 7, 5))

    assert flow.dense_cost("macs") == 7 * 5 * (6 + 6 + 8) + 7 * 7 * (6 + 8) + 7 * 8 * 4
    assert_costs_are_those_counted(net, inputs(2, 7, 5))


def test_an_unknown_metric_is_refused():
    flow = l0prune.trace(ready(nn.Linear(3, 2)), inputs(2, 3))

    with pytest.raises(ConfigError, match="metric 'flops' is unknown; choose 'macs' or 'params'"):
        flow.dense_cost("flops")


def test_rows_that_a_mask_selects_cost_what_they_did_in_the_example():
    """A decoder of the masked positions alone."""
    net = Net(lambda net, x, mask: net.head(net.up(x)[mask].relu()), up=nn.Linear(5, 8), head=nn.Linear(8, 2))
    mask = torch.tensor([[True, True, False, True], [True, False, True, False], [True, False, False, False]])

    flow = l0prune.trace(ready(net), (inputs(3, 4, 5), mask))

    assert {term.name: term.coefficient for term in flow.terms("macs")} == {"up": 4 * 5, "head": 6 / 3 * 2}
    l0prune.inject(net, flow, budget=l0prune.Budget("macs", 0.5), steps=3)
