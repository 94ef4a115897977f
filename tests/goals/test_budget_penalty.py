"""A fixed price of open gates: what each gate pays, by layer, and what is refused."""

import math

import numpy as np
import pytest
import torch
from finetuning_case import dense_net, gated_net, traced
from small_nets import TwoHeads

import l0prune
from l0prune.errors import ConfigError

N = 250
CONV2, LINEAR = 12 * 3 * 3, 4  # parameters that a gate multiplies: a slice of the layer that consumes its unit


def prices(penalty: l0prune.Penalty) -> dict[str, set[float]]:
    """Prices of the gates of the small network times N, by the layer that produces the unit."""
    flow = traced()[1]
    by_layer: dict[str, set[float]] = {}
    for name, price in zip(flow.gate_names, N * penalty.prices(flow), strict=True):
        by_layer.setdefault(name.partition(".")[0], set()).add(round(float(price), 9))
    return by_layer


@pytest.mark.parametrize(
    ("text", "conv1", "conv2"),
    [
        ("lambda=0.1", 0.1 * CONV2, 0.1 * LINEAR),
        ("conv2=0.5,linear=10", 0.5 * CONV2, 10 * LINEAR),
        ("lambda=2,linear=3", 2 * CONV2, 3 * LINEAR),
        ("linear.weight=3", 0, 3 * LINEAR),
    ],
)
def test_a_gate_pays_for_the_parameters_it_multiplies(text, conv1, conv2):
    found = prices(l0prune.Penalty.parse(text, n_samples=N))

    assert found == {"conv1": {round(conv1, 9)}, "conv2": {round(conv2, 9)}}


@pytest.mark.parametrize(
    ("text", "price"),
    [("heads.first=1,heads.second=10", 3 + 70), ("heads=2", 2 * 10), ("heads=2,heads.second=1", 6 + 7)],
)
def test_a_unit_that_two_layers_read_pays_both_and_the_longest_name_counts(text, price):
    flow = l0prune.trace(TwoHeads().eval(), (torch.randn(2, 5),))

    found = l0prune.Penalty.parse(text, n_samples=1).prices(flow)

    np.testing.assert_allclose(found, np.full(6, float(price)))


def test_the_penalty_is_the_sum_of_price_times_open_probability():
    gated = gated_net()
    penalty = l0prune.Penalty(0.3, {"linear": 7.0}, n_samples=N)
    gated.set_penalty(penalty, 10)
    with torch.no_grad():
        gated.gates.log_alpha.copy_(torch.linspace(-4, 4, gated.n_gates))
    sizes = {"conv1": 0.3 * CONV2, "conv2": 7.0 * LINEAR}
    offset = 2 / 3 * math.log(11)

    gated.penalty().backward()

    total = 0.0
    locations, slopes = gated.gates.log_alpha.tolist(), gated.gates.log_alpha.grad.tolist()
    for name, location, slope in zip(gated.flow.gate_names, locations, slopes, strict=True):
        is_open = 1 / (1 + math.exp(-location - offset))
        price = sizes[name.partition(".")[0]] / N
        total += price * is_open
        assert slope == pytest.approx(price * is_open * (1 - is_open), rel=1e-4)
    assert gated.penalty().item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("text", ["lambda=0.1", "conv2=0.5,linear=10.0", "lambda=1.0,linear=0.0"])
def test_the_text_of_a_penalty_reads_back(text):
    assert str(l0prune.Penalty.parse(text)) == text
    assert l0prune.Penalty.parse(str(l0prune.Penalty.parse(text))) == l0prune.Penalty.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lambda=-1", "lambda=-1.0: expected a number of 0 or more"),
        ("fc1=inf", "fc1=inf"),
        ("lambda", "'lambda' is not understood; expected NAME=NUMBER"),
        ("0.1", "a number without a name; write lambda=0.1"),
        ("lambda=x", "'lambda=x' is not understood"),
        ("=1", "'=1' is not understood"),
        ("fc1=1,fc1=2", "gives 'fc1' twice"),
    ],
)
def test_what_is_no_penalty_is_an_error(text, message):
    with pytest.raises(ConfigError, match=message):
        l0prune.Penalty.parse(text)


def test_a_layer_without_gated_inputs_is_an_error_that_lists_some_with():
    with pytest.raises(ConfigError, match=r"inputs of 'conv1'; layers whose inputs are gated: conv2, linear"):
        l0prune.Penalty.parse("conv1=1", n_samples=1).prices(traced()[1])
    with pytest.raises(ConfigError, match="'lin'"):
        l0prune.Penalty.parse("lin=1", n_samples=1).prices(traced()[1])


def test_a_penalty_in_a_loop_of_ones_own_needs_the_number_of_samples_and_steps():
    with pytest.raises(ConfigError, match="n_samples"):
        l0prune.inject(dense_net(), traced()[1], penalty=l0prune.Penalty(0.1), steps=5)
    with pytest.raises(ConfigError, match="number of training steps"):
        l0prune.inject(dense_net(), traced()[1], penalty=l0prune.Penalty(0.1, n_samples=N))
    with pytest.raises(ConfigError, match="exclude each other"):
        l0prune.inject(
            dense_net(),
            traced()[1],
            budget=l0prune.Budget("macs", 0.5),
            penalty=l0prune.Penalty(0.1, n_samples=N),
            steps=5,
        )


def test_a_loop_of_ones_own_closes_gates_under_a_penalty_and_annealed_ones_cool():
    gated = l0prune.inject(
        dense_net(),
        traced()[1],
        gate="continuous-sparsification",
        penalty=l0prune.Penalty(1e4, n_samples=N),
        steps=60,
    )
    start = gated.open_probability().detach()

    for _ in range(60):
        gated.penalty().backward()
        gated.step()

    assert bool((start > 0.9).all())
    assert bool((gated.gate_values() == 0).all())
    torch.testing.assert_close(gated.open_probability(), torch.sigmoid(20 * gated.gates.log_alpha), rtol=1e-5, atol=0)


def test_gates_whose_number_a_budget_sets_refuse_a_penalty():
    with pytest.raises(ConfigError, match="exact-k gates open as many units as a budget pays for"):
        l0prune.inject(dense_net(), traced()[1], gate="exact-k", penalty=l0prune.Penalty(0.1, n_samples=N), steps=5)
