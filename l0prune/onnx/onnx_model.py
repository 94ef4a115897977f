"""An ONNX file as something that can be called like a torch model, and how far it is from one."""

import json
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor, nn

from l0prune.errors import ConfigError, ExportError, first_line
from l0prune.measuring.session import open_session
from l0prune.model_call import ExampleInputs, ModelCall, evaluation_mode, output_tensors, split_inputs
from l0prune.tensor_names import named_tensors

__all__ = [
    "DTYPES",
    "DYNAMIC_BATCH_KEY",
    "EXAMPLE_KEY",
    "FIXED_KEY",
    "LARGEST_KEY",
    "PATHS_KEY",
    "OnnxDifference",
    "OnnxModel",
    "compare_outputs",
    "onnx_difference",
    "sizes_of",
]

DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
"""onnxruntime's names of the types that inputs have."""

DYNAMIC_BATCH_KEY = "l0prune.dynamic_batch"
"""Metadata property of an exported file: "true" where every batch size works, "false" where only one does."""

EXAMPLE_KEY = "l0prune.example."
"""Metadata property, followed by the name of a free dimension: its size in the inputs the file was exported with."""

FIXED_KEY = "l0prune.fixed"
"""Metadata property: the arguments that are no tensors, a JSON object of their names and of them as they are written."""

LARGEST_KEY = "l0prune.largest."
"""Metadata property, followed by the name of an input of whole numbers: the largest in the example."""

PATHS_KEY = "l0prune.paths"
"""Metadata property of a file made by TorchScript: "all" paths of the model are in it, or "one"."""

_REFUSED_INPUT = (ort_errors.InvalidArgument, ort_errors.Fail, ort_errors.RuntimeException)


@dataclass(frozen=True)
class OnnxDifference:
    """How far an ONNX file's outputs are from torch's.

    Attributes:
        max_abs: Largest absolute difference over all outputs.
        max_rel: Largest over the outputs of (largest absolute difference / largest absolute value of the torch output).
        output: Index of the output that holds `max_rel`.
    """

    max_abs: float
    max_rel: float
    output: int


class OnnxModel:
    """An ONNX file that is called like the torch model it came from.

    Args:
        path: The ONNX file.
        threads: Threads within one operator, >= 1.

    Raises:
        ConfigError, FileFormatError, ExportError: as `open_session`.
    """

    def __init__(self, path: Path | str, *, threads: int = 1) -> None:
        self.path = Path(path)
        self.session = open_session(self.path, threads=threads)
        self.input_names: tuple[str, ...] = tuple(node.name for node in self.session.get_inputs())
        names = [node.name for node in self.session.get_outputs()]
        self._outputs: Any = namedtuple("Outputs", names, rename=True)  # type: ignore[misc]

    @property
    def static_batch(self) -> int | None:
        """The only batch size the file accepts; None where every size works."""
        if self.session.get_modelmeta().custom_metadata_map.get(DYNAMIC_BATCH_KEY) == "true":
            return None
        sizes = [node.shape[0] for node in self.session.get_inputs() if node.shape]
        return sizes[0] if sizes and isinstance(sizes[0], int) else None

    @property
    def has_one_path(self) -> bool:
        """Whether the file holds the path alone that the example took through a model with conditions."""
        return bool(self.session.get_modelmeta().custom_metadata_map.get(PATHS_KEY) == "one")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs for the inputs: one tensor, or a named tuple where the file has several outputs.

        Args:
            args: Tensors in the order of the file's inputs; or one tuple of them; or one dict, input name -> tensor.
            kwargs: Tensors by input name. A file with a static batch is run on as many batches as the inputs need,
                the last one filled up with copies of the last row.

        Raises:
            ConfigError: if number, names, types or shapes of the inputs are not those of the file, or it takes one batch
                alone and has an output without rows.
        """
        feeds = self.feeds(*args, **kwargs)
        batch = self.static_batch
        rows = next((value.shape[0] for value in feeds.values() if value.ndim), None)
        if batch is None or rows is None or rows == batch:
            outputs = self._run(feeds)
        else:
            parts = [self._run(part) for part in _batches(feeds, rows, batch)]
            outputs = [self._joined(values)[:rows] for values in zip(*parts, strict=True)]
        tensors = tuple(torch.from_numpy(np.asarray(value)) for value in outputs)
        return tensors[0] if len(tensors) == 1 else self._outputs(*tensors)

    def feeds(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """The inputs of a call by the file's names.

        Raises:
            ConfigError: if number or names are not those of the file.
        """
        if len(args) == 1 and not kwargs and isinstance(args[0], list | tuple | Mapping):
            args, kwargs = split_inputs(args[0])
        tensors = output_tensors(args)
        by_name = [pair for name, value in kwargs.items() for pair in self._named(name, value)]
        named = dict(zip(self.input_names, tensors, strict=False)) | dict(by_name)
        if set(named) != set(self.input_names) or len(tensors) + len(by_name) != len(self.input_names):
            given = f"{len(tensors)} positional" + (f" and {', '.join(kwargs)}" if kwargs else "")
            raise ConfigError(f"{self.path}: expected the inputs {', '.join(self.input_names)}, found {given}.")
        types = {node.name: DTYPES.get(node.type) for node in self.session.get_inputs()}
        return {name: _in_type(value.detach().cpu().numpy(), types[name]) for name, value in named.items()}

    def _named(self, name: str, value: Any) -> list[tuple[str, Tensor]]:
        """The tensors of a keyword argument; one without tensors has to be what the file was exported with."""
        tensors = list(named_tensors(value, name))
        if not tensors and self._fixed.get(name, "None") != repr(value):
            raise ConfigError(
                f"{self.path}: {name}={value!r}, but the file was exported with {name}={self._fixed.get(name, 'None')}."
            )
        return tensors

    @cached_property
    def _fixed(self) -> dict[str, str]:
        known: dict[str, str] = json.loads(self.session.get_modelmeta().custom_metadata_map.get(FIXED_KEY, "{}"))
        return known

    def _joined(self, values: Sequence[Any]) -> np.ndarray:
        """An output of several batches as one."""
        if np.ndim(values[0]) == 0:
            raise ConfigError(
                f"{self.path} takes a batch of {self.static_batch} alone, and an output of it has no rows: call it with that many"
            )
        return np.concatenate(values)

    def _run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            outputs: list[np.ndarray] = self.session.run(None, feeds)
        except _REFUSED_INPUT as error:
            raise ConfigError(f"{self.path}: the inputs do not fit the model ({first_line(error)}).") from error
        return outputs


def sizes_of(node: Any) -> list[int | str]:
    """The sizes of an input: a number where one is fixed, else its name, made up where it has none."""
    return [size if isinstance(size, int | str) and size else f"{node.name}.{i}" for i, size in enumerate(node.shape)]


def onnx_difference(path: Path | str, model: nn.Module, inputs: ExampleInputs, *, threads: int = 1) -> OnnxDifference:
    """Compare an ONNX file with a torch model on the same inputs, in evaluation mode.

    Args:
        path: The ONNX file.
        model: The torch model; its mode is as before afterwards.
        inputs: One tensor, positional tensors, or a dict of keyword tensors.
        threads: onnxruntime's threads.

    Raises:
        ExportError: if the number or the shapes of the outputs differ.
        ConfigError, FileFormatError: as `OnnxModel`.
    """
    call = ModelCall.of(inputs, model)
    with evaluation_mode(model), torch.no_grad():
        expected = output_tensors(call(model))
    return compare_outputs(expected, OnnxModel(path, threads=threads), call, call.input_names(model))


def compare_outputs(
    expected: Sequence[Tensor], onnx_model: OnnxModel, call: ModelCall, input_names: Sequence[str]
) -> OnnxDifference:
    """`onnx_difference` where torch's outputs are known already, and the names of the tensors of `call` in the file."""
    named = dict(zip(input_names, call.tensors, strict=True))
    known = {name: value for name, value in named.items() if name in onnx_model.input_names}
    by_name = len(known) == len(onnx_model.input_names)
    found = output_tensors(onnx_model(**known) if by_name else onnx_model(*call.tensors))
    if [tuple(t.shape) for t in found] != [tuple(t.shape) for t in expected]:
        shapes = [[list(t.shape) for t in tensors] for tensors in (expected, found)]
        raise ExportError(f"{onnx_model.path}: torch's outputs have shapes {shapes[0]}, the ONNX file's {shapes[1]}.")
    worst = OnnxDifference(0.0, 0.0, 0)
    for index, (one, other) in enumerate(zip(expected, found, strict=True)):
        max_abs, max_rel = _difference(one.detach().cpu().double(), other.double())
        worst = OnnxDifference(
            max(worst.max_abs, max_abs), max(worst.max_rel, max_rel), index if max_rel > worst.max_rel else worst.output
        )
    return worst


def _difference(expected: Tensor, found: Tensor) -> tuple[float, float]:
    """Largest absolute difference, and that over the largest finite magnitude expected; infinite where one is NaN."""
    same = (expected == found) | (expected.isnan() & found.isnan())
    gap = torch.where(same, 0.0, (expected - found).abs()).nan_to_num(nan=torch.inf)
    finite = expected[expected.isfinite()].abs()
    max_abs = float(gap.max()) if gap.numel() else 0.0
    scale = float(finite.max()) if finite.numel() else 0.0
    return max_abs, max_abs / max(scale, torch.finfo(torch.float32).tiny) if max_abs else 0.0


def _in_type(value: np.ndarray, dtype: Any) -> np.ndarray:
    """The same numbers as a file takes them: whole ones in another width, fractions in another precision; else as they are."""
    if dtype is None or value.dtype == dtype:
        return value
    if np.issubdtype(dtype, np.floating) and np.issubdtype(value.dtype, np.floating):
        return value.astype(dtype)
    whole = [np.issubdtype(kind, np.integer) or kind == np.bool_ for kind in (value.dtype, dtype)]
    cast = value.astype(dtype)
    return cast if all(whole) and bool((cast == value).all()) else value


def _batches(feeds: Mapping[str, np.ndarray], rows: int, batch: int) -> Iterator[dict[str, np.ndarray]]:
    """Feeds of `batch` rows each; the last one is filled up with its last row."""
    for start in range(0, rows, batch):
        index = np.minimum(np.arange(start, start + batch), rows - 1)
        yield {name: value[index] if value.ndim and len(value) == rows else value for name, value in feeds.items()}
