"""One call of a model: its inputs with their batch, and the tensors that come out."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.errors import ConfigError, TraceError

__all__ = [
    "ExampleInputs",
    "ModelCall",
    "call",
    "copy_of",
    "evaluation_mode",
    "logits_of",
    "output_names",
    "output_tensors",
    "set_mode",
    "split_inputs",
]

Model = TypeVar("Model", bound=nn.Module)
ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""A tensor, a tuple of positional or a dict of keyword tensors."""


def split_inputs(inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs in any of the accepted forms, as (args, kwargs).

    Raises:
        TraceError: if `inputs` is of another type.
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    raise TraceError(
        f"example_inputs is a {type(inputs).__name__}; pass a tensor, a tuple of positional or a dict of keyword tensors"
    )


def call(model: Callable[..., Any], inputs: ExampleInputs) -> Any:
    """Call a model, or what stands for one, with inputs in any of the accepted forms."""
    args, kwargs = split_inputs(inputs)
    return model(*args, **kwargs)


def copy_of(model: Model) -> Model:
    """A copy of a model, also of one that torch does not copy.

    It copies no tensors but leaves, and no functions that are compiled by TorchScript: a masked layer keeps the weight it last
    computed, and the copy has the numbers of that.
    """
    held = [value for module in model.modules() for value in vars(module).values()]
    instead: dict[int, Any] = {id(t): t.detach().clone() for t in held if isinstance(t, Tensor) and not t.is_leaf}
    return copy.deepcopy(model, instead | {id(f): f for f in held if isinstance(f, torch.jit.ScriptFunction)})


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
    def of(cls, inputs: ExampleInputs) -> "ModelCall":
        """From a tensor, a tuple of positional or a dict of keyword tensors.

        Raises:
            TraceError: if `inputs` is none of these.
        """
        return cls(*split_inputs(inputs))

    def __call__(self, model: nn.Module) -> Any:
        """The model's output."""
        return model(*self.args, **self.kwargs)

    def to(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "ModelCall":
        """The same call with its tensors elsewhere; `dtype` is for floating-point ones."""

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
        """First dimension of the first tensor that has one."""
        return next((tensor.shape[0] for tensor in self.tensors if tensor.ndim), None)

    @property
    def batched(self) -> list[Tensor]:
        """The tensors whose first dimension is the batch."""
        return [tensor for tensor in self.tensors if tensor.ndim and tensor.shape[0] == self.batch_size]

    def with_batch(self, batch_size: int) -> "ModelCall":
        """The same call with another number of rows; rows beyond those given are noisy copies: no two are equal."""
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
        """One name per tensor: its argument's own, numbered where an argument holds several."""
        parameters = inspect.signature(model.forward).parameters.values()
        positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        positional += [f"input_{index}" for index in range(len(positional), len(self.args))]
        names: list[str] = []
        for name, value in [*zip(positional, self.args, strict=False), *self.kwargs.items()]:
            count = sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
            names += [name] if count == 1 else [f"{name}_{index}" for index in range(count)]
        return names


def output_tensors(output: Any) -> list[Tensor]:
    """The tensors of a model's output in order: a tensor, or nested sequences, mappings and dataclasses of them."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in output_tensors(value)]
    if isinstance(output, list | tuple):
        return [tensor for value in output for tensor in output_tensors(value)]
    if dataclasses.is_dataclass(output):
        return [
            tensor for field in dataclasses.fields(output) for tensor in output_tensors(getattr(output, field.name))
        ]
    return []


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: its attribute or key `logits`, or else its first tensor.

    Args:
        output: As of a module; or a numpy array, which shares its memory with the result.

    Raises:
        ConfigError: if there is no tensor to be found.
    """
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    found = output_tensors(output if named is None else named)
    if found:
        return found[0]
    if hasattr(output, "__array__"):
        return torch.as_tensor(output)
    raise ConfigError(
        f"there are no logits in an output of type {type(output).__name__}: return a tensor, an object with `logits`, or a"
        " sequence that starts with a tensor; to train on a loss of your own without them, set distillation=0"
    )


def output_names(output: Any) -> list[str]:
    """A name for each of `output_tensors`: its key or field where it has one, else `output`, `output_0` ..."""
    n_tensors = len(output_tensors(output))
    named: dict[str, Any] = {}
    if isinstance(output, Mapping):
        named = {str(key): value for key, value in output.items()}
    elif dataclasses.is_dataclass(output):
        named = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    names = [name for name, value in named.items() if isinstance(value, Tensor)]
    if len(names) == n_tensors:
        return names
    return ["output"] if n_tensors == 1 else [f"output_{index}" for index in range(n_tensors)]


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
