"""The interface of a criterion: how much a trained network would miss each of its units, asked before anything is cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from l0prune.errors import ConfigError
from l0prune.gated.model import GatedModel
from l0prune.model_call import evaluation_mode

__all__ = ["Criterion", "Evidence", "score"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a criterion may look at beside the network.

    Attributes:
        examples: (inputs, targets) of some batches, on the network's device; can be iterated once.
        objective: (inputs, targets) to what training minimises, a scalar, differentiable in gates and weights.
        seed: Of everything random.
    """

    examples: Iterable[tuple[Any, Any]]
    objective: Callable[[Any, Any], Tensor]
    seed: int = 0


class Criterion(ABC):
    """Scores the units of a trained network; those with the lowest scores are closed first.

    A class of one's own has a name and `scores`, and is made known by `l0prune.criteria.registry.register`.
    """

    name: ClassVar[str]
    """What the registry and the command line call it."""

    within_widths: ClassVar[bool] = False
    """Whether scores can be compared only with those of the same width, so that all widths lose the same share."""

    per_cost: ClassVar[bool] = False
    """Whether a score is set against what the unit costs: of two that the network would miss alike, the cheaper one stays."""

    needs_examples: ClassVar[bool] = False
    """Whether it has to see data."""

    def check(self, gated: GatedModel) -> None:  # noqa: B027 - most fit every network
        """See that it has something to say about this network, which is not changed.

        Raises:
            ConfigError: it has not; says what is missing, and where.
        """

    @abstractmethod
    def scores(self, gated: GatedModel, evidence: Evidence) -> Tensor:
        """How much the network would miss each unit.

        Args:
            gated: The network, in evaluation mode and with all gates at 1. What is changed has to be put back.
            evidence: Data, the loss, and a seed.

        Returns:
            Shape `(n_gates,)`, finite, >= 0, higher for what should stay.
        """


def score(criterion: Criterion, gated: GatedModel, evidence: Evidence) -> Tensor:
    """The scores of a criterion, looked over.

    Args:
        criterion: Which one.
        gated: Afterwards as it was.
        evidence: What it may look at.

    Returns:
        Shape `(n_gates,)`, float64, finite, >= 0, on the network's device.

    Raises:
        ConfigError: they are of another shape, negative or no numbers; or all the same although there was data to tell units
            apart.
    """
    with _all_open(gated), evaluation_mode(gated):
        scores = criterion.scores(gated, evidence).detach()
    name = criterion.name
    if scores.shape != (gated.n_gates,):
        raise ConfigError(
            f"criterion {name!r} returned scores of shape {tuple(scores.shape)}; expected ({gated.n_gates},), one a gate"
        )
    scores = scores.to(gated.gates.log_alpha.device, torch.float64)
    wrong = ~(torch.isfinite(scores) & (scores >= 0))
    if bool(wrong.any()):
        gate = int(wrong.nonzero()[0])
        raise ConfigError(
            f"criterion {name!r} gives gate {gate}, of {gated.flow.gate_names[gate]!r}, the score {float(scores[gate]):g};"
            " expected a finite number >= 0"
        )
    if criterion.needs_examples and gated.n_gates > 1 and bool((scores == scores[0]).all()):
        raise ConfigError(
            f"criterion {name!r} finds no difference between the units: the loss has no gradient at the network as it is, as"
            " where it only compares with the network itself; choose a criterion that looks at weights, such as magnitude"
        )
    return scores


@contextmanager
def _all_open(gated: GatedModel) -> Iterator[None]:
    """Let all gates be 1 for a while."""
    bank, was_frozen, kept = gated.gates, gated.frozen, gated.gates.frozen_values.clone()
    bank.freeze(torch.ones_like(kept))
    try:
        yield
    finally:
        if was_frozen:
            bank.freeze(kept)
        else:
            bank.unfreeze()
