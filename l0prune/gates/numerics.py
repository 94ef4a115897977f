"""What the families compute with: noise, samples with given slopes, evaluation in blocks, roots, and a fast exponential."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "Uniform",
    "at_least_single",
    "fast_exp",
    "find_root",
    "gumbel_noise",
    "in_blocks",
    "logistic_noise",
    "pathwise",
    "random_words",
]

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


_BLOCK = 1 << 16


class _Pathwise(torch.autograd.Function):
    """Passes `value` through; its derivative in each parameter is what the caller computed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *pairs: Tensor) -> Tensor:
        parameters, slopes = pairs[::2], pairs[1::2]
        ctx.save_for_backward(*slopes)
        ctx.parameters = [(p.shape, p.dtype, p.device) for p in parameters]
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        results: list[Tensor | None] = [None]
        for slope, (shape, dtype, device) in zip(ctx.saved_tensors, ctx.parameters, strict=True):
            results += [(gradient * slope).sum_to_size(shape).to(device, dtype), None]
        return tuple(results)


def pathwise(value: Tensor, parameters: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """`value`, differentiable in parameters it was computed from without recording the computation.

    Args:
        value: Computed without gradients; takes on the dtype of the first parameter.
        parameters: They broadcast to the shape of value; further ones than there are slopes are left out.
        slopes: Derivative of value in each of the first parameters, in the shape of value.

    Returns:
        The same numbers as `value`; differentiable once.
    """
    flat = [tensor for pair in zip(parameters, slopes, strict=False) for tensor in pair]
    result: Tensor = _Pathwise.apply(value.to(parameters[0].dtype), *flat)
    return result


def in_blocks(function: Callable[..., tuple[Tensor, ...]], *arguments: Tensor) -> tuple[Tensor, ...]:
    """`function` applied to blocks of its arguments, so that what it computes on the way stays in the cache.

    The first argument comes in at least single precision.

    Args:
        function: Elementwise, tensors of one shape to a tuple of tensors of that shape.
        arguments: Tensors of one shape, at least one.

    Returns:
        What `function(*arguments)` returns.
    """
    first = arguments[0].to(at_least_single(arguments[0].dtype))
    arguments = (first, *arguments[1:])
    if first.device.type != "cpu" or first.numel() <= _BLOCK:
        return function(*arguments)
    flat = [argument.reshape(-1).split(_BLOCK) for argument in arguments]
    blocks = [function(*block) for block in zip(*flat, strict=True)]
    return tuple(torch.cat(parts).view(first.shape) for parts in zip(*blocks, strict=True))


_QUICK_STEPS, _SAFE_STEPS = 12, 200


def find_root(
    function: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], start: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Where an increasing function crosses zero, elementwise.

    Halley's steps, kept within the bracket. They triple the correct digits, so the search ends with the step from a value
    below the rounding error to the power 0.4. Should they not converge, a bracketing search goes on from there.

    Args:
        function: x to (value, slope, curvature), each in the shape of x; values of order 1 where x is far off.
        start: First guess, within the bracket.
        low: Where the function is negative or zero.
        high: Where it is positive or zero.
    """
    x = start
    small = torch.finfo(x.dtype).eps ** 0.4
    for _ in range(_QUICK_STEPS):
        value, slope, curvature = function(x)
        step = value / slope
        bend = (1 - 0.5 * step * (curvature / slope)).clamp(0.4, 2.0)
        x = torch.minimum(torch.maximum(x - step / bend, low), high)
        if x.numel() == 0 or float(value.abs().max()) <= small:
            return x
    return _bracketed(function, x, low, high)


def _bracketed(
    function: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], x: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Newton's steps, and halving the bracket where one would leave it."""
    close = torch.finfo(x.dtype).eps * 4
    for _ in range(_SAFE_STEPS):
        value, slope, _ = function(x)
        above = value > 0
        high, low = torch.where(above, x, high), torch.where(above, low, x)
        step = x - value / slope
        step = torch.where((step > low) & (step < high), step, (low + high) / 2)
        moved = (step - x).abs()
        x = step
        if bool((moved <= close * x.abs()).all()):
            break
    return x


_LOG2_E = 1.4426950408889634


def fast_exp(x: Tensor) -> Tensor:
    """e^x through 2^x; the relative error is that of rounding, times 1 + |x|."""
    return torch.exp2(x * _LOG2_E)
