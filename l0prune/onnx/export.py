"""Export to ONNX: quiet, with free batch and lengths where the model allows it, checked before the file appears."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import onnx
import torch
from torch import nn

from l0prune.errors import ConfigError, ExportError, L0PruneWarning, NoOnnxError
from l0prune.look.kept_by_forward import forgetful
from l0prune.model_call import ExampleInputs, ModelCall, evaluation_mode
from l0prune.onnx.freedom import Freedom, freedoms
from l0prune.onnx.job import OnnxJob, TranslationError
from l0prune.onnx.labels import label_
from l0prune.onnx.onnx_model import OnnxDifference, OnnxModel, onnx_difference
from l0prune.onnx.plain_outputs import with_plain_outputs
from l0prune.onnx.silence import without_messages
from l0prune.onnx.subnormal import said
from l0prune.onnx.weight_names import name_transposed_
from l0prune.surgery.record import call_of, has_surgery

__all__ = ["OnnxDifference", "OnnxModel", "export_onnx", "onnx_difference", "unchecked_program"]


@overload
def export_onnx(
    model: nn.Module,
    example_inputs: ExampleInputs,
    path: Path | str,
    *,
    dynamic_batch: bool = True,
    dynamic_size: bool = True,
    tolerance: float = 1e-4,
    opset: int | None = None,
    output_names: Sequence[str] | None = None,
) -> Path: ...
@overload
def export_onnx(
    model: nn.Module,
    path: Path | str,
    /,
    *,
    dynamic_batch: bool = True,
    dynamic_size: bool = True,
    tolerance: float = 1e-4,
    opset: int | None = None,
    output_names: Sequence[str] | None = None,
) -> Path: ...
def export_onnx(
    model: nn.Module,
    example_inputs: ExampleInputs | Path | str | None = None,
    path: Path | str | None = None,
    *,
    dynamic_batch: bool = True,
    dynamic_size: bool = True,
    tolerance: float = 1e-4,
    opset: int | None = None,
    output_names: Sequence[str] | None = None,
) -> Path:
    """Write a model as an ONNX file that computes what torch computes.

    The file is written under a temporary name, checked with `onnx.checker`, run in onnxruntime against torch at batch
    sizes 1, 2 and 5 and at several values of the other free sizes (a static file at its own), and only then moved to `path`.
    A failure leaves nothing behind, and an existing file unchanged. Free sizes are called `batch`; `height`, `width` and
    `depth` for images and videos; `length`, `length_2` ... A size is free only if torch itself accepts another value and the
    file agrees with torch at every value tried. The metadata property "l0prune.dynamic_batch" says whether the batch is free
    ("true") or fixed ("false"), as `OnnxModel(path).static_batch` reads it; "l0prune.example.height" holds the height in the
    example; "l0prune.fixed" holds arguments that are not tensors, whose values are part of the file.

    A model that torch.export refuses, or whose graph its exporter cannot translate (attention over five dimensions in torch
    2.13), is compiled by TorchScript, so that its conditions stay in the file. If that fails too, it is recorded on the path
    of the example ("l0prune.paths" is then "one"). Such a file is written only if it also agrees with torch on inputs of
    several kinds.

    Weights below the normal range of float32 (1.2e-38), which training leaves in channels that die and which slow processors
    many times, are written as 0; a warning (`L0PruneWarning`) says how many.

    Args:
        model: Any module; it is exported in evaluation mode, and its mode restored.
        example_inputs: One tensor, positional arguments, or a dict (of keyword arguments, or the argument of a model that
            takes one). Their first dimension is the batch; a batch of 1 is doubled for the capture, which would otherwise
            take it for a constant. A compact model needs none, `export_onnx(compact, path)`: it keeps those it was
            verified with.
        path: The file to write; its directory must exist.
        dynamic_batch: Make the batch free if the model allows it, and with it lengths such as that of a token
            sequence; with False, the file accepts the sizes of `example_inputs` only.
        dynamic_size: Make heights and widths free as well.
        tolerance: Largest difference allowed, relative to the largest magnitude of each torch output, > 0.
        opset: ONNX operator set; None takes torch's default. The file has the lowest version of the format that holds it.
        output_names: A name for each output tensor, in their order; None takes those the model gives them.

    Returns:
        `path`.

    Raises:
        ConfigError: if the directory does not exist, `tolerance` is not positive, or there are no inputs.
        ExportError: if the model does not run on the inputs, cannot be captured or converted, or the file's outputs
            differ from torch's; `NoOnnxError`, a kind of it, if no file can hold what the model does.
    """
    if isinstance(example_inputs, Path | str):
        example_inputs, path = None, example_inputs
    if path is None:
        raise ConfigError("there is no path for the ONNX file: call export_onnx(model, example_inputs, path)")
    path = Path(path)
    call = _inputs_of_cut(model) if example_inputs is None else ModelCall.of(example_inputs, model)
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the directory {path.parent} does not exist. Create it first.")
    if not tolerance > 0:
        raise ConfigError(f"tolerance={tolerance}: expected a number above 0.")
    with without_messages(), evaluation_mode(model), torch.no_grad():
        plain, names = with_plain_outputs(model, call)
        names = names if output_names is None else _checked_names(output_names, names, call.input_names(plain))
        job = OnnxJob(plain, names, call=call, path=path, tolerance=tolerance, opset=opset)
        try:
            with forgetful(job.model, call):
                n_flushed = job.write_free(images=dynamic_size) if dynamic_batch else None
                if n_flushed is None:
                    n_flushed = job.write(*job.capture(Freedom()))
        except (NoOnnxError, TranslationError) as refusal:
            n_flushed = job.write_scripted(model, refusal, free_batch=dynamic_batch)
    if n_flushed:
        warnings.warn(said(n_flushed, path), L0PruneWarning, stacklevel=2)
    return path


def unchecked_program(
    model: nn.Module, call: ModelCall, freedom: Freedom | None = None
) -> tuple[onnx.ModelProto, Freedom]:
    """What `export_onnx` would write, without comparing it with torch.

    Args:
        model: To export.
        call: Example inputs.
        freedom: What is free; None finds out what may be, with a free batch.

    Returns:
        The model, labelled as the file would be, and what is free in it.

    Raises:
        ExportError: it cannot be captured or converted.
    """
    with without_messages(), evaluation_mode(model), torch.no_grad():
        job = OnnxJob(*with_plain_outputs(model, call), call=call, path=Path("model.onnx"), tolerance=1.0, opset=None)
        with forgetful(job.model, call):
            tried = [*freedoms(job.model, call, images=False), Freedom()] if freedom is None else [freedom]
            for wanted in tried:
                try:
                    captured, free, _ = job.capture(wanted)
                    program = job.translate(captured)
                except ExportError:
                    if wanted is tried[-1]:
                        raise
                    continue
                label_(program.model, free, call.fixed_values(model), job.largest_numbers())
                name_transposed_(program.model, job.model)
                return program.model_proto, wanted.found_in(free)
    raise ExportError(f"{type(model).__name__} cannot be exported to ONNX")


def _inputs_of_cut(model: nn.Module) -> ModelCall:
    """What a compact model was verified with, as `call_of` has it.

    Raises:
        ConfigError: the model is none.
    """
    if not has_surgery(model):
        raise ConfigError(
            f"this {type(model).__name__} is not a compact model, which would know its own inputs: call"
            " export_onnx(model, example_inputs, path)"
        )
    call = call_of(model)
    if not (call.args or call.kwargs):
        raise ConfigError("this compact model was saved without inputs: call export_onnx(model, example_inputs, path)")
    return call


def _checked_names(wanted: Sequence[str], own: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """The names the user wants for the outputs.

    Raises:
        ConfigError: there are more or fewer outputs, or a name is empty, given twice, or that of an input.
    """
    if isinstance(wanted, str) or len(wanted) != len(own):
        found = f"{wanted!r}" if isinstance(wanted, str) else f"{len(wanted)} names"
        raise ConfigError(f"output_names: the model has the {len(own)} output(s) {', '.join(own)}, found {found}.")
    wrong = next((name for name in wanted if not name or name in inputs or list(wanted).count(name) > 1), None)
    if wrong is not None:
        why = "empty" if not wrong else "that of an input" if wrong in inputs else "given twice"
        raise ConfigError(f"output_names: the name {wrong!r} is {why}; each output needs one of its own.")
    return list(wanted)
