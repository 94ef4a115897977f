"""Large models: traced by their shapes alone, without a step per index."""

import time

import numpy as np
import torch
from flow_case import Net, traced
from test_free_sizes import Encoder, tokens
from torch import Tensor, nn

import l0prune


def on_meta(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("meta") for name, tensor in inputs.items()}


def test_a_model_without_numbers_has_the_units_and_costs_of_one_with_them():
    with torch.device("meta"):
        hollow = Encoder()
    one = l0prune.trace(hollow, on_meta(tokens(2, 7)))
    other = l0prune.trace(Encoder(), tokens(2, 7))

    assert one.n_gates == other.n_gates > 0
    assert one.pinned == other.pinned
    assert [site.weight for site in one.norms] == [site.weight for site in other.norms]
    for metric in ("macs", "params"):
        assert one.dense_cost(metric) == other.dense_cost(metric) > 0


def test_a_model_without_numbers_may_want_to_read_one():
    def forward(net, x):
        if not torch.compiler.is_exporting() and bool((x > 0).all()):
            return net.down(net.up(x))
        return net.down(net.norm(net.up(x)))

    def net() -> nn.Module:
        return Net(forward, up=nn.Linear(6, 8), norm=nn.LayerNorm(8), down=nn.Linear(8, 4))

    with torch.device("meta"):
        flow = l0prune.trace(net(), torch.empty(2, 6))

    assert flow.n_gates == 8
    assert [site.weight for site in flow.norms] == ["norm.weight"]


def test_a_layer_of_a_hundred_thousand_units_takes_no_step_for_each():
    width = 100_000
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
        captured_at = time.process_time()
        flow = l0prune.trace(net, torch.empty(2, 4))

    assert flow.n_gates == 2 * width
    assert flow.dense_cost("params") > 1e10
    assert time.process_time() - captured_at < 20
    assert len(flow.units) == 2 * width
    assert flow.units[-1].places == (("2.weight", 0, 1), ("2.bias", 0, 1), ("4.weight", 1, 1))


def test_units_are_at_every_place_of_their_gate():
    flow = traced(nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(24, 3)), torch.randn(2, 2, 4, 4).double())

    assert [unit.gate for unit in flow.units] == list(range(flow.n_gates))
    for name, dims in flow.tensors.items():
        for dim, gates in enumerate(dims):
            places = [count for unit in flow.units for at, d, count in unit.places if (at, d) == (name, dim)]
            assert sum(places) == (0 if gates is None else np.count_nonzero(gates >= 0))
    assert flow.units[0].places == (("0.weight", 0, 1), ("0.bias", 0, 1), ("2.weight", 1, 4))
    assert flow.units[1:3] == [flow.units[1], flow.units[2]]
