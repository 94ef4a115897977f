"""Capture a model with torch.export: an ATen graph, with a free batch and free lengths where the model allows it.

Beside it, what the graph does not show: which norms an ordinary forward pass calls, and which modules are sealed: their code is
compiled by TorchScript, so they stay as they are, whatever is cut around them.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from l0prune.errors import CaptureError, TraceError, first_line
from l0prune.look.free_sizes import FreeSizes, image_dimensions, length_dimensions, shares_batch
from l0prune.look.kept_by_forward import forgetful, replaced_forward, without_caches
from l0prune.look.program import drop_unused_, forget_fake_results, note_data_sizes_
from l0prune.model_call import ExampleInputs, ModelCall, evaluation_mode
from l0prune.ops.operation import norm_called

__all__ = ["SEALED", "Captured", "NormCalls", "RecordNorms", "capture", "lies_in", "sealed_modules", "without_graph"]

SEALED = "inside a module compiled by TorchScript, which stays as it is"
_NOISY = "torch.fx.experimental.symbolic_shapes"


@dataclass(frozen=True)
class NormCalls:
    """The normalisations and statistics of one forward pass.

    Attributes:
        weights: Names of the parameters or buffers that serve as their weights.
        n_others: Kind -> number of calls without a weight (statistics have none), or with one that was computed.
        observed: Whether the model ran; False where it has no numbers (meta device) and reads some.
    """

    weights: frozenset[str] = frozenset()
    n_others: dict[str, int] = field(default_factory=dict)
    observed: bool = True


class RecordNorms(TorchFunctionMode):
    """Inside this block, calls of normalisations are written down."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[str, Tensor | None]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Write the call down and make it."""
        kwargs = kwargs or {}
        norm = norm_called(func, args, kwargs)
        if norm is not None:
            self._calls.append((norm.kind, norm.weight_of(args, kwargs)))
        return func(*args, **kwargs)

    def calls(self, model: nn.Module) -> NormCalls:
        """What was called, with the names that `model` has for the weights."""
        names = {id(tensor): name for name, tensor in [*model.named_buffers(), *model.named_parameters()]}
        found = [(kind, names.get(id(weight))) for kind, weight in self._calls]
        return NormCalls(
            frozenset(name for _, name in found if name is not None),
            dict(Counter(kind for kind, name in found if name is None)),
        )


@dataclass(frozen=True, eq=False, repr=False)
class Captured:
    """An exported program and the inputs it was made with.

    Attributes:
        program: The exported program, in evaluation mode.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        batch_size: Size of the batch dimension in the example; 1 where there is none.
        free: Sizes of the inputs that the program leaves free.
        norms: The normalisations that an ordinary forward pass calls.
        sealed: Names of modules whose tensors stay as they are.
    """

    program: ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch_size: int
    free: FreeSizes
    norms: NormCalls
    sealed: frozenset[str] = frozenset()

    @property
    def dynamic_batch(self) -> bool:
        """Whether the program accepts other batch sizes."""
        return self.free.has_batch

    @property
    def row_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the example inputs, without the batch."""
        return tuple(tuple(tensor.shape[1:]) for tensor in ModelCall(self.args, self.kwargs).tensors)


def capture(
    model: nn.Module,
    inputs: ExampleInputs,
    *,
    images: bool = False,
    tuples: bool = False,
    accept: Callable[[Captured], bool] = lambda captured: True,
) -> Captured:
    """Export `model` in evaluation mode; the model itself is left as it was.

    Batch and lengths (of token sequences, say) stay free where the model allows it; else the batch alone; else nothing.
    A batch of one is doubled for the export, because torch.export specialises on sizes 0 and 1.

    Args:
        model: Any module that torch.export can capture.
        inputs: A tensor, a tuple of positional or a dict of keyword tensors.
        images: Try to leave the sizes of images free as well.
        tuples: Named tuples among the outputs become tuples: their classes cannot be written to a file.
        accept: Whether an export will do; after one that does not comes one with fewer free sizes.

    Returns:
        The exported program.

    Raises:
        TraceError: the model does not run on the inputs, or is compiled by TorchScript as a whole.
        CaptureError: torch.export cannot capture it, or no export was accepted.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            "the model is compiled by TorchScript, which stays as it is: pass the module that it was made of"
        )
    call = ModelCall.of(inputs, model)
    with evaluation_mode(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with RecordNorms() as recorded:
                output = call(model)
            norms, plain = recorded.calls(model), _plain(output, tuples=tuples) is output
        except Exception as error:
            if not any(parameter.is_meta for parameter in model.parameters()):
                shapes = [tuple(tensor.shape) for tensor in call.tensors]
                raise TraceError(
                    f"{type(model).__name__} fails on the example inputs of shapes {shapes}: {first_line(error, named=True)}; "
                    "pass inputs (or --input-shape) that fit the model"
                ) from error
            norms, plain = NormCalls(observed=False), False
        with nullcontext() if plain else _plain_outputs(model, tuples=tuples), forgetful(model, call):
            captured = _captured(model, call, norms, images=images, accept=accept)
            return dataclasses.replace(captured, sealed=sealed_modules(model))


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """torch.export writes whole graphs to stderr before it raises."""
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def without_graph(call: ModelCall) -> Captured:
    """Example inputs beside an empty program, for a model that torch.export cannot capture."""
    program = torch.export.export(nn.Identity(), (torch.zeros(1),))
    free = FreeSizes((), frozenset(), {}, {})
    return Captured(program, call.args, call.kwargs, call.batch_size or 1, free, NormCalls())


def _captured(
    model: nn.Module, call: ModelCall, norms: NormCalls, *, images: bool, accept: Callable[[Captured], bool]
) -> Captured:
    """The freest export that works and is accepted."""
    has_batch = shares_batch(call)
    wide = call.with_batch(2) if has_batch and call.batch_size == 1 else call
    for free_dims in _attempts(wide, images=images) if has_batch else ():
        try:
            program = _export(model, wide, free_dims)
            free = FreeSizes.of(program, wide)
        except Exception:  # noqa: BLE001 - a size that cannot vary; the static export below reports real failures
            continue
        if free.has_batch:
            note_data_sizes_(program, wide.args, wide.kwargs)
            captured = Captured(program, wide.args, wide.kwargs, wide.batch_size or 1, free, norms)
            if accept(captured):
                return captured
    try:
        program = _export(model, call, {})
    except Exception as error:
        raise CaptureError(
            f"torch.export cannot capture {type(model).__name__}: {first_line(error, named=True)}; remove data-dependent "
            "control flow from its forward pass, or trace the part of the model that has none"
        ) from error
    note_data_sizes_(program, call.args, call.kwargs)
    batch_size = call.batch_size if has_batch else None
    captured = Captured(program, call.args, call.kwargs, batch_size or 1, FreeSizes.of(program, call), norms)
    if not accept(captured):
        raise CaptureError(f"no export of {type(model).__name__} is usable")
    return captured


def _attempts(call: ModelCall, *, images: bool) -> Iterator[dict[int, tuple[int, ...]]]:
    """Dimensions to leave free, by `id` of the tensor: batch, lengths and images; batch and lengths; the batch alone."""
    batch: dict[int, tuple[int, ...]] = {id(tensor): (0,) for tensor in call.batched}
    lengths = length_dimensions(call)
    sides = image_dimensions(call) if images else {}
    if sides:
        freest = {key: (*lengths.get(key, ()), *sides.get(key, ())) for key in [*lengths, *sides]}
        yield _joined(batch, {key: tuple(dict.fromkeys(dims)) for key, dims in freest.items()})
    if lengths:
        yield _joined(batch, lengths)
    yield batch


def _joined(one: dict[int, tuple[int, ...]], other: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    return {key: one.get(key, ()) + other.get(key, ()) for key in [*one, *other]}


def _export(model: nn.Module, call: ModelCall, free_dims: dict[int, tuple[int, ...]]) -> ExportedProgram:
    shapes: Any = None
    if free_dims:
        bound = inspect.signature(model.forward).bind(*call.args, **call.kwargs).arguments
        shapes = pytree.tree_map(lambda leaf: dict.fromkeys(free_dims.get(id(leaf), ()), Dim.AUTO) or None, dict(bound))
    with without_caches(model), _silent(logging.getLogger(_NOISY)), redirect_stderr(io.StringIO()):
        program = torch.export.export(model, call.args, call.kwargs, dynamic_shapes=shapes, strict=False)
    forget_fake_results(program)
    drop_unused_(program)
    return program


def sealed_modules(model: nn.Module) -> frozenset[str]:
    """Names of the outermost modules that torch.jit has scripted or traced; the empty name if that is the model itself."""
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    return frozenset(name for name in scripted if not any(lies_in(name, other) for other in scripted if other != name))


def lies_in(name: str, module: str) -> bool:
    """Whether a tensor or module is that of a name, or is inside of it."""
    return not module or name == module or name.startswith(f"{module}.")


def _plain(output: Any, *, tuples: bool) -> Any:
    """The output with dataclasses that torch.export does not know as dicts, and None for strings, which its files do not hold."""
    plain = functools.partial(_plain, tuples=tuples)
    if isinstance(output, str):
        return None
    if dataclasses.is_dataclass(output) and type(output) not in pytree.SUPPORTED_NODES:
        return {field.name: plain(getattr(output, field.name)) for field in dataclasses.fields(output)}
    if tuples and pytree.is_namedtuple(output) and type(output) not in pytree.SUPPORTED_NODES:
        return tuple(plain(part) for part in output)
    if type(output) in (list, tuple):
        parts = [plain(part) for part in output]
        return output if all(a is b for a, b in zip(parts, output, strict=True)) else type(output)(parts)
    if type(output) is dict:
        items = {key: plain(value) for key, value in output.items()}
        return output if all(items[key] is value for key, value in output.items()) else items
    return output


@contextmanager
def _plain_outputs(model: nn.Module, *, tuples: bool) -> Iterator[None]:
    """For a while, `model` returns dicts where it returns dataclasses, and `tuples` where it returns named ones."""
    forward = model.forward

    @functools.wraps(forward)
    def plain(*args: Any, **kwargs: Any) -> Any:
        return _plain(forward(*args, **kwargs), tuples=tuples)

    with replaced_forward(model, plain):
        yield
