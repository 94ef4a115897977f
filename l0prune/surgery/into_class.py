"""A plan applied to the class of the dense model, the user's or a library's, also where the last cut was made in a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from l0prune.errors import L0PruneError, PlanMismatchError
from l0prune.kept import Kept
from l0prune.model_call import ModelCall, copy_of
from l0prune.reading import require_bounded
from l0prune.sources.compact_folder import CompactFolder
from l0prune.sources.libraries import drop_auxiliary_heads_
from l0prune.sources.library_models import LibraryModel
from l0prune.surgery.cuts import TensorCut, to_indices
from l0prune.surgery.equivalence import compare
from l0prune.surgery.graph_model import GraphModel
from l0prune.surgery.plan import SurgeryPlan, fingerprint, make_plan, named_tensors
from l0prune.surgery.record import Surgery

if TYPE_CHECKING:
    from l0prune.flow.channel_flow import ChannelFlow

__all__ = [
    "allocated",
    "dense_model",
    "filled",
    "in_class",
    "library_of",
    "tolerance_of",
    "ways_to_replay",
]

_FORMS = [
    (dtype, dropped) for dtype in (None, torch.float64, torch.bfloat16, torch.float16) for dropped in (False, True)
]
"""What a user may have made of a model before it was pruned: its precision, and the auxiliary heads gone."""


def dense_model(origin: LibraryModel, plan: SurgeryPlan, weights: Path, *, empty: bool = False) -> nn.Module:
    """The dense model that a plan was made for, with random weights. It is built without memory first, and looked at.

    Args:
        origin: The library's model.
        plan: The cut, with the fingerprint of the dense model.
        weights: The file of the cut model's weights; the dense model stands in some relation to them.
        empty: Leave its parameters on the meta device: it is to be cut, and needs no memory before.

    Raises:
        ModelSpecError: the library is not there, or does not build the model.
        PlanMismatchError: it builds another one.
        FileFormatError: the model is out of proportion to its cut weights, or larger than the memory.
    """
    with safe_open(weights, "pt") as content:
        n_tensors = len(content.keys())
    with torch.device("meta"):
        sketch = origin.build(n_tensors=n_tensors)
    form = next((form for form in _FORMS if fingerprint(_in_form(copy_of(sketch), *form)) == plan.fingerprint), None)
    if form is None:
        raise PlanMismatchError(
            f"{origin.kind}:{origin.name} is built here with other tensors than the dense model the plan was made for"
        )
    tensors = {id(tensor): tensor for tensor in named_tensors(sketch).values()}.values()
    require_bounded(sum(t.numel() * t.element_size() for t in tensors), weights.stat().st_size, weights)
    built = _in_form(origin.build(n_tensors=n_tensors, empty=empty), *form)
    plan.check(built)
    return built.eval()


def _in_form(model: nn.Module, dtype: torch.dtype | None, dropped: bool) -> nn.Module:
    if dropped:
        drop_auxiliary_heads_(model)
    return model if dtype is None else model.to(dtype)


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
    from l0prune.flow.trace import trace  # not for those who only load a graph: it takes scipy and torch-pruning
    from l0prune.gated.model import inject
    from l0prune.surgery.attributes import GUESSES, find_attributes
    from l0prune.surgery.ways import ways_to_cut

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
    from l0prune.surgery.in_place import cut_in_place

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
    from l0prune.flow.trace import aliases_of

    aliases, tensors = aliases_of(model), named_tensors(model)
    return {aliases.get(name, name): cut for name, cut in cuts.items() if name in tensors}


_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative difference allowed between a model and what is read back of it, by the coarsest dtype; 2e-2 for the others."""


def in_class(
    base: nn.Module, plan: SurgeryPlan, folder: CompactFolder, call: ModelCall, *, compared: bool = False
) -> tuple[nn.Module, SurgeryPlan]:
    """A copy of a dense model, cut and with the saved weights, and the plan by which it was cut.

    Args:
        base: The dense model; it is not changed.
        plan: The cut.
        folder: The compact model.
        call: Inputs that it runs on.
        compared: See that it computes what the saved graph does, also where the same class was cut by this plan before.

    Raises:
        PlanMismatchError: it computes something else.
    """
    from l0prune.surgery.in_place import cut_in_place

    replayed = folder.manifest.form == plan.form
    if replayed and not compared:
        return filled(cut_in_place(base, plan), folder.weights), plan
    module, _, _ = folder.graph()
    graph = filled(GraphModel(module, module.graph), folder.weights)
    found = _equal_to(graph, base, plan, folder.weights, call, replayed=replayed)
    if found is not None:
        return found
    if replayed:
        raise PlanMismatchError(
            f"this {type(base).__name__} does not compute what the saved graph computes, though its tensors have the same shapes"
        )
    raise PlanMismatchError(
        f"{folder.path} was cut in its graph after it had been loaded without its class, and the {type(base).__name__} cannot be"
        " cut in the same way; load it without base="
    )


def library_of(compact: nn.Module, record: Surgery, call: ModelCall, weights: Path) -> LibraryModel | None:
    """How a library builds the dense model of a compact one, so that cut by its plan it is the compact one; None if none does.

    Args:
        compact: The compact model.
        record: Of its cut.
        call: Inputs that it runs on; none where they are not known, and the class is what it was loaded into.
        weights: The file of its weights.
    """
    if record.plan.form == "graph":
        return None
    for origin in record.origins:
        with suppress(
            Exception
        ):  # whatever a library raises about a model that it does not build, or a class when it is cut
            base = dense_model(origin, record.plan, weights)
            if not call.tensors or _equal_to(compact, base, record.plan, weights, call, replayed=record.replayed):
                return origin
    return None


def _equal_to(
    reference: nn.Module, base: nn.Module, plan: SurgeryPlan, weights: Path, call: ModelCall, *, replayed: bool
) -> tuple[nn.Module, SurgeryPlan] | None:
    """The dense model cut so that it computes what the reference does, and the plan of that; None where there is no way."""
    from l0prune.surgery.in_place import cut_in_place
    from l0prune.surgery.into_class import ways_to_replay
    from l0prune.surgery.later_uses import change_for_later_uses_

    device = next((parameter.device for parameter in reference.parameters()), None)
    ways = iter([(cut_in_place(base, plan), plan)]) if replayed else ways_to_replay(base, plan, call)

    def agrees(model: nn.Module, _: SurgeryPlan) -> bool:
        try:
            found = compare(reference, filled(model, weights).to(device), call.args, call.kwargs)
        except Exception:  # noqa: BLE001 - whatever a class raises whose layers do not fit together
            return False
        return found.max_rel <= tolerance_of(reference, call)

    for model, used in ways:
        if agrees(model, used):
            return model, used if replayed else change_for_later_uses_(model, base, used, agrees)[0]
    return None


def filled(model: nn.Module, weights: Path) -> nn.Module:
    """The model with the weights of a file, in their precision."""
    from l0prune.sources.weights import load_weights_

    load_weights_(model, weights, precision=True)
    return model.eval()


def allocated(model: nn.Module) -> nn.Module:
    """The model with memory for those parameters that lie on the meta device, to be filled; shared ones stay shared."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in made:
                    empty = torch.empty_like(parameter, device="cpu")
                    made[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
    return model


def tolerance_of(model: nn.Module, call: ModelCall) -> float:
    """Largest relative difference allowed between a model and what is read back of it."""
    dtypes = {t.dtype for t in [*model.parameters(), *call.tensors] if t.is_floating_point()}
    return max((_TOLERANCE.get(dtype, 2e-2) for dtype in dtypes), default=0.0)
