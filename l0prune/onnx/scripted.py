"""ONNX of a model that torch.export refuses: by TorchScript, which keeps conditions if it can compile the code.

Compiled, every path is in the file. If the code cannot be compiled, the path of the example is; that is a model of its own,
which counts only if no other inputs are found to take another path. Either is compared with torch on inputs of several kinds.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.errors import ExportError, L0PruneError, first_line
from l0prune.look.recording import variations
from l0prune.model_call import ModelCall, output_tensors
from l0prune.onnx.onnx_model import DYNAMIC_BATCH_KEY, PATHS_KEY, OnnxModel, compare_outputs
from l0prune.onnx.silence import silenced
from l0prune.onnx.subnormal import flush_file_

__all__ = ["ScriptedOnnx"]

_BATCH = "batch"
_CHECKED_BATCHES = (1, 2, 5)
_OPSET = 18
_LARGEST_TOLERANCE = 1e-4  # a path that is missing shows in nothing but the numbers
_WAY = {"all": "compiled", "one": "on the path of the example alone"}


@dataclass(frozen=True)
class ScriptedOnnx:
    """One model on its way into a file by TorchScript.

    Attributes:
        model: Any module, in evaluation mode.
        call: Example inputs; others of their shapes are tried too.
        output_names: A name for each output tensor.
        tolerance: Largest difference allowed, relative to the largest magnitude of each torch output; 1e-4 if it is more.
        opset: ONNX operator set; None takes 18.
        dynamic_batch: Make the batch free where the model allows it.
        has_one_path: torch.export captured the model, so that no input takes another path than the example.
    """

    model: nn.Module
    call: ModelCall
    output_names: list[str]
    tolerance: float
    opset: int | None
    dynamic_batch: bool
    has_one_path: bool = False

    def write(self, draft: Path) -> int:
        """Write the file and check it; its metadata property "l0prune.paths" says whether "all" paths are in it or "one".

        Returns:
            The number of weights that became zero.

        Raises:
            ExportError: neither way gives a file that computes what torch computes, with both reasons.
        """
        compiled = self._failure("all", torch.jit.script, draft)
        alone = compiled and self._failure("one", partial(_OnTensors, call=self.call), draft)
        if alone:
            raise ExportError(f"TorchScript does not help: {compiled}; {alone}.")
        written = onnx.load(str(draft))
        n_flushed = flush_file_(written)
        if n_flushed:
            onnx.save(written, str(draft))
        return n_flushed

    def _failure(self, paths: str, make: Callable[[nn.Module], Any], draft: Path) -> str:
        """Try one way; says what is wrong with it, nothing if the file is there."""
        try:
            self._try_sizes(make(self.model), draft, paths)
        except Exception as error:  # noqa: BLE001 - the compiler and the exporter raise whatever they meet
            draft.unlink(missing_ok=True)
            said = str(error) if isinstance(error, L0PruneError) else first_line(error, named=True)
            return f"{_WAY[paths]}, {said}"
        return ""

    def _try_sizes(self, made: Any, draft: Path, paths: str) -> None:
        """With a free batch if that may be, else with that of the example."""
        if self.dynamic_batch and self.call.batch_size is not None:
            with suppress(Exception):  # what is wrong with more than the sizes shows again below
                self._write(made, draft, paths, free_batch=True)
                return
        self._write(made, draft, paths, free_batch=False)

    def _write(self, made: Any, draft: Path, paths: str, *, free_batch: bool) -> None:
        names = self.call.input_names(self.model)
        args = tuple(self.call.tensors) if isinstance(made, _OnTensors) else _positional(self.model, self.call)
        batches = self._batches(names) if free_batch else None
        with silenced():  # the exporter prints whole graphs before it raises
            torch.onnx.export(
                made,
                args,
                draft,
                dynamo=False,
                input_names=names,
                output_names=self.output_names,
                dynamic_axes=batches,
                opset_version=self.opset or _OPSET,
            )
        written = onnx.load(str(draft))
        properties = {
            DYNAMIC_BATCH_KEY: "true" if free_batch else "false",
            PATHS_KEY: "all" if self.has_one_path else paths,
        }
        onnx.helper.set_model_props(written, properties)
        for node in written.graph.node:
            node.doc_string = ""
        onnx.save(written, str(draft))
        onnx.checker.check_model(str(draft))
        self._check(draft, free_batch=free_batch)

    def _batches(self, names: list[str]) -> dict[str, dict[int, str]]:
        """The batch dimension of every tensor that has it, in and out."""
        rows = self.call.batch_size
        outputs = zip(self.output_names, output_tensors(self.call(self.model)), strict=True)
        tensors = [*zip(names, self.call.tensors, strict=True), *outputs]
        return {name: {0: _BATCH} for name, tensor in tensors if tensor.ndim and tensor.shape[0] == rows}

    def _check(self, draft: Path, *, free_batch: bool) -> None:
        """Compare with torch on inputs of several kinds, at several batch sizes."""
        onnx_model = OnnxModel(draft)
        for number, call in enumerate(self._calls(free_batch=free_batch)):
            try:
                expected = output_tensors(call(self.model))
            except (RuntimeError, IndexError):
                if number == 0:
                    raise
                continue  # noise may be no input that the model is made for
            found = compare_outputs(expected, onnx_model, call, self.call.input_names(self.model))
            tolerance = min(self.tolerance, _LARGEST_TOLERANCE)
            if not found.max_rel <= tolerance:
                where = "the example" if number == 0 else "other inputs, which take another path"
                raise ExportError(
                    f"the outputs differ from torch's by {found.max_rel:.1e} relative (tolerance {tolerance:.1e}) "
                    f"on {where}"
                )

    def _calls(self, *, free_batch: bool) -> Iterator[ModelCall]:
        yield from variations(self.call)
        for rows in _CHECKED_BATCHES if free_batch else ():
            yield from variations(self.call.with_batch(rows))


class _OnTensors(nn.Module):
    """A model that takes the tensors of a call one by one, and gives those of its output."""

    def __init__(self, model: nn.Module, call: ModelCall) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self._leaves, self._shape = pytree.tree_flatten((call.args, call.kwargs))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The model's output tensors."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._shape)
        return tuple(output_tensors(self.model(*args, **kwargs)))


def _positional(model: nn.Module, call: ModelCall) -> tuple[Any, ...]:
    """The arguments in the order of the model's signature, up to the last one given."""
    bound = inspect.signature(model.forward).bind(*call.args, **call.kwargs)
    given = [place for place, name in enumerate(bound.signature.parameters) if name in bound.arguments]
    bound.apply_defaults()
    return tuple(list(bound.arguments.values())[: given[-1] + 1])
