"""The gates over the epochs, as histograms, after figures 5 and 6 of the mixture paper's supplement."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from l0prune.pictures import ACCENT, COMPACT, new_figure
from l0prune.report.histories import GateHistory, Histograms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure

__all__ = ["MOST_LAYERS", "draw_gates"]

MOST_LAYERS = 40
_COLUMNS = 4
_ROW_INCHES = 1.55


def draw_gates(history: GateHistory) -> Figure:
    """How open probabilities, or values drawn, spread from epoch to epoch: all gates together, then layer by layer.

    Each column of a panel is a histogram: darker where more of the gates are. The line is the share of gates in the
    upper half. Layers are those whose outputs the gates are, where a panel does not name a tensor.
    Beyond 40 layers, those that close most are shown.

    Args:
        history: From `gate_history`.

    Returns:
        The figure, 8 inches wide.

    Raises:
        ConfigError: matplotlib is not installed.

    Source: Huang, Chen, Wu (2020), doi:10.1109/CVPRW50498.2020.00355, supplement, figures 5 and 6.
    """
    layers = _most_closed(history.layers)
    n_rows = math.ceil(len(layers) / _COLUMNS)
    figure = new_figure(8.0, 2.6 + _ROW_INCHES * n_rows)
    grid = figure.add_gridspec(1 + n_rows, _COLUMNS, height_ratios=[1.7] + [1.0] * n_rows)
    top = figure.add_subplot(grid[0, :])
    mesh = _draw(top, history.total)
    whose = f"{history.name}: " if history.name else ""
    top.set_title(f"{whose}all {history.total.n_gates} gates", fontsize=9)
    top.set_ylabel({"probability": "open probability", "samples": "value drawn"}[history.of], fontsize=8)
    top.legend(frameon=False, fontsize=7, loc="lower left")
    scale = figure.colorbar(mesh, ax=top, pad=0.01)
    scale.set_label("share of gates", fontsize=8)
    scale.ax.tick_params(labelsize=7)
    for place, (name, histograms) in enumerate(layers.items()):
        axes = figure.add_subplot(grid[1 + place // _COLUMNS, place % _COLUMNS], sharex=top, sharey=top)
        _draw(axes, histograms)
        axes.set_title(f"{_short(name)} ({histograms.n_gates})", fontsize=7)
        axes.tick_params(labelbottom=place + _COLUMNS >= len(layers), labelleft=place % _COLUMNS == 0)
    figure.supxlabel("epoch", fontsize=8)
    return figure


def _draw(axes: Axes, histograms: Histograms) -> QuadMesh:
    """One panel: epochs to the right, probability upwards."""
    n_bins = len(histograms.counts[-1])
    shares = [[row[b] / sum(row) for row in histograms.counts] for b in range(n_bins)]
    mesh = axes.pcolormesh(
        _edges(histograms.epochs),
        [b / n_bins for b in range(n_bins + 1)],
        shares,
        cmap=_shades(),
        norm=_gamma(),
        rasterized=True,
    )
    axes.plot(histograms.epochs, histograms.open_share, color=ACCENT, linewidth=1.3, label="share above 1/2")
    axes.set_ylim(0, 1)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(labelsize=7)
    return mesh


def _edges(centres: tuple[float, ...]) -> list[float]:
    """Borders half-way between moments, the first and the last moment themselves; a single one gets some width."""
    between = [(a + b) / 2 for a, b in itertools.pairwise(centres)]
    return [centres[0], *between, centres[-1] if between else centres[0] + 1]


def _shades() -> LinearSegmentedColormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("share", ["#ffffff", COMPACT, "#12293b"])


def _gamma() -> PowerNorm:
    """A few gates between two crowds are to be seen."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.4, vmin=0, vmax=1)


def _most_closed(layers: dict[str, Histograms]) -> dict[str, Histograms]:
    if len(layers) <= MOST_LAYERS:
        return layers
    kept = set(sorted(layers, key=lambda name: layers[name].open_share[-1])[:MOST_LAYERS])
    return {name: histograms for name, histograms in layers.items() if name in kept}


def _short(name: str) -> str:
    """The layer whose outputs they are; another dimension of a tensor keeps its name."""
    if name.endswith(".weight[0]"):
        name = f"{name.removesuffix('.weight[0]')} outputs"
    return name if len(name) <= 30 else "..." + name[-27:]
