"""Options as data: what a declaration accepts, how it is written down and read again, and what does not go together."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l0prune.cli.bench import BenchOptions
from l0prune.cli.request import ModelOptions, RunOptions
from l0prune.errors import ConfigError
from l0prune.finetuning.config import FinetuneConfig
from l0prune.options import GROUPS, Domain, Options, Rule, documented, option, options_of

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from option_page import PAGE, page

sys.path.pop()

ALL = (ModelOptions, RunOptions, FinetuneConfig, BenchOptions)


@documented
@dataclass(frozen=True)
class Tea(Options):
    """How tea is made."""

    minutes: float = option(3.0, "Minutes that it draws.", within="(0, inf)")
    cups: int | str = option("auto", "Cups to fill; see `minutes`.", within="auto or [1, 8]")
    sugar: int = option(0, "Spoons of sugar.", within="0 or [2, inf)", key="spoons")
    kind: str = option("green", "Kind of tea.", choices=("green", "black"))
    times: tuple[float, ...] = option((), "Minutes at which it is stirred.")
    guests: dict[str, Any] = option({}, "Who is there.")
    pot: Path | None = option(None, "Picture of the pot.", shown="none")
    milk: bool = option(False, "Add milk.")

    rules = (
        Rule("times", "{minutes=1} leaves no time to stir it ({times})"),
        Rule("guests", "{guests} come for the {milk}, which is missing", unless=("milk",)),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"minutes": 0}, r"^minutes=0 is out of range: give a value in \(0, inf\)$"),
        ({"minutes": math.inf}, "minutes=inf is out of range"),
        ({"minutes": math.nan}, "minutes=nan is out of range"),
        ({"minutes": True}, r"^minutes=True: expected float, such as 3.0$"),
        ({"minutes": 10**400}, "expected float"),
        ({"cups": 0}, r"cups=0 is out of range: give a value in auto or \[1, 8\]"),
        ({"cups": "all"}, "cups='all' is out of range"),
        ({"cups": 2.0}, r"cups=2.0: expected int \| str"),
        ({"sugar": 1}, r"sugar=1 is out of range: give a value in 0 or \[2, 9223372036854775807\]"),
        ({"sugar": 2**63}, "sugar=9223372036854775808"),
        ({"kind": "red"}, "kind='red' is unknown: choose one of green, black"),
        ({"times": 3.0}, r"times=3.0: expected tuple\[float, ...\], such as \(\)"),
        ({"pot": 3}, r"pot=3: expected .*Path \| None$"),
        ({"milk": 1}, "milk=1: expected bool"),
        ({"minutes": 1, "times": (0.5,)}, r"^minutes=1 leaves no time to stir it \(times\)$"),
        ({"guests": {"Ada": 1}}, "^guests come for the milk, which is missing$"),
    ],
)
def test_what_cannot_be_meant_is_named_with_its_value_and_what_is_expected(values, message):
    with pytest.raises(ConfigError, match=message):
        Tea(**values)


def test_what_can_be_meant_is_taken():
    tea = Tea(minutes=1, sugar=0, guests={"Ada": (1, 2)}, milk=True, pot=Path("p"), cups=3)

    assert (tea.minutes, tea.guests, tea.pot) == (1, {"Ada": (1, 2)}, Path("p"))
    assert Tea(times=[1, 2]).times == (1.0, 2.0)


def test_options_come_back_from_json_by_their_keys():
    tea = Tea(minutes=1.5, sugar=2, times=(0.5, 1.0), guests={"Ada": [1, 2]}, milk=True, pot=Path("p"), cups=3)

    written = json.loads(json.dumps(tea.to_json()))

    assert written["spoons"] == 2
    assert Tea.from_json(written) == tea
    assert Tea.from_json({"sugar": 2, "times": "0.5,1", "minutes": None}) == Tea(sugar=2, times=(0.5, 1.0))


def test_what_has_no_effect_is_not_read_again():
    assert Tea.from_json({"minutes": 1, "times": [0.5]}) == Tea(minutes=1)


def test_an_unknown_key_is_an_error():
    with pytest.raises(ConfigError, match="there is no option 'lemon'; options: minutes, cups"):
        Tea.from_json({"lemon": 1})


def test_differences_are_named_once():
    assert [known.name for known in Tea(times=(1,)).differing(Tea(times=(1.0,), sugar=2))] == ["sugar"]


def test_the_docstring_has_every_option_with_what_is_known_of_it():
    text = " ".join((Tea.__doc__ or "").split())

    assert text.startswith("How tea is made. Args: minutes: Minutes that it draws. [default: 3; above 0]")
    assert "cups: Cups to fill; see `minutes`. [default: auto; in auto or [1, 8]]" in text
    assert "sugar: Spoons of sugar. [default: 0; 0, or 2 or more]" in text
    assert "milk: Add milk." in text


@given(value=st.floats(allow_nan=True) | st.integers(-3, 3))
def test_an_interval_holds_what_mathematics_says(value):
    for within, inside in (
        ("(0, 1]", 0 < value <= 1),
        ("[0, 1)", 0 <= value < 1),
        ("[-1, inf)", value >= -1 and not math.isinf(value)),
        ("0 or [2, inf)", value == 0 or (value >= 2 and not math.isinf(value))),
    ):
        try:
            Domain(float, within).accept(value)
            accepted = True
        except ValueError:
            accepted = False
        assert accepted == inside, (within, value)


@pytest.mark.parametrize(
    ("domain", "text", "value"),
    [
        (Domain(float), "0.5", 0.5),
        (Domain(int, "[1, inf)"), "7", 7),
        (Domain(int | str, "auto or [1, inf)"), "auto", "auto"),
        (Domain(int | str | None, "auto or [1, inf)"), "8", 8),
        (Domain(tuple[int, ...] | None, "[1, inf)"), "3,32", (3, 32)),
        (Domain(tuple[float, ...]), "", ()),
    ],
)
def test_texts_are_read(domain, text, value):
    assert domain.parse(text) == value
    assert type(domain.parse(text)) is type(value)


@pytest.mark.parametrize(
    ("domain", "text", "message"),
    [
        (Domain(float), "much", " is no number"),
        (Domain(float, "[0, inf)"), "nan", " is out of range"),
        (Domain(int), "1.5", " is no whole number"),
        (Domain(int, "[0, inf)"), "9223372036854775808", ": expected int"),
        (Domain(int | str, "auto or [1, inf)"), "0", " is out of range"),
        (Domain(tuple[int, ...], "[1, inf)"), "3,x", " is no whole number"),
        (Domain(tuple[int, ...], "[1, inf)"), "3,0", " is out of range"),
    ],
)
def test_texts_that_cannot_be_meant_are_not(domain, text, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        domain.parse(text)


@pytest.mark.parametrize("kind", ALL)
def test_every_option_is_declared_in_full(kind):
    for known in options_of(kind).values():
        assert known.help.endswith("."), known.name
        assert known.help[0].isupper(), known.name
        assert known.group in (("",) if kind is BenchOptions else GROUPS), known.name
        assert known.about(lambda other, kind=kind: options_of(kind)[other].name)
        assert known.accept(known.default) == known.default
        assert f"{known.name}: " in (kind.__doc__ or "")


def test_names_and_flags_of_a_run_are_its_own():
    options = [known for kind in ALL[:3] for known in options_of(kind).values()]

    for names in ([known.name for known in options], [known.flag for known in options if known.flag]):
        assert len(set(names)) == len(names)


def test_the_page_of_all_options_is_as_they_are_declared():
    assert PAGE.read_text(encoding="utf-8") == page(), "run make options"
