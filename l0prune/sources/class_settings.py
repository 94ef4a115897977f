"""Which sizes of a model of transformers its configuration can say: its class is built at other settings, without memory."""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import nn

from l0prune.errors import ConfigError
from l0prune.sources.libraries import quiet

__all__ = ["ClassSettings", "Shapes", "SizeSetting"]

Shapes = dict[str, tuple[int, ...]]
_PROBES = ((2, 1), (1, 2), (3, 1), (4, 1))
"""Factors at which a setting is tried, the likeliest that the class accepts first."""
_MOST_TRIES = 256
_FEW_TRIES = 32
"""Of those, where a search asks again and again."""
_ELSEWHERE = ("_name_or_path", "auto_map", "quantization_config", "architectures")


@dataclass(frozen=True)
class SizeSetting:
    """An entry of the configuration on which sizes of tensors depend.

    Attributes:
        name: Of the entry.
        value: In the dense model.
        probe: Another value that the class accepts.
        shapes: Of its tensors there.
    """

    name: str
    value: int
    probe: int
    shapes: Shapes

    def sizes_of(self, dense: Shapes, other: Shapes) -> set[int]:
        """Sizes, among other shapes than the dense ones, of the dimensions that have the value of the setting, whatever it is."""
        return {
            other[name][dim]
            for name, shape in dense.items()
            for dim, size in enumerate(shape)
            if size == self.value and self.shapes[name][dim] == self.probe
        }


class ClassSettings:
    """The class of a model, as it is built from other configurations than the model's own.

    Args:
        model: A model of a class that transformers exports.
        stated: The configuration to start from; None takes the model's own.

    Raises:
        ConfigError: it is no such model, or cannot be built again.

    Attributes:
        stated: The configuration, with entries that the class derives from others where they are left out written out.
        shapes: Of the tensors that it is built with.
    """

    def __init__(self, model: nn.Module, stated: Mapping[str, Any] | None = None) -> None:
        kind: Any = type(model)
        config: Any = getattr(model, "config", None)
        library = sys.modules.get("transformers")
        if (
            library is None
            or getattr(library, kind.__name__, None) is not kind
            or not hasattr(config, "to_json_string")
        ):
            raise ConfigError(
                f"uniform widths are those that a configuration of transformers can say, and {kind.__name__} is no class that"
                " it exports: leave uniform out"
            )
        self._kind: Any = kind
        self._library = library
        stated = json.loads(config.to_json_string(use_diff=False)) if stated is None else stated
        self.stated: dict[str, Any] = {key: value for key, value in stated.items() if key not in _ELSEWHERE}
        self._known: dict[tuple[tuple[str, Any], ...], Shapes | None] = {}
        try:
            self.shapes: Shapes = _shapes(self.built({}))
        except Exception as error:
            raise ConfigError(
                f"{self.name} cannot be built from its own configuration without memory for its tensors"
                f" ({type(error).__name__}: {str(error)[:200]}), so it is not known which sizes it can say: leave uniform out"
            ) from error
        self._write_out()

    @property
    def name(self) -> str:
        """Of the class."""
        return str(self._kind.__name__)

    def config(self, changes: Mapping[str, Any]) -> Any:
        """A configuration with some entries changed."""
        with quiet(self._library):
            return self._kind.config_class.from_dict({**self.stated, **changes})

    def built(self, changes: Mapping[str, Any]) -> nn.Module:
        """The class at a changed configuration, its tensors without memory.

        Raises:
            Exception: whatever the class raises where it cannot be built so.
        """
        return self._built(self.config(changes))

    def shapes_at(self, changes: Mapping[str, Any]) -> Shapes | None:
        """Shapes of the tensors at a changed configuration; None where the class cannot be built so, or has other tensors."""
        key = tuple(sorted(changes.items()))
        if key not in self._known:
            self._known[key] = self._shapes_at(changes)
        return self._known[key]

    def _shapes_at(self, changes: Mapping[str, Any]) -> Shapes | None:
        try:
            found = _shapes(self.built(changes))
        except Exception:  # noqa: BLE001 - whatever a class says of settings that do not fit each other
            return None
        return found if found.keys() == self.shapes.keys() else None

    @cached_property
    def sizes(self) -> tuple[SizeSetting, ...]:
        """The entries on which sizes depend."""
        return tuple(filter(None, (self._probed(name, value) for name, value in self.whole_numbers.items())))

    @cached_property
    def whole_numbers(self) -> dict[str, int]:
        """The entries that the class reads and that are whole numbers above zero."""
        read, _ = self._read
        return {name: value for name, value in self.stated.items() if name in read and type(value) is int and value > 0}

    @cached_property
    def alike(self) -> dict[tuple[str, int], tuple[float, ...]]:
        """(tensor, dimension) -> how it grows with each of the settings; those that grow in the same way have one size for all.

        Dimensions that no setting changes have ones.
        """
        found = {}
        for name, shape in self.shapes.items():
            for dim, size in enumerate(shape):
                found[name, dim] = tuple(setting.shapes[name][dim] / max(size, 1) for setting in self.sizes)
        return found

    def changes_for(
        self, shapes: Shapes, integers: Mapping[int, Collection[int]], *, shares: Collection[Fraction] = ()
    ) -> Iterator[dict[str, int]]:
        """Changes of the configuration at which the class may have other shapes, the likeliest first.

        A setting that is the size of a dimension follows from that dimension. Others, such as a number of heads, which is one
        factor of a size or which no size shows, are as they were, or as the integers of their value are.

        Args:
            shapes: Of all tensors.
            integers: Of modules or calls: what they were -> what they may be.
            shares: Proportions that a setting may go down by beside.

        Raises:
            ConfigError: a setting would have to have two values, or there are other tensors.
        """
        if shapes.keys() != self.shapes.keys():
            raise ConfigError(f"{self.name} is built with other tensors than the cut model has")
        known: dict[str, int] = {}
        for setting in self.sizes:
            sizes = setting.sizes_of(self.shapes, shapes)
            if len(sizes) > 1:
                values = " and ".join(map(str, sorted(sizes)))
                raise ConfigError(
                    f"{setting.name} of {self.name} would have to be {values} at once: prune with uniform, which keeps them alike"
                )
            if sizes:
                known[setting.name] = sizes.pop()
        by_size = {setting.name for setting in self.sizes}
        names = [name for name in self.whole_numbers if name not in known]
        options: list[list[int]] = []
        for name in names:
            value = self.whole_numbers[name]
            likely = sorted(integers.get(value, ()))
            if name in by_size:
                likely += sorted(int(value * share) for share in shares if (value * share).denominator == 1)
            options.append(list(dict.fromkeys([*likely, value])))
        for chosen in itertools.islice(_likeliest_first(options), _MOST_TRIES):
            found = known | dict(zip(names, chosen, strict=True))
            yield {name: value for name, value in found.items() if value != self.whole_numbers[name]}

    def can_have(self, shapes: Shapes, integers: Mapping[int, Collection[int]]) -> bool:
        """Whether the class can be built with other shapes; arguments as `changes_for` takes them."""
        try:
            likely = itertools.islice(self.changes_for(shapes, integers), _FEW_TRIES)
            return any(self.shapes_at(changes) == shapes for changes in likely)
        except ConfigError:
            return False

    def _probed(self, name: str, value: int) -> SizeSetting | None:
        """A setting with a value at which sizes differ; None where the sizes do not depend on it."""
        for times, over in _PROBES:
            probe = value * times // over
            if probe < 1 or value * times % over:
                continue
            shapes = self.shapes_at({name: probe})
            if shapes is not None:
                return SizeSetting(name, value, probe, shapes) if shapes != self.shapes else None
        return None

    def _write_out(self) -> None:
        """State what the class derives, so that it stays as it is where other entries change."""
        read, missing = self._read
        open_entries = [name for name in sorted(read) if name in self.stated and self.stated[name] is None]
        numbers = sorted(set(self.whole_numbers.values()))
        sizes = sorted({size for shape in self.shapes.values() for size in shape})
        parts = sorted({one // other for one in numbers for other in numbers if one % other == 0})
        for name in [*open_entries, *missing]:
            odd = 2 * max(sizes)
            if self.shapes_at({name: odd}) in (None, self.shapes):
                continue
            value = next(
                (size for size in dict.fromkeys([*parts, *sizes]) if self.shapes_at({name: size}) == self.shapes), None
            )
            if value is not None:
                self.stated[name] = value
                self._known.clear()
        for cached in ("sizes", "whole_numbers", "alike"):
            self.__dict__.pop(cached, None)

    @cached_property
    def _read(self) -> tuple[set[str], list[str]]:
        """Entries that are read while the class is built, and those that it asks for in vain."""
        read: set[str] = set()
        missing: list[str] = []
        config = self.config({})
        base: Any = type(config)

        def on_read(held: Any, name: str) -> Any:
            read.add(name)
            return base.__getattribute__(held, name)

        def on_missing(held: Any, name: str) -> Any:
            if not name.startswith("_") and name not in missing:
                missing.append(name)
            raise AttributeError(name)

        config.__class__ = type(base.__name__, (base,), {"__getattribute__": on_read, "__getattr__": on_missing})
        with suppress(Exception):
            self._built(config)
        names: dict[str, str] = getattr(base, "attribute_map", {})
        return read | {names[name] for name in read if name in names}, [name for name in missing if name.isidentifier()]

    def _built(self, config: Any) -> nn.Module:
        with quiet(self._library), warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            built: nn.Module = self._kind(config)
        return built


def _likeliest_first(options: list[list[int]]) -> Iterator[tuple[int, ...]]:
    """A choice from each list: all first ones, then those with more and more others in their place."""
    places = [range(len(of_one)) for of_one in options]
    for far in range(1 + sum(len(of_one) - 1 for of_one in options)):
        for chosen in _with_sum(places, far):
            yield tuple(of_one[place] for of_one, place in zip(options, chosen, strict=True))


def _with_sum(places: list[range], total: int) -> Iterator[tuple[int, ...]]:
    """A number from each range, with this sum."""
    if not places:
        if total == 0:
            yield ()
        return
    first, *others = places
    most = sum(len(other) - 1 for other in others)
    for place in first:
        if 0 <= total - place <= most:
            for chosen in _with_sum(others, total - place):
                yield (place, *chosen)


def _shapes(model: nn.Module) -> Shapes:
    return dict(_named_shapes(model))


def _named_shapes(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, tuple(parameter.shape)
