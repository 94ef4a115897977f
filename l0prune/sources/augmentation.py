"""Random changes to training images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from l0prune.errors import ConfigError

__all__ = ["Augmentation", "crop_and_flip"]


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images, as usual for CIFAR.

    Args:
        pad: Zero pixels added on each side before a crop of the original size at a random place; 0 for no crop. The
            zeros are raw pixels, so they are normalised with the image, as in torchvision.
        flip: Mirror an image left to right with probability 1/2.
    """

    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ConfigError(f"augmentation pads by {self.pad} pixels; expected 0 or more.")


def crop_and_flip(images: Tensor, corners: Tensor, flips: Tensor, *, pad: int) -> Tensor:
    """Cut a window of the original size out of each zero-padded image, mirrored where asked.

    Args:
        images: (B, H, W, C), any type.
        corners: Top and left edge of each window in the padded image, (2, B), in [0, 2 * pad].
        flips: Whether to mirror each image, (B,), bool.
        pad: Zero pixels on each side.

    Returns:
        (B, H, W, C), a new tensor.
    """
    n, height, width, channels = images.shape
    padded = images.new_zeros(n, height + 2 * pad, width + 2 * pad, channels)
    padded[:, pad : pad + height, pad : pad + width] = images
    columns = torch.arange(width).expand(n, width)
    columns = torch.where(flips[:, None], columns.flip(1), columns) + corners[1][:, None]
    rows = torch.arange(height) + corners[0][:, None]
    image = torch.arange(n)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]]
