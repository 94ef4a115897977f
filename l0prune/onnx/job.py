"""One model on its way into one ONNX file: captured, translated, labelled, checked, moved to its name."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx
import sympy  # type: ignore[import-untyped]
import torch
from torch import nn
from torch.export import ExportedProgram

from l0prune.errors import ConfigError, ExportError, L0PruneError, NoOnnxError, first_line
from l0prune.files import draft_folder
from l0prune.look.free_sizes import FreeSizes
from l0prune.look.kept_by_forward import without_caches
from l0prune.look.program import forget_fake_results
from l0prune.model_call import ModelCall
from l0prune.onnx.channel_constants import write_as_norms_
from l0prune.onnx.complex_numbers import without_unsqueezed_
from l0prune.onnx.freedom import (
    SIZE_TOLERANCE,
    Freedom,
    freedoms,
    goes_one_way,
    outputs_or_none,
    taken_sizes,
    trials,
    without_refused,
)
from l0prune.onnx.inner_names import keep_apart_
from l0prune.onnx.labels import label_, oldest_ir_version
from l0prune.onnx.onnx_model import OnnxModel, compare_outputs
from l0prune.onnx.scripted import ScriptedOnnx
from l0prune.onnx.spread_constants import gather_constants_
from l0prune.onnx.subnormal import flush_program_
from l0prune.onnx.weight_names import name_transposed_
from l0prune.surgery.dropped import has_dropped, unspread
from l0prune.tensor_names import unique

__all__ = ["OnnxJob", "TranslationError"]

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_INLINE_BYTES = 1_900_000_000  # protobuf files end at 2 GiB; beyond this, weights go to a second file beside the first


class TranslationError(ExportError):
    """torch.export captured the model, and the exporter cannot write what it captured."""


@dataclass(frozen=True)
class OnnxJob:
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
        keep_apart_(program.model)
        label_(program.model, free, self.call.fixed_values(self.model), self.largest_numbers())
        gather_constants_(program.model)
        write_as_norms_(program.model)
        name_transposed_(program.model, self.model)
        n_flushed = flush_program_(program.model)
        program.model.ir_version = oldest_ir_version(program.model)
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
        captured = isinstance(refusal, TranslationError)
        hiding = self.call.unknown_types()
        if hiding:
            raise NoOnnxError(
                f"{type(model).__name__} is called with a {hiding[0]}, whose tensors cannot become inputs of a file: register it "
                "with torch.export.register_dataclass, or pass its tensors in tuples and dicts"
            ) from refusal
        if _weight_bytes(model) > _INLINE_BYTES:
            raise NoOnnxError(f"{refusal}. TorchScript is not tried beyond 2 GB.") from refusal
        with self.draft() as draft:
            try:
                return ScriptedOnnx(
                    model, self.call, self.output_names, self.tolerance, self.opset, free_batch, has_one_path=captured
                ).write(draft)
            except ExportError as error:
                raise NoOnnxError(f"{refusal}. {error}") from error

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
        without_unsqueezed_(captured)
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
            raise TranslationError(
                f"{name} cannot be exported to ONNX: {first_line(_origin(error), named=True)}"
            ) from error
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


def _origin(error: BaseException) -> BaseException:
    """What made the exporter give up: it says so last, behind how far it had come."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _weight_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
