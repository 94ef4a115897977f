"""The layers of a run: milliseconds dense and compact, measured and as a profile says, and the widths by the time saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from l0prune.latency.predicted import PredictedLayer, PredictedLayers
from l0prune.pictures import COMPACT, DENSE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_layers"]

MOST_LAYERS = 60
_COLORS = "viridis_r"


@dataclass(frozen=True)
class _Row:
    """A layer.

    Attributes:
        name: Its own.
        times: Milliseconds dense and compact, measured if anything was.
        predicted: What the profile says of it; None where it says nothing.
    """

    name: str
    times: tuple[float, float]
    predicted: PredictedLayer | None

    @property
    def saved(self) -> float:
        """Milliseconds."""
        return max(self.times[0] - self.times[1], 0.0)


def draw_layers(
    predicted: PredictedLayers | None = None, measured: Mapping[str, Mapping[str, float]] | None = None
) -> Figure:
    """A row a layer: milliseconds dense and compact, and beside them the widths, whose colour says how much time was saved.

    Bars are what was measured, with marks where the profile predicted them; or what it predicted, where nothing was measured.
    Beyond 60 layers, those that took most time are drawn.

    Args:
        predicted: Of a run, by a profile; without it, no widths are drawn.
        measured: "dense" and "compact" -> layer -> milliseconds.

    Returns:
        The figure, 8 inches wide.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    every = _rows(predicted, measured or {})
    order = sorted(range(len(every)), key=lambda at: -every[at].times[0])[:MOST_LAYERS]
    rows = [every[at] for at in sorted(order)]
    figure = new_figure(8.0, 0.9 + 0.22 * max(1, len(rows)))
    if predicted is None:
        _draw_times(figure.subplots(), rows, is_measured=True)
    else:
        times, widths = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        _draw_times(times, rows, is_measured=bool(measured))
        _draw_widths(figure, widths, rows)
    for axes in figure.axes[: 1 if predicted is None else 2]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    return figure


def _rows(predicted: PredictedLayers | None, measured: Mapping[str, Mapping[str, float]]) -> list[_Row]:
    said = {} if predicted is None else {layer.name: layer for layer in predicted.layers}
    if not measured:
        return [_Row(name, (one.dense_ms, one.compact_ms), one) for name, one in said.items()]
    dense, compact = measured["dense"], measured["compact"]
    names = dict.fromkeys([*dense, *compact])
    return [_Row(name, (dense.get(name, 0.0), compact.get(name, 0.0)), said.get(name)) for name in names]


def _draw_times(axes: Axes, rows: list[_Row], *, is_measured: bool) -> None:
    places = np.arange(len(rows))
    for form, (shift, color, label) in enumerate(((-0.2, DENSE, "dense"), (0.2, COMPACT, "compact"))):
        axes.barh(places + shift, [row.times[form] for row in rows], 0.38, color=color, label=label)
    if is_measured:
        marks = [
            (ms, at + shift)
            for at, row in enumerate(rows)
            if row.predicted is not None
            for ms, shift in ((row.predicted.dense_ms, -0.2), (row.predicted.compact_ms, 0.2))
        ]
        if marks:
            x, y = zip(*marks, strict=True)
            axes.plot(x, y, "|", color="black", markersize=5, label="predicted")
    axes.set_yticks(places, [row.name for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(left=0.0)
    axes.set_xlabel("measured, ms" if is_measured else "predicted, ms", fontsize=8)
    axes.legend(frameon=False, fontsize=7)


def _draw_widths(figure: Figure, axes: Axes, rows: list[_Row]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    known = [(at, row, row.predicted) for at, row in enumerate(rows) if row.predicted is not None]
    places = [at for at, _, _ in known]
    axes.barh(places, [one.dense_width for _, _, one in known], 0.8, color="#dfe4ea")
    bars = axes.barh(places, [one.kept_width for _, _, one in known], 0.8)
    saved = [row.saved for _, row, _ in known]
    scale = ScalarMappable(Normalize(0.0, max([*saved, 1e-9])), _COLORS)
    for bar, color in zip(bars, scale.to_rgba(np.array(saved)), strict=True):
        bar.set_color(color)
    figure.colorbar(scale, ax=axes).set_label("ms saved", fontsize=7)
    for at, _, one in known:
        axes.text(one.dense_width, at, f" {one.kept_width}/{one.dense_width}", va="center", fontsize=6)
    axes.set_xlabel("kept width", fontsize=8)
