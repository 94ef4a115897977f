"""How the size of a result follows from that of an argument is read off calls of real layers at several sizes."""

import pytest
import torch
from torch import nn

from l0prune.surgery.size_rules import SizeRule

LAYERS = {
    "same": nn.Conv1d(2, 2, 3, padding=1),
    "halved, rounded up": nn.Conv1d(2, 2, 3, 2, 1),
    "halved, rounded down": nn.MaxPool1d(2),
    "without padding": nn.Conv1d(2, 2, 5),
    "in steps of three, without padding": nn.Conv1d(2, 2, 4, 3),
    "doubled": nn.Upsample(scale_factor=2),
    "doubled by windows": nn.ConvTranspose1d(2, 2, 4, 2, 1),
    "doubled and one": nn.ConvTranspose1d(2, 2, 3, 2),
    "one size for all": nn.Upsample(size=16),
    "one mean for all": nn.AdaptiveAvgPool1d(4),
    "twice halved": nn.Sequential(nn.Conv1d(2, 2, 3, 2, 1), nn.MaxPool1d(2)),
    "halved and doubled": nn.Sequential(nn.Conv1d(2, 2, 3, 2, 1), nn.Upsample(scale_factor=4)),
}


def result(layer: nn.Module, size: int) -> int:
    with torch.no_grad():
        return layer(torch.zeros(1, 2, size)).shape[-1]


@pytest.mark.parametrize("layer", [layer for name, layer in LAYERS.items() if name != "halved and doubled"], ids=str)
def test_a_rule_that_holds_at_four_sizes_holds_at_others(layer):
    rule = SizeRule.of((size, result(layer, size)) for size in (16, 8, 12, 17, 18, 31))

    assert rule is not None
    assert [rule(size) for size in range(8, 40)] == [result(layer, size) for size in range(8, 40)]


def test_one_size_for_all_is_not_taken_for_a_factor():
    assert SizeRule.of([(8, 16), (4, 16), (6, 16)]) == SizeRule(0, 16)
    assert SizeRule.of([(16, 4), (8, 4)]) == SizeRule(0, 4)
    assert SizeRule.of([(16, 16), (8, 16)]) == SizeRule(0, 16)


def test_the_simplest_rule_is_taken():
    assert SizeRule.of([(16, 16), (8, 8)]) == SizeRule()
    assert SizeRule.of([(16, 8), (8, 4)]) == SizeRule(1, 1, 2)
    assert SizeRule.of([(8, 16), (4, 8)]) == SizeRule(2)


def test_sizes_that_follow_no_rule_have_none():
    assert SizeRule.of([(8, 8), (9, 3)]) is None
    layer = LAYERS["halved and doubled"]
    assert SizeRule.of((size, result(layer, size)) for size in (16, 17, 18, 19, 21)) is None
