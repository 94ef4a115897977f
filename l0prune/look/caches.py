"""Tensors that modules keep in dictionaries of their own, such as attention biases looked up once and kept for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["empty_caches_", "without_caches"]


@contextmanager
def without_caches(model: nn.Module) -> Iterator[None]:
    """For a while the caches are empty, so that what is kept in them is computed again, from the parameters there are.

    A graph that is exported with full caches has their tensors as constants, and no parameter behind them.
    """
    kept = [(held, dict(held)) for held in _caches(model)]
    empty_caches_(model)
    try:
        yield
    finally:
        for held, tensors in kept:
            held.clear()
            held.update(tensors)


def empty_caches_(model: nn.Module) -> None:
    """Empty the caches of all modules."""
    for held in _caches(model):
        held.clear()


def _caches(model: nn.Module) -> list[dict[Any, Tensor]]:
    """Dictionaries of modules that hold tensors and nothing else; parameters and buffers are kept elsewhere."""
    return [
        held
        for module in model.modules()
        for name, held in vars(module).items()
        if type(held) is dict
        and name not in ("_parameters", "_buffers")
        and held
        and all(isinstance(value, Tensor) for value in held.values())
    ]
