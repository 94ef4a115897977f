"""A model that is an ATen graph: trainable, switching dropout and batch statistics with its mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from l0prune.flow.op import op_name

__all__ = ["GraphModel"]

_TRAINING_ARGUMENT = {"batch_norm": "training", "dropout": "train", "alpha_dropout": "train", "feature_dropout": "train",
                      "instance_norm": "use_input_stats"}  # fmt: skip


class GraphModel(GraphModule):
    """A GraphModule whose `train()` and `eval()` work: `training` arguments of the ops follow the mode.

    Batch statistics are only switched on where the norm has running statistics to fall back on in evaluation mode.
    """

    def train(self, mode: bool = True) -> GraphModel:
        """Set the mode of every module and of every op that depends on it."""
        nn.Module.train(self, mode)
        changed = False
        for node in self.graph.nodes:
            argument = _TRAINING_ARGUMENT.get(op_name(node.target)) if node.op == "call_function" else None
            if argument is not None and _switchable(node):
                changed |= _set_argument(node, argument, mode)
        if changed:
            self.recompile()
        return self


def _switchable(node: torch.fx.Node) -> bool:
    """Norms without running statistics use batch statistics in either mode."""
    if op_name(node.target) not in ("batch_norm", "instance_norm"):
        return True
    return op_name(node.target) == "batch_norm" and node.args[3] is not None


def _set_argument(node: torch.fx.Node, name: str, value: Any) -> bool:
    """Set an argument of an op by its schema name; says whether it changed."""
    for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name != name:
            continue
        if position < len(node.args):
            if node.args[position] == value:
                return False
            node.args = (*node.args[:position], value, *node.args[position + 1 :])
        else:
            if node.kwargs.get(name, argument.default_value) == value:
                return False
            node.kwargs = {**node.kwargs, name: value}
        return True
    return False
