"""Branches that close entirely: which may, and what is left of the model without them."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from branch_nets import Block
from flow_case import EXACT, Net, closing, difference, gated_at, inputs, n_parameters, random_gates, traced
from torch import Tensor, nn

from l0prune.errors import ConfigError
from l0prune.surgery.shrink import absorb_, shrink, surgery_of


def branch(n_in: int, hidden: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(n_in, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, n_out, 3, padding=1))


def around(function, **parts) -> tuple[nn.Module, Tensor]:
    """A stem of 8 channels, `function` of it, pooling and a classifier."""
    net = Net(
        lambda net, x: net.head(function(net, net.stem(x)).mean((2, 3))),
        stem=nn.Conv2d(3, 8, 1),
        head=nn.Linear(8, 3),
        **parts,
    )
    return net, inputs(2, 3, 6, 6)


def added_in_place(net: Net, y: Tensor) -> Tensor:
    z = net.a(y)
    z += y
    return z


def added_to_a_slice(net: Net, y: Tensor) -> Tensor:
    y[:, :4].add_(net.a(y))
    return y


def used_twice(net: Net, y: Tensor) -> Tensor:
    z = net.a(y)
    return y + z + torch.relu(z)


def gated_linear(net: Net, y: Tensor) -> Tensor:
    value, gate = net.a(y).chunk(2, 1)
    return y + net.b(value * torch.sigmoid(gate))


def excited(net: Net, y: Tensor) -> Tensor:
    return y * torch.sigmoid(net.a(y.mean((2, 3), keepdim=True)))


class PostNorm(nn.Module):
    """Norms behind the branch and behind the sum: the width of the stream is written into the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)
        self.inner, self.outer = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(x + self.inner(self.down(torch.relu(self.up(x)))))


CASES = {
    "two residual branches": (
        *around(lambda net, y: y + net.a(y) + net.b(y), a=branch(8, 6, 8), b=branch(8, 5, 8)),
        {"a.0.weight[0]", "b.0.weight[0]"},
    ),
    "the sum takes the place of the branch": (*around(added_in_place, a=branch(8, 6, 8)), {"a.0.weight[0]"}),
    "added to a slice": (*around(added_to_a_slice, a=branch(8, 6, 4)), {"a.0.weight[0]", "a.2.weight[0]"}),
    "used twice": (*around(used_twice, a=branch(8, 6, 8)), {"a.0.weight[0]"}),
    "batch norm and layer scale": (
        *around(
            lambda net, y: y + net.norm(net.a(y)) * net.scale,
            a=branch(8, 6, 8),
            norm=nn.BatchNorm2d(8),
            scale=nn.Parameter(torch.empty(8, 1, 1)),
        ),
        {"a.0.weight[0]"},
    ),
    "depthwise": (
        *around(
            lambda net, y: y + net.c(torch.relu(net.norm(net.b(net.a(y))))),
            a=nn.Conv2d(8, 12, 1),
            b=nn.Conv2d(12, 12, 3, padding=1, groups=12),
            norm=nn.BatchNorm2d(12),
            c=nn.Conv2d(12, 8, 1, bias=False),
        ),
        {"a.weight[0]"},
    ),
    "gated linear unit": (*around(gated_linear, a=nn.Conv2d(8, 12, 1), b=nn.Conv2d(6, 8, 1)), {"a.weight[0]", "b.weight[1]"}),
    "squeeze and excite": (
        *around(excited, a=nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1))),
        {"a.0.weight[0]"},
    ),
    "concatenated": (
        Net(
            lambda net, x: net.head(torch.cat([net.stem(x), net.a(net.stem(x)), net.b(net.stem(x))], 1).mean((2, 3))),
            stem=nn.Conv2d(3, 8, 1),
            a=nn.Conv2d(8, 6, 1),
            b=nn.Conv2d(8, 5, 1),
            head=nn.Linear(19, 3),
        ),
        inputs(2, 3, 4, 4),
        {"a.weight[0]", "b.weight[0]"},
    ),
    "transformer": (
        nn.Sequential(nn.Linear(5, 8), Block(), nn.LayerNorm(8), nn.Linear(8, 3)),
        inputs(2, 4, 5),
        {"1.qkv.weight[0]", "1.out.weight[1]", "1.up.weight[0]"},
    ),
    "norms behind the branch": (
        nn.Sequential(nn.Linear(5, 8), PostNorm(), nn.Linear(8, 3)),
        inputs(2, 4, 5),
        {"1.up.weight[0]"},
    ),
    "parallel branches, no shortcut": (
        *around(lambda net, y: net.a(y) + net.b(y), a=branch(8, 6, 8), b=branch(8, 5, 8)),
        {"a.0.weight[0]"},
    ),
    "concatenated, no shortcut": (
        *around(lambda net, y: torch.cat([net.a(y), net.b(y)], 1), a=nn.Conv2d(8, 3, 1), b=nn.Conv2d(8, 5, 1)),
        {"a.weight[0]"},
    ),
    "a convolution of the constant": (*around(lambda net, y: y + net.b(net.a(y)), a=branch(8, 6, 8), b=nn.Conv2d(8, 8, 1)),
        {"a.2.weight[0]"}),  # not its own hidden channels: zero padding would make their bias vary over the picture
    "a matrix that is turned": (
        Net(
            lambda net, x: net.head(net.stem(x) + torch.relu(net.a(net.stem(x))) @ net.b.t()),
            stem=nn.Linear(3, 8),
            a=nn.Linear(8, 6),
            b=nn.Parameter(torch.empty(8, 6)),
            head=nn.Linear(8, 2),
        ),
        inputs(2, 3),
        {"b[1]"},
    ),
    "a matrix that is a product": (
        Net(
            lambda net, x: net.head(net.stem(x) + F.linear(torch.relu(net.a(net.stem(x))), net.b @ net.c)),
            stem=nn.Linear(3, 8),
            a=nn.Linear(8, 6),
            b=nn.Parameter(torch.empty(8, 2)),
            c=nn.Parameter(torch.empty(2, 6)),
            head=nn.Linear(8, 2),
        ),
        inputs(2, 3),
        {"b[1]", "c[1]"},
    ),
    "an activation that torch does not tag": (
        *around(lambda net, y: y + F.hardswish(net.a(y)), a=branch(8, 6, 8)),
        {"a.0.weight[0]"},
    ),
    "stacked beside": (
        Net(
            lambda net, x: net.head(torch.hstack([net.stem(x), net.a(net.stem(x))]).mean((2, 3))),
            stem=nn.Conv2d(3, 8, 1),
            a=nn.Conv2d(8, 6, 1),
            head=nn.Linear(14, 3),
        ),
        inputs(2, 3, 4, 4),
        {"a.weight[0]"},
    ),
    "outputs in groups": (
        *around(
            lambda net, y: y + net.a(y),
            a=nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 8, 1, groups=2, bias=False)),
        ),
        set(),
    ),
    "pooled between": (*around(lambda net, y: y + F.interpolate(net.a(F.max_pool2d(y, 2)), scale_factor=2), a=branch(8, 6, 8)),
        set()),
}  # fmt: skip


GRAPH_ALONE = {"1.qkv.weight[0]", "1.out.weight[1]", "b[1]", "c[1]"}
"""What code of a class computes that does other things too: no module can be replaced."""


@pytest.mark.parametrize("name", CASES)
def test_only_branches_the_model_can_do_without_may_close(name):
    net, x, expected = CASES[name]

    flow = traced(net, x)

    assert {dimension.name for dimension in flow.dimensions if dimension.removable} == expected


@pytest.mark.parametrize("name", [name for name, (_, _, removable) in CASES.items() if removable])
def test_any_of_them_may_close_together(name):
    net, x, removable = CASES[name]
    flow = traced(net, x)

    for size in range(1, len(removable) + 1):
        for closed in combinations(sorted(removable), size):
            values = torch.minimum(random_gates(flow, closed=0.3, seed=size), closing(flow, *closed))
            gated = gated_at(net, flow, values)
            compact = shrink(gated)
            assert surgery_of(compact).form == ("graph" if GRAPH_ALONE.intersection(closed) else "in-place")
            assert n_parameters(compact) < n_parameters(net)
            assert difference(compact(x), gated(x)) < EXACT


def test_a_model_without_its_branch_can_be_trained_and_absorbed():
    net, x, _ = CASES["batch norm and layer scale"]
    flow = traced(net, x)
    gated = gated_at(net, flow, closing(flow, "a.0.weight[0]"))
    compact = shrink(gated)
    optimizer = torch.optim.SGD(compact.parameters(), lr=0.1)

    compact.train()
    compact(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in compact.parameters())
    optimizer.step()
    absorb_(gated, compact)

    assert difference(compact.eval()(x), gated(x)) < EXACT


def test_what_only_the_branch_used_is_gone():
    net, x, _ = CASES["batch norm and layer scale"]
    flow = traced(net, x)

    left = {"stem.weight", "stem.bias", "head.weight", "head.bias"}
    for form, more in {"graph": set(), "in-place": {"scale"}}.items():
        compact = shrink(gated_at(net, flow, closing(flow, "a.0.weight[0]")), form=form)
        assert {name for name, _ in compact.named_parameters()} == left | more


def test_closing_a_dimension_the_model_needs_is_refused_by_name():
    net, x, _ = CASES["two residual branches"]
    flow = traced(net, x)
    gated = gated_at(net, flow, closing(flow, "stem.weight[0]"))

    with pytest.raises(ConfigError, match=r"all units of stem\.weight\[0\] are closed, .* open at least one gate"):
        shrink(gated)


def test_the_last_of_parallel_branches_has_to_stay():
    net, x, _ = CASES["parallel branches, no shortcut"]
    flow = traced(net, x)

    with pytest.raises(ConfigError, match=r"all units of b\.0\.weight\[0\] are closed"):
        shrink(gated_at(net, flow, closing(flow, "a.0.weight[0]", "b.0.weight[0]")))


def test_memory_written_with_what_depends_on_the_input_is_not_a_constant():
    def function(net: Net, y: Tensor) -> Tensor:
        store = torch.zeros_like(y)
        store[:, :, :3].add_(torch.relu(y[:, :, :3]))
        return y + net.b(store + net.a(y))

    net, x = around(function, a=branch(8, 6, 8), b=nn.Conv2d(8, 8, 1))
    flow = traced(net, x)

    for dimension in flow.dimensions:
        if dimension.removable:
            gated = gated_at(net, flow, closing(flow, dimension.name))
            assert difference(shrink(gated)(x), gated(x)) < EXACT
    assert any(dimension.removable for dimension in flow.dimensions)
