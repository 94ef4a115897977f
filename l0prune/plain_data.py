"""Dataclasses from plain data: format, version, keys and the kind of every field are right, or an error names the place."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from l0prune.errors import FileFormatError
from l0prune.reading import shortened

__all__ = ["FileKind", "from_plain", "read_fields"]

LARGEST = 2**63
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class FileKind:
    """A kind of JSON file.

    Args:
        format: What it says of itself.
        version: That is read and written.
        what: It is, as in "a surgery plan".
        remedy: What to do about a wrong one.
    """

    format: str
    version: int
    what: str
    remedy: str

    def stamped(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The object to write: format, version and the content."""
        return {"format": self.format, "version": self.version, **content}

    def content(self, data: Any, source: str, keys: Iterable[str], *, optional: Iterable[str] = ()) -> dict[str, Any]:
        """The object in a file without format and version.

        Args:
            data: Of the file.
            source: Its name, for the message.
            keys: That it should have, and no others.
            optional: Of these, those that may be missing.

        Raises:
            FileFormatError: it has another format, version or other keys.
        """
        if not isinstance(data, Mapping) or data.get("format") != self.format:
            raise FileFormatError(f"{source} is not {self.what}: expected format {self.format!r}{_then(self.remedy)}")
        if data.get("version") != self.version:
            raise FileFormatError(
                f"{source} has version {shortened(repr(data.get('version')), 40)}; this l0prune reads version {self.version}"
                f"{_then(self.remedy)}"
            )
        content = {key: value for key, value in data.items() if key not in ("format", "version")}
        odd = sorted(set(content) ^ set(keys) - (set(optional) - set(content)))
        _require_no(odd, source, self.remedy)
        return content

    def read(self, kind: type[T], data: Any, source: str, *, optional: Iterable[str] = (), never: str = "") -> T:
        """A dataclass from the object in a file, which has all its fields.

        Args:
            kind: The dataclass.
            data: Of the file.
            source: Its name, for the message.
            optional: Fields that may be missing.
            never: A field that no file has.

        Raises:
            FileFormatError: as `content`, or a field is of another kind.
        """
        keys = {field.name for field in dataclasses.fields(cast(Any, kind))} - {never}
        return read_fields(kind, self.content(data, source, keys, optional=optional), source, remedy=self.remedy)


def read_fields(kind: type[T], data: Any, where: str, *, remedy: str = "", finite: bool = True) -> T:
    """A dataclass from an object of a JSON file.

    Args:
        kind: The dataclass.
        data: Should have a value for each field, and nothing else; those with a default may be missing.
        where: What the object is, for the message.
        remedy: What to do about a wrong one.
        finite: Refuse numbers that are NaN or infinite.

    Raises:
        FileFormatError: names the first field that is missing, unknown, or of another kind.
        L0PruneError: as the dataclass itself.
    """
    known = {field.name: field for field in dataclasses.fields(cast(Any, kind))}
    if not isinstance(data, Mapping):
        raise FileFormatError(f"{where} is {_found(data)}, expected an object with {', '.join(known)}{_then(remedy)}")
    required = {
        name
        for name, field in known.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    odd = sorted((required - set(data)) | (set(data) - set(known)))
    _require_no(odd, where, remedy)
    hints = _hints(cast(Any, kind))
    values = {
        name: from_plain(hints[name], value, f"{where}, {name}", remedy=remedy, finite=finite)
        for name, value in data.items()
    }
    return kind(**values)


def from_plain(kind: Any, value: Any, where: str, *, remedy: str = "", finite: bool = True) -> Any:
    """A value of an annotated kind from plain data: lists become tuples, objects dataclasses.

    Args:
        kind: None, bool, int, float, str, Path, Any, a dataclass; tuples, lists and dicts of them; unions.
        value: Plain data.
        where: What it is, for the message.
        remedy: As `read_fields`.
        finite: As `read_fields`.

    Raises:
        FileFormatError: it is of another kind.
    """
    again = functools.partial(from_plain, remedy=remedy, finite=finite)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in inner:
            with suppress(FileFormatError):
                return again(option, value, where)
    elif kind is Any:
        return value
    elif dataclasses.is_dataclass(kind):
        if isinstance(value, cast(type, kind)):
            return value
        return read_fields(cast(type, kind), value, where, remedy=remedy, finite=finite)
    elif origin in (tuple, list, Sequence) and isinstance(value, list | tuple):
        if origin is tuple and _are_whole_numbers(inner, value):
            return tuple(value)
        items = inner if origin is tuple and inner[1:] != (...,) else inner[:1] * len(value)
        if len(items) == len(value):
            read = [again(item, entry, f"{where}[{place}]") for place, (item, entry) in enumerate(zip(items, value))]
            return tuple(read) if origin is tuple else read
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {
            _key(inner[0], key, where): again(inner[1], entry, f"{where}, {shortened(str(key), 60)}")
            for key, entry in value.items()
        }
    elif _is_plain(kind, value, finite=finite):
        return kind(value) if kind in (float, Path) else value
    raise FileFormatError(f"{where} is {_found(value)}, expected {_text(kind)}{_then(remedy)}")


def _are_whole_numbers(kinds: tuple[Any, ...], values: Sequence[Any]) -> bool:
    """Whether these are as many whole numbers as should be there: the many small tuples of plans and histograms, at once."""
    fits = kinds == (int, ...) or (set(kinds) == {int} and len(kinds) == len(values))
    return fits and set(map(type, values)) == {int} and max(values) < LARGEST and min(values) > -LARGEST


def _is_plain(kind: Any, value: Any, *, finite: bool) -> bool:
    """Whether a value without parts is of a kind; True is no number, and 1 is no truth."""
    if kind is None or kind is type(None):
        return value is None
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return math.isfinite(value) or not finite if isinstance(value, float) else abs(value) < LARGEST
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST
    if kind is Path:
        return isinstance(value, str) and "\0" not in value
    return kind in (bool, str) and isinstance(value, kind)


def _require_no(odd: Sequence[str], where: str, remedy: str) -> None:
    if odd:
        raise FileFormatError(f"{where} has missing or unknown keys: {shortened(', '.join(odd), 80)}{_then(remedy)}")


def _key(kind: Any, key: str, where: str) -> Any:
    if kind is not int:
        return key
    try:
        return int(key)
    except ValueError:
        raise FileFormatError(f"{where} has the key {key[:40]!r}, expected a number") from None


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _text(kind: Any) -> str:
    """A kind for people."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_text(option) for option in typing.get_args(kind))
    if origin in (tuple, list, Sequence):
        return "a list"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(kind):
        return "an object"
    names = {
        None: "null",
        type(None): "null",
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _found(value: Any) -> str:
    return shortened(repr(value), 60) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _then(remedy: str) -> str:
    return f"; {remedy}" if remedy else ""
