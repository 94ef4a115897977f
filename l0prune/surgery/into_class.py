"""A saved model in the class of its dense model."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from l0prune.errors import PlanMismatchError
from l0prune.model_call import ModelCall
from l0prune.sources.compact_folder import CompactFolder
from l0prune.sources.library_models import LibraryModel
from l0prune.surgery.dense_class import dense_model
from l0prune.surgery.equivalence import compare
from l0prune.surgery.graph_model import GraphModel
from l0prune.surgery.plan import SurgeryPlan
from l0prune.surgery.record import Surgery

__all__ = ["filled", "in_class", "library_of", "tolerance_of"]

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
            f"this {type(base).__name__} computes something else than the saved graph, although its tensors have the same shapes"
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
    from l0prune.surgery.later_uses import change_for_later_uses_
    from l0prune.surgery.replay import ways_to_replay

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


def tolerance_of(model: nn.Module, call: ModelCall) -> float:
    """Largest relative difference allowed between a model and what is read back of it."""
    dtypes = {t.dtype for t in [*model.parameters(), *call.tensors] if t.is_floating_point()}
    return max((_TOLERANCE.get(dtype, 2e-2) for dtype in dtypes), default=0.0)
