"""What a gated and a cut model are compared on: inputs given, noise, other sizes, other paths; weights trained and re-drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import nn

from l0prune.gated.model import GatedModel
from l0prune.kept import Kept
from l0prune.look.free_sizes import other_images
from l0prune.look.recording import variations
from l0prune.model_call import ModelCall
from l0prune.surgery.equivalence import difference_between, random_like
from l0prune.surgery.plan import SurgeryPlan
from l0prune.surgery.reaction import Units
from l0prune.surgery.redrawn import DrawnWeights
from l0prune.surgery.trial import Outcome, Trial

__all__ = ["Trials"]

_NEGATIVE = (0.0, 0.25, 0.0)
"""For every draw of weights, the share of negative numbers in vectors: activation functions shut some units, or few."""

_ALWAYS = 2
"""Draws that are compared at in any case; the others until every unit has moved an output."""

_MOST_ROWS = 16
_SMALL = 16384
"""Rows of noise, if the batch is free, as long as the inputs have no more than `_SMALL` numbers: two rows show little."""

_LARGEST_DOUBLE = 200_000_000
"""Parameters beyond which re-drawn weights keep the type of the trained ones, for the memory."""

_N_PATHS = 3
"""Inputs on which a model with conditions is compared at re-drawn weights."""

_Draw = tuple[int, torch.dtype | None]
"""Number and type of re-drawn weights."""


class Trials:
    """The calls on which compact models are compared with a gated one. What the gated one computes is computed once.

    At the trained weights they are compared on the inputs given and on noise; at re-drawn ones, where no layer is too small to
    show a wrong cut, on noise and, if sizes were rewritten, on other sizes. The first draw is computed in double precision where
    the model can be: that is sharp. Graphs, in which types are written down, keep that of the model, and so do models of over
    200 million parameters. A model without a graph is compared on several paths; at re-drawn weights on those that were taken
    at the trained ones, if they are known.

    Args:
        reference: The gated model, its gates at the values to compare at.
        plan: The cut.
        kept: Units that stay.
        given: Inputs to compare on, and in the place of which noise is put.
        traced: The inputs the model was traced with, from which other sizes and paths are made.
        tolerance: Largest relative difference allowed in the precision of the model.
    """

    def __init__(
        self,
        reference: GatedModel,
        plan: SurgeryPlan,
        kept: Kept,
        *,
        given: ModelCall,
        traced: ModelCall,
        tolerance: float,
    ) -> None:
        self._reference, self._plan, self._kept = reference, plan, kept
        self._given, self._traced, self._tolerance = given, traced, tolerance
        self._weights: dict[_Draw, DrawnWeights] = {}
        self._on_draws: dict[_Draw, list[Trial]] = {}
        self._sizes: dict[tuple[torch.dtype | None, bool], list[Trial]] = {}

    def outcome(self, compact: nn.Module, used: SurgeryPlan) -> Outcome:
        """The first that does not agree, or the worst; NaN counts only if the given inputs give it.

        Args:
            compact: The compact model.
            used: The plan it was cut by.

        Raises:
            L0PruneError: what is wrong with the inputs, not with the model.
        """
        worst = self._first.outcome(compact)
        if math.isnan(worst.difference.max_rel):
            return worst
        for trial in self._further(used):
            if not worst.agrees:
                break
            worst = max(worst, trial.outcome(compact), key=lambda outcome: outcome.excess)
        return worst

    def agree(self, compact: nn.Module, used: SurgeryPlan) -> bool:
        """Whether a compact model runs, and computes what the gated one does."""
        return self.outcome(compact, used).agrees

    @property
    def draws_random_numbers(self) -> bool:
        """Whether the model draws random numbers when it is evaluated; every call is given the same."""
        return self._first.run.drew

    @property
    def is_unsteady(self) -> bool:
        """Whether the gated model differs from itself, called twice on the same inputs and with the same random numbers."""
        again = Trial(self._reference, self._given, self._tolerance)
        return not difference_between(self._first.run.outputs, again.run.outputs).max_rel <= self._tolerance

    @cached_property
    def not_compared(self) -> dict[str, int]:
        """Units that moved no output in any trial, so that the comparison says nothing of them: where -> how many."""
        silent = np.flatnonzero(~self._reaction[1])
        names = self._reference.flow.gate_names if len(silent) else []
        return dict(Counter(names[int(gate)] for gate in silent))

    def _further(self, used: SurgeryPlan) -> Iterator[Trial]:
        """All but the first; those that most often tell come before the others."""
        n_draws, _ = self._reaction
        if self._reference.flow.refusal:
            yield from self._paths
            for draw in range(n_draws):
                yield from self._on_known_paths(draw)
            return
        dtype = None if used.form == "graph" else self._dtype
        yield from self._on_noise(0, dtype)
        for draw in range(1, n_draws):
            yield from self._on_noise(draw, None)
        yield from self._trained_on_noise
        if used.is_rewritten:
            images = bool(used.drops) and used.form == "in-place"
            if (dtype, images) not in self._sizes:
                self._sizes[dtype, images] = list(self._other_sizes(dtype, images=images))
            yield from self._sizes[dtype, images]

    @cached_property
    def _first(self) -> Trial:
        return Trial(self._reference, self._given, self._tolerance)

    @cached_property
    def _paths(self) -> list[Trial]:
        """Of a model without a graph: calls that show other paths, at the trained weights."""
        trials = (Trial(self._reference, call, self._tolerance) for call in variations(self._traced))
        return [trial for trial in trials if trial.is_accepted]

    @cached_property
    def _trained_on_noise(self) -> list[Trial]:
        trials = (Trial(self._reference, call, self._tolerance) for call in self._noise(0))
        return list(islice((trial for trial in trials if trial.is_accepted), 1))

    @cached_property
    def _reaction(self) -> tuple[int, Units]:
        """How many draws of weights it takes until every unit has moved an output, and the units that have."""
        found: Units = np.zeros(self._reference.n_gates, dtype=bool)
        last = self._first
        for draw in range(len(_NEGATIVE)):
            for trial in self._on_known_paths(draw) if self._reference.flow.refusal else self._on_noise(draw, None):
                found = found if found.all() else found | trial.reacting()
                last = trial
            if found.all():
                return max(draw + 1, _ALWAYS), found
        return len(_NEGATIVE), last.reacting_after_all(found)

    @cached_property
    def _dtype(self) -> torch.dtype | None:
        """Double precision for re-drawn weights, if the model runs in it; None for its own."""
        parameters = [tensor for tensor in self._reference.model.parameters() if tensor.is_floating_point()]
        is_double = all(tensor.dtype == torch.float64 for tensor in parameters)
        if is_double or sum(tensor.numel() for tensor in parameters) > _LARGEST_DOUBLE:
            return None
        return torch.float64 if self._on_noise(0, torch.float64) else None

    def _on_noise(self, draw: int, dtype: torch.dtype | None) -> list[Trial]:
        """One trial at re-drawn weights: on noise, or on the inputs given if the model does not take noise."""
        if (draw, dtype) not in self._on_draws:
            calls = (*self._noise(draw + 1), self._given)
            trials = (self._at_draw(draw, dtype, call) for call in calls)
            self._on_draws[draw, dtype] = list(islice((trial for trial in trials if trial.is_accepted), 1))
        return self._on_draws[draw, dtype]

    def _noise(self, seed: int) -> Iterator[ModelCall]:
        """Noise in the place of the inputs given, first with more rows, if that costs little."""
        n_numbers = sum(tensor.numel() for tensor in self._given.tensors)
        batch = self._given.batch_size or 0
        rows = min(_MOST_ROWS, _SMALL * batch // max(n_numbers, 1))
        if self._reference.flow.captured.free.has_batch and rows > batch > 0:
            wider = self._given.with_batch(rows)
            yield ModelCall(*random_like(wider.args, wider.kwargs, seed=seed))
        yield ModelCall(*random_like(self._given.args, self._given.kwargs, seed=seed))

    def _on_known_paths(self, draw: int) -> list[Trial]:
        """Trials at re-drawn weights where the model goes through the ops that it does at the trained ones, on some input."""
        if self._reference.flow.tracer != "recording":
            return []
        if (draw, None) not in self._on_draws:
            known = {trial.run.path for trial in [self._first, *self._paths]}
            trials = (self._at_draw(draw, None, call) for call in islice(variations(self._traced), _N_PATHS))
            self._on_draws[draw, None] = [t for t in trials if t.is_accepted and t.run.path in known]
        return self._on_draws[draw, None]

    def _other_sizes(self, dtype: torch.dtype | None, *, images: bool) -> Iterator[Trial]:
        """Another batch size, longer lengths, and images of another size where what stands for modules has to follow it."""
        free = self._reference.flow.captured.free
        resized = other_images(self._traced) if images else iter(())
        for calls in (free.elsewhere(self._traced), free.longer(self._traced), resized):
            trials = (self._at_draw(0, dtype, call) for call in calls)
            yield from islice((trial for trial in trials if trial.is_accepted), 1)

    def _at_draw(self, draw: int, dtype: torch.dtype | None, call: ModelCall) -> Trial:
        if (draw, dtype) not in self._weights:
            self._weights[draw, dtype] = DrawnWeights(
                self._reference, self._plan, self._kept, seed=draw, dtype=dtype, negative=_NEGATIVE[draw]
            )
        return Trial(self._reference, call, self._tolerance, self._weights[draw, dtype])
