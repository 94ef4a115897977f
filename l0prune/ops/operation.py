"""What there is to know of an operation, in one place; and a call of one as its rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from l0prune.errors import TraceError
from l0prune.ops.node import NoRuleError, argument_of, module_of, node_shape, op_name
from l0prune.ops.sizes import Cut, Pairs, Rewriter, SizedCall
from l0prune.ops.tracker import Labels, Places, Tracker

__all__ = ["UNKNOWN", "Contraction", "InClosedBranch", "Normalisation", "Op", "Operation", "Origin", "Result", "Rule",
           "another_path", "makers", "norm_called", "operation_of", "operations", "sized_call"]  # fmt: skip

Result: TypeAlias = Labels | list[Labels]
Rule: TypeAlias = Callable[["Op"], Result]


@dataclass(frozen=True, eq=False)
class Contraction:
    """A product with a weight, as one call makes it.

    Attributes:
        activation: What is multiplied.
        weight: What it is multiplied by.
        dim: The dimension of the weight that is summed over; None where it is not the same for all outputs.
        out: Its dimension of outputs, of which there are `groups` times as many.
        bias: What is added, if anything.
        channel: Dimension of the outputs in the result: 1 or -1.
        groups: Parts of the activation that meet parts of the weight of their own.
    """

    activation: Any
    weight: Any
    dim: int | None
    out: int
    bias: Any = None
    channel: int = -1
    groups: Any = 1


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Statistics over units, which are taken over the open ones while there are gates.

    Attributes:
        kind: Name of these statistics.
        functions: What code calls for them, and overloads that it may call itself.
        masked: (function, mask over the units, arguments, keyword arguments) -> what the call gives over the open units.
        by_weight: Whether calls are known by their weight, the third argument; others are by the order of their kind.
        counts: Whether a call, by its arguments, is one that its rule counts.
    """

    kind: str
    functions: tuple[Any, ...]
    masked: Callable[..., Any]
    by_weight: bool = False
    counts: Callable[..., bool] = lambda func, args, kwargs: True

    def weight_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The weight by which a call is known."""
        weight = kwargs.get("weight", args[2] if len(args) > 2 else None) if self.by_weight else None
        return weight if isinstance(weight, Tensor) else None


def another_path(what: str) -> TraceError:
    """The error where a call of the forward pass does not fit the traced one."""
    return TraceError(
        f"{what}: the model takes another path than when it was traced; trace it with inputs of the kind it is trained on"
    )


class InClosedBranch(Enum):
    """What becomes of an operation in a branch that is closed entirely; most cannot be computed any more."""

    PASSES_CONSTANTS = "of a tensor that is constant along batch, positions and space it makes another such"
    LEAVES_OUT = "operands of which nothing is left are left out"
    NEEDS_UNITS = "its result cannot be of nothing"


def _declined(op: Op) -> NoReturn:
    raise NoRuleError


@dataclass(frozen=True, eq=False)
class Operation:
    """All that l0prune knows of an operation. It decorates its rule: `@Operation("conv1d conv2d conv3d", rewrite=fewer_groups)`.

    Attributes:
        names: Base names in torch.ops.aten, in one string; variants in place are meant too.
        rule: What becomes of the units that it meets.
        rewrite: Brings the sizes among its arguments up to date in a graph whose tensors are cut.
        sizes: (dense, compact) of the numbers that code may keep for it as integers, or all sizes of a result as a sequence.
        attributes: (dense, compact) of integers that the module which calls it has by these names.
        call: How it is found as a call in code, and given other sizes there.
        contracts: For a product with a weight: its parts.
        normalises: For statistics over units: how they are found as a call, and what they are over the open units.
        training: The argument that follows the mode of the model.
        zeros: Where zeros in its operands make the slices of its result along a dimension zero; None if nowhere.
        closed: What becomes of it in a branch that is closed entirely.
        makers: For what makes tensors of given sizes: functions that code calls for it.
        tag: Every operation that torch tags so is one of these, if it has no entry of its own.
    """

    names: str = ""
    rule: Rule = _declined
    rewrite: Callable[[Rewriter, Node], None] | None = None
    sizes: Callable[[Cut, Node], Pairs] | None = None
    attributes: Callable[[Cut, Node], Mapping[str, tuple[Any, Any]]] | None = None
    call: type[SizedCall] | None = None
    contracts: Callable[[Node], Contraction] | None = None
    normalises: Normalisation | None = None
    training: str | None = None
    zeros: Callable[[Op, Node, int], Places] | None = None
    closed: InClosedBranch | None = None
    makers: tuple[Callable[..., Tensor], ...] = ()
    tag: torch.Tag | None = None

    def __call__(self, rule: Rule) -> Rule:
        """Register the operation, with its rule."""
        known = replace(self, rule=rule)
        for name in self.names.split():
            if name in _BY_NAME:
                raise ValueError(f"two rules for op {name!r}")
            _BY_NAME[name] = known
        if self.tag is not None:
            _BY_TAG[self.tag] = known
        if self.call is not None:
            _CALLS.update(dict.fromkeys(self.call.functions, self.call))
        if self.normalises is not None:
            _NORMS.update(dict.fromkeys(self.normalises.functions, self.normalises))
        return rule

    @property
    def is_pointwise(self) -> bool:
        """Whether every element of the result depends on the same element of the operands alone."""
        return self.rule is _BY_TAG[torch.Tag.pointwise].rule


_BY_NAME: dict[str, Operation] = {}
_BY_TAG: dict[torch.Tag, Operation] = {}
_CALLS: dict[Callable[..., Any], type[SizedCall]] = {}
_NORMS: dict[Callable[..., Any], Normalisation] = {}
UNKNOWN = Operation()
"""What is known of an operation without an entry: its rule declines."""


def operation_of(target: Any) -> Operation:
    """What is known of what a node calls."""
    if not isinstance(target, torch._ops.OpOverload):
        return UNKNOWN
    name = op_name(target)
    known = _BY_NAME.get(name) or _BY_NAME.get(name.rstrip("_"))
    return known or next((_BY_TAG[tag] for tag in target.tags if tag in _BY_TAG), UNKNOWN)


def operations() -> Iterator[tuple[str, Operation]]:
    """Every name with its operation, in the order of registration."""
    yield from _BY_NAME.items()


def sized_call(func: Callable[..., Any]) -> type[SizedCall] | None:
    """The kind of call that a function makes which takes sizes."""
    return _CALLS.get(func)


def norm_called(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Normalisation | None:
    """The statistics that a call of a function takes; None if it takes none, or none over units."""
    known = _NORMS.get(func)
    return known if known is not None and known.counts(func, args, kwargs) else None


def makers() -> frozenset[Callable[..., Any]]:
    """Functions that make a tensor of given sizes."""
    return frozenset(maker for known in _BY_NAME.values() for maker in known.makers)


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
