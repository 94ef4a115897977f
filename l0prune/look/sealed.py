"""Modules whose code cannot be seen or changed: compiled by TorchScript. They stay as they are, whatever is cut around them."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["SEALED", "lies_in", "sealed_modules"]

SEALED = "inside a module compiled by TorchScript, which stays as it is"


def sealed_modules(model: nn.Module) -> frozenset[str]:
    """Names of the outermost modules that torch.jit has scripted or traced; the empty name if that is the model itself."""
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    return frozenset(name for name in scripted if not any(lies_in(name, other) for other in scripted if other != name))


def lies_in(name: str, module: str) -> bool:
    """Whether a tensor or module is that of a name, or is inside of it."""
    return not module or name == module or name.startswith(f"{module}.")
