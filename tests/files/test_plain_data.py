"""Dataclasses from JSON: every field of its kind, or an error that names the place."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from l0prune.errors import FileFormatError
from l0prune.plain_data import from_plain, read_fields


@dataclass(frozen=True)
class Inner:
    """A part."""

    size: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    """The whole."""

    name: str
    parts: tuple[Inner, ...]
    by_number: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    pair: tuple[int, str] | None = None
    open: bool = False
    rest: Any = None


def test_objects_become_dataclasses_and_lists_tuples():
    data = {
        "name": "x",
        "parts": [{"size": 1}, {"size": 2, "share": 1}],
        "by_number": {"3": [[0, 1], [2, 4]]},
        "pair": [1, "a"],
    }

    assert read_fields(Outer, data, "file") == Outer("x", (Inner(1), Inner(2, 1.0)), {3: ((0, 1), (2, 4))}, (1, "a"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "file, name is 1, expected text"),
        ({"name": "x" * 10_000, "open": 1}, "file, open is 1, expected true or false"),
        ({"parts": {}}, "file, parts is a dict, expected a list"),
        ({"parts": [{"size": True}]}, r"file, parts\[0\], size is True, expected a whole number"),
        ({"parts": [{"size": 1.0}]}, r"parts\[0\], size is 1.0, expected a whole number"),
        ({"parts": [{"size": 2**63}]}, r"parts\[0\], size is 9223372036854775808, expected a whole number"),
        ({"parts": [{"size": 1, "share": float("nan")}]}, r"parts\[0\], share is nan, expected a number"),
        ({"parts": [{"size": 1, "share": 10**400}]}, r"parts\[0\], share is 1000"),
        ({"parts": [{"size": 1, "colour": 2}]}, r"parts\[0\] has missing or unknown keys: colour"),
        ({"parts": [{}]}, r"parts\[0\] has missing or unknown keys: size"),
        ({"parts": [7]}, r"parts\[0\] is 7, expected an object with size, share"),
        ({"by_number": {"x": []}}, "by_number has the key 'x', expected a number"),
        ({"by_number": {"1": [[1, 2, 3]]}}, "by_number, 1.*expected a list"),
        ({"by_number": {"1": [[1, 10**400]]}}, "by_number, 1.*expected a whole number"),
        ({"pair": [1]}, "pair is a list, expected a list or null"),
        ({"pair": 0}, "pair is 0, expected a list or null"),
        ({"extra" * 5000: 0}, "missing or unknown keys: extraextra"),
    ],
)
def test_what_is_of_another_kind_is_named_in_few_words(change, message):
    with pytest.raises(FileFormatError, match=message) as caught:
        read_fields(Outer, {"name": "x", "parts": []} | change, "file", remedy="do this")

    assert len(str(caught.value)) < 300
    assert str(caught.value).endswith("do this") or "expected a number" in message


def test_numbers_that_are_not_finite_may_be_allowed():
    assert from_plain(float, float("inf"), "x", finite=False) == float("inf")
    assert from_plain(Path | None, "a/b", "x") == Path("a/b")
    with pytest.raises(FileFormatError):
        from_plain(Path, "a\0b", "x")
