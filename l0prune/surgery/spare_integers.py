"""Integers that a cut changed although the computation does not ask for it: they get their dense value back."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from l0prune.surgery.in_place import apply_attributes_
from l0prune.surgery.plan import AttributeChange, SurgeryPlan

__all__ = ["give_back_spare_integers_"]


def give_back_spare_integers_(
    compact: nn.Module, plan: SurgeryPlan, is_equal: Callable[[nn.Module], bool]
) -> SurgeryPlan:
    """Undo changes of integers that happened to have the value of one that had to change.

    A module with a width of 16 and a longest sequence of 16 has one integer that the cut changes and one that it must not touch;
    their values do not tell which. Where several integers of a module went from one value to one other, each is tried with its
    old value again, those of the same name in all modules of a class at once.

    Args:
        compact: Cut by `plan`; its integers are changed.
        plan: Its plan.
        is_equal: Whether a model computes what it should.

    Returns:
        The plan without the integers that have their dense value again.
    """
    alike = Counter((change.module, change.dense, change.compact) for change in plan.attributes)
    by_name: dict[tuple[str, str], list[AttributeChange]] = defaultdict(list)
    for change in plan.attributes:
        if alike[change.module, change.dense, change.compact] > 1:
            by_name[type(compact.get_submodule(change.module)).__qualname__, change.attribute].append(change)
    spare: list[AttributeChange] = []
    for changes in by_name.values():
        apply_attributes_(compact, tuple(change.undone for change in changes))
        if is_equal(compact):
            spare += changes
        else:
            apply_attributes_(compact, tuple(changes))
    return replace(plan, attributes=tuple(change for change in plan.attributes if change not in spare))
