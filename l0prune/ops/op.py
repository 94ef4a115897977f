"""One node of the exported graph as the rules see it: arguments by schema name, shapes, labels, and the tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from l0prune.ops.tracker import Labels, Tracker

__all__ = ["NoRuleError", "Op", "Origin", "Result", "Rule", "argument_of", "concrete", "in_example", "is_pointwise", "module_of",
           "node_shape", "op_name", "register", "rule_for", "varies"]  # fmt: skip

Result: TypeAlias = Labels | list[Labels]
Rule: TypeAlias = Callable[["Op"], Result]

_RULES: dict[str, Rule] = {}


class NoRuleError(Exception):
    """A rule declines: this use of the op is not covered, so the op's tensors are pinned."""


@dataclass(frozen=True)
class Origin:
    """A tensor that is a parameter up to the order of its dimensions: dimension i of the tensor is `dims[i]` of it.

    Attributes:
        parameter: Name of the parameter or buffer.
        dims: Its dimension for each dimension of the tensor; -1 for one of which the tensor is a part.
        scalable: Whether multiplying it by gates is kept: not so for integers, nor for buffers that are not saved.
        learned: Whether it is a parameter, not a buffer.
    """

    parameter: str
    dims: tuple[int, ...]
    scalable: bool = True
    learned: bool = True


def register(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ops by base name, e.g. `register("linear")` for every overload of aten.linear."""

    def add(rule: Rule) -> Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"two rules for op {name!r}")
            _RULES[name] = rule
        return rule

    return add


def rule_for(target: Any) -> Rule | None:
    """The rule for an op overload; in-place variants use the rule of the plain op; pointwise ops share one."""
    name = op_name(target)
    rule = _RULES.get(name) or _RULES.get(name.rstrip("_"))
    if rule is None and torch.Tag.pointwise in getattr(target, "tags", ()):
        rule = _RULES["pointwise"]
    return rule


def is_pointwise(target: Any) -> bool:
    """Whether an op treats every element alone."""
    return rule_for(target) is _RULES["pointwise"]


def op_name(target: Any) -> str:
    """`linear` for aten.linear.default, `getitem` for operator.getitem, `prims.foo` for other namespaces."""
    if isinstance(target, torch._ops.OpOverload):
        namespace, base = target._schema.name.split("::")
        return base if namespace == "aten" else f"{namespace}.{base}"
    return getattr(target, "__name__", str(target))


UNKNOWN = -1
"""A size that depends on data which nobody has seen."""


def concrete(size: int | torch.SymInt) -> int:
    """A size as a number: symbolic sizes give the size they had in the example."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return int(hint) if hint is not None else UNKNOWN


def varies(size: int | torch.SymInt) -> bool:
    """Whether a size may be another one than in the example; a symbol that the model fixes to one number may not."""
    return not isinstance(size, int) and size.node.maybe_as_int() is None


def in_example(value: Any) -> int:
    """An integer argument of a call as a number: one that is computed from sizes as it was in the example."""
    return concrete(value.meta["val"] if isinstance(value, Node) else value)


def argument_of(node: Node, name: str) -> Any:
    """An argument of a call by its schema name, with the schema's default; NoRuleError if the overload has none such."""
    for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            if name in node.kwargs:
                return node.kwargs[name]
            return node.args[position] if position < len(node.args) else argument.default_value
    raise NoRuleError


def module_of(node: Node) -> str:
    """Dotted name of the innermost module that makes a call; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(entry[0]) for entry in stack.values() if not str(entry[0]).startswith("_empty_nn_module_stack")]
    return paths[-1] if paths else ""


def node_shape(node: Any) -> tuple[int, ...]:
    """Shape of a node's tensor in the example."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, torch.Tensor):
        raise NoRuleError
    return tuple(concrete(size) for size in value.shape)


class Op:
    """A call in the graph, with everything a rule may ask or tell.

    Attributes:
        node: The graph node.
        tracker: Where ties, pins, consumers and costs are recorded.
    """

    def __init__(
        self,
        node: Node,
        tracker: Tracker,
        labels: dict[Node, Result],
        origins: dict[Node, Origin],
        tensors: Mapping[str, Any],
    ) -> None:
        self.node = node
        self.tracker = tracker
        self._labels = labels
        self._origins = origins
        self._tensors = tensors

    @property
    def name(self) -> str:
        """Base name of the op."""
        return op_name(self.node.target)

    @property
    def module(self) -> str:
        """Dotted name of the innermost module that made the call, or that owns its parameters, for people."""
        if path := module_of(self.node):
            return path
        owners = [self._origins[node].parameter for node in self.node.all_input_nodes if node in self._origins]
        return owners[0].rpartition(".")[0] if owners else ""

    def arg(self, name: str) -> Any:
        """An argument by its schema name, with the schema's default; NoRuleError if the overload has none such."""
        return argument_of(self.node, name)

    def tensor_args(self) -> list[Node]:
        """All tensor arguments in order, flattened."""
        return [node for node in self.node.all_input_nodes if isinstance(node.meta.get("val"), torch.Tensor)]

    def labels(self, node: Any) -> Labels:
        """Labels of a tensor argument."""
        result = self._labels.get(node)
        if result is None or (result and isinstance(result[0], list)):
            raise NoRuleError
        return list(result)  # type: ignore[arg-type]

    def results(self, node: Node) -> Result:
        """Labels of a node that may have several outputs."""
        result = self._labels.get(node)
        if result is None:
            raise NoRuleError
        return result

    def shape(self, node: Any = None) -> tuple[int, ...]:
        """Shape of an argument, or of the output."""
        return node_shape(self.node if node is None else node)

    def origin(self, node: Any) -> Origin | None:
        """The parameter a tensor is, up to the order of its dimensions, if gates can multiply it."""
        origin = self._origins.get(node)
        return origin if origin is not None and origin.scalable else None

    def name_of(self, node: Any) -> str | None:
        """Name of the parameter or buffer that a node hands on as it is."""
        origin = self._origins.get(node)
        return origin.parameter if origin is not None and node.op == "placeholder" else None

    def value(self, node: Any) -> torch.Tensor | None:
        """What a parameter or buffer held when the model was traced; None for other tensors, and where there are no numbers."""
        tensor = self._tensors.get(self.name_of(node) or "")
        return None if tensor is None or tensor.is_meta else tensor

    def set_origin(self, source: Any, dims: Sequence[int | None]) -> None:
        """The output is `source` with its dimensions in the order `dims`, or a part of it along the one that is None."""
        origin = self._origins.get(source)
        if origin is not None:
            order = tuple(-1 if d is None else origin.dims[d] for d in dims)
            self._origins[self.node] = replace(origin, dims=order)
