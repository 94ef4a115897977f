"""LeNet-300-100 and LeNet-5-Caffe, the two networks every L0 paper prunes on MNIST."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l0prune.models.registry import register

__all__ = ["LeNet5Caffe", "SelectInputs", "lenet5", "lenet300"]

MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)


class SelectInputs(nn.Module):
    """Passes on the features (N, F) whose numbers it holds, all of them at first; each can be gated, and then is not read.

    Args:
        in_features: F.
    """

    kept: Tensor

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.register_buffer("kept", torch.arange(in_features), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, F) to (N, number kept)."""
        return x.index_select(1, self.kept)


@register(input_shape=(1, 28, 28), mean=MNIST_MEAN, std=MNIST_STD)
def lenet300(
    *,
    num_classes: int = 10,
    in_features: int = 784,
    widths: tuple[int, int] = (300, 100),
    select_inputs: bool = False,
) -> nn.Module:
    """LeNet-300-100: three fully connected layers over the flattened image.

    Args:
        num_classes: Outputs of the last layer.
        in_features: Pixels of an image.
        widths: Units of the two hidden layers.
        select_inputs: Gate pixels as well, as the L0 papers do. Checkpoints are the same with and without.

    Source: LeCun, Bottou, Bengio, Haffner (1998), "Gradient-based learning applied to document recognition".
    """
    first, second = widths
    selection = {"select": SelectInputs(in_features)} if select_inputs else {}
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            **selection,
            fc1=nn.Linear(in_features, first),
            relu1=nn.ReLU(),
            fc2=nn.Linear(first, second),
            relu2=nn.ReLU(),
            fc3=nn.Linear(second, num_classes),
        )
    )


class LeNet5Caffe(nn.Module):
    """Two 5x5 convolutions, each with 2x2 max pooling, and two fully connected layers.

    ReLU follows both convolutions and the first fully connected layer, as in the L0 literature; Caffe's own file
    has it after the fully connected layer only.

    Args:
        num_classes: Outputs of the last layer.
        in_channels: Channels of an image.
        image_size: Side of the square image in pixels, at least 16.
        widths: Channels of conv1 and conv2, units of fc1.
        select_features: Gate single features of fc1 in place of conv2's channels.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        image_size: int = 28,
        widths: tuple[int, int, int] = (20, 50, 500),
        *,
        select_features: bool = False,
    ) -> None:
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        n_features = widths[1] * side * side
        self.conv1 = nn.Conv2d(in_channels, widths[0], 5)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 5)
        self.select = SelectInputs(n_features) if select_features else nn.Identity()
        self.fc1 = nn.Linear(n_features, widths[2])
        self.fc2 = nn.Linear(widths[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, S, S) to logits (N, num_classes)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(self.select(x.flatten(1))))
        return self.fc2(x)


@register(input_shape=(1, 28, 28), mean=MNIST_MEAN, std=MNIST_STD)
def lenet5(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
    widths: tuple[int, int, int] = (20, 50, 500),
    select_features: bool = False,
) -> nn.Module:
    """LeNet-5-Caffe, 20-50-800-500: 431,080 parameters at its defaults.

    Args:
        num_classes: Outputs of the last layer.
        in_channels: Channels of an image.
        image_size: Side of the square image in pixels, at least 16.
        widths: Channels of conv1 and conv2, units of fc1.
        select_features: Gate the single features between the convolutions and fc1, as the L0 papers do, in place of the
            channels of conv2, all of which then stay: for a network whose channels are cut already. Checkpoints are the
            same with and without.

    Source: Caffe's examples/mnist; the architecture pruned in Louizos, Welling, Kingma (2018), section 4.1.
    """
    return LeNet5Caffe(num_classes, in_channels, image_size, widths, select_features=select_features)
