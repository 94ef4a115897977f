"""Networks that draw random numbers when they are evaluated: the same numbers for each that is compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

__all__ = ["RandomNumbers", "same_random_numbers"]

_SEED = 0


class RandomNumbers:
    """Whether a block drew any.

    Attributes:
        drawn: Set when the block is left.
    """

    def __init__(self) -> None:
        self.drawn = False


@contextmanager
def same_random_numbers(device: torch.device | None = None) -> Iterator[RandomNumbers]:
    """Every such block draws the same numbers from torch, numpy and Python; afterwards all go on as if nothing had been drawn.

    Args:
        device: Where the network is; None and the CPU are the same.

    Yields:
        What says afterwards whether anything was drawn.
    """
    numbers, sources = RandomNumbers(), list(_sources(device))
    states = [get() for get, _, _ in sources]
    try:
        for _, _, seed in sources:
            seed()
        started = [_plain(get()) for get, _, _ in sources]
        yield numbers
        numbers.drawn = any(_plain(get()) != before for (get, _, _), before in zip(sources, started, strict=True))
    finally:
        for (_, put, _), state in zip(sources, states, strict=True):
            put(state)


def _sources(
    device: torch.device | None,
) -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any], Callable[[], Any]]]:
    """How to read, set and seed the state of each source."""
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    for generator in generators:
        yield generator.get_state, generator.set_state, partial(generator.manual_seed, _SEED)
    yield random.getstate, random.setstate, lambda: random.seed(_SEED)
    yield np.random.get_state, np.random.set_state, lambda: np.random.seed(_SEED)


def _plain(state: Any) -> Any:
    """A state that `!=` compares at once: integers of Python as they are, the array of numpy and the tensor of torch as bytes."""
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in state)
