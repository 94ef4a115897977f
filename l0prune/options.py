"""An option stands once: a field says its kind, range, default, help and group; checks, flags, files and documents follow."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from l0prune.errors import ConfigError, FileFormatError
from l0prune.plain_data import from_plain
from l0prune.reading import shortened

__all__ = [
    "GATES",
    "GROUPS",
    "MODEL",
    "MOST_USED",
    "PHASES",
    "RUN",
    "TEACHING",
    "WEIGHTS",
    "Option",
    "Options",
    "Rule",
    "documented",
    "option",
    "options_of",
    "plain",
    "require_kept",
]

GROUPS = (
    "Most used",
    "Model and data",
    "Gates and the cut",
    "Phases",
    "Training of the weights",
    "Teaching",
    "The run",
)
"""Headings that options stand under, in this order."""
MOST_USED, MODEL, GATES, PHASES, WEIGHTS, TEACHING, RUN = GROUPS

LARGEST = 2**63 - 1
"""Whole numbers have 64 bits: larger ones are errors deep inside the libraries."""
_UNIONS = (typing.Union, types.UnionType)
_WITHIN = re.compile(r"(?:(\w+) or )?([\[(])(\S+), (\S+)([\])])")
_NAMED = re.compile(r"`(\w+)`")
_IN_BRACES = re.compile(r"\{(\w+)(?:=(\w+))?\}")
Kind = TypeVar("Kind", bound="type[Options]")
Same = TypeVar("Same", bound="Options")


@dataclass(frozen=True)
class Option:
    """One option, as its field declares it.

    Args:
        help: Whole sentences; names of other options stand in backticks.
        group: Heading it stands under.
        within: Where its numbers lie, as in "(0, 1]"; "auto or [1, inf)" has one value more. Empty: anywhere.
        choices: Texts to choose from; empty for any.
        key: In files, where it is not the name.
        flag: On the command line, where it does not follow from the key; None where it has none.
        shown: What stands for the default in documents.
        joined: Its text is a list with commas, typed item by item.
        metavar: What stands for its value in the help.
        name: Of the field, and in Python.
        kind: bool, int, float, str or Path, tuples and dicts of them, unions of them and None.
        default: Where nothing is said; None leaves it open.
    """

    help: str = ""
    group: str = ""
    within: str = ""
    choices: tuple[str, ...] = ()
    key: str = ""
    flag: str | None = ""
    shown: str = ""
    joined: bool = False
    metavar: str = ""
    name: str = ""
    kind: Any = None
    default: Any = None

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The kinds of a union without None."""
        parts = typing.get_args(self.kind) if typing.get_origin(self.kind) in _UNIONS else (self.kind,)
        return tuple(part for part in parts if part is not type(None))

    @property
    def items(self) -> Any:
        """Kind of the items of a tuple; None where it is none."""
        return typing.get_args(self.kinds[0])[0] if typing.get_origin(self.kinds[0]) is tuple else None

    @property
    def bounds(self) -> str:
        """Where its numbers lie, in words; empty for anywhere."""
        if not self.within:
            return ""
        besides, opens, low, high, _ = _parsed(self.within)
        if math.isfinite(high):
            return f"in {self.within}"
        words = f"above {low:g}" if opens == "(" else f"{low:g} or more"
        return "" if low == -math.inf else f"{besides}, or {words}" if besides else words

    @property
    def range_and_default(self) -> str:
        """What is known of its values, as in "default: 6; above 0"; may be empty."""
        return "; ".join(filter(None, (f"default: {self.shown}" if self.shown else "", self.bounds)))

    def about(self, refer: Callable[[str], str]) -> str:
        """The help, other options written by `refer`."""
        return _NAMED.sub(lambda match: refer(match[1]), self.help)

    def accept(self, value: Any) -> Any:
        """A value, lists as tuples.

        Raises:
            ConfigError: it is of another kind or out of range; names the option, the value and what is expected.
        """
        shown = f"{self.name}={value!r}" if self.name else repr(value)
        try:
            read = from_plain(self.kind, str(value) if isinstance(value, Path) else value, "", finite=False)
        except FileFormatError as error:
            default = "" if self.default is None else f", such as {self.default!r}"
            raise ConfigError(f"{shown}: expected {_text(self.kind)}{default}") from error
        if isinstance(read, str) and self.choices and read not in self.choices:
            raise ConfigError(f"{shown} is unknown: choose one of {', '.join(self.choices)}")
        if self.within and read is not None and not all(map(self._holds, read if isinstance(read, tuple) else (read,))):
            whole = self.within.replace("inf)", f"{LARGEST}]") if self.kinds == (int,) else self.within
            raise ConfigError(f"{shown} is out of range: give a value in {whole}")
        return value if isinstance(value, int | float) else read

    def parse(self, text: str) -> Any:
        """What was typed, or an earlier version wrote.

        Raises:
            ConfigError: as `accept`.
        """
        if self.items is not None:
            item = Option(kind=self.items)
            return self.accept(tuple(item.parse(part) for part in text.split(",")) if text else ())
        readable = [value for kind in self.kinds if (value := _parse(kind, text)) is not None]
        if not readable:
            raise ConfigError(f"{text!r} is not a {'whole ' if int in self.kinds else ''}number")
        return self.accept(readable[0])

    def _holds(self, value: Any) -> bool:
        besides, opens, low, high, closes = _parsed(self.within)
        if isinstance(value, str) or (besides.isdigit() and value == int(besides)):
            return not isinstance(value, str) or value == besides
        above = low < value if opens == "(" else low <= value
        return above and (value < high if closes == ")" else value <= high) and math.isfinite(value)


def option(default: Any, text: str, **about: Any) -> Any:
    """A field of `Options`, with its default, its help and what else `Option` says of it."""
    values = {"default_factory": default.copy} if isinstance(default, dict) else {"default": default}
    declared = Option(text, **{"shown": _shown(default), **about}, default=default)
    return dataclasses.field(**values, metadata={"option": declared})  # type: ignore[call-overload]


def options_of(kind: type[Options]) -> Mapping[str, Option]:
    """Options of a class by name, in the order of its fields."""
    return _declared(typing.cast(Any, kind))


@functools.cache
def _declared(kind: Any) -> Mapping[str, Option]:
    hints, found = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        known: Option = field.metadata["option"]
        key = known.key or field.name
        flag = f"--{key.replace('_', '-')}" if known.flag == "" else known.flag
        found[field.name] = replace(known, name=field.name, kind=hints[field.name], key=key, flag=flag)
    return found


@dataclass(frozen=True)
class Rule:
    """What keeps options from going together: the sentence that says so is the declaration.

    It is broken where all options that the sentence names in braces ask for something, or have the value of `{name=value}`,
    those of `unless` not counted, and none of `unless` is given.

    Args:
        pointless: The option that would have no effect.
        sentence: What the user reads.
        unless: Options with one of which it would have one.
    """

    pointless: str
    sentence: str
    unless: tuple[str, ...] = ()

    def is_broken(self, given: Mapping[str, Any]) -> bool:
        """Whether these options, by name, break it."""
        named = [(name, value) for name, value in _IN_BRACES.findall(self.sentence) if name not in self.unless]
        there = all(
            name in given and (_written(given[name]) == value if value else given[name]) for name, value in named
        )
        return there and not any(name in given for name in self.unless)


def require_kept(
    rules: Iterable[Rule], given: Mapping[str, Any], show: Callable[[str, str], str], error: type[Exception]
) -> None:
    """See that no rule is broken.

    Args:
        rules: What may not go together.
        given: Options by name.
        show: Writes an option and the value it has in a sentence, which may be empty.
        error: What to raise.

    Raises:
        Exception: `error`; the sentence of the first rule that is.
    """
    for rule in rules:
        if rule.is_broken(given):
            raise error(_IN_BRACES.sub(lambda match: show(match[1], match[2] or ""), rule.sentence))


class Options:
    """Base of frozen dataclasses whose fields are `option`s: checked when made, written to files and read back."""

    rules: ClassVar[tuple[Rule, ...]] = ()

    def __post_init__(self) -> None:
        """Check every option alone, then those that do not go together."""
        given = {}
        for name, known in options_of(type(self)).items():
            value = known.accept(getattr(self, name))
            object.__setattr__(self, name, value)
            if value not in (None, known.default):
                given[name] = value
        require_kept(self.rules, given, lambda name, value: f"{name}={value}" if value else name, ConfigError)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one key an option."""
        return {known.key: plain(getattr(self, name)) for name, known in options_of(type(self)).items()}

    @classmethod
    def from_json(cls: type[Same], data: Mapping[str, Any]) -> Same:
        """What `to_json` wrote, also in an earlier version: what that did not know, or left open, has its default.

        Raises:
            ConfigError: if a key is unknown, or a value of another kind or out of range.
        """
        known = {name: option for option in options_of(cls).values() for name in (option.name, option.key)}
        unknown = sorted(set(data) - set(known))
        if unknown:
            names = shortened(", ".join(map(repr, unknown)), 80)
            raise ConfigError(f"there is no option {names}; options: {', '.join(options_of(cls))}")
        values = {}
        for key, value in data.items():
            if value is not None:
                was_text = known[key].items is not None and isinstance(value, str)  # of lists, in earlier versions
                values[known[key].name] = known[key].parse(value) if was_text else value
        for rule in cls.rules:
            if rule.is_broken(values):  # what has no effect need not be right
                values.pop(rule.pointless, None)
        return cls(**values)

    def differing(self, other: Options) -> list[str]:
        """Names of the options that have another value there."""
        return [name for name in options_of(type(self)) if plain(getattr(self, name)) != plain(getattr(other, name))]


def documented(kind: Kind) -> Kind:
    """Add every option of a class to its docstring."""
    lines = []
    for known in options_of(kind).values():
        about = "; ".join(filter(None, (known.range_and_default, ", ".join(known.choices))))
        text = f"{known.name}: {known.help}" + (f" [{about}]" if about else "")
        lines += textwrap.wrap(text, 116, initial_indent="    ", subsequent_indent="        ")
    start, _, rest = (kind.__doc__ or "").partition("\n")
    kind.__doc__ = "\n".join([start, textwrap.dedent(rest).rstrip(), "", "Args:", *lines, ""])
    return kind


def plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


@functools.cache
def _parsed(within: str) -> tuple[str, str, float, float, str]:
    """(value besides, "(" or "[", low, high, ")" or "]") of an interval."""
    match = _WITHIN.fullmatch(within)
    if match is None:
        raise ValueError(f"{within!r} is no interval")
    besides, opens, low, high, closes = match.groups()
    return besides or "", opens, float(low), float(high), closes


def _parse(kind: Any, text: str) -> Any:
    """A text as a number or what else it should be; None where it is none."""
    try:
        return kind(text)
    except ValueError:
        return None


def _text(kind: Any) -> str:
    """A kind as it is annotated."""
    if typing.get_origin(kind) in _UNIONS:
        return " | ".join(map(_text, typing.get_args(kind)))
    if kind is type(None):
        return "None"
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else ""
    return "" if default in (None, (), "", {}) else _written(default)


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
