"""`onnx/model.onnx` with the names that optimum expects: what the tokenizer returns goes in, what is used comes out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.errors import ConfigError
from l0prune.model_call import ModelCall, signature_of
from l0prune.onnx.export import export_onnx
from l0prune.surgery.record import call_of

__all__ = ["ONNX", "optimum_inputs", "write_onnx"]

ONNX = "onnx/model.onnx"
_HIDDEN = "last_hidden_state"
_TYPES, _TYPE_COUNT = "token_type_ids", "type_vocab_size"


def write_onnx(compact: nn.Module, path: Path, names: Sequence[str] | None) -> None:
    """Write the file.

    Args:
        compact: A model of transformers.
        path: The file; its folder is made.
        names: What the tokenizer makes; None takes what such models are given.

    Raises:
        ConfigError: it is not known what goes in.
        ExportError: as `export_onnx`.
    """
    inputs = optimum_inputs(compact, names)
    path.parent.mkdir()
    try:
        export_onnx(_NamedOutputs(compact, inputs), inputs, path)
    except Exception:  # whatever stops the export leaves no empty folder, and is raised again
        path.parent.rmdir()
        raise


def optimum_inputs(compact: nn.Module, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Keyword tensors in the order of the forward pass: those the model was verified with, and what else a tokenizer makes.

    Raises:
        ConfigError: it is not known what goes in.
    """
    call = call_of(compact)
    known = dict(zip(call.input_names(compact), call.tensors, strict=True))
    signature = signature_of(compact)
    taken = {} if signature is None else signature.parameters
    ids = known.get("input_ids")
    if ids is not None:
        has_types = (getattr(compact.config, _TYPE_COUNT, 0) or 0) > 1
        made = ("input_ids", "attention_mask", *((_TYPES,) if has_types else ())) if names is None else names
        for name in made:
            if name in taken and name not in known:
                known[name] = torch.ones_like(ids)
        if _TYPES in known and has_types:
            known[_TYPES] = (torch.arange(ids.shape[-1], device=ids.device) * 2 >= ids.shape[-1]).long().expand_as(ids)
        elif _TYPES in known:
            known[_TYPES] = torch.zeros_like(ids)
    if not known or not all(name in taken for name in known):
        raise ConfigError("it is not known what the model is called with: shrink it again, with example_inputs by name")
    return {name: known[name].contiguous() for name in taken if name in known}


class _NamedOutputs(nn.Module):
    """A model of transformers that returns what is used of its output, by name."""

    def __init__(self, model: Any, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        signature = signature_of(model)
        fixed: dict[str, Any] = {"return_dict": True}
        if signature is not None and "use_cache" in signature.parameters:
            fixed["use_cache"] = False
        with torch.no_grad():
            self.kept = _kept(ModelCall((), {**inputs, **fixed})(model))

        @functools.wraps(model.forward)
        def forward(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
            output = self.model(*args, **kwargs, **fixed)
            return {name: output[name] for name in self.kept}

        self.forward = forward


def _kept(output: Any) -> list[str]:
    """The hidden state of the last layer where there is one, else all logits, else every tensor."""
    tensors = [name for name, value in output.items() if isinstance(value, Tensor)]
    logits = [name for name in tensors if "logits" in name]
    if not logits and _HIDDEN in tensors:
        return [_HIDDEN]
    return logits or tensors
