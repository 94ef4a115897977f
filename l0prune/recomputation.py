"""What a forward pass runs in, brought back wherever a backward pass runs parts of its code again.

Activation checkpointing drops intermediate results and calls the code of a region once more during the backward pass, when
the blocks that the forward pass ran in are long over. Autograd calls back Python in two places: where it unpacks a saved
tensor, and where it runs the backward pass of a `torch.autograd.Function`. Every kind of checkpoint lives in one of them.
Whatever of that kind is made while a `Setting` is in force keeps the setting, and is called back inside it.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, wraps
from typing import Any, Protocol, TypeVar

import torch
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

__all__ = ["CountedCalls", "Setting", "in_backward_pass", "kept_for_backward"]

Counted = TypeVar("Counted", bound="CountedCalls")


class Setting(Protocol):
    """A block that code of a forward pass runs in."""

    def __enter__(self) -> Any:
        """Begin the block."""

    def __exit__(self, *error: Any) -> Any:
        """End the block."""

    def again(self, node: BackwardCFunction | None = None) -> Setting:
        """The block for code that runs again from this moment of the forward pass on.

        Args:
            node: The custom function whose backward pass runs the code; None where a saved tensor is unpacked.
        """


class _InForce(threading.local):
    """The settings of the forward passes that run now, the outermost first."""

    def __init__(self) -> None:
        self.settings: list[Setting] = []


_IN_FORCE = _InForce()


def in_backward_pass() -> bool:
    """Whether autograd runs a backward pass in this thread."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@contextmanager
def kept_for_backward(setting: Setting) -> Iterator[None]:
    """Run a part of a forward pass in `setting`, now and whenever a backward pass runs code of it again."""
    with setting:
        if torch.compiler.is_compiling():  # a compiler sees checkpoints itself
            yield
            return
        _watch_autograd()
        _IN_FORCE.settings.append(setting)
        try:
            yield
        finally:
            _IN_FORCE.settings.pop()


class CountedCalls(TorchFunctionMode):
    """A mode that knows calls by their number; in a recomputation it goes on counting from where the region began.

    While a recomputation records no gradients, calls are those of a backward formula, which the mode must leave alone.

    Attributes:
        calls: Kind -> number of calls so far.
        is_again: Whether this is a recomputation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.is_again = False

    def again(self: Counted, node: BackwardCFunction | None = None) -> Counted:
        """As in `Setting`."""
        del node
        other = copy.copy(self)
        other.calls = dict(self.calls)
        other.is_again = True
        return other


@cache
def _watch_autograd() -> None:
    """Have autograd's two ways back into Python take note of the settings in force; without any, they are as they were."""
    made, entered = BackwardCFunction.__init__, saved_tensors_hooks.__enter__

    @wraps(made)
    def make(self: BackwardCFunction, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        settings = _settings_of_now()
        for name in ("apply", "apply_boxed") if settings else ():
            if hasattr(type(self), name):
                setattr(self, name, _backward_in(settings, weakref.ref(self), name))

    @wraps(entered)
    def enter(self: saved_tensors_hooks) -> None:
        settings, unpack = _settings_of_now(), self.unpack_hook
        if settings:
            self.unpack_hook = _unpacking_in(settings, unpack)
        try:
            entered(self)
        finally:
            self.unpack_hook = unpack

    BackwardCFunction.__init__ = make  # type: ignore[method-assign, assignment]
    saved_tensors_hooks.__enter__ = enter  # type: ignore[method-assign]


def _settings_of_now() -> list[Setting]:
    return [setting.again() for setting in _IN_FORCE.settings]


def _backward_in(
    settings: Sequence[Setting], reference: weakref.ref[BackwardCFunction], name: str
) -> Callable[..., Any]:
    """The backward pass of a custom function, which autograd looks up by name; it must not keep the function alive."""

    def apply(*gradients: Any) -> Any:
        node = reference()
        with _all_again(settings, node):
            return getattr(type(node), name)(node, *gradients)

    return apply


def _unpacking_in(settings: Sequence[Setting], unpack: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def unpack_in_settings(packed: Any) -> Any:
        with _all_again(settings, None):
            return unpack(packed)

    return unpack_in_settings


@contextmanager
def _all_again(settings: Sequence[Setting], node: BackwardCFunction | None) -> Iterator[None]:
    with ExitStack() as stack:
        for setting in settings:
            stack.enter_context(kept_for_backward(setting.again(node)))
        yield
