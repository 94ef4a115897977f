"""The recipes of CONTRIBUTING.md name files, targets and tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`((?:l0prune|cli|tests|docs|benchmarks|\.ci)/[\w./-]+)`", TEXT)))
TARGETS = sorted(set(re.findall(r"(?:`|^    )make ([a-z-]+)", TEXT, re.MULTILINE)))


@pytest.mark.parametrize("path", [path for path in PATHS if not re.search("FAMILY|NAME", path)])
def test_what_a_recipe_names_is_there(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", TARGETS)
def test_targets_that_are_named_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_a_recipe_for_each_kind_of_addition():
    assert re.findall(r"^## Add an? (.+)$", TEXT, re.MULTILINE) == [
        "operation",
        "gate",
        "criterion",
        "cost metric",
        "task",
        "option",
    ]
    assert len(PATHS) > 15
