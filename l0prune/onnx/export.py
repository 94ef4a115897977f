"""Export to ONNX: quiet, with free batch and lengths where the model allows it, checked before the file appears."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import onnx
import sympy  # type: ignore[import-untyped]
import torch
from torch import nn
from torch.export import ExportedProgram

from l0prune.errors import ConfigError, ExportError, L0PruneError, L0PruneWarning, NoOnnxError, first_line
from l0prune.files import draft_folder
from l0prune.look.free_sizes import FreeSizes
from l0prune.look.kept_by_forward import forgetful, without_caches
from l0prune.look.program import forget_fake_results
from l0prune.model_call import ExampleInputs, ModelCall, evaluation_mode
from l0prune.onnx.channel_constants import write_as_norms_
from l0prune.onnx.freedom import (
    SIZE_TOLERANCE,
    Freedom,
    freedoms,
    goes_one_way,
    outputs_or_none,
    renamed,
    size_names,
    taken_sizes,
    trials,
    without_refused,
)
from l0prune.onnx.onnx_model import (
    DYNAMIC_BATCH_KEY,
    EXAMPLE_KEY,
    FIXED_KEY,
    LARGEST_KEY,
    OnnxDifference,
    OnnxModel,
    compare_outputs,
    onnx_difference,
)
from l0prune.onnx.plain_outputs import with_plain_outputs
from l0prune.onnx.scripted import ScriptedOnnx
from l0prune.onnx.silence import without_messages
from l0prune.onnx.spread_constants import gather_constants_
from l0prune.onnx.subnormal import flush_program_, said
from l0prune.onnx.weight_names import name_transposed_
from l0prune.surgery.dropped import has_dropped, unspread
from l0prune.surgery.record import call_of, has_surgery
from l0prune.tensor_names import unique

__all__ = ["OnnxDifference", "OnnxModel", "export_onnx", "onnx_difference", "unchecked_program"]

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_INLINE_BYTES = 1_900_000_000  # protobuf files end at 2 GiB; beyond this, weights go to a second file beside the first

_IR_OF_TYPES = {
    **dict.fromkeys((onnx.TensorProto.UINT4, onnx.TensorProto.INT4), 10),
    **{number: 9 for name, number in onnx.TensorProto.DataType.items() if name.startswith("FLOAT8")},
    **{
        number: 11 for name, number in onnx.TensorProto.DataType.items() if name.startswith(("FLOAT4", "UINT2", "INT2"))
    },
}
"""Version of the format that a type of numbers came with."""


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
        job = _Job(plain, names, call=call, path=path, tolerance=tolerance, opset=opset)
        try:
            with forgetful(job.model, call):
                n_flushed = job.write_free(images=dynamic_size) if dynamic_batch else None
                if n_flushed is None:
                    n_flushed = job.write(*job.capture(Freedom()))
        except (NoOnnxError, _TranslationError) as refusal:
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
        job = _Job(*with_plain_outputs(model, call), call=call, path=Path("model.onnx"), tolerance=1.0, opset=None)
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
                _label(program.model, free, call.fixed_values(model), job.largest_numbers())
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

    def write_free(self, *, images: bool) -> int | None:
        """Write the file with as many free sizes as the model allows, as `write`; None if it allows none.

        What is wrong with the model itself shows again when it is written with none.
        """
        failed: set[Freedom] = set()
        for wanted in freedoms(self.model, self.call, images=images):
            try:
                program, free, taken = self.capture(wanted)
                found = wanted.found_in(free)
                if found in failed or found == Freedom():
                    continue
                failed.add(found)
                if not goes_one_way(program, self.model, self.call, free, taken):
                    forget_fake_results(program)
                    continue
                return self.write(program, free, taken)
            except ExportError:
                continue
        return None

    def write(self, captured: ExportedProgram, free: FreeSizes, taken: dict[sympy.Symbol, int]) -> int:
        """Translate, check, and move to the final name; the number of weights that became zero."""
        program = self.translate(captured)
        _label(program.model, free, self.call.fixed_values(self.model), self.largest_numbers())
        gather_constants_(program.model)
        write_as_norms_(program.model)
        name_transposed_(program.model, self.model)
        n_flushed = flush_program_(program.model)
        program.model.ir_version = _oldest_ir(program.model)
        with self.draft() as draft:
            program.save(draft, external_data=_weight_bytes(self.model) > _INLINE_BYTES)
            try:
                onnx.checker.check_model(str(draft))
                self.check_numbers(draft, free, taken)
            except (onnx.checker.ValidationError, L0PruneError) as error:
                reason = first_line(error).replace(str(draft), str(self.path))
                raise ExportError(reason if str(self.path) in reason else f"{self.path}: {reason}") from error
        return n_flushed

    def write_scripted(self, model: nn.Module, refusal: ExportError, *, free_batch: bool) -> int:
        """By TorchScript, because of `refusal`; as `write`."""
        captured = isinstance(refusal, _TranslationError)
        kind = ExportError if captured else NoOnnxError
        hiding = self.call.unknown_types()
        if hiding:
            raise NoOnnxError(
                f"{type(model).__name__} is called with a {hiding[0]}, whose tensors cannot become inputs of a file: register it "
                "with torch.export.register_dataclass, or pass its tensors in tuples and dicts"
            ) from refusal
        if _weight_bytes(model) > _INLINE_BYTES:
            raise kind(f"{refusal}. TorchScript is not tried beyond 2 GB.") from refusal
        with self.draft() as draft:
            try:
                return ScriptedOnnx(
                    model, self.call, self.output_names, self.tolerance, self.opset, free_batch, has_one_path=captured
                ).write(draft)
            except ExportError as error:
                raise kind(f"{refusal}. {error}") from error

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A file beside the final one, whose name it takes at the end if nothing is raised."""
        with draft_folder(self.path) as folder:
            draft = folder / self.path.name
            yield draft
            files = sorted(folder.iterdir(), key=lambda file: file == draft)  # the one that names the others last
            for written in files:
                written.replace(self.path.parent / written.name)

    def capture(self, wanted: Freedom) -> tuple[ExportedProgram, FreeSizes, dict[sympy.Symbol, int]]:
        """The program with these sizes free that torch takes other values of; the sizes; and one such value of each."""
        call = self.call.with_batch(2) if wanted.batch and self.call.batch_size == 1 else self.call
        name = type(self.model).__name__
        try:
            program = self._exported(call, wanted)
        except Exception as error:
            raise NoOnnxError(f"{name} cannot be exported to ONNX: {first_line(error, named=True)}") from error
        free = FreeSizes.of(program, call, with_batch=wanted.batch)
        taken = taken_sizes(self.model, call, free)
        found = wanted.found_in(free)
        narrower = without_refused(found, free, taken)
        if narrower != found:
            forget_fake_results(program)
            return self.capture(narrower)
        return program, free, taken

    def _exported(self, call: ModelCall, wanted: Freedom) -> ExportedProgram:
        """The program, in which constants that dropped modules return are not spread out if it can be had so."""
        shapes = wanted.shapes(self.model, call)
        with without_caches(self.model), redirect_stderr(io.StringIO()):  # torch.export writes whole graphs there
            if has_dropped(self.model):
                with suppress(Exception), unspread(self.model):
                    return torch.export.export(self.model, call.args, call.kwargs, dynamic_shapes=shapes, strict=False)
            return torch.export.export(self.model, call.args, call.kwargs, dynamic_shapes=shapes, strict=False)

    def translate(self, captured: ExportedProgram) -> torch.onnx.ONNXProgram:
        """The program as ONNX."""
        name = type(self.model).__name__
        names = self.input_names
        try:
            program = torch.onnx.export(
                captured,
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=unique(self.output_names, names, prefix="output_"),
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
        return program

    @cached_property
    def input_names(self) -> list[str]:
        """A name for every tensor that goes in."""
        return self.call.input_names(self.model)

    def largest_numbers(self) -> dict[str, int]:
        """The largest whole number that goes in as part of a tensor, by the name of the input."""
        named = zip(self.input_names, self.call.tensors, strict=True)
        return {name: int(value.max()) for name, value in named if value.numel() and value.dtype in _WHOLE}

    def check_numbers(self, draft: Path, free: FreeSizes, taken: dict[sympy.Symbol, int]) -> None:
        """Compare the file with torch at several batch sizes and other sizes."""
        onnx_model = OnnxModel(draft)
        for trial in trials(free, taken):
            call = trial.call(self.call, free)
            expected = outputs_or_none(self.model, call)
            if (
                expected is None and trial.sizes
            ):  # longer than the model's table of positions, or no multiple of what it wants
                call = replace(trial, sizes={}).call(self.call, free)
                expected = outputs_or_none(self.model, call)
            if expected is None:
                raise ExportError(f"{draft}: the torch model fails at batch size {call.batch_size}.")
            tolerance = min(self.tolerance, SIZE_TOLERANCE) if trial.sizes else self.tolerance
            try:
                found = compare_outputs(expected, onnx_model, call, self.input_names)
            except ConfigError:
                if trial.may_refuse:
                    continue
                raise
            if not found.max_rel <= tolerance:
                raise ExportError(
                    f"{draft}: ONNX and torch outputs differ by {found.max_rel:.1e} relative "
                    f"(tolerance {tolerance:.1e}) at output {found.output} at batch size {call.batch_size}; "
                    "nothing was written."
                )


def _oldest_ir(model: Any) -> int:
    """The lowest version of the format that holds a graph, so that older runtimes read the file: 10 needs onnxruntime 1.18."""
    kinds = {value.const_value.dtype.value for graph in model.graphs() for value in graph.initializers.values()}
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    try:
        oldest = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    except ValueError:
        return model.ir_version
    return min(model.ir_version, max(oldest, *(_IR_OF_TYPES.get(kind, 0) for kind in kinds), 0))


def _weight_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def _label(model: Any, free: FreeSizes, fixed: dict[str, str], largest: dict[str, int]) -> None:
    """Name the free sizes, say what the example was and what is fixed, and drop notes on this machine's source files."""
    names = size_names(free)
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        value.metadata_props.clear()
        if names and value.shape is not None:
            value.shape = type(value.shape)([renamed(size, names) for size in value.shape])
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
        value.shape = value.type = (
            None  # known from the tensor; tools that replace the tensor take a second note for a contradiction
        )
    model.metadata_props.clear()
    model.metadata_props[DYNAMIC_BATCH_KEY] = "true" if free.has_batch else "false"
    for symbol in free.lengths:
        if symbol in free.example:
            model.metadata_props[f"{EXAMPLE_KEY}{names[str(symbol)]}"] = str(free.example[symbol])
    model.metadata_props.update({f"{LARGEST_KEY}{name}": str(number) for name, number in largest.items()})
    if fixed:
        model.metadata_props[FIXED_KEY] = json.dumps(fixed)
