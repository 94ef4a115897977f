"""The ONNX file of a network at any widths, without exporting it again: which of its numbers measure which dimension.

The network is exported three times: whole, and with two random sets of units cut out. A number that differs among the
three files is the size of a dimension, and of the dimensions with these three sizes the one that is nearest in the graph. The
same numbers written for other widths give the file that an export at these widths would have given. Its weights are
parts of those of the whole network, whose file all of them share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from l0prune.errors import ConfigError, ExportError
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.kept import Kept
from l0prune.model_call import ModelCall
from l0prune.onnx.export import unchecked_program
from l0prune.onnx.freedom import Freedom
from l0prune.profiling.closed import without_closed
from l0prune.profiling.dimensions import FlowDimension, flow_dimensions
from l0prune.profiling.outline import CONTRACTIONS, Outline, packed
from l0prune.profiling.telling import telling_cuts
from l0prune.surgery.in_graph import cut_in_graph
from l0prune.surgery.plan import make_plan, named_tensors

__all__ = ["WEIGHTS", "WidthGraph"]

WEIGHTS = "weights.bin"
BoolArray = npt.NDArray[np.bool_]
_INLINE_BYTES = 1024
_ALIGNED = 64
_FAR = 10**9


class WidthGraph:
    """A network as an ONNX graph whose widths can be chosen.

    Args:
        flow: The traced network.
        model: It.
        inputs: What it was traced with.
        seed: Of the sets of units by which dimensions are told apart.

    Raises:
        ConfigError: the network was not followed by torch.export.
        ExportError: it cannot be exported, or its file has other operators when units are cut out.

    Attributes:
        dimensions: Of the network; in the end, parts of them that the file has sizes of.
        model: The whole network, each of the weights of its contractions under a name of its own: number of the node, a
            dot, and number of the input.
    """

    def __init__(self, flow: ChannelFlow, model: nn.Module, inputs: ModelCall, *, seed: int = 0) -> None:
        if flow.refusal:
            raise ConfigError(
                f"torch.export cannot capture this {type(model).__name__} ({flow.refusal}), so no graph of it can be profiled"
            )
        self.flow = flow
        self.dimensions = flow_dimensions(flow)
        cuts = [np.ones(flow.n_gates, bool), *telling_cuts(flow, self.dimensions, seed)]
        self._kept = [Kept(cut) for cut in cuts]
        tensors, freedom = _told_apart(named_tensors(model), seed), None
        graphs = []
        for kept in self._kept:
            program, freedom = _exported(flow, model, tensors, kept, inputs, freedom)
            graphs.append(program)
        self._uses: list[tuple[int, int | str, dict[int, int], dict[int, int]]] = []
        self._match([program.graph for program in graphs])
        self._values = self._shapes_between([program.graph for program in graphs])
        self.model = graphs[0]
        self._arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}
        self._bare = onnx.ModelProto()
        self._bare.CopyFrom(self.model)
        del self._bare.graph.initializer[:], self._bare.graph.value_info[:]
        self._offsets: dict[str, int] = {}

    def sizes(self, is_open: BoolArray) -> npt.NDArray[np.int64]:
        """Kept indices of each of `dimensions`."""
        kept = Kept(is_open)
        return np.array([kept.count(dimension.gates) for dimension in self.dimensions], np.int64)

    @property
    def outline(self) -> Outline:
        """What is known of its graphs, without the weights."""
        shapes = onnx.ModelProto()
        shapes.CopyFrom(self._bare)
        for name, array in self._arrays.items():
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            shapes.graph.initializer.append(TensorProto(name=name, dims=array.shape, data_type=kind))
        sides = {at: dims for at, slot, dims, _ in self._uses if slot == 1}
        wheres = tuple(dimension.where for dimension in self.dimensions)
        return Outline(packed(shapes.SerializeToString()), sides, wheres)

    def write_weights(self, folder: Path) -> None:
        """Write the file that all graphs in a folder take their weights from."""
        with (folder / WEIGHTS).open("wb") as file:
            for name, array in self._arrays.items():
                if array.nbytes >= _INLINE_BYTES:
                    file.write(bytes(-file.tell() % _ALIGNED))
                    self._offsets[name] = file.tell()
                    file.write(np.ascontiguousarray(array).tobytes())

    def write(self, is_open: BoolArray, path: Path) -> frozenset[str]:
        """Write the graph with these units alone.

        Args:
            is_open: Units that stay, shape `(n_gates,)`. Dimensions that surgery may empty can be empty.
            path: Where `write_weights` has written.

        Returns:
            Names of the contractions that are in it, by their outputs in the whole network.
        """
        made = onnx.ModelProto()
        made.CopyFrom(self._bare)
        graph, sizes = made.graph, self.sizes(is_open)
        source = {f"{at}.{slot}": name for at, node in enumerate(graph.node) for slot, name in enumerate(node.input)}
        shapes = {name: list(array.shape) for name, array in self._arrays.items()}
        numbers: dict[str, npt.NDArray[np.int64]] = {}
        for at, node in enumerate(graph.node):
            if node.op_type in CONTRACTIONS:
                for slot, name in enumerate(node.input):
                    if name in self._arrays:
                        node.input[slot] = f"{at}.{slot}"
                        shapes[f"{at}.{slot}"] = list(self._arrays[name].shape)
        for at, place_in_node, dims, values in self._uses:
            node = graph.node[at]
            if isinstance(place_in_node, str):
                next(one for one in node.attribute if one.name == place_in_node).i = int(sizes[values[0]])
                continue
            own = f"{at}.{place_in_node}"
            node.input[place_in_node] = own
            shapes[own] = list(self._arrays[source[own]].shape)
            for place, dimension in dims.items():
                shapes[own][place] = int(sizes[dimension])
            if values:
                numbers[own] = self._arrays[source[own]].copy()
                for place, dimension in values.items():
                    numbers[own].reshape(-1)[place] = sizes[dimension]
        ranks = {name: len(known.type.tensor_type.shape.dim) for name, (known, _) in self._values.items()}
        constants = without_closed(graph, shapes, ranks)
        used = {name for node in graph.node for name in node.input}
        for name in used & shapes.keys():
            dense = source.get(name, name)
            graph.initializer.append(self._initializer(name, dense, shapes[name], numbers.get(name)))
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
        self._write_shapes(graph, sizes)
        path.write_bytes(made.SerializeToString())
        return frozenset(node.output[0] for node in graph.node if node.op_type in CONTRACTIONS)

    def _write_shapes(self, graph: onnx.GraphProto, sizes: npt.NDArray[np.int64]) -> None:
        """Add the shapes of the values that the graph still has."""
        made = {name for node in graph.node for name in node.output}
        for name in made & self._values.keys():
            value, dims = self._values[name]
            info = graph.value_info.add()
            info.CopyFrom(value)
            for place, dimension in dims.items():
                info.type.tensor_type.shape.dim[place].dim_value = int(sizes[dimension])

    def _initializer(
        self, name: str, dense: str, shape: Sequence[int], numbers: npt.NDArray[np.int64] | None
    ) -> TensorProto:
        array = self._arrays[dense] if numbers is None else numbers
        n_bytes = int(np.prod(shape, dtype=np.int64)) * array.itemsize
        if numbers is not None or n_bytes < _INLINE_BYTES or dense not in self._offsets:
            part = (
                array if list(array.shape) == list(shape) else array.reshape(-1)[: int(np.prod(shape))].reshape(shape)
            )
            return numpy_helper.from_array(np.array(part, order="C"), name)
        tensor = TensorProto(name=name, dims=shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        about = {"location": WEIGHTS, "offset": self._offsets[dense], "length": n_bytes}
        for key, value in about.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        return tensor

    def _match(self, graphs: Sequence[onnx.GraphProto]) -> None:
        """Find the dimension behind each number that differs."""
        kinds = [[node.op_type for node in graph.node] for graph in graphs]
        if any(kind != kinds[0] for kind in kinds[1:]):
            raise ExportError(
                "the file of this network has other operators where units are cut out, so that one graph does not stand for"
                " all widths"
            )
        by_sizes = defaultdict(list)
        for number, dimension in enumerate(self.dimensions):
            by_sizes[tuple(kept.count(dimension.gates) for kept in self._kept)].append(number)
        order = {node.name: at for at, node in enumerate(self.flow.captured.program.graph.nodes)}
        held = [{tensor.name: tensor for tensor in graph.initializer} for graph in graphs]
        near = 0
        for at, nodes in enumerate(zip(*(graph.node for graph in graphs), strict=True)):
            near = next((order[name] for name in nodes[0].output if name in order), near)

            parts: set[bytes] = set()

            def found(
                sizes: Sequence[int], near: int = near, kind: str = nodes[0].op_type, parts: set[bytes] = parts
            ) -> int:
                known = by_sizes.get(tuple(sizes), [])
                if known:
                    return min(known, key=lambda number: self._distance(self.dimensions[number], near))
                return self._part(sizes, near, kind, parts)

            for slot, names in enumerate(zip(*(node.input for node in nodes), strict=True)):
                tensors = [known.get(name) for known, name in zip(held, names, strict=True)]
                if all(tensor is not None for tensor in tensors):
                    dims = {place: found(s) for place, s in _differing([tensor.dims for tensor in tensors])}  # type: ignore[union-attr]
                    values = {} if dims else {place: found(s) for place, s in _differing(_whole_numbers(tensors))}
                    if dims or values:
                        self._uses.append((at, slot, dims, values))
            for attributes in zip(*(node.attribute for node in nodes), strict=True):
                for _, sizes in _differing([[one.i] for one in attributes]):
                    self._uses.append((at, attributes[0].name, {}, {0: found(sizes)}))

    def _shapes_between(
        self, graphs: Sequence[onnx.GraphProto]
    ) -> dict[str, tuple[onnx.ValueInfoProto, dict[int, int]]]:
        """Name of a value -> its type and shape, and dimensions of the network by their place in it.

        onnxruntime fuses some operators only where it knows the shapes between them. Those that are not understood are left out.
        """
        found: dict[str, tuple[onnx.ValueInfoProto, dict[int, int]]] = {}
        others = [{value.name: value for value in graph.value_info} for graph in graphs[1:]]
        order = {node.name: at for at, node in enumerate(self.flow.captured.program.graph.nodes)}
        near = 0
        for value in graphs[0].value_info:
            near = order.get(value.name, near)
            alike = [value, *(known[value.name] for known in others if value.name in known)]
            sizes = [[dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in alike]
            if len(alike) < len(graphs) or len({len(row) for row in sizes}) > 1:
                continue
            dims = {}
            for place, column in _differing(sizes):
                rows = [
                    (self._distance(dimension, near), number)
                    for number, dimension in enumerate(self.dimensions)
                    if tuple(kept.count(dimension.gates) for kept in self._kept) == column
                ]
                if not rows:
                    break
                dims[place] = min(rows)[1]
            else:
                found[value.name] = value, dims
        return found

    def _distance(self, dimension: FlowDimension, near: int) -> int:
        return min((abs(place - near) for place in dimension.nodes), default=_FAR)

    def _part(self, sizes: Sequence[int], near: int, kind: str, used: set[bytes]) -> int:
        """The first or last indices of a dimension, which become a dimension of their own.

        Args:
            sizes: Of the part in the three graphs.
            near: Place of the node.
            kind: Of the node.
            used: Parts that the node has already: of two ends with the same sizes it is the other one. The part is added.

        Raises:
            ExportError: the sizes are those of nothing that is known.
        """
        n = sizes[0]
        candidates = [
            (self._distance(dimension, near), number, part.tobytes() in used, part)
            for number, dimension in enumerate(self.dimensions)
            if dimension.where is not None and 0 < n < len(dimension.gates)
            for part in (dimension.gates[:n], dimension.gates[len(dimension.gates) - n :])
            if [kept.count(part) for kept in self._kept] == list(sizes)
        ]
        if not candidates:
            raise ExportError(
                f"a {kind} in the file of this network has the size {sizes[0]}, which becomes {sizes[1]} and {sizes[2]} where"
                " units are cut out, and is that of no dimension that was followed"
            )
        part = min(candidates, key=lambda one: one[:3])[-1]
        used.add(part.tobytes())
        self.dimensions.append(FlowDimension(None, part, ()))
        return len(self.dimensions) - 1


def _exported(
    flow: ChannelFlow,
    model: nn.Module,
    tensors: dict[str, Tensor],
    kept: Kept,
    inputs: ModelCall,
    freedom: Freedom | None,
) -> tuple[onnx.ModelProto, Freedom]:
    plan = make_plan(flow, model, kept.units.astype(np.float64), kept)
    return unchecked_program(cut_in_graph(flow, tensors, plan, kept), inputs, freedom)


def _differing(numbers: Sequence[Sequence[int]]) -> list[tuple[int, tuple[int, ...]]]:
    """Places at which the rows differ, with what they have there; nothing where they are of different lengths."""
    if len({len(row) for row in numbers}) != 1:
        return []
    return [(place, column) for place, column in enumerate(zip(*numbers, strict=True)) if len(set(column)) > 1]


def _whole_numbers(tensors: Sequence[TensorProto | None]) -> list[list[int]]:
    """The values of tensors of whole numbers; none of others."""
    wanted = (TensorProto.INT64, TensorProto.INT32)
    return [
        numpy_helper.to_array(tensor).ravel().tolist() if tensor is not None and tensor.data_type in wanted else []
        for tensor in tensors
    ]


def _told_apart(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The same tensors with a little noise: exporters make one of constants that are equal."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)

    return {
        name: tensor.detach() * (1 + 1e-3 * noise(tensor)) + 1e-6 * noise(tensor)
        if tensor.is_floating_point()
        else tensor.detach()
        for name, tensor in tensors.items()
    }
