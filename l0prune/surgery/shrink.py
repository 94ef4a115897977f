"""Shrink a gated model: plan, cut, verify."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.budget.selection import align_open, select_open
from l0prune.errors import ConfigError, EquivalenceError, first_line
from l0prune.flow.trace import aliases_of
from l0prune.gated.model import GatedModel
from l0prune.model_call import ExampleInputs, ModelCall, split_inputs
from l0prune.surgery.compose import compose
from l0prune.surgery.equivalence import GUESSED, IN_PLACE_ONLY, REPORT, Difference, require_equal
from l0prune.surgery.graph_model import GraphModel
from l0prune.surgery.plan import make_plan, named_tensors
from l0prune.surgery.record import Surgery, has_surgery, remember_surgery_, surgery_of
from l0prune.surgery.spare_integers import give_back_spare_integers_
from l0prune.surgery.trials import Trials
from l0prune.surgery.ways import ways_to_cut

__all__ = ["Surgery", "absorb_", "shrink", "surgery_of", "with_values"]

TOLERANCE = {torch.float64: 1e-9}
"""Largest relative difference allowed between gated and compact outputs, by the coarsest dtype; 1e-4 for the others."""

_REMEDY = "leave form open, or use form='graph'"
_WHAT_TO_DO = {"torch.export": REPORT, "recording": IN_PLACE_ONLY, "torch-pruning": GUESSED}


def shrink(
    gated: GatedModel,
    *,
    align: int | None = None,
    example_inputs: ExampleInputs | None = None,
    form: str | None = None,
) -> nn.Module:
    """Cut the closed units out of the weights and verify that the result computes what the gated model does.

    Args:
        gated: The gated model; gates that are not frozen take their test-time values, and where those cost more than the
            budget, the lowest close. It is not changed.
        align: Round kept widths to multiples of this: up where the budget still holds, else down. None leaves them.
        example_inputs: Inputs to verify with; None takes those the model was traced with, and noise of their shapes.
        form: "in-place" or "graph" to insist on one; None tries in place and falls back to the graph.

    Returns:
        The compact model in evaluation mode: the user's own class where that verifies, else a module of its exported
        graph with the same state-dict keys. Both can be trained further.

    Raises:
        EquivalenceError: the result differs from the gated model.
        BudgetInfeasibleError: closing every gate does not meet the budget.
        ConfigError: a dimension that must not vanish is closed entirely, or `form` or `align` is not valid.
    """
    if form not in (None, "in-place", "graph"):
        raise ConfigError(f"form is {form!r}; expected 'in-place', 'graph' or None")
    trained = gated.gate_values().double().cpu().numpy()
    values = trained if gated.frozen else _within_budget(gated, trained)
    if align is not None and align != 1:
        values = aligned_values(gated, values, align)
    reference = gated if np.array_equal(values, trained) else with_values(gated, values)
    keep = values != 0
    plan = make_plan(gated.flow, gated.model, values, keep)
    args, kwargs = _inputs(gated, example_inputs)
    traced = _inputs(gated, None)
    if form == "graph" and gated.flow.refusal:
        raise ConfigError(f"there is no graph to cut: {gated.flow.refusal}; leave form open")
    ways = "in-place" if gated.flow.refusal else form
    tolerance = _tolerance(gated)
    compact: nn.Module | None = None
    difference, failure = Difference(math.inf, math.inf, 0), None
    for compact, used in ways_to_cut(gated, plan, keep, traced, form=ways):
        trials = Trials(reference, ModelCall(args, kwargs), ModelCall(*traced), elsewhere=used.is_rewritten)
        leaner = give_back_spare_integers_(compact, used, partial(trials.agree, tolerance=tolerance))
        difference, failure = trials.difference_or_error(compact)
        if difference.max_rel <= tolerance:
            plan = leaner
            break
    if compact is None:
        remedy = f"and {IN_PLACE_ONLY}" if gated.flow.refusal else "use form='graph' or leave it open"
        raise ConfigError(f"the model cannot be cut in place; {remedy}")
    insisted = form == "in-place" and not gated.flow.refusal
    what_to_do = _REMEDY if insisted else _WHAT_TO_DO[gated.flow.tracer]
    if failure is not None:
        raise EquivalenceError(
            f"the cut {type(gated.model).__name__} does not run ({first_line(failure, named=True)}); {what_to_do}"
        ) from failure
    require_equal(difference, tolerance, "shrunk and gated", remedy=what_to_do)
    cut, replayed = replace(plan, folds={}), True
    plan = cut
    if has_surgery(gated.model):
        before = surgery_of(gated.model)
        plan = compose(before.plan, cut, aliases_of(gated.model))
        if not before.replayed or (before.form == "in-place" and isinstance(gated.model, GraphModel)):
            plan, replayed = replace(plan, form="in-place"), False
    record = Surgery(plan, cut, values, difference, args, kwargs, gated.flow.captured.dynamic_batch, replayed)
    remember_surgery_(compact, record)
    return compact.eval()


def aligned_values(gated: GatedModel, values: npt.NDArray[np.float64], align: int) -> npt.NDArray[np.float64]:
    """Gate values with kept widths rounded to multiples of `align`; a gate that is opened for it gets value 1.

    Raises:
        ConfigError: `align` is not positive.
    """
    if align < 1:
        raise ConfigError(f"align is {align}; expected a positive number of channels")
    budget = gated.budget
    scores = values + 1e-3 * torch.sigmoid(gated.gates.log_alpha.detach().double()).cpu().numpy()
    opened = align_open(
        values != 0,
        scores,
        gated.costs(gated.metric),
        gated.flow.dimensions,
        gated.flow.gate_group,
        align=align,
        keep=None if budget is None else budget.keep,
    )
    return _opened(values, opened)


def _within_budget(gated: GatedModel, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gate values with the lowest of the open gates closed, where those that training left open cost more than the budget."""
    budget = gated.budget
    if budget is None or gated.costs(budget.metric).hard(values != 0) <= budget.keep:
        return values
    scores = gated.gates.log_alpha.detach().double().cpu().numpy()
    chosen = select_open(
        scores, gated.costs(budget.metric), gated.flow.dimensions, gated.flow.gate_group, budget, tolerance=1.0
    )
    return _opened(values, chosen)


def _opened(values: npt.NDArray[np.float64], is_open: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The values of the gates that are to be open, 1 for those that had none, and 0 for the others."""
    return np.where(is_open, np.where(values != 0, values, 1.0), 0.0)


def absorb_(gated: GatedModel, compact: nn.Module) -> None:
    """Write the weights of a compact model, perhaps trained further, back into the gated model it was cut from.

    Afterwards the gates are frozen at 0 and 1, removed positions of consuming weights are zero, and the gated model
    computes what the compact one does.

    Args:
        gated: The gated model `compact` came from; its weights and gates change.
        compact: From `shrink(gated)`.

    Raises:
        ConfigError: `compact` was loaded, or is none.
    """
    record = surgery_of(compact)
    if record.cut is None:
        raise ConfigError(
            "this compact model was loaded, so its gates are not known; pass the model that shrink(gated) returned"
        )
    dense, cut = named_tensors(gated.model), named_tensors(compact)
    keep = record.values != 0
    kept = np.append(keep, True)
    with torch.no_grad():
        for consumer in gated.flow.consumers:
            shape = [1] * dense[consumer.parameter].dim()
            shape[consumer.dim] = -1
            mask = torch.from_numpy(kept[consumer.gates])
            tensor = dense[consumer.parameter]
            tensor.mul_(mask.to(tensor).view(shape))
        for name, value in cut.items():
            known = gated.flow.aliases.get(name, name)
            if known not in dense:
                continue
            tensor_cut = record.cut.tensors.get(known)
            if tensor_cut is None:
                dense[known].copy_(value)
            else:
                tensor_cut.scatter_(dense[known], value)
    gated.freeze(torch.from_numpy(keep.astype(np.float32)))


def with_values(gated: GatedModel, values: npt.NDArray[np.float64]) -> GatedModel:
    """The same weights under other gate values, without touching `gated`."""
    other = copy.copy(gated)
    other._modules = dict(gated._modules)
    other._buffers = dict(gated._buffers)
    other.gates = copy.deepcopy(gated.gates)
    other.freeze(torch.from_numpy(values))
    return other


def _inputs(gated: GatedModel, example_inputs: ExampleInputs | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if example_inputs is not None:
        args, kwargs = split_inputs(example_inputs)
    else:
        captured = gated.flow.captured
        args, kwargs = captured.args, captured.kwargs
    device = next((parameter.device for parameter in gated.model.parameters()), None)
    converted = _converted(gated)

    def fit(value: Any) -> Any:
        return value.to(device, converted.get(value.dtype, value.dtype)) if isinstance(value, Tensor) else value

    fitted: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(fit, (args, kwargs))
    return fitted


def _converted(gated: GatedModel) -> dict[torch.dtype, torch.dtype]:
    """Floating-point types of the parameters when the model was traced -> what became of them since, where that differs."""
    program = gated.flow.captured.program
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    now = dict(gated.model.named_parameters(remove_duplicate=False))
    then = {parameter: values.get(name) for name, parameter in program.graph_signature.inputs_to_parameters.items()}
    if not then:  # no graph says what they were
        kinds = {parameter.dtype for parameter in now.values() if parameter.is_floating_point()}
        return dict.fromkeys((torch.float32, torch.float64), kinds.pop()) if len(kinds) == 1 else {}
    return {
        value.dtype: now[name].dtype
        for name, value in then.items()
        if isinstance(value, Tensor) and name in now and value.dtype != now[name].dtype
    }


def _tolerance(gated: GatedModel) -> float:
    """By the coarsest numbers that gated units are computed in: some models cast their norms to single precision."""
    dtypes = {parameter.dtype for parameter in gated.model.parameters()}
    for node in gated.flow.captured.program.graph.nodes:
        value = node.meta.get("val")
        if (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and any(gates is not None for gates in gated.flow.nodes.get(node.name, []))
        ):
            dtypes.add(value.dtype)
    return max((TOLERANCE.get(dtype, 1e-4) for dtype in dtypes), default=1e-4)
