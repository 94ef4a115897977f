"""Capture a model with torch.export: an ATen graph, with a dynamic batch where the model allows it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from l0prune.errors import TraceError
from l0prune.model_call import ExampleInputs, evaluation_mode, split_inputs

__all__ = ["Captured", "capture"]


@dataclass(frozen=True, eq=False)
class Captured:
    """An exported program and the inputs it was made with.

    Attributes:
        program: The exported program, in evaluation mode.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        batch_size: Size of the batch dimension in the example; 1 where there is none.
        dynamic_batch: Whether the program accepts other batch sizes.
    """

    program: ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch_size: int
    dynamic_batch: bool


def _batch_size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """The size that dimension 0 of every tensor input shares, or None."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    sizes = {int(tensor.shape[0]) for tensor in tensors if tensor.dim() > 0}
    return sizes.pop() if len(sizes) == 1 and all(tensor.dim() > 0 for tensor in tensors) else None


def _doubled(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) else value


def capture(model: nn.Module, inputs: ExampleInputs) -> Captured:
    """Export `model` in evaluation mode; the model itself is left as it was.

    A batch of one is doubled for the export, because torch.export specialises on sizes 0 and 1.

    Args:
        model: Any module that torch.export can capture.
        inputs: A tensor, a tuple of positional or a dict of keyword tensors.

    Returns:
        The exported program; with a dynamic batch dimension if the model allows one.

    Raises:
        TraceError: the model does not run on the inputs, or torch.export cannot capture it.
    """
    args, kwargs = split_inputs(inputs)
    batch = _batch_size(args, kwargs)
    with evaluation_mode(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model(*args, **kwargs)
        except Exception as error:
            shapes = [tuple(v.shape) for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            raise TraceError(
                f"{type(model).__name__} fails on the example inputs of shapes {shapes}: {_first_line(error)}; "
                "pass inputs (or --input-shape) that fit the model"
            ) from error
        if batch is not None:
            big_args = tuple(_doubled(v) for v in args) if batch == 1 else args
            big_kwargs = {k: _doubled(v) for k, v in kwargs.items()} if batch == 1 else kwargs
            try:
                program = _export(model, big_args, big_kwargs, dynamic=True)
                return Captured(program, big_args, big_kwargs, max(batch, 2), _is_dynamic(program))
            except Exception:  # noqa: BLE001 - a batch that cannot vary; the static export below reports real failures
                pass
        try:
            return Captured(_export(model, args, kwargs, dynamic=False), args, kwargs, batch or 1, dynamic_batch=False)
        except Exception as error:
            raise TraceError(
                f"torch.export cannot capture {type(model).__name__}: {_first_line(error)}; remove data-dependent "
                "control flow from its forward pass, or trace the part of the model that has none"
            ) from error


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool) -> ExportedProgram:
    shapes: tuple[Any, dict[str, Any]] | None = None
    if dynamic:
        first = {0: Dim.AUTO}
        shapes = (
            tuple(first if isinstance(v, Tensor) else None for v in args),
            {k: first if isinstance(v, Tensor) else None for k, v in kwargs.items()},
        )
    spec = None if shapes is None else _by_parameter(model, args, kwargs, shapes)
    return torch.export.export(model, args, kwargs, dynamic_shapes=spec, strict=False)


def _by_parameter(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: tuple[Any, dict[str, Any]]
) -> Any:
    """Shapes in the form torch.export wants: a tuple for positional inputs, names for keyword inputs."""
    positional, keyword = shapes
    if not kwargs:
        return positional
    import inspect

    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, positional, strict=False)), **keyword}


def _is_dynamic(program: ExportedProgram) -> bool:
    inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in inputs and isinstance(value, Tensor) and value.dim() > 0:
            return not isinstance(value.shape[0], int)
    return False


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
