"""The ways to cut a model, in the order they are to be tried: the user's own class as long as it can be had, then the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

from torch import nn

from l0prune.errors import EquivalenceError, first_line
from l0prune.gated.model import GatedModel
from l0prune.kept import Kept
from l0prune.surgery.attributes import GUESSES, find_attributes
from l0prune.surgery.calls import CallFinder
from l0prune.surgery.dropped import Constant, is_within
from l0prune.surgery.dropping import Dropping, NotDroppableError
from l0prune.surgery.in_graph import cut_in_graph
from l0prune.surgery.in_place import apply_attributes_, cut_in_place
from l0prune.surgery.plan import AttributeChange, CallChange, SurgeryPlan, named_tensors
from l0prune.surgery.trial import Outcome

__all__ = [
    "WhyNotInPlace",
    "ways_to_cut",
]

Change = TypeVar("Change", AttributeChange, CallChange)
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def ways_to_cut(
    gated: GatedModel,
    plan: SurgeryPlan,
    kept: Kept,
    inputs: Inputs,
    *,
    form: str | None,
    refused: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[nn.Module, SurgeryPlan]]:
    """Compact models to verify, each with the plan it was cut by.

    In place, integers of modules are matched to sizes in several ways; then sizes that no integer stands for are given to the
    calls in question: with the integers matched as in the first way, as in the last two, and with none.

    Args:
        gated: The gated model.
        plan: The cut, without integers and calls.
        kept: Units that stay.
        inputs: Positional and keyword inputs that the model was traced with.
        form: "in-place" or "graph" for these ways only; None for all.
        refused: Is told why there is no model cut in place.
    """
    if form == "graph":
        refused("form='graph' was asked for")
    else:
        yield from _in_place(gated, plan, kept, inputs, refused)
    if form != "in-place":
        used = replace(plan, attributes=(), calls=(), form="graph")
        yield cut_in_graph(gated.flow, named_tensors(gated.model), used, kept), used


def _in_place(
    gated: GatedModel,
    plan: SurgeryPlan,
    kept: Kept,
    inputs: Inputs,
    refused: Callable[[str], None],
) -> Iterator[tuple[nn.Module, SurgeryPlan]]:
    try:
        job = _Job.of(gated, replace(plan, form="in-place"), kept, inputs)
    except (NotDroppableError, EquivalenceError) as error:
        refused(str(error))
        return
    tried: list[tuple[AttributeChange, ...]] = []
    for guess in GUESSES:
        attributes = job.attributes(guess)
        if attributes not in tried:
            tried.append(attributes)
            yield from job.cut(replace(job.plan, attributes=attributes), refused)
    for attributes in dict.fromkeys((tried[0], *tried[-2:], job.attributes(None))):
        used = job.with_calls(replace(job.plan, attributes=attributes))
        if used is not None and (used.calls or used.attributes not in tried):
            yield from job.cut(used, refused)


@dataclass(frozen=True)
class _Job:
    """A gated model on its way to a compact one of its class.

    Attributes:
        gated: The gated model.
        plan: The cut, with the modules that closed branches leave without a use.
        kept: Units that stay.
        inputs: Positional and keyword inputs that the model was traced with.
        constants: What those modules return.
    """

    gated: GatedModel
    plan: SurgeryPlan
    kept: Kept
    inputs: Inputs
    constants: dict[str, Constant]

    @classmethod
    def of(cls, gated: GatedModel, plan: SurgeryPlan, kept: Kept, inputs: Inputs) -> _Job:
        """With the modules to drop.

        Raises:
            NotDroppableError: no modules can stand for the branches that closed.
            EquivalenceError: a branch cannot be dropped.
        """
        empty = _empty_dimension(plan)
        if not empty:
            return cls(gated, plan, kept, inputs, {})
        if gated.flow.refusal:
            raise NotDroppableError(f"{empty} is entirely closed, and there is no graph to see what can do without it")
        try:
            dropping = Dropping(gated.flow, gated.model, plan, kept, inputs)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise NotDroppableError(f"{empty} is entirely closed, and {first_line(error, named=True)}") from error
        return cls(gated, replace(plan, drops=dropping.drops), kept, inputs, dropping.constants())

    def attributes(self, guess: str | None) -> tuple[AttributeChange, ...]:
        """Integers to change, as `find_attributes`, but for those of modules that are dropped."""
        found = find_attributes(self.gated.flow, self.gated.model, self.kept, guess=guess)
        return tuple(change for change in found if not is_within(change.module, self.plan.drops))

    def cut(self, plan: SurgeryPlan, refused: Callable[[str], None]) -> Iterator[tuple[nn.Module, SurgeryPlan]]:
        """The model cut in place; nothing if its class cannot be."""
        try:
            compact = cut_in_place(self.gated.model, plan, self.constants)
        except Exception as error:  # noqa: BLE001 - whatever a class raises that cannot be copied or has no settable sizes
            name = type(self.gated.model).__name__
            refused(f"{name} cannot be copied and cut: {first_line(error, named=True)}")
            return
        yield compact, plan

    def with_calls(self, plan: SurgeryPlan) -> SurgeryPlan | None:
        """The plan with the sizes of calls that it needs; None if sizes do not help."""
        try:
            compact = cut_in_place(self.gated.model, plan, self.constants)
            finder = CallFinder(self.gated.flow, self.gated.model, self.kept, self.inputs)
            calls = finder.find(compact)
            return _without_mistakes(plan, finder, compact, calls)
        except Exception:  # noqa: BLE001 - whatever a class raises that cannot be copied, or whose layers do not fit together
            return None


def _without_mistakes(
    plan: SurgeryPlan, finder: CallFinder, compact: nn.Module, calls: tuple[CallChange, ...]
) -> SurgeryPlan:
    """The plan without integers that were matched by mistake: with the dense value, fewer calls of their module need a size.

    The integers of all modules are tried at the same time, one of each.
    """
    needed = _by_module(calls)
    matched = _by_module(a for a in plan.attributes if a.module in needed)
    mistakes = []
    for position in range(max((len(changes) for changes in matched.values()), default=0)):
        tried = [changes[position] for changes in matched.values() if position < len(changes)]
        apply_attributes_(compact, tuple(a.undone for a in tried))
        try:
            found = _by_module(finder.find(compact))
        except Exception:  # noqa: BLE001 - one of them is needed, and says so in any way
            found = needed
        fewer = [a for a in tried if _n_sizes(found.get(a.module, ())) < _n_sizes(needed[a.module])]
        apply_attributes_(compact, tuple(a for a in tried if a not in fewer))
        needed |= {a.module: found.get(a.module, []) for a in fewer}
        mistakes += fewer
    attributes = tuple(a for a in plan.attributes if a not in mistakes)
    return replace(plan, attributes=attributes, calls=tuple(call for found in needed.values() for call in found))


def _by_module(changes: Iterable[Change]) -> dict[str, list[Change]]:
    found: dict[str, list[Change]] = {}
    for change in changes:
        found.setdefault(change.module, []).append(change)
    return found


def _n_sizes(calls: Iterable[CallChange]) -> int:
    return sum(len(call.sizes) for call in calls)


def _empty_dimension(plan: SurgeryPlan) -> str:
    """A dimension of which nothing stays, as a residual branch is closed entirely; empty where there is none."""
    empty = (f"{name}[{dim}]" for name, cut in plan.tensors.items() for dim, runs in cut.kept.items() if not runs)
    return next(empty, "")


class WhyNotInPlace:
    """Collects what is wrong with the ways that were tried in place; the one that came closest says it best."""

    def __init__(self) -> None:
        self._closest: tuple[float, str] | None = None

    def add(self, reason: str) -> None:
        """Note a way that gave no model at all: one sentence."""
        self._note(float("inf"), reason)

    def add_outcome(self, outcome: Outcome, compact: nn.Module) -> None:
        """Note a model that was compared, and does not compute what it should."""
        if outcome.error is not None:
            where = _place_of(outcome.error, compact)
            inside = f" in {where!r}" if where else ""
            self._note(float("inf"), f"in place, it does not run{inside}: {first_line(outcome.error, named=True)}")
            return
        found = outcome.difference
        anew = " at weights drawn anew" if outcome.redrawn else ""
        self._note(outcome.excess, f"in place, outputs differ by {found.max_rel:.1e} at output {found.output}{anew}")

    @property
    def reason(self) -> str:
        """One sentence; empty if nothing was wrong."""
        return "" if self._closest is None else self._closest[1]

    def _note(self, excess: float, reason: str) -> None:
        if self._closest is None or excess < self._closest[0]:
            self._closest = excess, reason


def _place_of(error: Exception, model: nn.Module) -> str:
    """Name of the innermost module whose code raised; empty for the model itself, or where none of its code ran."""
    names = {module: name for name, module in model.named_modules()}
    place = ""
    step: TracebackType | None = error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            place = names.get(owner, place)
        step = step.tb_next
    return place
