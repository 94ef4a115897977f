"""Names for the tensors in what goes into a model or comes out of it."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

__all__ = ["named_tensors", "unique"]


def named_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a value in order, each with a name: of nested sequences, mappings and dataclasses.

    A tensor that is alone in a sequence has the sequence's name; several are numbered. Keys and fields stand for
    themselves on the first level, and follow the name below it.

    Args:
        value: Anything; what holds no tensor is passed over.
        name: Of the whole value.
    """
    yield from _named(value, name, is_outermost=True)


def unique(names: Iterable[str], taken: Iterable[str] = (), *, prefix: str = "") -> list[str]:
    """The names, those that are taken already with a prefix, and those that come again with a number."""
    used = set(taken)
    found = []
    for name in names:
        base = candidate = f"{prefix}{name}" if name in used else name
        number = 2
        while candidate in used:
            candidate, number = f"{base}_{number}", number + 1
        used.add(candidate)
        found.append(candidate)
    return found


def _named(value: Any, name: str, *, is_outermost: bool) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
        return
    if isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items()]
    elif dataclasses.is_dataclass(value):
        parts = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, list | tuple):
        holding = [part for part in value if next(_named(part, name, is_outermost=False), None) is not None]
        alone = len(holding) == 1
        for number, part in enumerate(holding):
            yield from _named(part, name if alone else f"{name}_{number}", is_outermost=alone and is_outermost)
        return
    else:
        return
    for key, part in parts:
        yield from _named(part, key if is_outermost else f"{name}_{key}", is_outermost=False)
