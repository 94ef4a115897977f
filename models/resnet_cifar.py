"""CIFAR ResNets with option-A shortcuts, strided slicing and zero channels, or option-B ones, 1x1 convolutions."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from l0prune.models.registry import register

__all__ = ["BasicBlock", "CifarResNet", "PadShortcut", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]

cifar10 = register(input_shape=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class PadShortcut(nn.Module):
    """Option-A shortcut: every `stride`-th pixel, with zero channels before and after.

    Args:
        before: Zero channels in front.
        after: Zero channels behind.
        stride: Step in both image dimensions.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = before, after, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, before + C + after, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around them.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        stride: Of the first convolution and the shortcut.
        projects: Where shapes differ, the shortcut is a 1x1 convolution with batch norm instead of a `PadShortcut`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, projects: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        extra = out_channels - in_channels
        self.shortcut: nn.Module = nn.Identity()
        if projects and (stride != 1 or extra):
            conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))
        elif stride != 1 or extra:
            self.shortcut = PadShortcut(extra // 2, extra - extra // 2, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of basic blocks, global average pooling and a linear layer.

    Args:
        blocks: Basic blocks of each stage; a network of depth 6n + 2 has (n, n, n).
        num_classes: Outputs of the last layer.
        in_channels: Channels of an image.
        widths: Channels of each stage, never decreasing; the stem has the first.
        stem_stride: Stride of the first convolution.
        projects: Shortcuts between stages are 1x1 convolutions with batch norm (option B).

    Source: He, Zhang, Ren, Sun (2016), "Deep residual learning for image recognition", section 4.2.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        stem_stride: int = 1,
        *,
        projects: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(blocks[0], widths[0], widths[0], stride=1, projects=projects)
        self.layer2 = _stage(blocks[1], widths[0], widths[1], stride=2, projects=projects)
        self.layer3 = _stage(blocks[2], widths[1], widths[2], stride=2, projects=projects)
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(n_blocks: int, in_channels: int, out_channels: int, *, stride: int, projects: bool) -> nn.Sequential:
    blocks = [BasicBlock(in_channels, out_channels, stride, projects=projects)]
    blocks += [BasicBlock(out_channels, out_channels, 1) for _ in range(n_blocks - 1)]
    return nn.Sequential(*blocks)


def _resnet(depth: int) -> Callable[..., nn.Module]:
    n_blocks = (depth - 2) // 6

    def factory(
        *, num_classes: int = 10, in_channels: int = 3, widths: Sequence[int] = (16, 32, 64), projects: bool = False
    ) -> nn.Module:
        return CifarResNet((n_blocks,) * 3, num_classes, in_channels, widths, projects=projects)

    factory.__name__ = factory.__qualname__ = f"resnet{depth}"
    factory.__doc__ = (
        f"CIFAR ResNet-{depth} with option-A shortcuts, or 1x1 convolutions where it `projects`; `widths` are the channels of"
        " the three stages."
    )
    return cifar10(factory)


resnet20 = _resnet(20)
resnet32 = _resnet(32)
resnet44 = _resnet(44)
resnet56 = _resnet(56)
resnet110 = _resnet(110)
