"""What a profile says of the layers of a run: milliseconds dense and compact, and the widths that stayed by the time saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from l0prune.latency.predicted import PredictedLayers
from l0prune.pictures import COMPACT, DENSE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_layers"]

MOST_LAYERS = 60
_COLORS = "viridis_r"


def draw_layers(predicted: PredictedLayers) -> Figure:
    """Two panels with a row a layer: predicted milliseconds, and widths whose colour says how much time was saved.

    Args:
        predicted: Of a run; beyond 60 layers, those that took most time are drawn.

    Returns:
        The figure, 8 inches wide.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    order = sorted(range(len(predicted.layers)), key=lambda at: -predicted.layers[at].dense_ms)[:MOST_LAYERS]
    layers = [predicted.layers[at] for at in sorted(order)]
    figure = new_figure(8.0, 0.9 + 0.22 * max(1, len(layers)))
    times, widths = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    places = list(range(len(layers)))
    times.barh([at - 0.2 for at in places], [one.dense_ms for one in layers], 0.38, color=DENSE, label="dense")
    times.barh([at + 0.2 for at in places], [one.compact_ms for one in layers], 0.38, color=COMPACT, label="compact")
    times.set_yticks(places, [one.name for one in layers], fontsize=7)
    times.set_ylim(len(layers) - 0.4, -0.6)
    times.set_xlabel("predicted, ms", fontsize=8)
    times.legend(frameon=False, fontsize=7)
    saved = [max(one.dense_ms - one.compact_ms, 0.0) for one in layers]
    widths.barh(places, [one.dense_width for one in layers], 0.8, color="#dfe4ea")
    bars = widths.barh(places, [one.kept_width for one in layers], 0.8)
    scale = ScalarMappable(Normalize(0.0, max([*saved, 1e-9])), _COLORS)
    for bar, color in zip(bars, scale.to_rgba(np.array(saved)), strict=True):
        bar.set_color(color)
    figure.colorbar(scale, ax=widths).set_label("ms saved", fontsize=7)
    for at, one in enumerate(layers):
        widths.text(one.dense_width, at, f" {one.kept_width}/{one.dense_width}", va="center", fontsize=6)
    widths.set_xlabel("kept width", fontsize=8)
    for axes in (times, widths):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    return figure
