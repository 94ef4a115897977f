"""One plan of two cuts: what is left of the original dense model when a compact one is cut again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from l0prune.surgery.cuts import TensorCut, to_indices, to_runs
from l0prune.surgery.plan import AttributeChange, CallChange, SurgeryPlan

__all__ = ["compose"]


def compose(first: SurgeryPlan, second: SurgeryPlan, aliases: Mapping[str, str]) -> SurgeryPlan:
    """The plan that does in one step what `first` and then `second` do.

    Args:
        first: Made for the original dense model.
        second: Made for the model that `first` gives.
        aliases: Other names of shared tensors of that model -> the name that `second` uses.

    Returns:
        Absolute indices, dense values and fingerprint of the original dense model.
    """
    name_of = {aliases.get(name, name): name for name in first.tensors}
    tensors = dict(first.tensors)
    for known, cut in second.tensors.items():
        name = name_of.get(known, known)
        tensors[name] = _both(tensors[name], cut) if name in tensors else cut
    return SurgeryPlan(
        first.fingerprint,
        tensors,
        {},
        _attributes(first, second),
        _calls(first, second),
        "graph" if "graph" in (first.form, second.form) else "in-place",
    )


def _both(first: TensorCut, second: TensorCut) -> TensorCut:
    kept = dict(first.kept)
    for dim, runs in second.kept.items():
        chosen = to_indices(first.kept[dim]) if dim in first.kept else np.arange(first.dense_shape[dim])
        stays = np.zeros(first.dense_shape[dim], dtype=bool)
        stays[chosen[to_indices(runs)]] = True
        kept[dim] = to_runs(stays)
    return TensorCut(first.dense_shape, kept)


def _attributes(first: SurgeryPlan, second: SurgeryPlan) -> tuple[AttributeChange, ...]:
    changes = {(change.module, change.attribute): change for change in first.attributes}
    for change in second.attributes:
        place = change.module, change.attribute
        changes[place] = replace(changes[place], compact=change.compact) if place in changes else change
    return tuple(changes.values())


def _calls(first: SurgeryPlan, second: SurgeryPlan) -> tuple[CallChange, ...]:
    """Sizes of calls are those they end up with, so the later ones stand; places that only the first names stay as they are."""
    changes = {(change.module, change.kind, change.number): change for change in first.calls}
    for change in second.calls:
        place = change.module, change.kind, change.number
        rows = {row[0]: row for row in changes[place].sizes} if place in changes else {}
        rows |= {row[0]: row for row in change.sizes}
        changes[place] = replace(change, sizes=tuple(rows[at] for at in sorted(rows)))
    return tuple(changes.values())
