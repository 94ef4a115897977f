"""Shrink a gated model: plan, cut, verify."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.errors import ConfigError, EquivalenceError, L0PruneWarning, first_line
from l0prune.flow.trace import aliases_of
from l0prune.gated.decision import values_to_cut
from l0prune.gated.model import GatedModel
from l0prune.kept import Kept
from l0prune.model_call import ExampleInputs, ModelCall, split_inputs
from l0prune.sources.library_models import origins_of
from l0prune.surgery.attributes import give_back_spare_integers_
from l0prune.surgery.equivalence import GUESSED, IN_PLACE_ONLY, REPORT, require_equal
from l0prune.surgery.free_images import free_images_
from l0prune.surgery.graph_model import GraphModel
from l0prune.surgery.later_uses import change_for_later_uses_
from l0prune.surgery.plan import compose, make_plan, named_tensors
from l0prune.surgery.reaction import with_values
from l0prune.surgery.record import Surgery, has_surgery, remember_surgery_, surgery_of
from l0prune.surgery.trial import COARSE, TOLERANCE, Outcome
from l0prune.surgery.trials import Trials
from l0prune.surgery.ways import WhyNotInPlace, ways_to_cut

__all__ = ["Surgery", "absorb_", "inputs_for", "shrink", "surgery_of", "with_values"]

_LOADED = "it was cut again after it had been loaded without its class (base=)"
_REMEDY = "leave form open, or use form='graph'"
_WHAT_TO_DO = {"torch.export": REPORT, "recording": IN_PLACE_ONLY, "torch-pruning": GUESSED}


def shrink(
    gated: GatedModel,
    *,
    align: int | Literal["auto"] | None = "auto",
    example_inputs: ExampleInputs | None = None,
    form: Literal["in-place", "graph"] | None = None,
) -> nn.Module:
    """Cut the closed units out of the weights and verify that the result computes what the gated model does.

    Unless the gates are frozen, this decides which units close, as `finetune` does. Under a budget it keeps the best set of
    gates by `log_alpha` that fills the budget, in widths that are multiples of `align`; without one it closes exactly the gates
    whose test-time value is 0. Frozen gates are cut as they are, with a warning if they cost more than the budget.

    Afterwards `gated` computes what the compact model does: its gates are frozen at the cut, and like the compact model it is
    in evaluation mode. The gates' locations and training state are kept, so `gated.unfreeze()` and `gated.train()` continue
    where training left off. To look at a cut in the middle of training, `shrink(copy.deepcopy(gated))` leaves `gated` alone.

    Args:
        gated: The gated model. If an error is raised, it is unchanged.
        align: Round kept widths to multiples of this, up if the budget still holds, else down. If a budget decides what is cut,
            "auto" is the multiple that onnxruntime prefers on this machine, measured once; otherwise it is 1. A number also
            applies to gates that are frozen or have no budget. None or 1 leaves widths alone. Gates that open again for the
            rounding, or to fill the budget, get the value 0.1.
        example_inputs: Inputs to verify with; None takes those the model was traced with, and noise of their shapes.
        form: "in-place" or "graph" to require one of them; None tries in place and falls back to the graph.

    Returns:
        The compact model in evaluation mode: the user's own class if that verifies, else a module of its exported
        graph with the same state-dict keys. Both can be trained further. `compact.surgery` says what was done (`Surgery`).

    Raises:
        EquivalenceError: the result differs from the gated model.
        BudgetInfeasibleError: closing every gate does not meet the budget.
        ConfigError: a dimension that must not vanish is closed entirely, or `form` or `align` is not valid.
    """
    if form not in (None, "in-place", "graph"):
        raise ConfigError(f"form is {form!r}; expected 'in-place', 'graph' or None")
    values = values_to_cut(gated, align).numpy()
    _warn_of_excess(gated, values)
    reference = with_values(gated, values)
    kept = Kept(values != 0)
    plan = make_plan(gated.flow, gated.model, values, kept)
    args, kwargs = inputs_for(gated, example_inputs)
    traced = inputs_for(gated, None)
    if form == "graph" and gated.flow.refusal:
        raise ConfigError(f"there is no graph to cut: {gated.flow.refusal}; leave form open")
    ways = "in-place" if gated.flow.refusal else form
    given, traced_call = ModelCall(args, kwargs), ModelCall(*traced)
    trials = Trials(reference, plan, kept, given=given, traced=traced_call, tolerance=_tolerance(gated))
    compact: nn.Module | None = None
    outcome: Outcome | None = None
    why_not = WhyNotInPlace()
    left: dict[str, int] = {}
    for compact, used in ways_to_cut(gated, plan, kept, traced, form=ways, refused=why_not.add):
        leaner = give_back_spare_integers_(compact, used, partial(trials.agree, used=used))
        outcome = trials.outcome(compact, used)
        if outcome.agrees:
            if used.form == "graph":
                free_images_(compact, reference, traced_call, tolerance=_tolerance(gated))
            plan = leaner
            if used.form == "in-place":
                plan, left = change_for_later_uses_(compact, gated.model, leaner, trials.agree)
            break
        if used.form == "in-place":
            why_not.add_outcome(outcome, compact)
    if compact is None or outcome is None:
        remedy = f"and {IN_PLACE_ONLY}" if gated.flow.refusal else "use form='graph' or leave it open"
        raise ConfigError(f"the model cannot be cut in place; {remedy}")
    insisted = form == "in-place" and not gated.flow.refusal
    what_to_do = _REMEDY if insisted else _WHAT_TO_DO[gated.flow.tracer]
    _require_agreement(outcome, trials, gated, what_to_do)
    record = Surgery(
        replace(plan, folds={}),
        replace(plan, folds={}),
        values,
        outcome.difference,
        args,
        kwargs,
        gated.flow.captured.dynamic_batch,
        not_compared=trials.not_compared,
        draws_random_numbers=trials.draws_random_numbers,
        not_in_place_because=why_not.reason if plan.form == "graph" else "",
        origins=() if has_surgery(gated.model) else origins_of(gated.model),
        integers_left=left,
        budget=str(gated.goal) if gated.goal.kind else "",
        costs=_costs(gated, kept),
    )
    remember_surgery_(compact, _after(surgery_of(gated.model), record, gated) if has_surgery(gated.model) else record)
    gated.freeze(torch.from_numpy(values))
    gated.eval()
    return compact.eval()


def _costs(gated: GatedModel, kept: Kept) -> dict[str, tuple[float, float]]:
    """Metric -> cost of the gated network with all units, and with those that stay."""
    dense = gated.costs.amounts()
    compact = gated.costs.amounts(lambda metric: gated.costs(metric).hard(kept.units))
    return {metric: (amount, compact[metric]) for metric, amount in dense.items()}


def _after(before: Surgery, record: Surgery, gated: GatedModel) -> Surgery:
    """The record of a cut of a model that was a compact one before."""
    is_graph = isinstance(gated.model, GraphModel)
    plan, replayed = compose(before.plan, record.plan, aliases_of(gated.model)), True
    if not before.replayed or (before.form == "in-place" and is_graph):
        plan, replayed = replace(plan, form="in-place"), False
    reason = ""
    if plan.form == "graph" or not replayed:
        reason = before.not_in_place_because or (_LOADED if is_graph else record.not_in_place_because)
    costs = {
        metric: (before.costs[metric][0], now) for metric, (_, now) in record.costs.items() if metric in before.costs
    }
    return replace(
        record,
        plan=plan,
        replayed=replayed,
        not_in_place_because=reason,
        origins=before.origins,
        budget=f"{before.budget or 'a cut'}, then {record.budget or 'a cut'}",
        costs=costs,
    )


def _warn_of_excess(gated: GatedModel, values: npt.NDArray[np.float64]) -> None:
    """Say where gates that the user froze cost more than the budget: `shrink` does not overrule them."""
    for bound in gated.goal.bounds(gated.costs):
        cost = bound.cost.hard(values != 0)
        if cost <= bound.keep:
            continue
        warnings.warn(
            f"the frozen gates cost {bound.told(cost)[0]}, over the budget {bound.budget}: "
            "unfreeze() lets shrink choose within it, set_budget(None, None) removes it",
            L0PruneWarning,
            stacklevel=3,
        )


def _require_agreement(outcome: Outcome, trials: Trials, gated: GatedModel, remedy: str) -> None:
    """Raise unless the last compact model computes what the gated one does; say so where the model itself is to blame."""
    if outcome.agrees:
        return
    name = type(gated.model).__name__
    if not math.isnan(outcome.difference.max_rel) and trials.is_unsteady:
        raise EquivalenceError(
            f"{name} gives different outputs when it is called again on the same inputs with the same random numbers, so no "
            "cut of it can be compared: it keeps state, or a random generator of its own; disable that in evaluation"
        )
    if trials.draws_random_numbers:
        remedy = (
            f"{name} draws random numbers when it is evaluated; both had the same ones, but a cut network may draw fewer: name "
            "the layers whose outputs are drawn, or multiplied by what is drawn, in ignore"
        )
    if outcome.error is not None:
        raise EquivalenceError(
            f"the cut {name} does not run ({first_line(outcome.error, named=True)}); {remedy}"
        ) from outcome.error
    where = " at weights drawn anew" if outcome.redrawn else ""
    require_equal(outcome.difference, outcome.tolerance, "shrunk and gated", where=where, remedy=remedy)


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
    kept = Kept(record.values != 0)
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
    gated.freeze(torch.from_numpy(kept.units.astype(np.float32)))


def inputs_for(gated: GatedModel, example_inputs: ExampleInputs | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs, those of the trace for None, as (args, kwargs) on the device and in the precision that the model has now."""
    if example_inputs is not None:
        args, kwargs = split_inputs(example_inputs, gated.model)
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
    return max((TOLERANCE.get(dtype, COARSE) for dtype in dtypes), default=COARSE)
