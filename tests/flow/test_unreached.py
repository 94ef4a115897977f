"""Parameters that no gate can remove are counted under the reason that pins their units, with its op."""

import torch
from flow_case import Net, inputs, traced
from torch import nn


def test_a_pinned_input_and_a_pinned_output_share_what_they_hold():
    net = nn.Sequential(nn.Linear(3, 4, bias=False))

    flow = traced(net, inputs(2, 3))

    assert flow.n_gates == 0
    inert = "meets a dimension without parameters (model input, positions, space) (linear)"
    assert flow.unreached == {inert: 6, "model output": 6}


def test_what_some_gate_removes_is_not_counted():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))

    flow = traced(net, inputs(2, 3))

    assert flow.unreached == {"model output": 5}


def test_an_op_without_a_rule_is_named():
    net = Net(
        lambda net, x: net.head(torch.fft.fft(net.up(x)).real), up=nn.Linear(3, 4, bias=False), head=nn.Linear(4, 5)
    )

    flow = traced(net, inputs(2, 3))

    held = sum(count for reason, count in flow.unreached.items() if "fft" in reason)
    assert held == 12 / 2  # the other half: inputs
    assert sum(flow.unreached.values()) == 12 + 20 + 5
