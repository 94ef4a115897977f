"""The page about criteria names them all, and its example runs."""

import re
from pathlib import Path

import pytest
from finetuning_case import run

from l0prune.criteria import registry
from l0prune.criteria.registry import criterion_names, load_criterion
from l0prune.finetuning.config import FinetuneConfig

PAGE = (Path(__file__).parents[2] / "docs" / "criteria.md").read_text()


def test_the_table_has_every_criterion_and_what_its_scores_are_compared_with():
    rows = dict(re.findall(r"^\| `(\w[\w-]*)` \|.*\| ([\w ]+) \|$", PAGE, re.MULTILINE))

    found = {name: load_criterion(name).within_widths for name in criterion_names()}
    assert found == {name: compared == "within its width" for name, compared in rows.items()}


def test_the_example_of_a_criterion_of_ones_own_chooses_units():
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], {"__name__": "example"})
    try:
        result = run(config=FinetuneConfig(epochs=0.2, align=1, method="last-first"))
    finally:
        del registry._registered["last-first"]

    is_open = result.gated.gate_values() != 0
    assert is_open[-1]
    assert not is_open[0]


def test_names_are_listed_without_what_was_registered_elsewhere():
    assert "last-first" not in criterion_names()
    with pytest.raises(Exception, match="unknown criterion 'last-first'; use one of: bn-scale"):
        load_criterion("last-first")
