"""The page docs/operations.md is what the rules say; networks of kinds that the coverage table does not hold are cut."""

import sys
from pathlib import Path

import pytest
import torch
from flow_case import assert_cut_exactly
from torch.utils import _pytree as pytree

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from operations import PAGE, WITHOUT_RULE, has_rule, operations_of, read, render, rules_by_family
from operations_models import OWN_CASES

sys.path.pop()

REACH = 0.97
"""Share of the parameters of each of the networks that some gate can remove, at least."""

LARGE = ("conformer", "diffusion-unet", "yolov8")
EACH = [pytest.param(case.name, marks=pytest.mark.slow if case.name in LARGE else ()) for case in OWN_CASES]


def test_the_page_is_what_the_rules_and_the_networks_give():
    assert PAGE.read_text(encoding="utf-8") == render(read())


def test_somebody_has_said_what_becomes_of_every_operation():
    assert [name for name in read() if not has_rule(name) and name not in WITHOUT_RULE] == []


def test_no_operation_is_said_to_have_no_rule_although_it_has_one():
    assert [name for name in WITHOUT_RULE if has_rule(name)] == []


def test_every_family_of_rules_is_on_the_page():
    page = render(read())

    for family, rules in rules_by_family().items():
        assert (f"## {family}\n" in page) == bool(rules)
    assert "`max_unpool2d`" in page


def test_operations_on_sizes_are_not_counted():
    program = torch.export.export(
        torch.nn.Flatten(), (torch.ones(3, 2, 2),), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False
    )

    assert operations_of(program) == {"flatten"}


@pytest.mark.parametrize("name", EACH)
def test_detectors_unets_speech_and_mixtures_are_cut(name):
    case = next(case for case in OWN_CASES if case.name == name)
    net = case.build()
    x = pytree.tree_map(lambda t: t.double() if t.is_floating_point() else t, case.inputs(net))

    flow = assert_cut_exactly(net, x, forms=[None, "graph"])

    assert flow.prunable_fraction > REACH
    assert not flow.unknown_ops
