"""A MobileNetV2 for 32x32 images: inverted residuals over depthwise convolutions."""

from torch import Tensor, nn
from torch.nn import functional as F

from l0prune.models.registry import register

__all__ = ["InvertedResidual", "MobileNetV2Cifar", "mobilenetv2_cifar"]

# (expansion, output channels, blocks, stride of the first block)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 3, 2), (6, 96, 2, 1), (6, 160, 1, 2))


def conv_bn(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, `same` padding for odd kernels, and its batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class InvertedResidual(nn.Module):
    """Widen with 1x1, filter each channel with 3x3, narrow with 1x1; add the input where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.expand = conv_bn(in_channels, hidden, 1) if expansion > 1 else None
        self.depthwise = conv_bn(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = conv_bn(hidden, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = x if self.expand is None else F.relu6(self.expand(x))
        out = self.project(F.relu6(self.depthwise(out)))
        return x + out if self.has_shortcut else out


class MobileNetV2Cifar(nn.Module):
    """Stem, stages of inverted residuals, a 1x1 convolution, average pooling and a linear layer.

    Args:
        num_classes: Outputs of the last layer.
        in_channels: Channels of an image.
        width: Multiplier on every width; results are rounded to multiples of 8.
        stem_stride: Stride of the first convolution; 2 takes a quarter of the time.

    Source: Sandler, Howard, Zhu, Zhmoginov, Chen (2018), arXiv:1801.04381, with strides for 32x32 images.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0, stem_stride: int = 1) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(8, round(channels * width / 8) * 8)

        self.stem = conv_bn(in_channels, scaled(32), 3, stride=stem_stride)
        blocks, channels = [], scaled(32)
        for expansion, out, n_blocks, stride in STAGES:
            for i in range(n_blocks):
                step = stride if i == 0 else 1
                blocks.append(InvertedResidual(channels, scaled(out), stride=step, expansion=expansion))
                channels = scaled(out)
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_bn(channels, scaled(640), 1)
        self.classifier = nn.Linear(scaled(640), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        x = F.relu6(self.stem(x))
        x = F.relu6(self.head(self.blocks(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


@register(input_shape=(3, 32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
def mobilenetv2_cifar(
    *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0, stem_stride: int = 1
) -> nn.Module:
    """MobileNetV2 for 32x32 images, fewer blocks than the original."""
    return MobileNetV2Cifar(num_classes, in_channels, width, stem_stride)
