"""Before a run: the cut is made once with half of the gates closed, and what is left takes a step's forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from l0prune.errors import ConfigError, first_line
from l0prune.finetuning.batches import place
from l0prune.gated.model import GatedModel
from l0prune.goals.as_trained import covered
from l0prune.model_call import copy_of, set_mode
from l0prune.surgery.shrink import shrink, with_values
from l0prune.tasks.task import Task

__all__ = ["rehearse_cut"]


def rehearse_cut(gated: GatedModel, inputs: Any, targets: Any, task: Task) -> None:
    """See that the network will be there to recover after the cut, which is otherwise known only after the gate phase.

    The cut follows the network in evaluation mode. A branch that runs in training mode only, such as an auxiliary
    classifier, does not fit the network that was cut.

    Args:
        gated: On the CPU; not changed.
        inputs: Two rows of a batch.
        targets: Theirs.
        task: What it is trained for.

    Raises:
        ConfigError: the cut network cannot run in training mode although the dense one can.
        EquivalenceError: the network cannot be cut.
    """
    scores = gated.gates.log_alpha.detach().double().cpu().numpy()
    upper = np.argsort(np.argsort(scores)) >= gated.n_gates // 2
    kept = covered(upper, scores, gated.flow.dimensions)
    half = with_values(gated, kept.astype(np.float64))
    half.set_budget(None, None)  # of the copy: half of the gates may cost more
    compact = shrink(half)
    inputs, targets = (place(part, torch.device("cpu"), channels_last=False) for part in (inputs, targets))
    failure = _failure(compact, inputs, targets, task)
    if failure is not None and _failure(copy_of(gated.model), inputs, targets, task) is None:
        raise ConfigError(
            f"{type(gated.model).__name__} in training mode has a branch that it has not in evaluation mode, which does not"
            f" fit the network that will be cut ({first_line(failure, named=True)}): switch the branch off, or keep what"
            " feeds it with `ignore`"
        ) from failure


def _failure(model: nn.Module, inputs: Any, targets: Any, task: Task) -> Exception | None:
    """What a training step of a model that is not needed any more fails with."""
    set_mode(model, training=True)
    try:
        with torch.no_grad():
            task.loss(task.call(model, inputs, targets), targets)
    except Exception as error:  # noqa: BLE001 - whatever a branch meets that does not fit
        return error
    return None
