"""What the ONNX exporter makes of a compact model that was cut to be verified."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from l0prune.errors import ConfigError, ExportError
from l0prune.model_call import ModelCall
from l0prune.onnx import export
from l0prune.surgery.record import Surgery

__all__ = ["OnnxVerdict", "verify_onnx"]

ONNX_TOLERANCE = 1e-4
"""Largest relative difference allowed between onnxruntime and torch."""


@dataclass(frozen=True)
class OnnxVerdict:
    """What came out of the ONNX export of a compact model.

    Attributes:
        max_rel_diff: Of onnxruntime and torch; None if they were not compared.
        error: Why they were not, though that was asked for.
        only_compact: Whether the dense model can be exported where the compact one cannot.
        elsewhere: The same at inputs of other sizes, in their order; None where the file does not take them.
    """

    max_rel_diff: float | None = None
    error: str | None = None
    only_compact: bool = False
    elsewhere: tuple[float | None, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether nothing speaks against the cut."""
        found = (self.max_rel_diff, *self.elsewhere)
        return not self.only_compact and all(one is None or one <= ONNX_TOLERANCE for one in found)


def verify_onnx(
    compact: nn.Module, dense: nn.Module, record: Surgery, *, also: Sequence[ModelCall] = ()
) -> OnnxVerdict:
    """Export the compact model and compare; where it cannot be exported, see whether the dense one can be.

    Args:
        compact: The compact model.
        dense: The dense one.
        record: Of the cut.
        also: Inputs of other sizes to compare at.
    """
    inputs = ModelCall(record.example_args, record.example_kwargs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            export.export_onnx(compact, inputs, path, dynamic_size=False, tolerance=float("inf"))
        except ExportError as error:
            return _without_file(error, dense, inputs, path)
        if record.draws_random_numbers:
            return OnnxVerdict(error="the file draws random numbers of its own")
        found = export.onnx_difference(path, compact, inputs).max_rel
        return OnnxVerdict(found, elsewhere=tuple(_elsewhere(path, compact, call) for call in also))


def _elsewhere(path: Path, compact: nn.Module, call: ModelCall) -> float | None:
    """The difference at inputs of another size; None where the file does not take them."""
    try:
        return export.onnx_difference(path, compact, call).max_rel
    except ConfigError:
        return None


def _without_file(error: ExportError, dense: nn.Module, inputs: ModelCall, path: Path) -> OnnxVerdict:
    reason = str(error).rstrip(".")
    if any(parameter.dtype == torch.float64 for parameter in dense.parameters()):
        reason += "; onnxruntime lacks some operators in float64: leave out --double, or add --no-onnx"
    try:
        export.export_onnx(dense, inputs, path, dynamic_size=False, tolerance=float("inf"))
    except ExportError:
        return OnnxVerdict(error=reason)
    return OnnxVerdict(error=f"{reason}; the dense model can be exported", only_compact=True)
