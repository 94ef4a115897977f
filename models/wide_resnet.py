"""Wide residual networks for 32x32 images."""

from torch import Tensor, nn
from torch.nn import functional as F

from l0prune.models.registry import register

__all__ = ["WideBlock", "WideResNet", "wrn28_10"]


class WideBlock(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice, with dropout between them and a shortcut around them.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of the first convolution.
        dropout: Probability of a zero between the convolutions, in [0, 1).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x))
        out = self.conv1(activated)
        out = self.conv2(self.dropout(F.relu(self.bn2(out))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels, three stages of wide blocks, batch norm, global average pooling, a linear layer.

    The gates of a block's inner channels, which are the ones of the L0 paper, sit on the second convolution's input, behind
    batch norm and ReLU. In front of the norm, on the first convolution's output, they would be divided out again: with one
    value a minibatch, BN(z x) = BN(x) for every z > 0, so the task loss could not hold a channel open.

    Args:
        depth: Number of convolutions, those of the three shortcuts included: 6n + 4, with n blocks a stage.
        width: Factor on the 16, 32 and 64 channels of the stages.
        dropout: Probability of a zero inside each block, in [0, 1).
        num_classes: Outputs of the last layer.
        in_channels: Channels of an image.

    Raises:
        ValueError: no network has that depth.

    Source: Zagoruyko, Komodakis (2016), arXiv:1605.07146, table 1 and section 2.
    """

    def __init__(
        self, depth: int = 28, width: int = 10, dropout: float = 0.0, num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        n_blocks, rest = divmod(depth - 4, 6)
        if rest or n_blocks < 1:
            raise ValueError(f"depth is {depth}; expected 6n + 4 with n blocks in each stage: 10, 16, 22, 28 and so on")
        widths = [16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.layer1 = _stage(n_blocks, 16, widths[0], 1, dropout)
        self.layer2 = _stage(n_blocks, widths[0], widths[1], 2, dropout)
        self.layer3 = _stage(n_blocks, widths[1], widths[2], 2, dropout)
        self.bn = nn.BatchNorm2d(widths[2])
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.relu(self.bn(x))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(n_blocks: int, in_channels: int, out_channels: int, stride: int, dropout: float) -> nn.Sequential:
    blocks = [WideBlock(in_channels, out_channels, stride, dropout)]
    blocks += [WideBlock(out_channels, out_channels, 1, dropout) for _ in range(n_blocks - 1)]
    return nn.Sequential(*blocks)


@register(input_shape=(3, 32, 32), mean=(0.4914, 0.4824, 0.4467), std=(0.2471, 0.2435, 0.2616))
def wrn28_10(
    *, num_classes: int = 10, in_channels: int = 3, depth: int = 28, width: int = 10, dropout: float = 0.0
) -> nn.Module:
    """Wide residual network, WRN-28-10 unless told otherwise: 36,479,194 parameters, 5.2 billion MACs on a 32x32 image."""
    return WideResNet(depth, width, dropout, num_classes, in_channels)
