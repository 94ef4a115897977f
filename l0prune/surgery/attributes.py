"""Integers of modules (numbers of heads, widths) that a cut changes, found by the sizes in the graph that changed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import Node

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.kept import Kept
from l0prune.ops.node import module_of
from l0prune.ops.operation import operation_of
from l0prune.ops.sizes import Cut
from l0prune.surgery.attention_layers import NarrowAttention
from l0prune.surgery.in_place import apply_attributes_
from l0prune.surgery.plan import AttributeChange, SurgeryPlan

__all__ = ["CUT_BY_TYPE", "GUESSES", "find_attributes", "give_back_spare_integers_"]

GUESSES = ("in order", "backwards", "with config", "heads by name", "widths of what is seen")
"""Ways to match integers to sizes, in the order they are to be tried."""

CUT_BY_TYPE = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.conv._ConvNd,
                nn.modules.batchnorm._NormBase, nn.RNNBase)  # fmt: skip
"""Layers whose integers are cut with their tensors."""


def find_attributes(
    flow: ChannelFlow, model: nn.Module, kept: Kept, *, guess: str | None = GUESSES[0]
) -> tuple[AttributeChange, ...]:
    """Attributes whose value equals a size in the module's own calls that the cut changes.

    A module that reshapes to (batch, positions, heads, head width) with `heads` gated holds the number of heads in some
    integer attribute; every integer of that module with the old value is changed to the new one. Where one old value has
    several new ones (padding before and after), integers are matched to them in order if there are as many; or backwards, as
    layers name their output before their input. Where several integers have the same value and one new one, all change, or
    those alone that have "head" in their name. A module may also read the integers of its `config`. A list or tuple that
    equals all the sizes of a call, such as the parts of a split, is changed as a whole. Code may also compare a width with an
    integer, as `assert x.shape[-1] == self.dim`, which no call shows: last, the widths of all that goes into a module or that it
    sees of its parts count as well. Norms hold their width and number of groups under names of their own. The result is a guess:
    the caller verifies what it computes. Without a `guess` only the integers of norms and recurrent layers are changed, which
    are known by name.
    """
    cut = Cut(flow.nodes, kept)
    known = tuple(_known_by_name(flow, model, cut))
    if guess is None:
        return known
    wanted: dict[tuple[str, int], list[int]] = defaultdict(list)
    sequences: dict[tuple[str, tuple[int, ...]], set[tuple[int, ...]]] = defaultdict(set)
    for node in flow.captured.program.graph.nodes:
        sizes = operation_of(node.target).sizes if node.op == "call_function" else None
        if sizes is not None:
            path = module_of(node)
            for old, new in sizes(cut, node):
                wanted[path, old].append(new)
            for before, after in _sequences_of(cut, node):
                sequences[path, before].add(after)
    if guess == GUESSES[-1]:
        for place, news in _seen(flow, cut).items():
            wanted[place] = wanted[place] or news
    changes = []
    for (path, old), news in wanted.items():
        names = [
            name
            for name, value in _integers(model.get_submodule(path), config=guess == "with config")
            if type(value) is int and value == old and not name.startswith("_")
        ]
        if guess == "heads by name" and len(set(news)) == 1:
            names = [name for name in names if "head" in name] or names
        matched = news[:1] * len(names) if len(set(news)) == 1 else news
        if guess == "backwards":
            matched = matched[::-1]
        if len(matched) == len(names):
            changes += [AttributeChange(path, n, old, new) for n, new in zip(names, matched, strict=True) if new != old]
    for (path, before), afters in sequences.items():
        changes += [
            AttributeChange(path, name, before, after)
            for name, value in vars(model.get_submodule(path)).items()
            for after in afters
            if len(afters) == 1 and _are_integers(value) and tuple(value) == before
        ]
    return (*changes, *known)


def _seen(flow: ChannelFlow, cut: Cut) -> dict[tuple[str, int], list[int]]:
    """Module and width -> what it becomes, of the tensors that the module's own code has in hand, in order and each once.

    These are what goes into the module, what it computes, and what its parts return.
    """
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for node in flow.captured.program.graph.nodes:
        if node.op != "call_function" or not any(gates is not None for gates in cut.gates(node)):
            continue
        made_in = module_of(node)
        owners = {made_in}
        for user in node.users:
            used_in = module_of(user) if user.op == "call_function" else ""
            owners |= {path for path in _within(used_in) if not _is_inside(made_in, path)}  # which it goes into
            owners |= {path for path in _within(made_in) if not _is_inside(used_in, path)}  # which it comes out of
            owners |= {path.rpartition(".")[0] for path in _within(made_in) if path and not _is_inside(used_in, path)}
        for path in owners:
            for dense, compact in cut.changed(node):
                if compact not in found[path, dense]:
                    found[path, dense].append(compact)
    return found


def _within(path: str) -> list[str]:
    """A module and all that it is part of, by name."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts) + 1)]


def _is_inside(path: str, of: str) -> bool:
    return not of or path == of or path.startswith(f"{of}.")


def _are_integers(value: Any) -> bool:
    return type(value) in (list, tuple) and all(type(item) is int for item in value)


def _integers(module: nn.Module, *, config: bool) -> Iterator[tuple[str, Any]]:
    """Attributes of a module, and on request those of the `config` it holds, as `config.name`."""
    held = vars(module)
    known = isinstance(module, CUT_BY_TYPE) or type(module) in (nn.MultiheadAttention, NarrowAttention)
    yield from () if known else held.items()
    if config and hasattr(held.get("config"), "__dict__"):
        yield from ((f"config.{name}", value) for name, value in vars(held["config"]).items())


def _known_by_name(flow: ChannelFlow, model: nn.Module, cut: Cut) -> Iterator[AttributeChange]:
    """Integers under names that an op knows: widths and groups of norms, also of those without a weight, and recurrent widths."""
    changes: dict[tuple[str, str], AttributeChange] = {}
    for node in flow.captured.program.graph.nodes:
        attributes = operation_of(node.target).attributes if node.op == "call_function" else None
        if attributes is not None:
            path = module_of(node)
            held = vars(model.get_submodule(path))
            for name, (dense, compact) in attributes(cut, node).items():
                if dense != compact and held.get(name) == dense:
                    changes[path, name] = AttributeChange(path, name, dense, compact)
    yield from changes.values()


def _sequences_of(cut: Cut, node: Node) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(dense, compact) of all sizes of a result, or of several results along a dimension, where the cut changes some."""
    shapes = cut.shapes(node)
    if len(shapes) > 1:
        shapes = [list(sizes) for sizes in zip(*shapes, strict=True)]
    for shape in shapes:
        if any(old != new for old, new in shape):
            yield tuple(old for old, _ in shape), tuple(new for _, new in shape)


def give_back_spare_integers_(
    compact: nn.Module, plan: SurgeryPlan, is_equal: Callable[[nn.Module], bool]
) -> SurgeryPlan:
    """Undo changes of integers that happened to have the value of one that had to change: they have their dense value again.

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
