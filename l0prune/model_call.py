"""One call of a model: its inputs with their batch, and the tensors that come out."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.errors import TraceError
from l0prune.tensor_names import named_tensors, unique

__all__ = [
    "ExampleInputs",
    "ModelCall",
    "call",
    "copy_of",
    "evaluation_mode",
    "fresh",
    "lazy_layers",
    "output_names",
    "output_tensors",
    "plain_mappings",
    "set_mode",
    "signature_of",
    "split_inputs",
]

Model = TypeVar("Model", bound=nn.Module)


def split_inputs(
    inputs: ExampleInputs, model: Callable[..., Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs in any of the accepted forms, as (args, kwargs).

    Args:
        inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        model: What is to be called. A dict is its one positional argument if none of the keys names an argument of its forward
            pass, and the forward pass can be called with one; without a model it holds keyword arguments.

    Raises:
        TraceError: if `inputs` is of another type.
    """
    if isinstance(inputs, ModelCall):
        return inputs.args, inputs.kwargs
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        plain = plain_mappings(inputs)
        return ((plain,), {}) if model is not None and _takes_one_mapping(model, plain) else ((), plain)
    if isinstance(inputs, tuple | list):
        return tuple(plain_mappings(value) for value in inputs), {}
    raise TraceError(
        f"example_inputs is a {type(inputs).__name__}; pass a tensor, a tuple of positional or a dict of keyword tensors"
    )


def call(model: Callable[..., Any], inputs: ExampleInputs) -> Any:
    """Call a model, or what stands for one, with inputs in any of the accepted forms; the model gets containers of its own."""
    return ModelCall.of(inputs, model)(model)


def fresh(values: Any) -> Any:
    """The same tensors in new lists and dicts, which a model may change without anybody else seeing it."""
    return pytree.tree_map(lambda leaf: leaf, values)


def signature_of(model: Callable[..., Any]) -> inspect.Signature | None:
    """What a forward pass takes; for a module that stands for another one, by `__signature__` or around it, what that takes."""
    known = getattr(model, "__signature__", None)
    if isinstance(known, inspect.Signature):
        return known
    try:
        found = inspect.signature(getattr(model, "forward", model))
    except (TypeError, ValueError):  # compiled code
        return None
    kinds = {parameter.kind for parameter in found.parameters.values()}
    children = list(model.children()) if isinstance(model, nn.Module) else []
    if kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} and len(children) == 1:
        return signature_of(children[0])
    return found


def _takes_one_mapping(model: Callable[..., Any], inputs: Mapping[Any, Any]) -> bool:
    signature = signature_of(model)
    if signature is None or any(key in signature.parameters for key in inputs):
        return False
    return not _binds(signature, **{str(key): value for key, value in inputs.items()}) and _binds(signature, inputs)


def _binds(signature: inspect.Signature, *args: Any, **kwargs: Any) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def plain_mappings(value: Any) -> Any:
    """Mappings that torch does not look into, such as the output of a tokenizer, as dicts."""
    if isinstance(value, Mapping):
        known = type(value) in pytree.SUPPORTED_NODES
        return (
            value if known and type(value) is not dict else {key: plain_mappings(part) for key, part in value.items()}
        )
    return type(value)(map(plain_mappings, value)) if type(value) in (list, tuple) else value


def copy_of(model: Model) -> Model:
    """A copy of a model, also of one that torch does not copy.

    It copies no tensors but leaves, and no functions that are compiled by TorchScript: a masked layer keeps the weight it last
    computed, and the copy has the numbers of that.

    Raises:
        TraceError: the model has lazy layers that have not seen an input.
    """
    lazy = next(lazy_layers(model), None)
    if lazy is not None:
        raise TraceError(
            f"{lazy} has no weights yet, because their sizes follow from its first input: call the model once"
        )
    held = [value for module in model.modules() for value in vars(module).values()]
    instead: dict[int, Any] = {id(t): t.detach().clone() for t in held if isinstance(t, Tensor) and not t.is_leaf}
    return copy.deepcopy(model, instead | {id(f): f for f in held if isinstance(f, torch.jit.ScriptFunction)})


def lazy_layers(model: nn.Module) -> Iterator[str]:
    """Names and types of the layers that take their sizes from an input and have not seen one."""
    for name, module in model.named_modules():
        held = [*module._parameters.values(), *module._buffers.values()]
        if any(nn.parameter.is_lazy(tensor) for tensor in held if tensor is not None):
            yield f"{name!r} ({type(module).__name__})"


@dataclass(frozen=True)
class ModelCall:
    """The arguments of one call.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, inputs: ExampleInputs, model: Callable[..., Any] | None = None) -> ModelCall:
        """From inputs in any of the accepted forms, for a model.

        Raises:
            TraceError: if `inputs` is none of these.
        """
        return cls(*split_inputs(inputs, model))

    def __call__(self, model: Callable[..., Any]) -> Any:
        """The model's output; the model gets containers of its own."""
        args, kwargs = fresh((self.args, self.kwargs))
        return model(*args, **kwargs)

    def runs_in(self, model: nn.Module) -> bool:
        """Whether a model accepts this call in evaluation mode: sizes or precision may differ from what it was made for."""
        try:
            with evaluation_mode(model), torch.no_grad():
                self(model)
        except Exception:  # noqa: BLE001 - whatever a model raises at inputs that it does not take
            return False
        return True

    def to(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> ModelCall:
        """The same call with its tensors on another device; `dtype` applies to floating-point ones."""

        def moved(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

        return ModelCall(*pytree.tree_map(moved, (self.args, self.kwargs)))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order; nested ones too."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @property
    def batch_size(self) -> int | None:
        """The most frequent first dimension of the tensors; the first tensor decides a tie."""
        sizes = Counter(tensor.shape[0] for tensor in self.tensors if tensor.ndim)
        return max(sizes, key=lambda size: sizes[size], default=None)

    @property
    def batched(self) -> list[Tensor]:
        """The tensors whose first dimension is the batch."""
        return [tensor for tensor in self.tensors if tensor.ndim and tensor.shape[0] == self.batch_size]

    def with_batch(self, batch_size: int) -> ModelCall:
        """The same call with another number of rows; rows beyond those given are noisy copies, so that no two are equal."""
        given = self.batch_size
        generator = torch.Generator().manual_seed(0)

        def rows(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.ndim or leaf.shape[0] != given:
                return leaf
            taken = leaf.detach()[torch.arange(batch_size, device=leaf.device) % leaf.shape[0]]
            if taken.is_floating_point() and batch_size > leaf.shape[0] and leaf.numel() > 1:
                copies = taken[leaf.shape[0] :]
                copies += leaf.detach().std() * torch.randn(copies.shape, generator=generator).to(copies)
            return taken

        args, kwargs = pytree.tree_map(rows, (self.args, self.kwargs))
        return ModelCall(args, kwargs)

    def input_names(self, model: nn.Module) -> list[str]:
        """One name per tensor: that of its argument, numbered if the argument holds several, or its key in a dict."""
        signature = signature_of(model)
        parameters = () if signature is None else signature.parameters.values()
        positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        positional += [f"input_{index}" for index in range(len(positional), len(self.args))]
        values = [*zip(positional, self.args, strict=False), *self.kwargs.items()]
        names = unique(found for name, value in values for found, _ in named_tensors(value, name))
        return names if len(names) == len(self.tensors) else [f"input_{index}" for index in range(len(self.tensors))]

    def unknown_types(self) -> list[str]:
        """Types of arguments that torch neither takes as values nor can look into."""
        known = (
            Tensor,
            int,
            float,
            complex,
            bool,
            str,
            bytes,
            type(None),
            torch.dtype,
            torch.device,
            torch.memory_format,
        )
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, known)]

    def fixed_values(self, model: nn.Module) -> dict[str, str]:
        """Arguments that hold no tensor, by name, as written; those that are None are left out."""
        signature = signature_of(model)
        names = [] if signature is None else list(signature.parameters)
        names += [f"input_{index}" for index in range(len(names), len(self.args))]
        given = [*zip(names, self.args, strict=False), *self.kwargs.items()]
        return {
            name: repr(value)
            for name, value in given
            if value is not None and not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
        }


ExampleInputs: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any] | ModelCall
"""A tensor, a tuple of positional arguments, a dict of keyword arguments, or the dict that a model takes as its only argument."""


def output_tensors(output: Any) -> list[Tensor]:
    """The tensors of a model's output in order: a tensor, or nested sequences, mappings and dataclasses of them."""
    return [tensor for _, tensor in named_tensors(output, "output")]


def output_names(output: Any) -> list[str]:
    """A name for each of `output_tensors`: its key or field where it has one, else `output`, `output_0` ..."""
    return unique(name for name, _ in named_tensors(output, "output"))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module has its own mode back.

    The module of an ExportedProgram cannot change its mode and keeps the one it was captured in.
    """
    modes = [(module, module.training) for module in model.modules()]
    was_training = model.training
    set_mode(model, training=False)
    try:
        yield
    finally:
        if was_training:
            set_mode(model, training=True)
        for module, training in modes:
            module.training = training


def set_mode(model: nn.Module, *, training: bool) -> None:
    """As `model.train(training)`, but for modules of exported programs, which have one mode only."""
    try:
        model.train(training)
    except NotImplementedError:  # the module of an ExportedProgram
        return
