"""An optimizer goes on with the weights of the network that was cut, and with what it has gathered about them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from l0prune.gated.model import GatedModel
from l0prune.surgery.cuts import TensorCut
from l0prune.surgery.shrink import surgery_of

__all__ = ["hand_over_"]


def hand_over_(optimizer: torch.optim.Optimizer, gated: GatedModel, dense: nn.Module, compact: nn.Module) -> None:
    """Put a compact network's parameters in the place of those they were cut from.

    Groups keep their options, and what is kept of a parameter's state in its shape (momentum, squares) is cut like it. Removed
    parameters go; those that only the compact network has join the last group.

    Args:
        optimizer: Over the parameters of `dense`, perhaps among others; a wrapper of another one is seen through.
        gated: What was cut.
        dense: Its model.
        compact: What `shrink(gated)` made of it.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    cuts = surgery_of(compact).cut
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    of_name = dict(dense.named_parameters(remove_duplicate=False))
    replaced: dict[int, tuple[nn.Parameter, TensorCut | None]] = {}
    added = []
    for name, parameter in compact.named_parameters():
        known = gated.flow.aliases.get(name, name)
        if known not in of_name:
            added.append(parameter)
        elif id(of_name[known]) in owned:
            parameter.requires_grad_(of_name[known].requires_grad)
            replaced[id(of_name[known])] = parameter, None if cuts is None else cuts.tensors.get(known)
    if not replaced:  # it moves other networks
        return
    gone = {id(parameter) for parameter in of_name.values()} - replaced.keys()
    for group in optimizer.param_groups:
        group["params"] = [
            _moved(optimizer, parameter, replaced) for parameter in group["params"] if id(parameter) not in gone
        ]
    optimizer.param_groups[-1]["params"] += added
    for parameter in of_name.values():
        optimizer.state.pop(parameter, None)
        parameter.grad = None


def _moved(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    replaced: dict[int, tuple[nn.Parameter, TensorCut | None]],
) -> nn.Parameter:
    """What stands in for a parameter, with its state."""
    if id(parameter) not in replaced:
        return parameter
    after, cut = replaced[id(parameter)]
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    shaped = [value for value in state.values() if isinstance(value, Tensor) and value.dim()]
    if state and all(value.shape == parameter.shape for value in shaped):
        optimizer.state[after] = {
            name: cut.select(value) if cut and isinstance(value, Tensor) and value.dim() else value
            for name, value in state.items()
        }
    return after
