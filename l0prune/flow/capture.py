"""Capture a model with torch.export: an ATen graph, with a dynamic batch where the model allows it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from l0prune.errors import TraceError
from l0prune.flow.norm_calls import NormCalls, RecordNorms
from l0prune.flow.op import varies
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
        norms: The normalisations that an ordinary forward pass calls.
    """

    program: ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch_size: int
    dynamic_batch: bool
    norms: NormCalls


def _batch_size(inputs: Any) -> int | None:
    """The size that dimension 0 of every tensor input shares, or None."""
    tensors = [value for value in pytree.tree_leaves(inputs) if isinstance(value, Tensor)]
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
    batch = _batch_size((args, kwargs))
    with evaluation_mode(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with RecordNorms() as recorded:
                output = model(*args, **kwargs)
        except Exception as error:
            shapes = [tuple(v.shape) for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
            raise TraceError(
                f"{type(model).__name__} fails on the example inputs of shapes {shapes}: {_first_line(error)}; "
                "pass inputs (or --input-shape) that fit the model"
            ) from error
        norms = recorded.calls(model)
        with _plain_outputs(model) if _plain(output) is not output else nullcontext():
            if batch is not None:
                big_args, big_kwargs = pytree.tree_map(_doubled, (args, kwargs)) if batch == 1 else (args, kwargs)
                try:
                    program = _export(model, big_args, big_kwargs, dynamic=True)
                    if _is_dynamic(program):
                        return Captured(program, big_args, big_kwargs, max(batch, 2), dynamic_batch=True, norms=norms)
                except Exception:  # noqa: BLE001 - a batch that cannot vary; the static export below reports real failures
                    pass
            try:
                program = _export(model, args, kwargs, dynamic=False)
            except Exception as error:
                raise TraceError(
                    f"torch.export cannot capture {type(model).__name__}: {_first_line(error)}; remove data-dependent "
                    "control flow from its forward pass, or trace the part of the model that has none"
                ) from error
            return Captured(program, args, kwargs, batch or 1, dynamic_batch=False, norms=norms)


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool) -> ExportedProgram:
    shapes: Any = None
    if dynamic:
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        shapes = pytree.tree_map(lambda leaf: {0: Dim.AUTO} if isinstance(leaf, Tensor) else None, dict(bound))
    program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    program.graph.eliminate_dead_code()  # such as attention weights, averaged over heads, that nobody asked for
    program.graph_module.recompile()
    return program


def _plain(output: Any) -> Any:
    """The output with dataclasses that torch.export does not know as dicts of their fields; itself if there is none."""
    if dataclasses.is_dataclass(output) and type(output) not in pytree.SUPPORTED_NODES:
        return {field.name: _plain(getattr(output, field.name)) for field in dataclasses.fields(output)}
    if type(output) in (list, tuple):
        parts = [_plain(part) for part in output]
        return output if all(a is b for a, b in zip(parts, output, strict=True)) else type(output)(parts)
    if type(output) is dict:
        items = {key: _plain(value) for key, value in output.items()}
        return output if all(items[key] is value for key, value in output.items()) else items
    return output


@contextmanager
def _plain_outputs(model: nn.Module) -> Iterator[None]:
    """For a while, `model` returns dicts where it returns dataclasses."""
    forward = model.forward
    own = vars(model).get("forward")

    @functools.wraps(forward)
    def plain(*args: Any, **kwargs: Any) -> Any:
        return _plain(forward(*args, **kwargs))

    model.forward = plain  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


def _is_dynamic(program: ExportedProgram) -> bool:
    inputs = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    batched = [value for value in values if isinstance(value, Tensor) and value.dim() > 0]
    return bool(batched) and all(varies(value.shape[0]) for value in batched)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
