"""Noise for samples: drawn on the CPU whatever the device, accurate in both tails whatever the dtype."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Uniform", "at_least_single", "gumbel_noise", "logistic_noise", "random_words"]

_WORD = 2.0**-32


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """Single precision in the place of half precision; other types as they are."""
    return torch.promote_types(dtype, torch.float32)


def random_words(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """32 random bits for each element, drawn on the CPU, so that one seed gives the same gates on every device and rank.

    Args:
        like: Sets shape and device.
        generator: CPU generator; None is torch's default generator.

    Returns:
        int32, shape and device of `like`.
    """
    n = like.numel()
    pairs = torch.empty((n + 1) // 2, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return pairs.view(torch.int32)[:n].view(like.shape).to(like.device)


def logistic_noise(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Logistic noise, log u - log(1 - u) for uniform u, from `random_words`; in (-23, 23), accurate in both tails."""
    centred = _centred(words, dtype)
    return centred.abs().logit_().copysign_(centred).to(dtype)


@dataclass(frozen=True, eq=False)
class Uniform:
    """Numbers u in [0, 1], kept as the distance from the nearer end, so that neither tail is rounded away.

    Attributes:
        tail: min(u, 1 - u), in [0, 1/2].
        is_upper: 1.0 where u >= 1/2, else 0.0.
    """

    tail: Tensor
    is_upper: Tensor

    @classmethod
    def of_words(cls, words: Tensor, dtype: torch.dtype) -> "Uniform":
        """From `random_words`: a grid of 2**32 points, symmetric about 1/2, the least of them 2**-33.

        In at least single precision: half precision cannot tell the numbers of that grid apart.
        """
        centred = _centred(words, dtype)
        return cls(centred.abs(), centred.sign_().add_(1.0).mul_(0.5))

    @classmethod
    def of_levels(cls, u: Tensor) -> "Uniform":
        """From numbers in [0, 1]."""
        return cls(torch.minimum(u, 1 - u), (u >= 0.5).to(u.dtype))

    @property
    def lower(self) -> Tensor:
        """The numbers u."""
        return (self.is_upper - self.tail).abs_()

    def seen_from(self, end: Tensor) -> Tensor:
        """Distance from an end of [0, 1]: u where `end` is 0.0, and 1 - u where it is 1.0."""
        return (end - self.is_upper).abs_().sub_(self.tail).abs_()


def gumbel_noise(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Gumbel noise, -log(-log u) for uniform u, from `random_words`; in (-3.2, 23), accurate in both tails."""
    uniform = Uniform.of_words(words, dtype)
    # -log u from the distance to the nearer end: u itself rounds to 1 in single precision.
    rate = torch.lerp(-torch.log(uniform.tail), -torch.log1p(-uniform.tail), uniform.is_upper)
    return -torch.log(rate).to(dtype)


def _centred(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Random numbers in [-1/2, 1/2], never 0: minus u in the lower half of (0, 1), 1 - u in the upper one."""
    return words.to(at_least_single(dtype)).add_(0.5).mul_(_WORD)
