"""Calls in forward passes whose sizes are wrong in a compact model: found beside the exported graph, and given others.

Code such as `x.reshape(B, N, C)` with `C` taken from the input holds only while the input is as wide as all heads together. A
module with such code keeps its class and runs its own forward pass; the calls named in the plan get other sizes there.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import nn
from torch.fx import Node
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from l0prune.errors import ConfigError
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.kept import Kept
from l0prune.look.recording import path_of
from l0prune.model_call import evaluation_mode
from l0prune.ops.node import module_of
from l0prune.ops.operation import operation_of, sized_call
from l0prune.ops.sizes import Cut, Rows, SizedCall, Sizes
from l0prune.recomputation import CountedCalls, kept_for_backward
from l0prune.surgery.plan import CallChange

__all__ = ["CallFinder", "apply_calls_"]

_Place = tuple[str, str]
"""Module and kind of calls."""
_Wanted = dict[_Place, list[Rows]]
"""For every call, its sizes in the cut graph."""


class CallFinder:
    """Finds the calls that the code of a compact model makes with sizes other than the cut graph would.

    Calls of a module are matched to the nodes of the graph it was exported to in order, and only if all the sizes that come
    out of them agree. What is found is a guess: the caller verifies what it computes.

    Args:
        flow: Trace of `model`.
        model: The dense model.
        kept: Units that stay.
        inputs: Positional and keyword inputs that the model was traced with.
    """

    def __init__(
        self,
        flow: ChannelFlow,
        model: nn.Module,
        kept: Kept,
        inputs: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        self._args, self._kwargs = inputs
        dense = self._follow(model, {})
        self._wanted = _wanted(flow, model, dense.sizes, kept)

    def find(self, compact: nn.Module) -> tuple[CallChange, ...]:
        """The calls of `compact`, a copy with smaller layers, with the sizes they are to have.

        Whatever the compact model raises where sizes do not help is passed on.
        """
        cut = self._follow(compact, self._wanted)
        return tuple(CallChange(*place, rows) for place, rows in cut.changed.items())

    def _follow(self, model: nn.Module, wanted: _Wanted) -> _Follow:
        follow = _Follow(model, wanted)
        with follow.running(model):
            model(*self._args, **self._kwargs)
        return follow


class _Follow(TorchFunctionMode):
    """Inside this block, calls that take sizes are written down, and made with the sizes in `wanted` where theirs are others.

    Attributes:
        sizes: Module and kind -> for each call, the sizes that come out of each node it becomes in a graph.
        changed: Module, kind and number of a call within one forward pass of the module -> the sizes it was given.
    """

    def __init__(self, model: nn.Module, wanted: _Wanted) -> None:
        super().__init__()
        self.sizes: dict[_Place, list[list[tuple[int, Sizes]]]] = defaultdict(list)
        self.changed: dict[tuple[str, str, int], Rows] = {}
        self._wanted = wanted
        self._paths = {module: path for path, module in model.named_modules()}
        self._running: list[tuple[str, Counter[str]]] = []

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[None]:
        """Follow a forward pass of `model` in evaluation mode."""

        def enter(module: nn.Module, _: Any) -> None:
            if module in self._paths:
                self._running.append((self._paths[module], Counter()))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            if module in self._paths:
                self._running.pop()

        hooks = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True))
        try:
            with torch.no_grad(), evaluation_mode(model), self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Make the call, and write it down."""
        kwargs = kwargs or {}
        kind = sized_call(func)
        if kind is None or not self._running:
            return func(*args, **kwargs)
        call = kind(func, args, kwargs)
        path, seen = self._running[-1]
        place = (path, call.kind, seen[call.kind])
        for _, counted in self._running:
            counted[call.kind] += 1
        made = self.sizes[path, call.kind]
        rows = _wrong(call, self._rows_for(path, call.kind, len(made)))
        if rows:
            self.changed[place] = tuple(sorted({*self.changed.get(place, ()), *rows}))
            call = call.with_sizes(rows)
        made.append([])
        position = len(made) - 1
        result = call.make()
        made[position] = call.results(result)
        return result

    def _rows_for(self, path: str, kind: str, position: int) -> Rows:
        """The sizes that a call is to have, the `position`-th of its kind that the module has made."""
        wanted = self._wanted.get((path, kind), [])
        return wanted[position] if position < len(wanted) else ()


def _wrong(call: SizedCall, rows: Rows) -> Rows:
    """The rows that a call has other sizes for; a split is given all its sizes together."""
    given = call.given()
    wrong = tuple(row for row in rows if given.get(row[0], row[1:]) != row[1:])
    return rows if wrong and call.together else wrong


def _wanted(
    flow: ChannelFlow,
    model: nn.Module,
    called: dict[_Place, list[list[tuple[int, Sizes]]]],
    kept: Kept,
) -> _Wanted:
    """What each call is to be given, of those kinds and modules for which calls and nodes of the dense model agree."""
    paths = {module: path for path, module in model.named_modules()}
    cut = Cut(flow.nodes, kept)
    nodes: dict[_Place, list[tuple[Node, type[SizedCall], Sizes]]] = defaultdict(list)
    for node in flow.captured.program.graph.nodes:
        followed = node.op == "call_function" and path_of(node) == 0
        call = operation_of(node.target).call if followed else None
        sizes = None if call is None else call.of_node(node)
        if call is not None and sizes is not None:
            nodes[paths[model.get_submodule(module_of(node))], call.kind].append((node, call, sizes))
    wanted = {}
    for (path, kind), calls in called.items():
        found = nodes.get((path, kind), [])
        if [sizes for *_, sizes in found] == [sizes for made in calls for _, sizes in made]:
            in_order = iter((node, call) for node, call, _ in found)
            wanted[path, kind] = [
                tuple(
                    row
                    for (item, _), (node, call) in zip(made, in_order, strict=False)
                    for row in call.rows(cut, node, item)
                )
                for made in calls
            ]
    return wanted


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
