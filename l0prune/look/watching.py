"""What a recording needs to know beside the ops: the path taken, what the code reads, and where sizes come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from l0prune.ops.operation import makers

__all__ = ["Path", "Watch", "current_tracer", "fixed_dimensions"]

_READERS = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr})
"""Functions that read numbers without an op of their own."""

_SIZES = frozenset({Tensor.size, Tensor.shape.__get__})  # type: ignore[attr-defined]
_FIXED = "l0prune_fixed"


def current_tracer() -> Any:
    """The tracer of the recording that is going on."""
    mode = get_proxy_mode()
    assert mode is not None
    return mode.tracer


def fixed_dimensions(node: Node) -> tuple[int, ...]:
    """Of a recorded node that makes a tensor of given sizes: the dimensions whose size would not change with a cut in place."""
    value = node.meta["val"]
    return tuple(node.meta.get(_FIXED, range(value.dim())))


class Path(TorchDispatchMode):
    """Inside this block, ops are written down by their name, the shapes of their results, and the parameters they take."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.steps: list[tuple[Any, ...]] = []
        tensors = [*model.parameters(), *model.buffers()]
        self._names = {tensor.untyped_storage().data_ptr(): i for i, tensor in enumerate(tensors)}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Make the call, and write it down."""
        with (
            torch._C.DisableTorchFunction()
        ):  # it is no call of the model's code, which a block around this one may count
            result = func(*args, **(kwargs or {}))
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.layout is torch.strided]
        used = [self._names.get(t.untyped_storage().data_ptr(), -1) for t in given]
        made = [tuple(t.shape) for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
        self.steps.append((str(func), tuple(made), tuple(used)))
        return result


class _Measured(int):
    """A size that the code took from a tensor as it is: it shrinks with that tensor."""


class Watch(TorchFunctionMode):
    """Inside this block, reads and the origin of sizes show in the graph.

    A tensor whose numbers are read without an op is compared with itself, which is one. Nodes that make a tensor of given
    sizes carry the dimensions whose size is neither another tensor's nor an integer of the module that runs.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._makers = makers()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Make the call."""
        if func in _READERS:
            torch.ops.aten.equal.default(args[0], args[0])
        result = func(*args, **(kwargs or {}))
        if func in _SIZES:
            measured = [_Measured(size) for size in result] if isinstance(result, tuple) else _Measured(result)
            return torch.Size(measured) if isinstance(measured, list) else measured
        if func in self._makers:
            node = next(iter(reversed(current_tracer().graph.nodes)))
            node.meta[_FIXED] = self._fixed(func, args, kwargs or {}, result.dim())
        return result

    def _fixed(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], n_dims: int
    ) -> tuple[int, ...]:
        given: Any = kwargs.get("size", args[1:] if args and isinstance(args[0], Tensor) else args)
        sizes = given[0] if given and isinstance(given[0], tuple | list) else given
        if len(sizes) != n_dims:
            return tuple(range(n_dims))
        path = [name for name, _ in current_tracer().module_stack.values()][-1:]
        held = vars(self._model.get_submodule(path[0] if path else "")).values()
        known = {value for value in held if type(value) is int}
        return tuple(d for d, size in enumerate(sizes) if not (isinstance(size, _Measured) or size in known))
