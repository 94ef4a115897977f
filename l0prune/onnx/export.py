"""Export to ONNX: quiet, with free batch and lengths where the model allows it, checked before the file appears."""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim, ShapesCollection

from l0prune.errors import ConfigError, ExportError, L0PruneError, NoOnnxError, first_line
from l0prune.files import draft_folder
from l0prune.flow.capture import forget_fake_results
from l0prune.flow.free_sizes import FreeSizes, length_dimensions
from l0prune.model_call import ExampleInputs, ModelCall, evaluation_mode, output_tensors
from l0prune.onnx.model import (
    DYNAMIC_BATCH_KEY,
    EXAMPLE_KEY,
    OnnxDifference,
    OnnxModel,
    compare_outputs,
    onnx_difference,
)
from l0prune.onnx.plain_outputs import with_plain_outputs
from l0prune.onnx.scripted import ScriptedOnnx

__all__ = ["OnnxDifference", "OnnxModel", "export_onnx", "onnx_difference"]

_BATCH = "batch"
_LENGTH = "length"
_CHECKED_BATCHES = (1, 2, 5)
_CHECKED_LENGTHS = (1.0, 0.5, 1.5)  # of the example's
_INLINE_BYTES = 1_900_000_000  # protobuf files end at 2 GiB; beyond this, weights go to a second file beside the first
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir")


def export_onnx(
    model: nn.Module,
    example_inputs: ExampleInputs,
    path: Path | str,
    *,
    dynamic_batch: bool = True,
    tolerance: float = 1e-4,
    opset: int | None = None,
) -> Path:
    """Write a model as an ONNX file that computes what torch computes.

    The file is written under a temporary name, checked with `onnx.checker`, run in onnxruntime against torch at batch
    sizes 1, 2 and 5 and as many lengths (a static file: at its own), and only then moved to `path`. A failure leaves
    nothing behind, and an existing file as it was. Free sizes are called `batch`, `length`, `length_2` ... The metadata
    property "l0prune.dynamic_batch" says whether the batch is free ("true") or fixed ("false"), as
    `OnnxModel(path).static_batch` reads it; "l0prune.example.length" says how long the example was.

    A model that torch.export refuses, or whose graph its exporter cannot translate (attention over five dimensions in torch
    2.13), is compiled by TorchScript, so that its conditions stay in the file; or, if it cannot be, recorded on the path of
    the example ("l0prune.paths" is "one" then). Such a file appears only if it agrees with torch on inputs of several
    kinds as well.

    Args:
        model: Any module; it is exported in evaluation mode, and its mode restored.
        example_inputs: One tensor, positional tensors, or a dict of keyword tensors. Their first dimension is
            the batch; a batch of 1 is doubled for the capture, which would otherwise take it for a constant.
        path: The file to write; its directory must exist.
        dynamic_batch: Make the batch free where the model allows it, and with it lengths such as that of a token
            sequence; where it does not, and with False, the file accepts the sizes of `example_inputs` only.
        tolerance: Largest difference allowed, relative to the largest magnitude of each torch output, > 0.
        opset: ONNX operator set; None takes torch's own.

    Returns:
        `path`.

    Raises:
        ConfigError: if the directory does not exist, or `tolerance` is not positive.
        ExportError: if the model does not run on the inputs, cannot be captured or converted, or the file's outputs
            differ from torch's; `NoOnnxError`, a kind of it, if no file can hold what the model does.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the directory {path.parent} does not exist. Create it first.")
    if not tolerance > 0:
        raise ConfigError(f"tolerance={tolerance}: expected a number above 0.")
    call = ModelCall.of(example_inputs)
    with _quiet(), evaluation_mode(model), torch.no_grad():
        job = _Job(*with_plain_outputs(model, call), call=call, path=path, tolerance=tolerance, opset=opset)
        if dynamic_batch and call.batch_size is not None:
            # Not every model allows it; what is wrong with the model itself shows again at the end.
            if length_dimensions(call):
                with suppress(ExportError):
                    return job.write(batch=True, lengths=True)
            with suppress(ExportError):
                return job.write(batch=True, lengths=False)
        try:
            return job.write(batch=False, lengths=False)
        except (NoOnnxError, _TranslationError) as refusal:
            return job.write_scripted(model, refusal, free_batch=dynamic_batch)


class _TranslationError(ExportError):
    """torch.export captured the model, and the exporter cannot write what it captured."""


@dataclass(frozen=True)
class _Job:
    """One model on its way into one file."""

    model: nn.Module
    output_names: list[str]
    call: ModelCall
    path: Path
    tolerance: float
    opset: int | None

    def write(self, *, batch: bool, lengths: bool) -> Path:
        """Convert with these sizes free, check, and move to the final name."""
        program, free = self.convert(batch=batch, lengths=lengths)
        _label(program.model, free)
        with self.draft() as draft:
            program.save(draft, external_data=_weight_bytes(self.model) > _INLINE_BYTES)
            try:
                onnx.checker.check_model(str(draft))
                self.check_numbers(draft, free)
            except (onnx.checker.ValidationError, L0PruneError) as error:
                reason = first_line(error).replace(str(draft), str(self.path))
                raise ExportError(reason if str(self.path) in reason else f"{self.path}: {reason}") from error
        return self.path

    def write_scripted(self, model: nn.Module, refusal: ExportError, *, free_batch: bool) -> Path:
        """By TorchScript, because of `refusal`."""
        captured = isinstance(refusal, _TranslationError)
        kind = ExportError if captured else NoOnnxError
        if _weight_bytes(model) > _INLINE_BYTES:
            raise kind(f"{refusal}. TorchScript is left alone beyond 2 GB.") from refusal
        with self.draft() as draft:
            try:
                ScriptedOnnx(
                    model, self.call, self.output_names, self.tolerance, self.opset, free_batch, has_one_path=captured
                ).write(draft)
            except ExportError as error:
                raise kind(f"{refusal}. {error}") from error
        return self.path

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A file beside the final one, whose name it takes at the end if nothing is raised."""
        with draft_folder(self.path) as folder:
            draft = folder / self.path.name
            yield draft
            files = sorted(folder.iterdir(), key=lambda file: file == draft)  # the one that names the others last
            for written in files:
                written.replace(self.path.parent / written.name)

    def convert(self, *, batch: bool, lengths: bool) -> tuple[torch.onnx.ONNXProgram, FreeSizes]:
        """Capture the model and translate it."""
        name, call = type(self.model).__name__, self.call
        if batch and call.batch_size == 1:
            call = call.with_batch(2)
        shapes = _dynamic_shapes(self.model, call, lengths=lengths) if batch else None
        try:
            with redirect_stderr(io.StringIO()):  # torch.export writes whole graphs there before it raises
                captured = torch.export.export(self.model, call.args, call.kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise NoOnnxError(f"{name} cannot be exported to ONNX: {first_line(error, named=True)}") from error
        try:
            program = torch.onnx.export(
                captured,
                dynamo=True,
                verbose=False,
                input_names=call.input_names(self.model),
                output_names=self.output_names,
                opset_version=self.opset,
            )
        except Exception as error:
            raise _TranslationError(f"{name} cannot be exported to ONNX: {first_line(error, named=True)}") from error
        finally:
            forget_fake_results(captured)
        if program is None:
            raise ExportError(f"{name} cannot be exported to ONNX: torch.onnx.export returned nothing.")
        written = program.model.opset_imports.get("")
        if self.opset is not None and written != self.opset:
            raise ExportError(f"{name} cannot be exported with opset {self.opset}: the exporter wrote opset {written}.")
        return program, FreeSizes.of(captured, call)

    def check_numbers(self, draft: Path, free: FreeSizes) -> None:
        """Compare the file with torch at several batch sizes and lengths."""
        onnx_model = OnnxModel(draft)
        for batch, scale in zip(_CHECKED_BATCHES, _CHECKED_LENGTHS, strict=True):
            call = self.call.with_batch(batch) if free.has_batch else self.call
            longer = free.with_lengths(call, free.scaled_lengths(scale))
            try:
                expected = output_tensors(longer(self.model))
            except (RuntimeError, IndexError):  # longer than the model's table of positions
                longer, expected = call, self.outputs(call, draft)
            found = compare_outputs(expected, onnx_model, longer)
            if not found.max_rel <= self.tolerance:
                raise ExportError(
                    f"{draft}: ONNX and torch outputs differ by {found.max_rel:.1e} relative "
                    f"(tolerance {self.tolerance:.1e}) at output {found.output} at batch size {longer.batch_size}; "
                    "nothing was written."
                )
            if not free.has_batch:
                return

    def outputs(self, call: ModelCall, draft: Path) -> list[Tensor]:
        """What torch computes."""
        try:
            return output_tensors(call(self.model))
        except RuntimeError as error:
            raise ExportError(
                f"{draft}: the torch model fails at batch size {call.batch_size}: {first_line(error)}"
            ) from error


def _dynamic_shapes(model: nn.Module, call: ModelCall, *, lengths: bool) -> Any:
    """The batch dimension of every tensor that shares it, and what may be lengths, as torch.export wants it."""
    dimension, shapes = Dim(_BATCH), ShapesCollection()
    maybe = length_dimensions(call) if lengths else {}
    batched = {id(tensor) for tensor in call.batched}
    for tensor in call.tensors:
        own: dict[int, Any] = dict.fromkeys(maybe.get(id(tensor), ()), Dim.AUTO)
        if id(tensor) in batched:
            own[0] = dimension
        if own:
            shapes[tensor] = own
    return shapes.dynamic_shapes(model, call.args, call.kwargs)


def _weight_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def _label(model: Any, free: FreeSizes) -> None:
    """Name the free sizes, say how long they were, and drop notes on this machine's source files."""
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    names = {str(symbol): _BATCH for symbol in free.batch}
    names |= {str(symbol): _LENGTH if i == 0 else f"{_LENGTH}_{i + 1}" for i, symbol in enumerate(free.lengths)}
    for value in values:
        value.metadata_props.clear()
        if names and value.shape is not None:
            value.shape = type(value.shape)([_renamed(size, names) for size in value.shape])
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props[DYNAMIC_BATCH_KEY] = "true" if free.has_batch else "false"
    for symbol in free.lengths:
        if symbol in free.example:
            model.metadata_props[f"{EXAMPLE_KEY}{names[str(symbol)]}"] = str(free.example[symbol])


def _renamed(size: Any, names: dict[str, str]) -> Any:
    name = getattr(size, "value", None)
    return size if not isinstance(name, str) else re.sub(r"\b\w+\b", lambda match: names.get(match[0], match[0]), name)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines from the exporters; both as before afterwards."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
