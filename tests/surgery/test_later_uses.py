"""Integers that only other methods than the forward pass read: those that fuse branches, or put on a new head."""

import copy

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, Net, difference, gated_at, inputs, random_gates, ready, traced
from torch import Tensor, nn

import l0prune
from l0prune.surgery.shrink import shrink


class RepBlock(nn.Module):
    """Three branches in training, one convolution after `switch_to_deploy`, which needs the integers alone."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.groups, self.kernel_size = stride, groups, 3
        self.dense = self._branch(3)
        self.small = self._branch(1)
        self.identity = nn.BatchNorm2d(in_channels) if in_channels == out_channels and stride == 1 else None
        self.fused = None

    def _branch(self, kernel_size: int) -> nn.Sequential:
        options = {"padding": kernel_size // 2, "stride": self.stride, "groups": self.groups, "bias": False}
        convolution = nn.Conv2d(self.in_channels, self.out_channels, kernel_size, **options)
        return nn.Sequential(convolution, nn.BatchNorm2d(self.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is not None:
            return self.fused(x).relu()
        y = self.dense(x) + self.small(x)
        return (y if self.identity is None else y + self.identity(x)).relu()

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        options = {"padding": 1, "stride": self.stride, "groups": self.groups}
        fused = nn.Conv2d(self.in_channels, self.out_channels, 3, **options).double()
        kernel, bias = self._of(self.dense[0].weight, self.dense[1])
        small, small_bias = self._of(F.pad(self.small[0].weight, [1, 1, 1, 1]), self.small[1])
        kernel, bias = kernel + small, bias + small_bias
        if self.identity is not None:
            width = self.in_channels // self.groups
            unit = torch.zeros(self.in_channels, width, 3, 3, dtype=torch.float64)
            for channel in range(self.in_channels):
                unit[channel, channel % width, 1, 1] = 1
            same, same_bias = self._of(unit, self.identity)
            kernel, bias = kernel + same, bias + same_bias
        fused.weight.copy_(kernel)
        fused.bias.copy_(bias)
        self.fused = fused

    @staticmethod
    def _of(kernel: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return kernel * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


class RepNet(nn.Module):
    """Blocks whose inputs and outputs are as wide as each other, tied and not, one of them depthwise; and a head to replace."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 8
        self.blocks = nn.Sequential(
            RepBlock(3, 8),
            RepBlock(8, 8),
            RepBlock(8, 8, stride=2),
            RepBlock(8, 8, groups=8),
            RepBlock(8, 8, stride=2),
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))

    def reset_classifier(self, n_classes: int) -> None:
        self.head = nn.Linear(self.num_features, n_classes).double()


IMAGES = inputs(2, 3, 8, 8)


def random_cut(net: nn.Module, x: Tensor = IMAGES, seed: int = 0) -> nn.Module:
    flow = traced(net, x)
    return shrink(gated_at(net, flow, random_gates(flow, seed=seed)))


def fused(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    for block in net.blocks:
        block.switch_to_deploy()
    return net


@pytest.mark.parametrize("seed", range(3))
def test_branches_are_fused_after_the_cut(seed):
    net = ready(RepNet())
    assert difference(fused(net)(IMAGES), net(IMAGES)) < EXACT

    compact = random_cut(net, seed=seed)

    assert [block.in_channels for block in compact.blocks] == [block.dense[0].in_channels for block in compact.blocks]
    assert any(block.out_channels < 8 for block in compact.blocks)
    assert compact.surgery.integers_left == {}
    assert difference(fused(compact)(IMAGES), compact(IMAGES)) < EXACT


def test_branches_are_fused_after_loading_and_after_a_second_cut(tmp_path):
    net = ready(RepNet())
    compact = random_cut(random_cut(net), seed=1)
    l0prune.save(compact, tmp_path / "compact")

    loaded = l0prune.load(tmp_path / "compact", base=net)

    assert difference(fused(loaded)(IMAGES), compact(IMAGES)) < EXACT


def test_a_graph_that_was_cut_again_gives_a_class_whose_branches_fuse(tmp_path):
    net = ready(RepNet())
    l0prune.save(random_cut(net), tmp_path / "once")
    again = random_cut(l0prune.load(tmp_path / "once"), seed=1)
    l0prune.save(again, tmp_path / "twice")

    loaded = l0prune.load(tmp_path / "twice", base=net)

    assert difference(fused(loaded)(IMAGES), again(IMAGES)) < EXACT


def test_a_new_head_fits_the_cut_network():
    compact = random_cut(ready(RepNet()))
    assert compact.num_features == compact.head.in_features < 8

    compact.reset_classifier(3)

    assert compact(IMAGES).shape == (2, 3)


class Mixer(nn.Module):
    """As long as it is wide: only the width is cut. Its forward pass reads neither."""

    def __init__(self) -> None:
        super().__init__()
        self.n_embd, self.block_size = 8, 8
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


def test_a_length_with_the_value_of_a_width_stays():
    compact = random_cut(ready(Mixer()), inputs(2, 6))

    assert compact.up.out_features < 8
    assert (compact.n_embd, compact.block_size) == (compact.up.out_features, 8)
    assert compact.surgery.integers_left == {}


class Window(nn.Module):
    """Its forward pass reads its width, and three integers of the same value stand beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.n_embd, self.block_size, self.inner_dim, self.n_draws = 16, 16, 16, 16
        self.into, self.out = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.into(x).relu().view(x.shape[0], -1, self.n_embd)[:, -self.block_size :])


def test_what_was_given_back_is_changed_again_by_the_name_of_a_width_alone():
    compact = random_cut(ready(Window()), inputs(2, 4, 6))

    width = compact.into.out_features
    assert width < 16
    assert (compact.n_embd, compact.inner_dim) == (width, width)
    assert (compact.block_size, compact.n_draws) == (16, 16)
    assert compact.surgery.integers_left == {"n_draws": 16}


def test_an_integer_that_may_stand_for_several_widths_is_left_and_named():
    net = Net(
        lambda net, x: net.c(net.b(net.a(x).relu()).relu()), a=nn.Linear(6, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 4)
    )
    net.planes, net.n_things, net.kernel_size = 8, 8, 8

    compact = random_cut(ready(net), inputs(2, 6), seed=2)

    assert compact.a.out_features != compact.b.out_features
    assert (compact.planes, compact.n_things, compact.kernel_size) == (8, 8, 8)
    assert compact.surgery.integers_left == {"planes": 8, "n_things": 8}


def test_an_integer_whose_name_tells_nothing_is_left_and_named():
    net = Mixer()
    net.n_things = 8

    compact = random_cut(ready(net), inputs(2, 6))

    assert compact.n_things == 8
    assert compact.surgery.integers_left == {"n_things": 8}


def test_a_width_that_the_forward_pass_computes_with_stays():
    class Scaled(Mixer):
        def __init__(self) -> None:
            super().__init__()
            self.dim = 8

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / self.dim

    compact = random_cut(ready(Scaled()), inputs(2, 6))

    assert compact.surgery.form == "in-place"
    assert (compact.dim, compact.n_embd) == (8, compact.up.out_features)
    assert [change.attribute for change in compact.surgery.plan.attributes] == ["n_embd"]


def test_a_size_that_stays_beside_one_that_is_cut_leaves_the_integer():
    """The input has as many features as there are units."""
    net = Net(lambda net, x: net.c(net.a(x).relu()), a=nn.Linear(8, 8), c=nn.Linear(8, 4))
    net.width, net.in_dim, net.out_dim = 8, 8, 8

    compact = random_cut(ready(net), inputs(2, 8))

    assert compact.a.out_features < 8
    assert compact.width == 8
    assert "width" in compact.surgery.integers_left


def test_layers_are_fused_by_torch_after_the_cut():
    layers = {
        "convolution": nn.Conv2d(3, 8, 3),
        "norm": nn.BatchNorm2d(8),
        "act": nn.ReLU(),
        "head": nn.Conv2d(8, 4, 1),
    }
    net = ready(nn.Sequential())
    for name, layer in layers.items():
        net.add_module(name, layer)
    compact = random_cut(ready(net))

    merged = torch.ao.quantization.fuse_modules(copy.deepcopy(compact), [["convolution", "norm", "act"]])

    assert isinstance(merged.norm, nn.Identity)
    assert difference(merged(IMAGES), compact(IMAGES)) < EXACT


@pytest.mark.models
@pytest.mark.parametrize("name", ["mobileone_s0", "repvgg_a0", "fastvit_t8", "repghostnet_050"])
def test_branches_of_published_networks_are_fused_after_the_cut(name):
    import torchvision_beside_cpu_torch  # noqa: F401
    from timm import create_model
    from timm.utils import reparameterize_model

    torch.manual_seed(0)
    net, x = ready(create_model(name)), inputs(2, 3, 64, 64)

    compact = random_cut(net, x)
    expected = compact(x)
    deployed = reparameterize_model(compact).double()

    assert compact.surgery.form == "in-place"
    assert sum(p.numel() for p in deployed.parameters()) < sum(p.numel() for p in compact.parameters())
    assert difference(deployed(x), expected) < EXACT * expected.abs().max()
