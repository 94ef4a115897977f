"""Tensors put in the place of those of a model for the time of its forward pass, and of any recomputation of parts of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

__all__ = ["Substitution"]


class Substitution:
    """Inside this block, a model has other tensors; afterwards it has its own again.

    Args:
        model: The model.
        tensors: Dotted name -> tensor that is held there for a while.
    """

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        modules: dict[str, nn.Module] = {}
        self._places: list[tuple[dict[str, Any], str]] = []
        for name in tensors:
            path, _, leaf = name.rpartition(".")
            module = modules[path] = modules.get(path) or model.get_submodule(path)
            self._places.append((_holder(module, leaf), leaf))
        self._tensors = list(tensors.values())
        self._before: list[Any] = []
        self._leaves: dict[int, tuple[Tensor, Tensor]] = {}
        self._ends_at_leaves = False

    def __enter__(self) -> None:
        """Put the tensors in place."""
        self._before = [holder[leaf] for holder, leaf in self._places]
        for (holder, leaf), tensor in zip(self._places, self._tensors, strict=True):
            holder[leaf] = tensor

    def __exit__(self, *error: Any) -> None:
        """Put the model's own back."""
        for (holder, leaf), tensor in zip(self._places, self._before, strict=True):
            holder[leaf] = tensor
        self._before = []
        if self._ends_at_leaves:
            self._pass_on_gradients()

    def again(self, node: BackwardCFunction | None = None) -> Substitution:
        """The same tensors for code that a backward pass runs again; see `l0prune.recomputation.Setting`.

        A custom function may differentiate what it has computed again within its own backward pass. That must end at the
        tensors: what they come from belongs to the graph outside, which other regions need as well. So leaves take their
        place, and what gradients these gather is passed on at the end of the block. A tensor that the function has as an
        input, to return its gradient, stays.
        """
        other = copy.copy(self)
        if node is not None:
            inputs = [function for function, _ in node.next_functions]
            other._tensors = [
                tensor
                if not tensor.requires_grad or any(tensor.grad_fn is function for function in inputs)
                else self._leaf(tensor)
                for tensor in self._tensors
            ]
            other._ends_at_leaves = True
        return other

    def _leaf(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._leaves:
            self._leaves[id(tensor)] = tensor, tensor.detach().requires_grad_()
        return self._leaves[id(tensor)][1]

    def _pass_on_gradients(self) -> None:
        """Let gradients that the leaves have gathered flow on from their tensors."""
        reached = [(tensor, leaf) for tensor, leaf in self._leaves.values() if leaf.grad is not None]
        gradients = [leaf.grad for _, leaf in reached]
        for _, leaf in reached:
            leaf.grad = None
        if reached:
            # What is behind the tensors is needed again, by other regions and by the graph outside.
            torch.autograd.backward([tensor for tensor, _ in reached], gradients, retain_graph=True)


def _holder(module: nn.Module, leaf: str) -> dict[str, Any]:
    """Where a module holds a tensor; replicas hold theirs as plain attributes."""
    held = (module._parameters, module._buffers)
    return next((holder for holder in held if leaf in holder), module.__dict__)
