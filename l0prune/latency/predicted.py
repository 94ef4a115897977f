"""What a profile says of each layer of a network, dense and cut: a file of a run, which its report draws."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from l0prune.plain_data import FileKind
from l0prune.reading import read_json

if TYPE_CHECKING:
    from l0prune.cost.cost import OpenGates
    from l0prune.latency.cost import LatencyCost
    from l0prune.measuring.hardware import Environment

__all__ = ["PredictedLayer", "PredictedLayers"]

REMEDY = "run shrink again"
KIND = FileKind("l0prune.latency", 1, "a prediction of a profile", REMEDY)


class Measured(Protocol):
    """What a `BenchReport` says of the terms it was measured on."""

    @property
    def environment(self) -> Environment:
        """Threads and batch."""

    @property
    def sizes(self) -> dict[str, int]:
        """Of free dimensions other than the batch, where they are not those of the example."""


@dataclass(frozen=True)
class PredictedLayer:
    """A layer, with what onnxruntime does between it and the next one.

    Attributes:
        name: For people.
        dense_ms: At the dense widths.
        compact_ms: At those that stay.
        dense_width: Indices that it writes; of a layer with one width, that one.
        kept_width: Those that stay.
    """

    name: str
    dense_ms: float
    compact_ms: float
    dense_width: int
    kept_width: int


@dataclass(frozen=True)
class PredictedLayers:
    """What a profile says of a cut.

    Attributes:
        model: What the profile calls the network.
        processor: That it was measured on.
        threads: Of onnxruntime, that it was measured with.
        batch_size: Rows of the inputs, as well.
        fixed_ms: What depends on no width, in the dense and in the compact network.
        layers: Those with a width.
    """

    model: str
    processor: str
    fixed_ms: tuple[float, float]
    layers: tuple[PredictedLayer, ...]
    threads: int = 1
    batch_size: int = 1

    @classmethod
    def of(cls, cost: LatencyCost, is_open: OpenGates) -> PredictedLayers:
        """Of a traced network.

        Args:
            cost: By a profile.
            is_open: Units that stay, shape `(n_gates,)`.
        """
        counts = [cost.sides.counts(gates) for gates in (np.ones(cost.n_gates, bool), is_open)]
        times = [cost.layer_costs(of_form).tolist() for of_form in counts]
        layers = []
        for row, layer in enumerate(cost.profile.layers):
            side = cost.layer_sides[row, len(layer.sides) - 1]
            dense, kept = (round(float(of_form[side])) for of_form in counts)
            layers.append(PredictedLayer(cost.layers[row], times[0][row], times[1][row], dense, kept))
        profile = cost.profile
        return cls(
            model=profile.model,
            processor=profile.processor,
            fixed_ms=(times[0][-1], times[1][-1]),
            layers=tuple(layers),
            threads=profile.threads,
            batch_size=profile.environment.batch_size,
        )

    @property
    def dense_ms(self) -> float:
        """Of the whole dense network."""
        return self.fixed_ms[0] + sum(layer.dense_ms for layer in self.layers)

    @property
    def compact_ms(self) -> float:
        """Of the whole compact network."""
        return self.fixed_ms[1] + sum(layer.compact_ms for layer in self.layers)

    @property
    def by_layer(self) -> dict[str, dict[str, float]]:
        """Milliseconds: "dense" or "compact" -> layer -> its own."""
        return {
            "dense": {layer.name: layer.dense_ms for layer in self.layers},
            "compact": {layer.name: layer.compact_ms for layer in self.layers},
        }

    def is_for(self, measured: Measured) -> bool:
        """Whether it is of the same threads and batch, and of the sizes of the example."""
        environment = measured.environment
        return not measured.sizes and (self.threads, self.batch_size) == (environment.threads, environment.batch_size)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return KIND.stamped(asdict(self))

    @classmethod
    def read(cls, path: Path) -> PredictedLayers:
        """From the file that holds `to_json`.

        Raises:
            FileFormatError: it is something else.
        """
        content = read_json(path, "prediction of a profile", remedy=REMEDY)
        return KIND.read(cls, content, str(path), optional=("threads", "batch_size"))
