"""The parts of a network that are timed: each contraction with what follows until the next one, and what each depends on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from l0prune.errors import ExportError
from l0prune.profiling.outline import CONTRACTIONS, Outline, Sample, unpacked

__all__ = ["START", "Part", "Timed", "parts_of", "times_of_parts"]

START = ""
"""Name of what comes before the first contraction."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Side = int
"""Number of a dimension of an `Outline`, or minus the size of a side that no unit is on."""


@dataclass(frozen=True)
class Timed:
    """Times of the parts of one graph.

    Attributes:
        us: Part -> microseconds; they add up to those of a whole run.
        shapes: Part -> shapes of its kernels.
    """

    us: dict[str, float]
    shapes: dict[str, list[tuple[tuple[int, ...], ...]]]


@dataclass(eq=False)
class Part:
    """A contraction and what follows it.

    Attributes:
        name: Its output in the whole network; `START` for what comes before the first one.
        kind: Operator, kernel, strides and whether it is depthwise; parts of one kind and image size share their times.
        tail: Operators that follow.
        sides: What it reads and writes; one side where that is one dimension.
        needs: Dimensions without which it is dropped, beside its sides.
    """

    name: str
    kind: tuple[Any, ...]
    tail: tuple[str, ...]
    sides: tuple[Side, ...] = ()
    needs: list[int] = field(default_factory=list)


def parts_of(outline: Outline, timed: Sequence[Timed], sizes: IntArray) -> list[Part]:
    """The parts of a network.

    Args:
        outline: Of the network.
        timed: Graphs that were measured; what is no weight shows in the shapes of the kernels.
        sizes: Kept indices of each dimension in each of these graphs, shape `(n_graphs, n_dimensions)`.
    """
    nodes = outline.nodes
    owner, tails = owners(nodes), defaultdict(list)
    for node in nodes:
        if node.op_type not in CONTRACTIONS:
            tails[owner[node.output[0]]].append(node.op_type)
    shapes = outline.shapes
    found = [Part(START, ("before the first layer",), tuple(sorted(tails[START])))]
    for at, node in enumerate(nodes):
        if node.op_type in CONTRACTIONS:
            name, weight = node.output[0], shapes.get(node.input[1])
            tail = tuple(sorted(tails[name]))
            if weight is None:
                found.append(Part(name, (node.op_type, "of activations", *tail), tail))
            else:
                kind, sides = _with_weight(node, weight, outline.sides.get(at, {}))
                found.append(Part(name, kind, tail, sides))
    for part in found:
        if not part.sides:
            part.sides = _sides_by_shapes(part.name, timed, sizes)
        shapes_of_part = (one for moment in timed for one in moment.shapes.get(part.name, ()) if _spatial(one))
        if "Conv" in part.kind[0]:
            part.kind = (*part.kind, *_spatial(next(shapes_of_part, ((), ()))))
    return found


def owners(nodes: Sequence[onnx.NodeProto]) -> dict[str, str]:
    """Value -> the part it belongs to: its contraction, or that of the latest value it is made of."""
    of: dict[str, str] = {}
    order = {START: -1}
    for at, node in enumerate(nodes):
        if node.op_type in CONTRACTIONS:
            part = node.output[0]
            order[part] = at
        else:
            part = max((of[name] for name in node.input if name in of), key=order.__getitem__, default=START)
        of |= dict.fromkeys(node.output, part)
    return of


def times_of_parts(nodes: Sequence[onnx.NodeProto], weights: Mapping[str, str], sample: Sample) -> Timed:
    """Share the time of a whole run out among its parts, by the profiler, with the time between kernels spread evenly.

    Args:
        nodes: Of the whole graph, in order.
        weights: Name of a weight in the graph that was timed -> the part that it belongs to.
        sample: What was measured.

    Raises:
        ExportError: the sample has no kernels.
    """
    of = owners(nodes)
    optimised = onnx.load_from_string(unpacked(sample.optimised))
    of_value: dict[str, str] = {}
    of_kernel: dict[str, str] = {}
    for node in optimised.graph.node:
        known = [weights[name] for name in node.input if name in weights]
        named = [name for name in (node.name.removesuffix("_nchwc"), *node.output) if name in of]
        read = [name for name in node.input if name in of_value]
        if known:
            part = known[0]
        elif named:
            part = of[named[0]]
        elif read:
            part = of_value[read[0]]
        else:
            part = next((of[name] for name in node.input if name in of), START)
        of_value |= dict.fromkeys(node.output, part)
        of_kernel[node.name] = part
    if not sample.nodes:
        raise ExportError("onnxruntime's profiler has named no kernels")
    between = (sample.total_us - sum(sample.nodes.values())) / len(sample.nodes)
    us: dict[str, float] = defaultdict(float)
    shapes = defaultdict(list)
    for name, value in sample.nodes.items():
        part = of_kernel.get(name, START)
        us[part] += value + between
        if name in sample.shapes:
            shapes[part].append(tuple(shape for side in sample.shapes[name] for shape in side))
    return Timed(dict(us), dict(shapes))


def _with_weight(
    node: onnx.NodeProto, weight: Sequence[int], gated: Mapping[int, int]
) -> tuple[tuple[Any, ...], tuple[Side, ...]]:
    about = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}

    def side(place: int) -> Side:
        return gated.get(place, -weight[place])

    if node.op_type == "Conv":
        groups = about.get("group", 1)
        kind = (node.op_type, "x".join(map(str, weight[2:])), "stride", *about.get("strides", ()))
        if groups > 1 and weight[1] * groups == weight[0]:
            return (*kind, "grouped", weight[1]), (side(0),)
        return (*kind, groups), (side(1), side(0))
    if node.op_type == "ConvTranspose":
        return (node.op_type, "x".join(map(str, weight[2:])), *about.get("strides", ())), (side(0), side(1))
    if node.op_type == "Gemm" and about.get("transB", 0):
        return (node.op_type,), (side(1), side(0))
    last = len(weight) - 1
    return (node.op_type,), (side(last - 1), side(last))


def _sides_by_shapes(name: str, timed: Sequence[Timed], sizes: IntArray) -> tuple[Side, ...]:
    """The gated dimensions of what a part without a weight reads and writes, two at most."""
    rows = [(at, moment.shapes[name][0]) for at, moment in enumerate(timed) if moment.shapes.get(name)]
    rows = [(at, shapes) for at, shapes in rows if list(map(len, shapes)) == list(map(len, rows[0][1]))]
    if not rows:
        return ()
    graphs = [at for at, _ in rows]
    table = np.array([[size for shape in shapes for size in shape] for _, shapes in rows])
    found: list[int] = []
    for column in table.T:
        if len(set(column.tolist())) > 1:
            same = np.flatnonzero((sizes[graphs] == column[:, None]).all(axis=0))
            found += [int(number) for number in same[:1] if number not in found]
    return tuple(found[:2])


def _spatial(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Sizes beyond the channels of what a convolution reads and writes; nothing for others."""
    ends = (shapes[0], shapes[-1])
    return tuple(size for shape in ends for size in shape[2:]) if all(len(shape) > 2 for shape in ends) else ()
