"""What would fail after the gate phase is found before the first step."""

import pytest
import torch
import torch.nn.functional as F
from finetuning_case import BUDGET, N_CLASSES, QUICK, SmallBatches, SmallNet, assert_same_state, state
from torch import Tensor, nn

import l0prune
from l0prune.errors import ConfigError


class Auxiliary(SmallNet):
    """A second classifier reads the first convolution, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(8, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + self.auxiliary(self.conv1(x).mean((2, 3))) if self.training else logits


class BrokenInTraining(SmallNet):
    """Fails in training whether it is cut or not."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("not made to be trained")
        return super().forward(x)


def run(model: nn.Module, **options):
    flow = l0prune.trace(model, torch.randn(2, 3, 6, 6), **options)
    gated = l0prune.inject(model, flow)
    before = state(gated)
    batches = SmallBatches()
    return gated, before, lambda: l0prune.finetune(gated, batches, loss=F.cross_entropy, budget=BUDGET, config=QUICK)


def test_a_branch_of_training_mode_that_does_not_fit_the_cut_is_refused_before_training():
    gated, before, train = run(Auxiliary())

    with pytest.raises(ConfigError, match=r"Auxiliary in training mode has a branch .* \(RuntimeError: .*`ignore`"):
        train()

    assert_same_state(state(gated), before)


def test_the_same_branch_is_trained_where_what_feeds_it_is_not_gated():
    _, _, train = run(Auxiliary(), ignore=["conv1"])

    result = train()

    assert result.compact.conv2.out_channels < 12
    assert result.compact.conv1.out_channels == 8


def test_a_network_that_cannot_be_trained_at_all_fails_with_its_own_error():
    _, _, train = run(BrokenInTraining())

    with pytest.raises(ValueError, match="not made to be trained"):
        train()
