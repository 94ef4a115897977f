"""Give calls inside a module's own forward pass the sizes of the compact model, where its code has no integer for them.

Code such as `x.reshape(B, N, C)` with `C` taken from the input holds only while the input is as wide as all heads together. A
module with such code keeps its class and runs its own forward pass; the calls named in the plan get other sizes there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import nn

from l0prune.errors import ConfigError
from l0prune.ops.operation import sized_call
from l0prune.ops.sizes import Rows
from l0prune.recomputation import CountedCalls, kept_for_backward
from l0prune.surgery.plan import CallChange

__all__ = ["apply_calls_"]


def apply_calls_(model: nn.Module, changes: tuple[CallChange, ...]) -> None:
    """Let the forward passes of modules run with the sizes of `changes`."""
    sizes: dict[nn.Module, dict[tuple[str, int], Rows]] = {}
    for change in changes:
        sizes.setdefault(model.get_submodule(change.module), {})[change.kind, change.number] = change.sizes
    for module, given in sizes.items():
        module.forward = _Forward(module, vars(module).get("forward"), given)  # type: ignore[method-assign]
        vars(module)["__prepare_scriptable__"] = _refuse_to_be_compiled


def _refuse_to_be_compiled() -> NoReturn:
    """Asked for by `torch.jit.script`, which compiles the code of the class: the sizes there are those of the dense model.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "torch.jit.script compiles the code of a class, and calls in it are given other sizes while it runs: use "
        "torch.jit.trace, torch.export or l0prune.export_onnx"
    )


class _Forward:
    """The forward pass of a module's class (or the one it had been given), with sizes given to some of its calls."""

    def __init__(self, module: nn.Module, own: Callable[..., Any] | None, sizes: dict[tuple[str, int], Rows]) -> None:
        self.module = module
        self.own = own
        self.sizes = sizes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with kept_for_backward(_GiveSizes(self.sizes)):
            return self._forward(*args, **kwargs)

    @property
    def _forward(self) -> Callable[..., Any]:
        return type(self.module).forward.__get__(self.module) if self.own is None else self.own

    @property
    def __code__(self) -> Any:
        """That of the forward pass, of which torch.export takes the name and the place."""
        return self._forward.__code__

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the forward pass, for whoever binds arguments to it."""
        return inspect.signature(self._forward)


class _GiveSizes(CountedCalls):
    """Inside this block, the calls that are counted out in `sizes` get the sizes there."""

    def __init__(self, sizes: dict[tuple[str, int], Rows]) -> None:
        super().__init__()
        self._sizes = sizes

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Make the call, with its own sizes or those of the plan."""
        kwargs = kwargs or {}
        kind = sized_call(func)
        if kind is None or (self.is_again and not torch.is_grad_enabled()):
            return func(*args, **kwargs)
        call = kind(func, args, kwargs)
        number = self.calls.get(call.kind, 0)
        self.calls[call.kind] = number + 1
        rows = self._sizes.get((call.kind, number))
        return call.make() if rows is None else call.with_sizes(rows).make()
