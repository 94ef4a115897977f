"""What stands in the place of a module of a residual branch that closed, so that the network around it keeps its class.

A module all of whose outputs are constant returns the constant; one whose outputs nothing needs any more returns zeros, or
nothing where no channel is left. Both have the shape that the code around them expects, and compute nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from l0prune.surgery.size_rules import SizeRule

__all__ = [
    "CACHES",
    "CONSTANT",
    "Constant",
    "Dropped",
    "DroppedCall",
    "ModuleDrop",
    "apply_drops_",
    "has_dropped",
    "is_within",
    "unspread",
]

CONSTANT = "constant"
"""Name of the buffer with what a dropped module returns."""
_MOST = 1 << 24
"""Channels and sizes that no module has; a file that says so is damaged."""


class Constant(NamedTuple):
    """What a dropped module returns: a number for each channel, shape `(size,)`, and the node that computes them."""

    value: Tensor
    source: str


@dataclass(frozen=True)
class ModuleDrop:
    """A module that a cut drops. What it returns has the shape of one of its arguments, but for the channels and scales.

    Attributes:
        module: Its dotted name.
        size: Channels of what it returns, before later cuts.
        dim: The dimension of the channels.
        strides: For every dimension, by what the size of the argument is divided.
        held: Whether what it returns is a constant that something needs, and so part of the state dict; else it is zero.
        argument: Position or name of the argument.
        alone: Whether it is the only one, and has no name.
        items: Length of the tuple that it returns; 0 for a tensor.
        position: Of the tensor in the tuple; the other items are None.
        written: Whether the code after it writes into what it returns.
        cache_layer: Layer of a cache of keys and values that is told of the tokens, so that it counts them; -1 for none.
        factors: For every dimension, by what it is multiplied before, as by a transposed convolution; empty where none is.
        offsets: For every dimension, what is added before it is divided and rounded down; empty where it is rounded up.
    """

    module: str
    size: int
    dim: int
    strides: tuple[int, ...]
    held: bool
    argument: int | str = 0
    alone: bool = True
    items: int = 0
    position: int = 0
    written: bool = False
    cache_layer: int = -1
    factors: tuple[int, ...] = ()
    offsets: tuple[int, ...] = ()

    @property
    def rules(self) -> list[SizeRule]:
        """For every dimension, how the size follows from that of the argument."""
        factors = self.factors or (1,) * len(self.strides)
        offsets = self.offsets or tuple(stride - 1 for stride in self.strides)
        return [SizeRule(*rule) for rule in zip(factors, offsets, self.strides, strict=True)]

    def __post_init__(self) -> None:
        """See that the numbers make sense.

        Raises:
            ValueError: they do not.
        """
        if not (
            0 <= self.size <= _MOST
            and 0 <= self.dim < len(self.strides)
            and min(self.strides) > 0
            and len(self.factors) in (0, len(self.strides))
            and min(self.factors, default=1) >= 0
            and len(self.offsets) in (0, len(self.strides))
            and all(factor > 0 or offset > 0 for factor, offset in zip(self.factors, self.offsets, strict=False))
            and max(map(abs, (*self.factors, *self.offsets, *self.strides))) <= _MOST
            and 0 <= self.position < max(self.items, 1)
            and self.module
        ):
            raise ValueError(f"it drops {self.module[:60]!r} in a way that makes no sense")


_is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]


class Dropped(nn.Module):
    """Returns the same number for all positions of a channel, in the shape of a tensor with other channels.

    Args:
        drop: What it stands for.
        constant: The numbers, shape `(size,)`.
        source: The node of the dense graph that computes them, where that is known.

    Attributes:
        spread: Whether the result has its full shape; else it has the size one everywhere but in the channels.
    """

    def __init__(self, drop: ModuleDrop, constant: Tensor, source: str = "") -> None:
        super().__init__()
        self.constant: Tensor
        self.source = source
        self.dim = drop.dim
        self.factors = [rule.factor for rule in drop.rules]
        self.offsets = [rule.offset for rule in drop.rules]
        self.strides = [rule.stride for rule in drop.rules]
        self.written = drop.written
        self.folds = drop.held and not drop.written
        self.spread = True
        self.register_buffer(CONSTANT, constant, persistent=drop.held)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The constant for an argument of any number of channels."""
        sizes = list(x.shape)
        constant = self.constant
        if not _is_scripting():  # which does not know autocast
            constant = _as_autocast(constant, x.device)
        result = constant.view([-1] + [1] * (len(sizes) - self.dim - 1))
        if self.folds and not self.spread:
            return result.view([1] * self.dim + [-1] + [1] * (len(sizes) - self.dim - 1))
        for dim, stride in enumerate(self.strides):
            if self.factors[dim] != 1 or self.offsets[dim] != 0 or stride != 1:
                sizes[dim] = (sizes[dim] * self.factors[dim] + self.offsets[dim]) // stride
        sizes[self.dim] = -1
        result = result.expand(sizes)
        return result.clone() if self.written else result

    def extra_repr(self) -> str:
        """Number of channels."""
        return f"{self.constant.shape[0]}"


class DroppedCall(Dropped):
    """As `Dropped`, for a module that is called with several arguments, or returns several things."""

    def __init__(self, drop: ModuleDrop, constant: Tensor, source: str = "") -> None:
        super().__init__(drop, constant, source)
        self.argument, self.items, self.position = drop.argument, drop.items, drop.position
        self.cache_layer = drop.cache_layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """What the module would return: the constant, alone or in a tuple with None for all else."""
        x = args[self.argument] if isinstance(self.argument, int) else kwargs[self.argument]
        if self.cache_layer >= 0:
            self._count(x, kwargs)
        result = super().forward(x)
        if not self.items:
            return result
        return tuple(result if place == self.position else None for place in range(self.items))

    def _count(self, x: Tensor, kwargs: Mapping[str, Any]) -> None:
        """Put keys and values of width one into the cache, which counts tokens by what it holds of the first layer."""
        cache = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
        if cache is not None:
            zeros = x.new_zeros(x.shape[0], 1, x.shape[1], 1)
            cache.update(zeros, zeros, self.cache_layer)


def _as_autocast(constant: Tensor, device: torch.device) -> Tensor:
    """In the precision that the module it stands for would compute in; else everything that it is added to becomes wide."""
    if constant.dtype != torch.float32 or not torch.is_autocast_enabled(device.type):
        return constant
    return constant.to(torch.get_autocast_dtype(device.type))


CACHES = ("past_key_values", "past_key_value")
"""What layers of transformers call the cache."""


def apply_drops_(model: nn.Module, drops: Sequence[ModuleDrop], constants: Mapping[str, Constant]) -> None:
    """Put something else in the place of the modules of `drops`.

    Args:
        model: A dense model.
        drops: The modules.
        constants: Name of the module -> what it returns; zeros where it is not given, as for a model whose weights are
            still to be read.
    """
    for module in model.modules():
        if isinstance(module, Dropped):  # by an earlier cut
            module.source = ""
    for drop in drops:
        parent, _, leaf = drop.module.rpartition(".")
        old = model.get_submodule(drop.module)
        like = next(
            (p for p in [*old.parameters(), *old.buffers(), *model.parameters()] if p.is_floating_point()), None
        )
        given = constants.get(drop.module)
        constant = torch.zeros(
            drop.size,
            dtype=None if like is None else like.dtype,
            device="cpu" if like is None or like.is_meta else like.device,
        )
        if given is not None:
            constant.copy_(given.value)
        is_call = not drop.alone or drop.items
        made = (DroppedCall if is_call else Dropped)(drop, constant, "" if given is None else given.source)
        setattr(model.get_submodule(parent), leaf, made)


def is_within(name: str, drops: Sequence[ModuleDrop]) -> bool:
    """Whether a module, or a tensor, belongs to a module that is dropped."""
    return any(name == drop.module or name.startswith(f"{drop.module}.") for drop in drops)


def has_dropped(model: nn.Module) -> bool:
    """Whether something stands in the place of modules of a model."""
    return any(isinstance(module, Dropped) for module in model.modules())


@contextmanager
def unspread(model: nn.Module) -> Iterator[None]:
    """Inside this block, what dropped modules return has the size one everywhere but in the channels, for graphs to fold."""
    modules = [module for module in model.modules() if isinstance(module, Dropped)]
    for module in modules:
        module.spread = False
    try:
        yield
    finally:
        for module in modules:
            module.spread = True
