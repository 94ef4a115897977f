"""Which outputs of a network the classes of a data set are: by their names, by ImageNet's numbers, or as somebody says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from l0prune.errors import DataError
from l0prune.reading import read_json
from l0prune.sources.datasets import DataSource

__all__ = ["in_order_of_outputs", "read_class_map"]

_SYNSET = re.compile(r"n\d{8}")
_IMAGENET = 1000


def read_class_map(path: Path) -> dict[str, int]:
    """Name of a class -> number of an output, from a JSON file.

    Raises:
        DataError: it holds something else.
    """
    content = read_json(path, "class map", error=DataError)
    if not isinstance(content, dict) or not all(type(number) is int and number >= 0 for number in content.values()):
        raise DataError(f'{path} is no class map; expected names and numbers of outputs, as in {{"cat": 281}}')
    return content


def in_order_of_outputs(
    data: DataSource, names: Sequence[str], n_outputs: Callable[[], int], given: Mapping[str, int] | None = None
) -> DataSource:
    """The data with its classes numbered as a network numbers its outputs, as far as that is known.

    Args:
        data: Where its classes have no names, it stays as it is.
        names: What the network calls its outputs; several words for one may stand between commas. Empty where it does not say.
        n_outputs: How many there are; asked only where that matters.
        given: Name of a class -> number of its output, where somebody says.

    Raises:
        DataError: a class is not in what is given, or there is no such output.
    """
    if not data.class_names:
        if given is not None:
            raise DataError(
                f"{data.name}: its classes have no names, so a class map says nothing of them; leave it out"
            )
        return data
    place = given if given is not None else _places(data.class_names, names, n_outputs)
    if place is None:
        return data
    missing = [name for name in data.class_names if name not in place]
    if missing:
        raise DataError(
            f"{data.name}: the class map has no {', '.join(missing[:3])}; it needs all {len(data.class_names)}"
        )
    order = np.array([place[name] for name in data.class_names], np.int64)
    total = max(n_outputs(), len(names))
    if order.max() >= total or len(set(order.tolist())) < len(order):
        raise DataError(
            f"{data.name}: its classes are outputs {order.min()} to {order.max()}, and the network has {total}, each of one class"
        )
    called = list(names) if len(names) == total else [""] * total
    if len(names) != total:
        for name in data.class_names:
            called[place[name]] = name
    return replace(
        data, y_train=order[data.y_train], y_test=order[data.y_test], n_classes=total, class_names=tuple(called)
    )


def _places(classes: Sequence[str], names: Sequence[str], n_outputs: Callable[[], int]) -> dict[str, int] | None:
    """Name -> output, where all are known."""
    known: dict[str, int] = {}
    for number, name in enumerate(names):
        for word in (name, *name.split(",")):
            known.setdefault(_plain(word), number)
    if all(_plain(name) in known for name in classes):
        return {name: known[_plain(name)] for name in classes}
    if all(_SYNSET.fullmatch(name) for name in classes) and n_outputs() == _IMAGENET:
        synsets = _synsets()
        if all(name in synsets for name in classes):
            return {name: synsets[name] for name in classes}
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def _synsets() -> dict[str, int]:
    """ImageNet's thousand classes in the order of all networks that were trained on them: of their numbers in WordNet."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return {}
    found: Any = ImageNetInfo("imagenet-1k").label_names()
    return {name: number for number, name in enumerate(found)}
