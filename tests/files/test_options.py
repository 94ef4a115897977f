"""Options as data: what a declaration accepts, how it is written down and read again, and what does not go together."""

import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from l0prune.cli.bench import BenchOptions
from l0prune.cli.finetune import RULES, finetune_command
from l0prune.cli.main import cli
from l0prune.cli.model_options import ModelOptions
from l0prune.cli.request import RunOptions
from l0prune.cli.verify import VerifyOptions
from l0prune.errors import ConfigError
from l0prune.finetuning.config import FinetuneConfig
from l0prune.options import GROUPS, Option, Options, Rule, documented, option, options_of

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from option_page import PAGE, page

sys.path.pop()

ALL = (ModelOptions, RunOptions, FinetuneConfig, BenchOptions, VerifyOptions)


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
    assert Tea(times=(1,)).differing(Tea(times=(1.0,), sugar=2)) == ["sugar"]


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
            Option(kind=float, within=within).accept(value)
            accepted = True
        except ConfigError:
            accepted = False
        assert accepted == inside, (within, value)


@pytest.mark.parametrize(
    ("known", "text", "value"),
    [
        (Option(kind=float), "0.5", 0.5),
        (Option(kind=int, within="[1, inf)"), "7", 7),
        (Option(kind=int | str, within="auto or [1, inf)"), "auto", "auto"),
        (Option(kind=int | str | None, within="auto or [1, inf)"), "8", 8),
        (Option(kind=tuple[int, ...] | None, within="[1, inf)"), "3,32", (3, 32)),
        (Option(kind=tuple[float, ...]), "", ()),
    ],
)
def test_texts_are_read(known, text, value):
    assert known.parse(text) == value
    assert type(known.parse(text)) is type(value)


@pytest.mark.parametrize(
    ("known", "text", "message"),
    [
        (Option(kind=float), "much", " is not a number"),
        (Option(kind=float, within="[0, inf)"), "nan", " is out of range"),
        (Option(kind=int), "1.5", " is not a whole number"),
        (Option(kind=int, within="[0, inf)"), "9223372036854775808", ": expected int"),
        (Option(kind=int | str, within="auto or [1, inf)"), "0", " is out of range"),
        (Option(kind=tuple[int, ...], within="[1, inf)"), "3,x", " is not a whole number"),
        (Option(kind=tuple[int, ...], within="[1, inf)"), "3,0", " is out of range"),
    ],
)
def test_texts_that_cannot_be_meant_are_not(known, text, message):
    with pytest.raises(ConfigError, match=message):
        known.parse(text)


@pytest.mark.parametrize("kind", ALL)
def test_every_option_is_declared_in_full(kind):
    for known in options_of(kind).values():
        assert known.help.endswith("."), known.name
        assert known.help[0].isupper(), known.name
        assert known.group in (GROUPS if kind in ALL[:3] else ("",)), known.name
        assert known.about(lambda other, kind=kind: options_of(kind)[other].name)
        assert known.accept(known.default) == known.default
        assert f"{known.name}: " in (kind.__doc__ or "")


def test_names_and_flags_of_a_run_are_its_own():
    options = [known for kind in ALL[:3] for known in options_of(kind).values()]

    for names in ([known.name for known in options], [known.flag for known in options if known.flag]):
        assert len(set(names)) == len(names)


def test_the_page_of_all_options_is_as_they_are_declared():
    assert PAGE.read_text(encoding="utf-8") == page(), "run make options"


def test_the_help_of_finetune_has_headings_and_the_most_used_first():
    text = CliRunner().invoke(cli, ["finetune", "--help"]).stdout
    headings = [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    first = text.partition("Most used:")[2].partition("\n\n")[0]

    assert headings == [*GROUPS, "General"]
    assert [line.split()[0] for line in first.splitlines() if line.startswith("  --")] == [
        *(
            "--weights",
            "--data",
            "--budget",
            "--quality",
            "--batch-size",
            "--epochs",
            "--method",
            "--lr",
            "--out",
            "--resume",
        )
    ]
    assert "Epochs with all gates open, before they are learned (part of --epochs)" in " ".join(text.split())


def test_every_flag_of_a_run_is_in_the_help_once():
    words = CliRunner().invoke(cli, ["finetune", "--help"]).stdout
    flags = [line.split()[0] for line in words.splitlines() if line.startswith("  --")]
    declared = [known.flag for kind in ALL[:3] for known in options_of(kind).values() if known.flag]

    assert set(declared) - {"MODEL"} <= set(flags)
    assert len(set(flags)) == len(flags)


@pytest.mark.parametrize(
    ("values", "typed", "in_python", "on_the_command_line"),
    [
        (
            {"distillation": 0, "feature_distillation": 1.0},
            ["--no-distillation", "--feature-distillation", "1"],
            "distillation=0 leaves nothing for feature_distillation to do",
            "--no-distillation leaves nothing for --feature-distillation to do",
        ),
        (
            {"distillation": 0.0, "distillation_temperature": 2.0},
            ["--from-scratch", "--distillation-temperature", "2"],
            "distillation=0 leaves nothing for distillation_temperature to do",
            "--from-scratch leaves nothing for --distillation-temperature to do",
        ),
        (
            {"distillation": 0.0, "distillation_temperature": 2.0},
            ["--distillation-weight", "0", "--distillation-temperature", "2"],
            "distillation=0 leaves nothing for distillation_temperature to do",
            "--distillation-weight 0 leaves nothing for --distillation-temperature to do",
        ),
        (
            {"lr_drop_factor": 0.5},
            ["--lr-drop-factor", "0.5"],
            "lr_drop_factor says how far the learning rate falls at lr_drops, which is missing",
            "--lr-drop-factor says how far the learning rate falls at --lr-drops, which is missing",
        ),
        (
            {"lr_drops": (1.0,), "gate_lr_end": 0.5},
            ["--lr-drops", "1", "--gate-lr-end", "0.5"],
            "gate_lr_end is the end of the ramp and cosine that lr_drops replaces",
            "--gate-lr-end is the end of the ramp and cosine that --lr-drops replaces",
        ),
    ],
)
def test_one_rule_speaks_to_python_and_to_the_command_line(values, typed, in_python, on_the_command_line):
    with pytest.raises(ConfigError, match=in_python):
        FinetuneConfig(**values)
    given = ["finetune", "lenet5", "--data", "digits", "--budget", "macs=0.5", "--out", "run", *typed]
    result = CliRunner().invoke(cli, given)

    assert result.exit_code == 2
    assert on_the_command_line in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["--epochs", "-1"], "'--epochs': -1.0 is out of range: give a value in [0, inf)"),
        (["--epochs", "nan"], "'--epochs': nan is out of range"),
        (["--seed", "1.5"], "'--seed': '1.5' is not a whole number"),
        (["--seed", "9223372036854775808"], "'--seed': 9223372036854775808: expected int"),
        (["--align", "wide"], "'--align': 'wide' is out of range: give a value in auto or [1, inf)"),
        (["--mean", "0.5,inf"], "'--mean': (0.5, inf) is out of range"),
        (["--input-shape", "3,0"], "'--input-shape': (3, 0) is out of range"),
        (["--lr-drops", "60;120"], "'--lr-drops': '60;120' is not a number"),
        (["--precision", "fp8"], "'--precision': 'fp8' is not one of 'no', 'bf16', 'fp16'"),
    ],
)
def test_what_cannot_be_typed_is_wrong_usage_that_names_flag_value_and_range(typed, named):
    result = CliRunner().invoke(cli, ["finetune", "--out", "run", "--resume", *typed])

    assert result.exit_code == 2
    assert named in " ".join(result.stderr.split())


def test_what_a_rule_names_is_there():
    parameters = {parameter.name for parameter in finetune_command.params}

    for rule in (*FinetuneConfig.rules, *RULES):
        named = {*re.findall(r"\{(\w+)", rule.sentence), rule.pointless, *rule.unless}
        assert named <= parameters, rule.sentence
