"""Modules compiled by TorchScript: they stay as they are, and what lies around them is cut."""

import pytest
import torch
import torch.nn.functional as F
from flow_case import Net, difference, gated_at, gates, random_gates
from torch import Tensor, nn

import l0prune
from l0prune.errors import TraceError
from l0prune.look.capture import SEALED, sealed_modules
from l0prune.surgery.shrink import shrink

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:.*saved without model.pt2")
WIDTH = 6


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(WIDTH, WIDTH, 1), nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Sizes(nn.Module):
    """A size stands in its code."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), 6, 5)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


class Normed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.transpose(1, 2), [6]).transpose(1, 2)


@torch.jit.script
def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def around(module: nn.Module) -> nn.Module:
    """A layer before it, two behind it, of which the first is as wide."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, WIDTH, 1), module, nn.Conv1d(WIDTH, 8, 1), nn.ReLU(), nn.Conv1d(8, 2, 1)).eval()


def assert_rest_is_cut(net: nn.Module, n_gates: int) -> l0prune.ChannelFlow:
    x = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(0))
    flow = l0prune.trace(net, x)
    assert flow.n_gates == n_gates
    for seed in range(2):
        gated = gated_at(net, flow, random_gates(flow, seed=seed))
        compact = shrink(gated)
        assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in net.parameters())
        assert difference(compact(x), gated(x)) < 1e-6
    return flow


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda m: torch.jit.trace(m.eval(), torch.randn(2, WIDTH, 5))])
def test_layers_of_a_compiled_module_stay_and_keep_what_they_touch(compiled):
    flow = assert_rest_is_cut(around(compiled(Block())), 8)

    assert flow.pinned[SEALED] >= 2 * WIDTH
    assert gates(flow, "0.weight", 0) is None
    assert gates(flow, "1.conv.weight", 0) is None
    assert gates(flow, "2.weight", 1) is None
    assert gates(flow, "2.weight", 0) == gates(flow, "4.weight", 1)


@pytest.mark.parametrize("module", [Sizes, Centred, Normed])
def test_units_that_a_compiled_module_does_more_with_than_elementwise_functions_stay(module):
    flow = assert_rest_is_cut(around(torch.jit.script(module())), 8)

    assert gates(flow, "0.weight", 0) is None


def test_an_elementwise_function_that_is_compiled_lets_units_pass():
    assert_rest_is_cut(around(torch.jit.script(Swish())), WIDTH + 8)


def test_a_compiled_function_that_a_module_holds_stays_with_it():
    net = around(Net(lambda net, x: net.function2(x)))
    net[1].function2 = swish

    flow = assert_rest_is_cut(net, WIDTH + 8)

    assert flow.tracer == "torch.export"
    x = torch.randn(3, 3, 5)
    compact = shrink(gated_at(net, flow, random_gates(flow)), form="in-place")
    assert compact[1].function2 is swish
    assert difference(compact(x), gated_at(net, flow, random_gates(flow))(x)) < 1e-6


def test_a_mean_outside_is_told_from_one_inside():
    """Statistics over units of a compiled module are not seen in a forward pass: their order says nothing."""
    net = around(torch.jit.script(Centred()))
    net.append(nn.Conv1d(2, 5, 1)).append(Centred()).append(nn.Conv1d(5, 2, 1))

    flow = assert_rest_is_cut(net.eval(), 8 + 2)

    assert flow.pinned["normalised inside compiled code"] == 5


def test_a_model_around_a_compiled_module_is_saved_and_loaded(tmp_path):
    net, x = around(torch.jit.script(Block())), torch.randn(3, 3, 5)
    compact = shrink(gated_at(net, flow := l0prune.trace(net, x), random_gates(flow)))

    l0prune.save(compact, tmp_path / "compact")

    assert difference(l0prune.load(tmp_path / "compact", base=net)(x), compact(x)) == 0


def test_a_compiled_module_that_inputs_may_not_reach_keeps_widths_like_its_own():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.extra, self.tail = (
                nn.Linear(3, WIDTH),
                torch.jit.script(nn.Linear(WIDTH, 7)),
                nn.Linear(WIDTH, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x)
            return self.tail(y) if x.sum() < 1e6 else self.extra(y)

    assert l0prune.trace(Sometimes().eval(), torch.randn(4, 3)).n_gates == 0


def test_names_of_compiled_modules_are_those_of_the_outermost():
    inner = around(torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))

    assert sealed_modules(inner) == {"1"}
    assert sealed_modules(nn.Linear(2, 2)) == frozenset()
    assert sealed_modules(torch.jit.script(nn.Linear(2, 2))) == {""}


def test_a_model_compiled_as_a_whole_is_refused_in_a_clear_line():
    with pytest.raises(TraceError, match="pass the module that it was made of"):
        l0prune.trace(torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))).eval(), torch.randn(2, 3))
