"""Modules that a network holds under two names: gated once, and left as they were after every call."""

import torch
from flow_case import EXACT, Net, assert_cut_exactly, gated_at, inputs, random_gates, traced
from torch import nn


def shared() -> Net:
    block = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    return Net(
        lambda net, x: net.head(net.second(net.first(net.up(x)))),
        up=nn.Linear(3, 4),
        first=block,
        second=block,
        head=nn.Linear(4, 2),
    )


def test_a_call_leaves_the_weights_of_a_shared_module_as_they_were():
    net, x = shared(), inputs(5, 3)
    flow = traced(net, x)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    gated = gated_at(net, flow, random_gates(flow))

    first, second = gated(x), gated(x)

    assert torch.equal(first, second)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_every_use_of_a_shared_module_is_gated():
    net, x = shared(), inputs(5, 3)
    flow = traced(net, x)
    values = random_gates(flow)
    expected = gated_at(net, flow, values)(x)
    apart = Net(net.function, up=net.up, first=net.first, second=net.second, head=net.head)
    weights = {}
    for consumer in flow.consumers:
        z = torch.cat([values, torch.ones(1)])[torch.from_numpy(consumer.gates)].double()
        weights[consumer.parameter] = dict(net.named_parameters())[consumer.parameter] * z
    with torch.no_grad():
        for name, weight in weights.items():
            apart.get_parameter(name).copy_(weight)

    assert (apart(x) - expected).abs().max() < EXACT


def test_a_shared_module_is_cut_once_for_all_its_names():
    assert_cut_exactly(shared(), inputs(5, 3))
