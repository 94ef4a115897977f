"""The dense model of a plan, built again by the library it is of."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from l0prune.errors import PlanMismatchError
from l0prune.model_call import copy_of
from l0prune.reading import require_bounded
from l0prune.sources.libraries import drop_auxiliary_heads_
from l0prune.sources.library_models import LibraryModel
from l0prune.surgery.plan import SurgeryPlan, fingerprint, named_tensors

__all__ = ["dense_model"]

_FORMS = [
    (dtype, dropped) for dtype in (None, torch.float64, torch.bfloat16, torch.float16) for dropped in (False, True)
]
"""What a user may have made of a model before it was pruned: its precision, and the auxiliary heads gone."""


def dense_model(origin: LibraryModel, plan: SurgeryPlan, weights: Path) -> nn.Module:
    """The dense model that a plan was made for, with random weights. It is built without memory first, and looked at.

    Args:
        origin: The library's model.
        plan: The cut, with the fingerprint of the dense model.
        weights: The file of the cut model's weights; the dense model stands in some relation to them.

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
            f"{origin.kind}:{origin.name} is built with other tensors here than the dense model the plan was made for"
        )
    tensors = {id(tensor): tensor for tensor in named_tensors(sketch).values()}.values()
    require_bounded(sum(t.numel() * t.element_size() for t in tensors), weights.stat().st_size, weights)
    built = _in_form(origin.build(n_tensors=n_tensors), *form)
    plan.check(built)
    return built.eval()


def _in_form(model: nn.Module, dtype: torch.dtype | None, dropped: bool) -> nn.Module:
    if dropped:
        drop_auxiliary_heads_(model)
    return model if dtype is None else model.to(dtype)
