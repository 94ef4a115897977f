"""Calibration inputs as a graph takes them: caught in the calls that a task makes, in the form that was traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.errors import DataError, first_line
from l0prune.look.capture import Captured
from l0prune.model_call import ModelCall, signature_of

__all__ = ["calibration_inputs"]


class _Caught(Exception):  # noqa: N818 - no error
    """Carries the arguments of a call out of it."""

    def __init__(self, call: ModelCall) -> None:
        super().__init__()
        self.call = call


class _Catching(nn.Module):
    """Stands for a model, and catches what it is called with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.__dict__["__signature__"] = signature_of(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Break off."""
        raise _Caught(ModelCall(args, kwargs))


def calibration_inputs(
    model: nn.Module, captured: Captured, calls: Iterable[Callable[[nn.Module], Any]]
) -> list[list[Any]]:
    """What the placeholders of a captured graph get in each of some calls.

    Args:
        model: What was captured; it is not called.
        captured: Where its batch is not free, calls are cut into batches of the captured size; rows that are left over are
            passed over.
        calls: Each calls the model with a batch.

    Returns:
        For every batch its inputs in the order of the placeholders.

    Raises:
        DataError: there is no call; or the inputs are of other shapes than the captured ones.
    """
    found: list[list[Any]] = []
    for call in calls:
        try:
            call(_Catching(model))
        except _Caught as caught:
            given = caught.call
        else:
            raise DataError("a calibration call did not call the model it was given")
        parts = [given] if captured.dynamic_batch else _parts(given, captured.batch_size)
        found += [_placed(part, model, captured) for part in parts]
    if not found:
        raise DataError("there are no calibration inputs: give at least one batch, no smaller than the traced one")
    return found


def _parts(call: ModelCall, size: int) -> list[ModelCall]:
    n_rows = call.batch_size

    def part(start: int) -> ModelCall:
        def rows(leaf: Any) -> Any:
            is_batched = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == n_rows
            return leaf[start : start + size] if is_batched else leaf

        return ModelCall(*pytree.tree_map(rows, (call.args, call.kwargs)))

    return [call] if n_rows is None else [part(start) for start in range(0, n_rows - size + 1, size)]


def _placed(call: ModelCall, model: nn.Module, captured: Captured) -> list[Any]:
    refusal = _refusal(call, captured)
    placed = call if refusal is None else _as_traced(call, model, captured)
    if refusal is not None and _refusal(placed, captured) is not None:
        shapes = [tuple(tensor.shape) for tensor in call.tensors]
        traced = [tuple(tensor.shape) for tensor in ModelCall(captured.args, captured.kwargs).tensors]
        raise DataError(
            f"calibration inputs of shapes {shapes} do not fit the traced ones of {traced} ({first_line(refusal)}); "
            "trace the model with inputs of the kind it is calibrated on"
        ) from refusal
    return _flat(placed, captured)


def _flat(call: ModelCall, captured: Captured) -> list[Any]:
    n_inputs = len(captured.program.graph_signature.user_inputs)
    return list(captured.program._graph_module_flat_inputs(call.args, call.kwargs)[-n_inputs:])


def _refusal(call: ModelCall, captured: Captured) -> Exception | None:
    """What torch.export raises at inputs of another form than the captured ones."""
    try:
        _flat(call, captured)
    except Exception as error:  # noqa: BLE001 - of any kind
        return error
    return None


def _as_traced(call: ModelCall, model: nn.Module, captured: Captured) -> ModelCall:
    """The same arguments, by position and by keyword as they were when the model was traced."""
    signature = signature_of(model)
    if signature is None:
        return call
    try:
        named = dict(signature.bind(*call.args, **call.kwargs).arguments)
        traced = signature.bind(*captured.args, **captured.kwargs).arguments
    except TypeError:
        return call
    order = list(traced)
    values = [named.pop(name) for name in order if name in named]
    n_args = len(captured.args)
    return ModelCall(tuple(values[:n_args]), dict(zip(order[n_args:], values[n_args:], strict=False)) | named)
