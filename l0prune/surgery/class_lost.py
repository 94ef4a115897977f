"""Why a compact model has not kept the class of the user: of all ways to cut it in place, what the best one failed on."""

from __future__ import annotations

from types import TracebackType

from torch import nn

from l0prune.errors import first_line
from l0prune.surgery.trial import Outcome

__all__ = ["WhyNotInPlace"]


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
