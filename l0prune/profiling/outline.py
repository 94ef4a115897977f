"""What is known of the graphs that are timed, without their weights: all that a profile is made of beside the times."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx

from l0prune.latency.profile import Where

__all__ = ["CONTRACTIONS", "Moment", "Outline", "Sample", "packed", "unpacked"]

_INTEGER = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul", *_INTEGER)
"""Operators that contract what they read, which a network is divided at."""


@dataclass(frozen=True)
class Outline:
    """The graph of a whole network without its weights.

    Attributes:
        graph: An ONNX model whose initializers have shapes and no values, packed.
        sides: Number of a contraction among the nodes -> dimension of its weight -> number of the network's dimension.
        dimensions: Of the network: where each is found, None for a part of one.
    """

    graph: str
    sides: dict[int, dict[int, int]]
    dimensions: tuple[Where | None, ...]

    @cached_property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """Of the graph, in order."""
        return list(self._model.graph.node)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Initializer -> shape."""
        return {tensor.name: tuple(tensor.dims) for tensor in self._model.graph.initializer}

    @cached_property
    def weights(self) -> dict[str, str]:
        """Name of a weight in the graphs that are timed -> its contraction, by the output."""
        return {
            f"{at}.{slot}": node.output[0]
            for at, node in enumerate(self.nodes)
            if node.op_type in CONTRACTIONS
            for slot in range(len(node.input))
        }

    @cached_property
    def _model(self) -> onnx.ModelProto:
        return onnx.load_from_string(unpacked(self.graph))


@dataclass(frozen=True)
class Sample:
    """One graph that was timed, as `runner.measure` says it.

    Attributes:
        total_us: Of a run.
        nodes: Kernel -> microseconds.
        shapes: Kernel -> shapes of what it reads, and of what it writes.
        optimised: The optimised graph, packed.
    """

    total_us: float
    nodes: dict[str, float]
    shapes: dict[str, tuple[tuple[tuple[int, ...], ...], ...]]
    optimised: str


@dataclass(frozen=True, eq=False)
class Moment:
    """A graph with what was measured of it.

    Attributes:
        sizes: Kept indices of each dimension of the outline, shape `(n_dimensions,)`.
        is_whole: Whether nothing is cut.
        sample: What was measured.
    """

    sizes: npt.NDArray[np.int64]
    is_whole: bool
    sample: Sample


def packed(content: bytes) -> str:
    """Bytes as text, compressed."""
    return base64.b85encode(zlib.compress(content)).decode()


def unpacked(text: str) -> bytes:
    """The bytes that `packed` was given."""
    return zlib.decompress(base64.b85decode(text))
