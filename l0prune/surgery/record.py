"""What a compact model remembers of its cut: the record that `shrink` and `load` leave on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from l0prune.errors import ConfigError
from l0prune.model_call import ModelCall
from l0prune.sources.library_models import LibraryModel
from l0prune.surgery.equivalence import Difference
from l0prune.surgery.own_saving import warn_when_saved_
from l0prune.surgery.plan import SurgeryPlan

__all__ = ["Surgery", "call_of", "has_surgery", "remember_surgery_", "surgery_of"]

_RECORD, _SHOWN = "_l0prune_surgery", "surgery"


@dataclass(frozen=True, eq=False, repr=False)
class Surgery:
    """What was done to a compact model; every one that `shrink` or `load` returns carries it.

    Read it as `compact.surgery`, or `surgery_of(compact)` if the class already has an attribute of that name.

    Attributes:
        plan: The cut of the original dense model, without fold factors (they are in the weights). If a model was cut several
            times it is the sum of all cuts.
        cut: Only the last cut, relative to the model that was gated; None for a model that was loaded.
        values: Gate values the last cut was made with, shape `(n_gates,)`; empty for a model that was loaded.
        difference: Largest difference between gated and compact outputs.
        example_args: Positional inputs the model was verified with.
        example_kwargs: Keyword inputs the model was verified with.
        dynamic_batch: Whether the model accepts other batch sizes.
        replayed: Whether applying `plan` to the dense model's class was checked to give this model. A loaded graph that was cut
            again has no class to try it on.
        no_graph_because: Why no graph of the model was saved; empty if one was, or if nothing has been saved yet.
        not_compared: Units that changed no output of the gated model, neither at its own weights nor at several drawn at random,
            so that the comparison says nothing about them: the first dimension they are found in -> how many.
        draws_random_numbers: Whether the model does so in evaluation mode; if so, both were compared with the same numbers.
        not_in_place_because: Why the user's class was not kept, in one sentence; empty if it was.
        origins: Ways in which a library may have built the original dense model; `save` records one that works.
        integers_left: Integers of modules that no forward pass reads and that may stand for a width that was cut, though it is
            unclear which: module and attribute -> value. Methods that use them may need them changed by hand.
        budget: What was asked for, as on the command line, of each cut in turn; empty where nothing was, or it is not known.
        costs: Metric -> cost of the original dense model and of the compact one, in its own unit; as far as it is known.
    """

    plan: SurgeryPlan
    cut: SurgeryPlan | None
    values: npt.NDArray[np.float64]
    difference: Difference
    example_args: tuple[Any, ...]
    example_kwargs: dict[str, Any]
    dynamic_batch: bool
    replayed: bool = True
    no_graph_because: str = ""
    not_compared: dict[str, int] = field(default_factory=dict)
    draws_random_numbers: bool = False
    not_in_place_because: str = ""
    origins: tuple[LibraryModel, ...] = ()
    integers_left: dict[str, int] = field(default_factory=dict)
    budget: str = ""
    costs: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def form(self) -> str:
        """Either "in-place" (the user's class) or "graph"."""
        return self.plan.form if self.replayed else "graph"

    def __repr__(self) -> str:
        """One line: form, extent and exactness."""
        return f"<Surgery {self.form}: {self.plan.extent}, relative difference {self.difference.max_rel:.1e}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Surgery:
        """Immutable, so copies of the compact model share it."""
        return self


def remember_surgery_(compact: nn.Module, record: Surgery) -> None:
    """Put the record on a compact model, as `surgery` too unless its class has something else of that name."""
    object.__setattr__(compact, _RECORD, record)
    if not hasattr(compact, _SHOWN) or isinstance(getattr(compact, _SHOWN), Surgery):
        object.__setattr__(compact, _SHOWN, record)
    warn_when_saved_(compact)


def has_surgery(model: nn.Module) -> bool:
    """Whether a model is a compact one."""
    return isinstance(model.__dict__.get(_RECORD), Surgery)


def surgery_of(compact: nn.Module) -> Surgery:
    """The record of a compact model.

    Raises:
        ConfigError: the model comes neither from `shrink` nor from `load`.
    """
    record = compact.__dict__.get(_RECORD)
    if not isinstance(record, Surgery):
        raise ConfigError(
            f"this {type(compact).__name__} carries no surgery record; pass the model that l0prune.shrink returned, or load"
        )
    return record


def call_of(compact: nn.Module) -> ModelCall:
    """The call that a compact model was verified with, where it lives now, and in the precision it has been converted to since.

    It is empty where no inputs are known.

    Raises:
        ConfigError: as `surgery_of`.
    """
    record = surgery_of(compact)
    call = ModelCall(record.example_args, record.example_kwargs)
    device = next((parameter.device for parameter in compact.parameters()), None)
    kinds = {parameter.dtype for parameter in compact.parameters() if parameter.is_floating_point()}
    moved = call.to(device=device)
    if len(kinds) != 1 or all(tensor.dtype in kinds for tensor in moved.tensors if tensor.is_floating_point()):
        return moved
    return moved if moved.runs_in(compact) else call.to(device=device, dtype=kinds.pop())
