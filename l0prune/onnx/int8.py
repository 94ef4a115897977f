"""Eight bits: an ONNX file whose convolutions and products compute in int8, made by onnxruntime's own tools."""

import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from l0prune.errors import ConfigError, ExportError, first_line
from l0prune.files import draft_folder
from l0prune.measuring.hardware import processor_flags
from l0prune.onnx.silence import silenced
from l0prune.reading import reading

__all__ = ["WAYS", "quantize_onnx", "way_of"]

WAYS = ("static", "dynamic")
"""Ranges of activations measured beforehand, which convolutions need; or measured at every run, for products alone."""
_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


def way_of(path: Path) -> str:
    """The way that suits a file: "static" for convolutions, unless the file has products of activations, as attention does.

    Ranges that were measured beforehand cost attention most of its accuracy; what is measured at each run makes no convolution
    faster.
    """
    with reading(path, "ONNX model"):
        graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    kinds = {node.op_type for node in graph.node}
    attends = any(node.op_type == "MatMul" and not weights & set(node.input) for node in graph.node)
    return "static" if kinds & _CONVOLUTIONS and not (attends or "Attention" in kinds) else "dynamic"


def quantize_onnx(
    path: Path | str,
    out: Path | str,
    calibration: Iterable[Mapping[str, np.ndarray]] = (),
    *,
    way: str | None = None,
) -> Path:
    """Write a copy of an ONNX file that computes in int8; weights have a scale of their own for each output channel.

    Args:
        path: A file with weights in float32.
        out: The file to write; its directory must exist.
        calibration: Inputs by name, as they are in use, a hundred or more in batches. For the static way.
        way: "static": between nodes that quantise and dequantise (QDQ), the ranges of activations are those that the
            calibration shows. "dynamic": matrix products only, with ranges measured at each run; needs no inputs. None takes
            what `way_of` says.

    Returns:
        `out`.

    Raises:
        ConfigError: there is no such file or way, or nothing to calibrate the static way with.
        FileFormatError: it is not an ONNX model.
        ExportError: onnxruntime cannot quantise it.
    """
    path, out = Path(path), Path(out)
    way = way or way_of(path)
    if way not in WAYS:
        raise ConfigError(f"way={way!r}: expected one of {', '.join(WAYS)}.")
    feeds = list(calibration)
    if way == "static" and not feeds:
        raise ConfigError(f"{path}: convolutions need inputs to calibrate int8 with, and there are none.")
    with reading(path, "ONNX model"):
        properties = {entry.key: entry.value for entry in onnx.load(str(path), load_external_data=False).metadata_props}
    with draft_folder(out) as folder:
        draft = folder / out.name
        try:
            with silenced():
                _quantize(path, draft, feeds, way)
        except Exception as error:
            reason = first_line(error, named=True)
            raise ExportError(f"{path}: onnxruntime cannot quantise it to int8 ({reason}).") from error
        written = onnx.load(str(draft))
        onnx.helper.set_model_props(written, properties)
        onnx.save(written, str(draft))
        draft.replace(out)
    return out


def _quantize(path: Path, out: Path, feeds: list[Mapping[str, np.ndarray]], way: str) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Without instructions for it, products of 8 bits are summed in 16, which overflow unless weights have 7.
    seven_bits = platform.machine().lower() in ("x86_64", "amd64") and not _VNNI & processor_flags()
    common: dict[str, Any] = {"per_channel": True, "reduce_range": seven_bits, "weight_type": QuantType.QInt8}
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        if way == "dynamic":
            quantize_dynamic(prepared, out, op_types_to_quantize=["MatMul", "Gemm"], **common)
        else:
            quantize_static(
                prepared,
                out,
                _reader(feeds),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                **common,
            )


def _reader(feeds: list[Mapping[str, np.ndarray]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The inputs one after another."""

        def __init__(self) -> None:
            self._left: Iterator[Mapping[str, np.ndarray]] = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            """The next ones; None at the end."""
            return next((dict(feed) for feed in self._left), None)

    return Reader()
