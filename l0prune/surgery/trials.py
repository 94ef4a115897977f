"""What a gated and a cut model are compared on: given inputs, noise, other sizes, other paths."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from l0prune.flow.recording import variations
from l0prune.gated.model import GatedModel
from l0prune.model_call import ModelCall, evaluation_mode
from l0prune.surgery.equivalence import Difference, compare, random_like

__all__ = ["difference_between"]


def difference_between(
    reference: GatedModel, compact: nn.Module, given: ModelCall, traced: ModelCall, *, in_graph: bool
) -> Difference:
    """The worst difference over all trials; trials that give NaN count only if the given inputs do.

    Args:
        reference: The gated model.
        compact: The cut one.
        given: Inputs to compare on, and in the place of which noise is put.
        traced: The inputs the model was traced with, from which other sizes and paths are made.
        in_graph: Whether `compact` is a graph, whose sizes were rewritten.
    """
    worst = compare(reference, compact, given.args, given.kwargs)
    for call in (ModelCall(*random_like(given.args, given.kwargs, seed=1)), *_others(reference, traced, in_graph)):
        if math.isnan(worst.max_rel):
            return worst
        found = compare(reference, compact, call.args, call.kwargs)
        worst = worst if math.isnan(found.max_rel) or found.max_rel <= worst.max_rel else found
    return worst


def _others(reference: GatedModel, traced: ModelCall, in_graph: bool) -> Iterator[ModelCall]:
    """Calls at another batch size and other lengths; for a model without a graph, those that show other paths."""
    if reference.flow.refusal:
        yield from (call for call in variations(traced) if _accepts(reference, call))
    elif in_graph:
        sizes = reference.flow.captured.free.elsewhere(traced)
        yield from [call for call in sizes if _accepts(reference, call)][:1]


def _accepts(model: nn.Module, call: ModelCall) -> bool:
    """Whether a model runs: a length may be free in the graph and still not fit a table."""
    try:
        with evaluation_mode(model), torch.no_grad():
            call(model)
    except (RuntimeError, IndexError):
        return False
    return True
