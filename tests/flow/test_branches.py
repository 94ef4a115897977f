"""Residual branches: which units are of no use without each other, and how branches nest."""

import pytest
import torch
import torch.nn.functional as F
from branch_nets import Block
from flow_case import EXACT, Net, difference, gated_at, inputs, n_parameters, traced
from torch import Tensor, nn

from l0prune.surgery.shrink import shrink


def around(function, **parts) -> tuple[nn.Module, Tensor]:
    """A stem of 8 channels, `function` of it, pooling and a classifier."""
    net = Net(
        lambda net, x: net.head(torch.relu(function(net, net.stem(x))).mean((2, 3))),
        stem=nn.Conv2d(3, 8, 1),
        head=nn.Linear(8, 3),
        **parts,
    )
    return net, inputs(2, 3, 6, 6)


def conv(n_in: int, n_out: int, size: int = 3, **options) -> nn.Module:
    return nn.Sequential(nn.Conv2d(n_in, n_out, size, padding=size // 2, bias=False, **options), nn.BatchNorm2d(n_out))


def basic(net: Net, y: Tensor) -> Tensor:
    return y + net.b(torch.relu(net.a(y)))


def bottleneck(net: Net, y: Tensor) -> Tensor:
    return y + net.c(torch.relu(net.b(torch.relu(net.a(y)))))


def inverted(net: Net, y: Tensor) -> Tensor:
    z = F.silu(net.b(F.silu(net.a(y))))
    return y + net.c(z * torch.sigmoid(net.up(torch.relu(net.down(z.mean((2, 3), keepdim=True))))))


def dense(net: Net, y: Tensor) -> Tensor:
    y = torch.cat([y, net.b(torch.relu(net.a(torch.relu(y))))], 1)
    return net.join(torch.cat([y, net.d(torch.relu(net.c(torch.relu(y))))], 1))


def scaled(net: Net, y: Tensor) -> Tensor:
    return y + net.scale * net.b(F.gelu(net.a(y)))


CASES = {
    "basic": (*around(basic, a=conv(8, 6), b=conv(6, 8)), [("a.0.weight", 6)]),
    "bottleneck": (
        *around(bottleneck, a=conv(8, 4, 1), b=conv(4, 5), c=conv(5, 8, 1)),
        [("b.0.weight", 9)],
    ),
    "inverted with squeeze and excite": (
        *around(
            inverted,
            a=conv(8, 12, 1),
            b=conv(12, 12, groups=12),
            c=conv(12, 8, 1),
            down=nn.Conv2d(12, 3, 1),
            up=nn.Conv2d(3, 12, 1),
        ),
        [("a.0.weight", 15), ("down.weight", 3)],
    ),
    "dense block": (
        *around(dense, a=nn.Conv2d(8, 6, 1), b=nn.Conv2d(6, 4, 3, padding=1), c=nn.Conv2d(12, 6, 1),
                d=nn.Conv2d(6, 4, 3, padding=1), join=nn.Conv2d(16, 8, 1)),
        [("b.weight", 10), ("d.weight", 10)],
    ),
    "layer scale": (
        *around(scaled, a=nn.Conv2d(8, 6, 1), b=nn.Conv2d(6, 8, 1), scale=nn.Parameter(torch.empty(8, 1, 1))),
        [("a.weight", 6)],
    ),
}  # fmt: skip


CASES["attention and feed-forward apart"] = (
    nn.Sequential(nn.Linear(5, 8), Block(), nn.Linear(8, 3)),
    inputs(2, 4, 5),
    [("1.up.weight", 12), ("1.qkv.weight", 2)],
)


@pytest.mark.parametrize("name", CASES)
def test_branches_are_found_with_all_units_that_are_of_no_use_without_them(name):
    net, x, expected = CASES[name]

    branches = traced(net, x).branches

    assert sorted((b.name, len(b.gates)) for b in branches) == sorted(expected)


@pytest.mark.parametrize("name", CASES)
def test_a_network_without_any_of_its_branches_computes_what_the_gated_one_does(name):
    net, x, _ = CASES[name]
    flow = traced(net, x)

    for closed in [[branch] for branch in flow.branches] + [list(flow.branches)]:
        values = torch.full((flow.n_gates,), 0.75)
        for branch in closed:
            values[torch.from_numpy(branch.gates)] = 0.0
        gated = gated_at(net, flow, values)
        compact = shrink(gated)
        assert n_parameters(compact) < n_parameters(net)
        assert difference(compact(x), gated(x)) < EXACT
