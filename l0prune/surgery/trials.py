"""What a gated and a cut model are compared on: given inputs, noise, other sizes, other paths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from l0prune.errors import L0PruneError
from l0prune.flow.recording import variations
from l0prune.gated.model import GatedModel
from l0prune.model_call import ModelCall, evaluation_mode
from l0prune.surgery.equivalence import Difference, compare, random_like

__all__ = ["Trials"]


@dataclass(frozen=True, eq=False)
class Trials:
    """The calls on which compact models are compared with a gated one.

    Attributes:
        reference: The gated model.
        given: Inputs to compare on, and in the place of which noise is put.
        traced: The inputs the model was traced with, from which other sizes and paths are made.
        elsewhere: Whether sizes of the model were rewritten, in its graph or as integers, so that other batches and lengths
            than those of the inputs say more.
    """

    reference: GatedModel
    given: ModelCall
    traced: ModelCall
    elsewhere: bool

    def difference(self, compact: nn.Module) -> Difference:
        """The worst difference over all trials; trials that give NaN count only if the given inputs do."""
        worst = compare(self.reference, compact, self.given.args, self.given.kwargs)
        for call in self._calls:
            if math.isnan(worst.max_rel):
                return worst
            found = compare(self.reference, compact, call.args, call.kwargs)
            worst = worst if math.isnan(found.max_rel) or found.max_rel <= worst.max_rel else found
        return worst

    def difference_or_error(self, compact: nn.Module) -> tuple[Difference, Exception | None]:
        """The same; infinite, with the error, where the model does not run: a class may have sizes in its code.

        Raises:
            L0PruneError: what is wrong with the inputs, not with the model.
        """
        try:
            return self.difference(compact), None
        except L0PruneError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a class raises whose layers do not fit together
            return Difference(math.inf, math.inf, 0), error

    def agree(self, compact: nn.Module, *, tolerance: float) -> bool:
        """Whether a compact model runs, and differs by at most `tolerance` (relative)."""
        return self.difference_or_error(compact)[0].max_rel <= tolerance

    @cached_property
    def _calls(self) -> list[ModelCall]:
        """Noise; another batch size and other lengths; for a model without a graph, calls that show other paths."""
        calls = [ModelCall(*random_like(self.given.args, self.given.kwargs, seed=1))]
        flow = self.reference.flow
        if flow.refusal:
            return calls + [call for call in variations(self.traced) if _accepts(self.reference, call)]
        if not self.elsewhere:
            return calls
        free = flow.captured.free
        sizes = [call for call in free.elsewhere(self.traced) if _accepts(self.reference, call)][:1]
        return calls + sizes + [call for call in free.longer(self.traced) if _accepts(self.reference, call)][:1]


def _accepts(model: nn.Module, call: ModelCall) -> bool:
    """Whether a model runs: a length may be free in the graph and still not fit a table."""
    try:
        with evaluation_mode(model), torch.no_grad():
            call(model)
    except (RuntimeError, IndexError):
        return False
    return True
