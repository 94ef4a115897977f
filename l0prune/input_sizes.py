"""The sizes of inputs that an exported graph was captured for: at others it may compute nonsense, so they are an error."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument
from torch.fx import GraphModule
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from l0prune.errors import ConfigError

__all__ = ["InputSizes", "check_inputs_", "input_sizes_of"]

_SIZES = "_l0prune_input_sizes"
_NOT_SPECIAL = 2
"""torch.export takes every free size to be two at least, although a graph computes one as well."""


@dataclass(frozen=True)
class InputSizes:
    """What the inputs of a graph must look like.

    Attributes:
        names: Of its arguments, in order.
        spec: How its positional and keyword arguments nest.
        leaves: For every tensor its sizes: a number where it is fixed, an expression where it is free, None where it does not
            matter. None for what is neither a tensor nor a constant.
        ranges: Symbol -> smallest and largest value, the latter None without a limit.
    """

    names: tuple[str, ...]
    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    ranges: dict[sympy.Symbol, tuple[int, int | None]]

    @classmethod
    def of(cls, program: ExportedProgram, module: GraphModule) -> InputSizes:
        """Read off the inputs of a program, and off its module how their arguments are called."""
        names = tuple(module.graph._codegen.pytree_info.orig_args)  # type: ignore[attr-defined]
        values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        leaves: list[Any] = []
        for spec in program.graph_signature.input_specs:
            if spec.kind.name != "USER_INPUT":
                continue
            value = values.get(spec.arg.name)
            if isinstance(value, Tensor):
                leaves.append(tuple(_expression(size) for size in value.shape))
            else:
                leaves.append(_Constant(spec.arg.value) if isinstance(spec.arg, ConstantArgument) else None)
        ranges = {symbol: _range(bounds) for symbol, bounds in program.range_constraints.items()}
        return cls(names, program.call_spec.in_spec, tuple(leaves), ranges)

    def without(self, dims: Collection[int]) -> InputSizes:
        """The same with some dimensions of all tensors of images left open."""
        leaves = [
            tuple(None if dim in dims else size for dim, size in enumerate(leaf))
            if isinstance(leaf, tuple) and len(leaf) > max(dims, default=0)
            else leaf
            for leaf in self.leaves
        ]
        return replace(self, leaves=tuple(leaves))

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See that inputs have these sizes.

        Raises:
            ConfigError: names the first that has another.
        """
        given = self._given(args, kwargs)
        if given is None or torch._C._is_tracing():
            return  # the call itself says what is wrong with it
        seen: dict[sympy.Symbol, tuple[Any, str]] = {}
        for (name, value), expected in zip(given, self.leaves, strict=True):
            if isinstance(expected, _Constant):
                if value != expected.value:
                    raise ConfigError(
                        f"input {name} is {value!r}, but this graph was captured for {expected.value!r} only; {_REMEDY}"
                    )
            elif isinstance(expected, tuple) and isinstance(value, Tensor):
                self._check_shape(name, value, expected, seen)

    def _check_shape(
        self, name: str, value: Tensor, expected: tuple[Any, ...], seen: dict[sympy.Symbol, tuple[Any, str]]
    ) -> None:
        if value.dim() != len(expected):
            raise ConfigError(
                f"input {name} has {value.dim()} dimensions, but this graph takes {len(expected)}; {_REMEDY}"
            )
        for dim, (found, size) in enumerate(zip(value.shape, expected, strict=True)):
            where = f"input {name} has size {found} in dimension {dim}"
            if isinstance(size, int):
                if found != size:
                    raise ConfigError(f"{where}, but this graph was captured for {size} only; {_REMEDY}")
            elif isinstance(size, sympy.Symbol):
                known, first = seen.setdefault(size, (found, f"input {name}, dimension {dim}"))
                if found != known:
                    raise ConfigError(f"{where}, but must have {known}, the size of {first}")
                low, high = self.ranges.get(size, (0, None))
                if (low > _NOT_SPECIAL and found < low) or (high is not None and found > high):
                    limits = f"{low} or more" if high is None else f"between {low} and {high}"
                    raise ConfigError(f"{where}, but this graph takes {limits}; {_REMEDY}")
            elif size is not None and all(symbol in seen for symbol in size.free_symbols):
                values = {symbol: seen[symbol][0] for symbol in size.free_symbols}
                if all(isinstance(number, int) for number in (found, *values.values())) and found != size.subs(values):
                    raise ConfigError(f"{where}, but the sizes of other inputs require {size.subs(values)}")

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]] | None:
        """Name and value of every leaf, in the order of the graph; None if the arguments do not fit together in this way."""
        by_name = dict(zip(self.names, args, strict=False)) | kwargs
        if len(args) > len(self.names) or by_name.keys() != set(self.names):
            return None
        positional, keyword = _children(self.spec)
        n_positional, keywords = positional.num_children, keyword.context
        values = [by_name[name] for name in self.names]
        nested = (tuple(values[:n_positional]), dict(zip(keywords, values[n_positional:], strict=True)))
        try:
            leaves = fx_pytree.tree_flatten_spec(nested, self.spec)
        except Exception:  # noqa: BLE001 - whatever pytree raises about inputs that nest in another way
            return None
        counts = [*_children(positional), *_children(keyword)]
        names = [
            repr(name) if part.num_leaves == 1 else f"{name!r} ({place + 1} of {part.num_leaves})"
            for name, part in zip(self.names, counts, strict=True)
            for place in range(part.num_leaves)
        ]
        return list(zip(names, leaves, strict=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> InputSizes:
        """Immutable, so copies of a graph share it."""
        return self


_REMEDY = "trace the network with an input of that size, or load it into its class (base=)"


@dataclass(frozen=True)
class _Constant:
    """An argument that is no tensor: its value is part of the graph."""

    value: Any


def check_inputs_(graph: nn.Module, sizes: InputSizes) -> None:
    """Write down the sizes that a graph takes; they are checked by its class, or else by a hook before every call."""
    if not (is_checking(graph) or input_sizes_of(graph)):
        graph.register_forward_pre_hook(_check, prepend=True, with_kwargs=True)
    object.__setattr__(graph, _SIZES, sizes)


def is_checking(graph: nn.Module) -> bool:
    """Whether the forward pass of a class looks at the sizes of its inputs by itself."""
    return bool(getattr(type(graph), "checks_inputs", False))


def _check(graph: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    sizes = input_sizes_of(graph)
    if sizes is not None:
        sizes.check(args, kwargs)


def input_sizes_of(graph: nn.Module) -> InputSizes | None:
    """The sizes that a graph sees to."""
    return graph.__dict__.get(_SIZES)


def _children(spec: pytree.TreeSpec) -> list[pytree.TreeSpec]:
    """The parts of a nest; torch has called them by two names."""
    return list(spec.children() if hasattr(spec, "children") else spec.children_specs)


def _expression(size: int | torch.SymInt) -> Any:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_Integer else expression


def _range(bounds: Any) -> tuple[int, int | None]:
    """Numbers that data decide have no limits at all."""
    return int(bounds.lower) if bounds.lower.is_Integer else 0, int(bounds.upper) if bounds.upper.is_Integer else None
