"""What the modules of a model are called with, and what they return, at inputs of several sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.model_call import ModelCall, evaluation_mode

__all__ = ["CalledModule", "Shape", "called_modules"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class CalledModule:
    """What a module was called with, and what it returned.

    Attributes:
        given: Position or name of each argument that is a tensor -> its shape.
        alone: Whether there is one argument, without a name.
        returned: Shapes of what it returned, None for what is none; of a tensor, its alone.
        items: Length of the tuple; 0 for a tensor, -1 for what is neither.
    """

    given: dict[int | str, Shape]
    alone: bool
    returned: tuple[Shape | None, ...]
    items: int

    @property
    def form(self) -> tuple[Any, ...]:
        """Of what is returned all but the sizes: calls of one form can be answered by the same stand-in."""
        return self.alone, tuple(None if shape is None else len(shape) for shape in self.returned), self.items


def called_modules(
    model: nn.Module, traced: ModelCall, others: Iterable[ModelCall]
) -> tuple[dict[str, list[CalledModule]], dict[str, list[CalledModule]]]:
    """The calls of every module in one forward pass, by the first name of the module: traced, and at other sizes.

    Args:
        model: Any module, which runs in evaluation mode.
        traced: Inputs that it takes.
        others: Inputs that it may refuse.
    """
    elsewhere: dict[str, list[CalledModule]] = defaultdict(list)
    for call in others:
        try:
            found = _calls_in(model, call)
        except Exception:  # noqa: BLE001 - whatever a model raises at inputs that it does not take
            continue
        for name, calls in found.items():
            elsewhere[name] += calls
    return _calls_in(model, traced), elsewhere


def _calls_in(model: nn.Module, call: ModelCall) -> dict[str, list[CalledModule]]:
    names = {module: path for path, module in model.named_modules()}
    found: dict[str, list[CalledModule]] = defaultdict(list)

    def write_down(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if module in names:
            found[names[module]].append(
                CalledModule(dict(_tensors(args, kwargs)), len(args) == 1 and not kwargs, *_returned(output))
            )

    handles = [module.register_forward_hook(write_down, with_kwargs=True) for module in names]
    try:
        with torch.no_grad(), evaluation_mode(model):
            call(model)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[int | str, Shape]]:
    named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for name, value in named:
        if isinstance(value, Tensor):
            yield name, tuple(value.shape)


def _returned(output: Any) -> tuple[tuple[Shape | None, ...], int]:
    if isinstance(output, Tensor):
        return (tuple(output.shape),), 0
    if type(output) is not tuple or not all(item is None or isinstance(item, Tensor) for item in output):
        return (), -1
    return tuple(None if item is None else tuple(item.shape) for item in output), len(output)
