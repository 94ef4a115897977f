"""What a network expects of an image, and how uint8 images become its input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from l0prune.errors import ConfigError, DataError
from l0prune.plain_data import read_fields

__all__ = ["Preprocessing"]

MOST_PIXELS = 1 << 26  # of one image


@dataclass(frozen=True)
class Preprocessing:
    """Size and normalisation of a network's input images.

    Args:
        image_size: (height, width) in pixels, each at least 1.
        mean: One value per channel, in units of pixel / 255; its length is the number of channels, 1 or 3 for images.
        std: One value per channel, in units of pixel / 255, above 0.

    Raises:
        ConfigError: if lengths differ or a value is out of range.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ConfigError(
                f"mean {self.mean} and std {self.std}: expected one value per channel in each, "
                f"found {len(self.mean)} and {len(self.std)}."
            )
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ConfigError(f"image size {self.image_size}: expected (height, width), each at least 1.")
        if self.image_size[0] * self.image_size[1] > MOST_PIXELS:
            raise ConfigError(f"image size {self.image_size}: expected at most {MOST_PIXELS} pixels.")
        if not all(s > 0 for s in self.std):
            raise ConfigError(f"std {self.std}: every value must be above 0.")

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return len(self.mean)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the network's input."""
        return (self.channels, *self.image_size)

    @property
    def is_plain(self) -> bool:
        """Whether pixels are divided by 255 and nothing else."""
        return set(self.mean) == {0.0} and set(self.std) == {1.0}

    def override(
        self,
        *,
        image_size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> "Preprocessing":
        """A copy with the given parts replaced; a single mean or std serves every channel.

        Raises:
            ConfigError: if a list has neither one value nor one per channel, or a value is out of range.
        """
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        return Preprocessing(
            image_size=size or self.image_size,
            mean=self._per_channel("mean", mean) if mean is not None else self.mean,
            std=self._per_channel("std", std) if std is not None else self.std,
        )

    def _per_channel(self, name: str, values: Sequence[float]) -> tuple[float, ...]:
        if len(values) not in {1, self.channels}:
            raise ConfigError(f"{name} has {len(values)} values, the model's input has {self.channels} channels.")
        return tuple(float(v) for v in values) * (self.channels if len(values) == 1 else 1)

    def check(self, shape: Sequence[int]) -> None:
        """Refuse images that cannot be brought to the network's input.

        Args:
            shape: Shape of an array of uint8 images, (N, H, W) or (N, H, W, C).

        Raises:
            DataError: if the rank is wrong, or the channels are neither the network's nor one for its three.
        """
        if len(shape) not in {3, 4}:
            raise DataError(f"images have shape {_text(shape)}, expected (N, H, W) or (N, H, W, C) in uint8.")
        found = shape[3] if len(shape) == 4 else 1
        if found != self.channels and (found, self.channels) != (1, 3):
            raise DataError(
                f"images have shape {_text(shape)}, that is {found} channel{'s' * (found != 1)}; the model takes "
                f"{_text(self.input_shape)}, that is {self.channels}. Use data of that kind, or build the model for "
                f"{found} channel{'s' * (found != 1)} (in_channels for l0prune's models, in_chans for timm's)."
            )

    def fit(self, images: Tensor) -> Tensor:
        """Bring images to the network's size and channels; pixels stay in 0 to 255.

        Args:
            images: uint8, (N, H, W) or (N, H, W, C).

        Returns:
            (N, height, width, channels): uint8 as given if the size is already right, else float32, resized
            bilinearly (with antialiasing where it shrinks).
        """
        x = images if images.ndim == 4 else images.unsqueeze(-1)
        if tuple(x.shape[1:3]) != self.image_size:
            planes = x.permute(0, 3, 1, 2).to(torch.float32)
            planes = F.interpolate(planes, self.image_size, mode="bilinear", align_corners=False, antialias=True)
            x = planes.permute(0, 2, 3, 1)
        return x if x.shape[3] == self.channels else x.expand(-1, -1, -1, self.channels)

    def normalise(self, images: Tensor, *, channels_last: bool = False) -> Tensor:
        """Convert pixels in 0 to 255 to the network's input.

        Args:
            images: (N, height, width, channels), uint8 or float.
            channels_last: Leave the channels last in memory (the shape is the same).

        Returns:
            float32, (N, channels, height, width): (pixel / 255 - mean) / std.
        """
        mean = torch.tensor(self.mean, device=images.device)
        std = torch.tensor(self.std, device=images.device)
        planes = images.permute(0, 3, 1, 2)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        pixels = planes.to(torch.float32, memory_format=layout, copy=True)
        return pixels.mul_((1 / (255 * std)).view(-1, 1, 1)).sub_((mean / std).view(-1, 1, 1))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images (N, H, W) or (N, H, W, C) to the network's input, float32 (N, channels, height, width)."""
        return self.normalise(self.fit(images))

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {"image_size": list(self.image_size), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_json`.

        Raises:
            FileFormatError: if keys are missing or unknown, or a value is of another kind.
            ConfigError: if a value is out of range.
        """
        return read_fields(cls, data, "preprocessing")


def _text(shape: Sequence[int]) -> str:
    return "(" + ", ".join(str(n) for n in shape) + ")"
