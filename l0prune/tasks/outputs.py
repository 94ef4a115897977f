"""The tensors in what a model returned, by name, and the one of them that is meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l0prune.errors import ConfigError
from l0prune.model_call import output_names, output_tensors

__all__ = ["USUAL", "chosen_output", "named_outputs"]

USUAL = ("logits",)
"""What libraries call the output that is meant."""


def named_outputs(outputs: Any) -> dict[str, Tensor]:
    """All tensors by name: their key or field, `output` where there is one alone, else `output_0`, `output_1` ...

    Args:
        outputs: Of a module: a tensor, or nested sequences, mappings and dataclasses; an object with `logits`; a numpy array,
            which shares its memory with the result.
    """
    as_dict = getattr(outputs, "_asdict", None)  # of a named tuple
    outputs = outputs if as_dict is None else as_dict()
    tensors = output_tensors(outputs)
    if tensors:
        return dict(zip(output_names(outputs), tensors, strict=True))
    if isinstance(getattr(outputs, "logits", None), Tensor):
        return {"logits": outputs.logits}
    return {"output": torch.as_tensor(outputs)} if hasattr(outputs, "__array__") else {}


def chosen_output(outputs: Any, name: str | None = None, *, usual: Sequence[str] = USUAL) -> Tensor:
    """The output that is meant: the one of that name, else the one with a usual name, else the only one there is.

    Args:
        outputs: As in `named_outputs`.
        name: Of the output; None where it is clear.
        usual: Names that need not be given, the first one first.

    Raises:
        ConfigError: there is none of that name, or several and no name.
    """
    if isinstance(outputs, Tensor) and name is None:
        return outputs
    found = named_outputs(outputs)
    for known in (name,) if name is not None else usual:
        if known in found:
            return found[known]
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    listed = ", ".join(f"{key} {tuple(value.shape)}" for key, value in found.items())
    kind = "mapping" if isinstance(outputs, Mapping) else type(outputs).__name__
    if not found:
        raise ConfigError(f"there is no tensor in an output of type {kind}: have the network return one")
    if name is not None:
        raise ConfigError(f"there is no output {name!r}: the network returns {listed}")
    raise ConfigError(f"the network returns {listed}: say which of them is meant, as in output={next(iter(found))!r}")
