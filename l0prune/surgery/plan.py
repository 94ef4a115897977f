"""The record of a cut: for every tensor and dimension, which absolute indices of the dense model stay."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from l0prune.errors import ConfigError, FileFormatError, PlanMismatchError
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.kept import Kept
from l0prune.plain_data import FileKind
from l0prune.surgery.cuts import TensorCut, checked_cut, to_indices, to_runs
from l0prune.surgery.dropped import ModuleDrop, is_within

__all__ = ["AttributeChange", "CallChange", "SurgeryPlan", "compose", "fingerprint", "make_plan", "named_tensors"]

KIND = FileKind("l0prune.surgery", 1, "a surgery plan", "run shrink again")


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, shared ones under each of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def fingerprint(model: nn.Module) -> str:
    """Hash of the sorted names, shapes and dtypes of a model's state dict."""
    lines = sorted(
        f"{name} {tuple(t.shape)} {t.dtype}" for name, t in model.state_dict().items() if isinstance(t, Tensor)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class AttributeChange:
    """An integer (or tuple of integers) of a module that the cut changes, e.g. the number of heads.

    `attribute` is a name, or `config.name` for an integer of the configuration that the module holds.
    """

    module: str
    attribute: str
    dense: int | tuple[int, ...]
    compact: int | tuple[int, ...]

    @property
    def undone(self) -> AttributeChange:
        """The change back to the dense value."""
        return replace(self, dense=self.compact, compact=self.dense)


@dataclass(frozen=True)
class CallChange:
    """Sizes of a call inside a module's forward pass that the cut changes and no integer of the module stands for.

    Attributes:
        module: Name of the innermost module whose forward pass makes the call.
        kind: "view", "expand", "unflatten", "split", "slice", "groups" (of a convolution) or "space" (what pools or resizes no
            channels).
        number: Which call of its kind it is within one forward pass of the module, from zero, submodules included.
        sizes: Rows of a place among the sizes (the part of a split, the item of an index) and the size there (start and stop
            of a slice).
    """

    module: str
    kind: str
    number: int
    sizes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False, repr=False)
class SurgeryPlan:
    """Which indices of the dense model stay, and the gate values to fold into the weights that consume them.

    Attributes:
        fingerprint: Fingerprint of the dense model the plan was made for.
        tensors: Name -> cut, for every tensor that loses indices.
        folds: (parameter, dimension) -> factor of every dense index, shape `(size,)`, float64. Empty once folded.
        attributes: Integers of modules that change, for the in-place form.
        calls: Sizes of calls that change, for the in-place form.
        drops: Modules that closed branches leave without a use, for the in-place form.
        form: "in-place" or "graph".
    """

    fingerprint: str
    tensors: dict[str, TensorCut]
    folds: dict[tuple[str, int], npt.NDArray[np.float64]] = field(default_factory=dict)
    attributes: tuple[AttributeChange, ...] = ()
    calls: tuple[CallChange, ...] = ()
    drops: tuple[ModuleDrop, ...] = ()
    form: str = "in-place"

    def __repr__(self) -> str:
        """One line: form and extent."""
        return f"<SurgeryPlan {self.form}: {self.extent}>"

    @property
    def extent(self) -> str:
        """How much is cut and changed, in words."""
        changed = len(self.attributes) + len(self.calls)
        dropped = f", {len(self.drops)} modules dropped" if self.drops else ""
        return f"{len(self.tensors)} tensors cut, {len(self.folds)} folded, {changed} sizes changed{dropped}"

    @property
    def is_rewritten(self) -> bool:
        """Whether sizes had to be rewritten: in the graph, in calls, as integers of modules, or by what stands for modules."""
        return self.form == "graph" or bool(self.calls or self.attributes or self.drops)

    def fold(self, name: str, tensor: Tensor) -> Tensor:
        """The dense tensor multiplied by the gates that consume it."""
        for (parameter, dim), factors in self.folds.items():
            if parameter == name:
                shape = [1] * tensor.dim()
                shape[dim] = -1
                tensor = tensor * torch.from_numpy(factors).to(tensor).view(shape)
        return tensor

    def compact_tensor(self, name: str, dense: Tensor) -> Tensor:
        """One dense tensor after the cut: gates folded in, closed indices removed."""
        folded = self.fold(name, dense.detach())
        cut = self.tensors.get(name)
        return folded.clone() if cut is None else cut.select(folded)

    def write_back_(self, name: str, dense: Tensor, compact: Tensor) -> None:
        """Write a compact tensor to its place in the dense one, which times its gates is then what the compact one is.

        Args:
            name: Of the tensor.
            dense: Changes where it is kept; its gates are not 0 there.
            compact: As `compact_tensor` cut it, perhaps with other numbers.
        """
        cut = self.tensors.get(name, TensorCut(tuple(dense.shape), {}))
        for (parameter, dim), factors in self.folds.items():
            if parameter == name:
                shape = [1] * compact.dim()
                shape[dim] = -1
                kept = factors[to_indices(cut.kept[dim])] if dim in cut.kept else factors
                compact = compact / torch.from_numpy(kept).to(compact).view(shape)
        cut.scatter_(dense, compact)

    def to_json(self) -> dict[str, Any]:
        """Plain data for surgery.json; the folded factors are in the weights and not repeated."""
        content = {
            "form": self.form,
            "fingerprint": self.fingerprint,
            "tensors": {
                name: {
                    "dense_shape": list(cut.dense_shape),
                    "kept": {str(d): [list(run) for run in runs] for d, runs in cut.kept.items()},
                }
                for name, cut in self.tensors.items()
            },
            "attributes": [
                {"module": c.module, "attribute": c.attribute, "dense": c.dense, "compact": c.compact}
                for c in self.attributes
            ],
            "calls": [
                {"module": c.module, "kind": c.kind, "number": c.number, "sizes": [list(row) for row in c.sizes]}
                for c in self.calls
            ],
        }
        if self.drops:
            content["drops"] = [asdict(drop) for drop in self.drops]
        return KIND.stamped(content)

    @staticmethod
    def from_json(data: Any, *, source: str = "surgery.json") -> SurgeryPlan:
        """Read plain data back.

        Raises:
            FileFormatError: another format or version, unknown or missing keys, or indices that make no sense.
        """
        try:
            plan = KIND.read(SurgeryPlan, data, source, optional=("calls", "drops"), never="folds")
            for cut in plan.tensors.values():
                checked_cut(cut.dense_shape, cut.kept)
        except ValueError as error:
            raise FileFormatError(f"{source} is damaged ({error}); run shrink again") from error
        if plan.form not in ("in-place", "graph"):
            raise FileFormatError(f"{source} has form {plan.form!r}; expected 'in-place' or 'graph'; run shrink again")
        return plan

    def check(self, model: nn.Module) -> None:
        """Check that `model` is the dense model the plan was made for.

        Raises:
            PlanMismatchError: it has other tensors; the message names the first.
        """
        if fingerprint(model) == self.fingerprint:
            return
        tensors = named_tensors(model)
        for name, cut in self.tensors.items():
            if name not in tensors:
                raise PlanMismatchError(f"{name!r}: the plan cuts it, this {type(model).__name__} has no such tensor")
            if tuple(tensors[name].shape) != cut.dense_shape:
                raise PlanMismatchError(
                    f"{name!r}: the plan was made for shape {cut.dense_shape}, this model has "
                    f"{tuple(tensors[name].shape)}; build the base model with the sizes in surgery.json"
                )
        raise PlanMismatchError(
            f"this {type(model).__name__} has other tensors or dtypes than the dense model the plan was made for; build the "
            "base model as it was before pruning"
        )


def make_plan(
    flow: ChannelFlow, model: nn.Module, values: npt.NDArray[np.float64], kept: Kept | None = None
) -> SurgeryPlan:
    """Derive the plan from gate values.

    Args:
        flow: Trace of `model`.
        model: The dense model.
        values: Test-time gate values, shape `(n_gates,)`, in [0, 1].
        kept: Units that stay; None keeps the open ones. A kept unit may have value 0 (padding).

    Raises:
        ConfigError: a dimension that must not vanish would.
    """
    kept = kept or Kept(values != 0)
    _require_nonempty(flow, kept)
    tensors = {}
    for name, dims in flow.tensors.items():
        runs = {
            dim: to_runs(kept[gates]) for dim, gates in enumerate(dims) if gates is not None and not kept[gates].all()
        }
        if runs:
            tensors[name] = TensorCut(flow.sizes[name], runs)
    factors = np.append(values.astype(np.float64), 1.0)
    folds = {(c.parameter, c.dim): factors[c.gates] for c in flow.consumers if (factors[c.gates] != 1.0).any()}
    return SurgeryPlan(fingerprint(model), tensors, folds)


def _require_nonempty(flow: ChannelFlow, kept: Kept) -> None:
    """Refuse gate values that close a whole dimension the network cannot do without."""
    closed = [branch.gates for branch in flow.branches if not kept[branch.gates].any()]
    empty = [
        d.name
        for d in flow.dimensions
        if not (d.n_ungated or d.removable or kept[d.gates].any() or any(np.isin(d.gates, b).all() for b in closed))
    ]
    if empty:
        raise ConfigError(
            f"all units of {', '.join(empty[:3])}{' and more' if len(empty) > 3 else ''} are closed, which cuts the model's "
            "output off from its input; open at least one gate of each"
        )


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
        (*(drop for drop in first.drops if not is_within(drop.module, second.drops)), *second.drops),
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
    standing = [change for change in first.attributes if not is_within(change.module, second.drops)]
    changes = {(change.module, change.attribute): change for change in standing}
    for change in second.attributes:
        place = change.module, change.attribute
        changes[place] = replace(changes[place], compact=change.compact) if place in changes else change
    return tuple(changes.values())


def _calls(first: SurgeryPlan, second: SurgeryPlan) -> tuple[CallChange, ...]:
    """Sizes of calls are those they end up with, so the later ones stand; places that only the first names stay as they are."""
    standing = [change for change in first.calls if not is_within(change.module, second.drops)]
    changes = {(change.module, change.kind, change.number): change for change in standing}
    for change in second.calls:
        place = change.module, change.kind, change.number
        rows = {row[0]: row for row in changes[place].sizes} if place in changes else {}
        rows |= {row[0]: row for row in change.sizes}
        changes[place] = replace(change, sizes=tuple(rows[at] for at in sorted(rows)))
    return tuple(changes.values())
