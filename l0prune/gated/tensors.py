"""The tensors of a model that gates multiply: found by name, under all their names, and compared with what was traced."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l0prune.errors import PlanMismatchError
from l0prune.flow.channel_flow import ChannelFlow

__all__ = [
    "Origin",
    "places_of",
    "require_same_model",
    "tensor_of",
]


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


class Origin:
    """The gates, and the sums of the weights, of a gated model at its beginning.

    Args:
        weights: The user's model.
        locations: Those of the gates, shape `(n_gates,)`.
    """

    def __init__(self, weights: nn.Module, locations: Tensor) -> None:
        self._locations = locations.detach().clone()
        self._sums = _sums(weights)

    def weights_moved(self, weights: nn.Module) -> bool:
        """Whether any weight is another one than at the beginning."""
        return not torch.equal(self._sums, _sums(weights))

    def gates_moved(self, locations: Tensor) -> bool:
        """Whether any gate is elsewhere than at the beginning."""
        return not torch.equal(self._locations.to(locations), locations.detach())


@torch.no_grad()
def _sums(model: nn.Module) -> Tensor:
    """One number for each parameter, in double precision, on the CPU."""
    found = [parameter.sum(dtype=torch.float64).cpu() for parameter in model.parameters() if not parameter.is_meta]
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.float64)
