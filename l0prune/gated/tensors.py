"""The tensors of a model that gates multiply: found by name, under all their names, and compared with what was traced."""

from __future__ import annotations

from torch import Tensor, nn

from l0prune.errors import PlanMismatchError
from l0prune.flow.channel_flow import ChannelFlow

__all__ = ["places_of", "require_same_model", "tensor_of"]


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its dotted name."""
    path, _, leaf = name.rpartition(".")
    value = getattr(model.get_submodule(path), leaf)
    if not isinstance(value, Tensor):
        raise PlanMismatchError(
            f"{name!r} is a {type(value).__name__} in this model, a tensor in the traced one; trace it again"
        )
    return value


def places_of(model: nn.Module, names: set[str]) -> dict[str, tuple[str, ...]]:
    """Where each of the named tensors is held: one name for every module that holds it.

    A module that has two names itself counts once: its tensors are put back once.
    """
    places: dict[str, list[str]] = {name: [] for name in names}
    known = {id(tensor_of(model, name)): name for name in names}
    for path, module in model.named_modules():
        for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]:
            name = known.get(id(tensor))
            if name is not None:
                places[name].append(f"{path}.{leaf}" if path else leaf)
    return {name: tuple(found) for name, found in places.items()}


def require_same_model(model: nn.Module, flow: ChannelFlow) -> None:
    """See that a model has the tensors that were traced.

    Raises:
        PlanMismatchError: names one that is missing or has another shape.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, size in flow.sizes.items():
        if name not in tensors and name not in flow.captured.program.constants:
            raise PlanMismatchError(
                f"{name!r} was traced but is not in this {type(model).__name__}; trace this very model"
            )
        if name in tensors and tuple(tensors[name].shape) != size:
            raise PlanMismatchError(
                f"{name!r} has shape {tuple(tensors[name].shape)} here and had {size} when it was traced; trace this very model"
            )
