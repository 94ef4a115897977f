"""A plan whose last cut was made in a graph, applied to the class of the dense model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from l0prune.errors import L0PruneError
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.flow.trace import aliases_of, trace
from l0prune.gated.model import inject
from l0prune.kept import Kept
from l0prune.model_call import ModelCall
from l0prune.surgery.attributes import GUESSES, find_attributes
from l0prune.surgery.cuts import TensorCut, to_indices
from l0prune.surgery.in_place import cut_in_place
from l0prune.surgery.plan import SurgeryPlan, make_plan, named_tensors
from l0prune.surgery.ways import ways_to_cut

__all__ = ["ways_to_replay"]


def ways_to_replay(base: nn.Module, plan: SurgeryPlan, call: ModelCall) -> Iterator[tuple[nn.Module, SurgeryPlan]]:
    """Models to compare with the graph, each with the plan it was cut by.

    A graph has no integers of modules, so the plan lacks what the last cut would have changed of them: first the plan is taken
    without integers, then with those of the cuts before, then its integers and calls are found again, from a trace of the dense
    model.

    Args:
        base: The dense model; it is not changed.
        plan: The cut; its tensors stand.
        call: Inputs that the model runs on.
    """
    if plan.attributes:
        yield from _cut(base, replace(plan, attributes=()))
    yield from _cut(base, plan)
    try:
        flow = trace(base, call)
    except L0PruneError:
        return
    kept = _kept_units(flow, plan)
    found = make_plan(flow, base, kept.units.astype(np.float64), kept)
    if _known(found.tensors, base) == _known(plan.tensors, base):
        yield from ways_to_cut(inject(base, flow), found, kept, (call.args, call.kwargs), form="in-place")
        return
    for (
        guess
    ) in GUESSES:  # what had one group left was then cut by single channels, which are no units of the dense model
        yield from _cut(base, replace(plan, attributes=find_attributes(flow, base, kept, guess=guess)))


def _cut(base: nn.Module, plan: SurgeryPlan) -> Iterator[tuple[nn.Module, SurgeryPlan]]:
    """The model cut in place; nothing if its class cannot be."""
    try:
        compact = cut_in_place(base, plan)
    except Exception:  # noqa: BLE001 - whatever a class raises that cannot be copied, or whose layers do not fit together
        return
    yield compact, plan


def _kept_units(flow: ChannelFlow, plan: SurgeryPlan) -> Kept:
    """The units of which the plan leaves an index anywhere."""
    cuts = {flow.aliases.get(name, name): cut for name, cut in plan.tensors.items()}
    units = np.zeros(flow.n_gates + 1, dtype=bool)
    for name, dims in flow.tensors.items():
        for dim, gates in enumerate(dims):
            if gates is not None:
                cut = cuts.get(name)
                units[gates if cut is None or dim not in cut.kept else gates[to_indices(cut.kept[dim])]] = True
    return Kept(units[:-1])


def _known(cuts: Mapping[str, TensorCut], model: nn.Module) -> dict[str, TensorCut]:
    """The cuts of tensors that a model has, by their first name."""
    aliases, tensors = aliases_of(model), named_tensors(model)
    return {aliases.get(name, name): cut for name, cut in cuts.items() if name in tensors}
