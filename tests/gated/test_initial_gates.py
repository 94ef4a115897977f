"""Where gates start: by a drop rate, shared or by layer."""

import math

import pytest
import torch
from finetuning_case import dense_net, gated_net, traced
from small_nets import TwoHeads

import l0prune
from l0prune.errors import ConfigError
from l0prune.gates.registry import gate_names


def injected(droprate, gate="hard-concrete"):
    return l0prune.inject(dense_net(), traced()[1], droprate=droprate, gate=gate)


def starts(gated) -> dict[str, float]:
    """Mean location of the gates of each layer that consumes them."""
    log_alpha = gated.gates.log_alpha.detach()
    return {
        consumer.parameter.partition(".")[0]: float(log_alpha[torch.from_numpy(consumer.gates)].mean())
        for consumer in gated.flow.consumers
    }


@pytest.mark.parametrize("gate", gate_names())
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.8])
def test_all_gates_start_at_the_location_of_the_rate(gate, rate):
    log_alpha = injected(rate, gate).gates.log_alpha.detach()

    torch.testing.assert_close(log_alpha, torch.full((20,), math.log((1 - rate) / rate)), atol=0.05, rtol=0)
    assert len(set(log_alpha.tolist())) > 10  # the jitter breaks ties


# P(z != 0) of hard concrete gates at the rates of the papers' code, from their closed form.
@pytest.mark.parametrize(("rate", "is_open"), [(0.5, 0.831822), (0.3, 0.920261), (0.2, 0.951887)])
def test_hard_concrete_gates_are_open_as_often_as_the_closed_form_says(rate, is_open):
    assert injected(rate).open_probability().mean().item() == pytest.approx(is_open, abs=2e-3)


def test_layers_start_at_rates_of_their_own():
    default = starts(gated_net())
    named = starts(injected({"conv2": 0.2}))
    all_named = starts(injected({"": 0.5, "linear.weight": 0.2}))

    assert named == {"conv2": pytest.approx(math.log(4), abs=0.01), "linear": pytest.approx(default["linear"])}
    assert all_named == {"conv2": pytest.approx(0, abs=0.01), "linear": pytest.approx(math.log(4), abs=0.01)}


def test_a_unit_that_two_layers_read_takes_the_least_rate():
    net = TwoHeads().eval()
    flow = l0prune.trace(net, (torch.randn(2, 5),))

    for rates in ({"heads.first": 0.2, "heads.second": 0.6}, {"heads.first": 0.6, "heads.second": 0.2}):
        start = l0prune.inject(net, flow, droprate=rates).gates.log_alpha.detach()
        torch.testing.assert_close(start, torch.full((6,), math.log(4)), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("droprate", "message"),
    [
        (0.0, r"droprate 0\.0: expected a number in \[0\.00034, 0\.99966\]"),
        (1.5, "droprate 1.5"),
        ({"linear": 1}, "droprate linear=1"),
        ({"fc1": 0.5}, "inputs of 'fc1'; layers whose inputs are gated: conv2, linear"),
        (1e-6, r"droprate 1e-06: expected a number in \[0\.00034, 0\.99966\]"),
    ],
)
def test_a_rate_that_cannot_be_is_an_error(droprate, message):
    with pytest.raises(ConfigError, match=message):
        injected(droprate)
