"""The pictures of a report, each an SVG that needs nothing from outside the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from l0prune.pictures import ACCENT, COMPACT, DENSE, GREEN, data_uri, new_figure
from l0prune.report.cost_plot import draw_step_times
from l0prune.report.histories import CostHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["budget_chart", "latency_chart", "score_chart", "step_time_chart", "widths_chart"]

MOST_WIDTHS = 60


def budget_chart(history: CostHistory, metric: str, keep: float | None) -> str:
    """Expected cost, hard cost, target and multiplier over the steps.

    Args:
        history: Of the run.
        metric: What the cost is counted in.
        keep: The budget, fraction of the dense cost; None under a penalty, which has neither target nor multiplier.

    Returns:
        A data URI.
    """
    figure, axes = _new_figure(height=3.0)
    for name, label, color, style in (
        ("expected", "expected cost", COMPACT, "-"),
        ("hard", "hard cost", ACCENT, "-"),
        ("target", "target", DENSE, "--"),
    ):
        values = history.costs.get(f"{name}_{metric}")
        if values is not None:
            axes.plot(history.steps, values, style, color=color, label=label, linewidth=1.6)
    axes.set_xlabel("step")
    axes.set_ylabel("share of the dense cost")
    axes.set_ylim(0, 1.05)
    handles, labels = axes.get_legend_handles_labels()
    if keep is not None:
        axes.axhline(keep, color="black", linewidth=0.7, linestyle=":", label=f"budget {keep:.3g}")
        multiplier = _multiplier_axes(axes, history, metric)
        handles, labels = (
            a + b for a, b in zip(*(_.get_legend_handles_labels() for _ in (axes, multiplier)), strict=True)
        )
    axes.legend(handles, labels, frameon=False, fontsize=8, ncols=5, loc="lower left")
    return data_uri(figure)


def _multiplier_axes(axes: Axes, history: CostHistory, metric: str) -> Axes:
    """The multiplier on an axis of its own, at the right."""
    multiplier = axes.twinx()
    values = history.costs.get(f"multiplier_{metric}", (math.nan,) * len(history.steps))
    multiplier.plot(history.steps, values, color=GREEN, linewidth=1, label="multiplier")
    multiplier.set_ylabel("multiplier", color=GREEN)
    multiplier.spines["top"].set_visible(False)
    return multiplier


def widths_chart(widths: Sequence[tuple[str, int, int]]) -> str:
    """Dense and kept width of every cut dimension, as bars.

    Args:
        widths: (name, dense width, kept width); beyond 60, those that lost most are shown.

    Returns:
        A data URI.
    """
    shown = list(widths)
    if len(shown) > MOST_WIDTHS:
        most_cut = sorted(range(len(shown)), key=lambda i: shown[i][2] / max(1, shown[i][1]))[:MOST_WIDTHS]
        shown = [shown[i] for i in sorted(most_cut)]
    figure, axes = _new_figure(height=0.6 + 0.19 * max(1, len(shown)))
    places = range(len(shown))
    axes.barh(places, [dense for _, dense, _ in shown], color="#dfe4ea", height=0.8, label="dense")
    axes.barh(places, [kept for _, _, kept in shown], color=COMPACT, height=0.8, label="kept")
    longest = max((dense for _, dense, _ in shown), default=1)
    for place, (_, dense, kept) in enumerate(shown):
        axes.text(dense + 0.01 * longest, place, f"{kept}/{dense}", va="center", fontsize=7)
    axes.set_yticks(list(places), [name for name, _, _ in shown], fontsize=7)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("width")
    return data_uri(figure)


def latency_chart(quantiles_ms: Mapping[str, Sequence[float]]) -> str:
    """Share of runs that were no slower than a latency, for each model.

    Args:
        quantiles_ms: Model -> quantiles of its latencies, milliseconds, evenly spaced from 0 to 100 %.

    Returns:
        A data URI.
    """
    figure, axes = _new_figure(height=2.6)
    for (name, values), color in zip(quantiles_ms.items(), (DENSE, COMPACT, ACCENT, GREEN), strict=False):
        shares = [100 * index / (len(values) - 1) for index in range(len(values))]
        axes.plot(values, shares, color=color, linewidth=2, label=name)
    slowest = max(values[-2] for values in quantiles_ms.values())  # the slowest run of all may be far out
    axes.set_xlim(0, 1.1 * slowest)
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("runs no slower, %")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return data_uri(figure)


def score_chart(history: Sequence[Mapping[str, Any]], metric: str, dense: float | None) -> str:
    """Score at the end of each epoch and right after the freeze.

    Args:
        history: Evaluations of the run: `step`, `when` and `figures`.
        metric: Name of the score in `figures`.
        dense: Score of the dense network; None if it had not been trained.

    Returns:
        A data URI.
    """
    figure, axes = _new_figure(height=2.4)
    points = [(entry["step"], entry["figures"][metric]) for entry in history]
    axes.plot(
        [step for step, _ in points], [score for _, score in points], "o-", color=COMPACT, linewidth=1.6, markersize=4
    )
    for entry in history:
        if entry["when"] == "freeze":
            axes.axvline(entry["step"], color=ACCENT, linewidth=1, linestyle="--", label="freeze")
    if dense is not None:
        axes.axhline(dense, color=DENSE, linewidth=1, linestyle=":", label="dense")
    axes.set_xlabel("step")
    axes.set_ylabel(metric)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    return data_uri(figure)


def step_time_chart(history: CostHistory) -> str:
    """Measured time of a training step over the steps.

    Args:
        history: Of a run that has measured it.

    Returns:
        A data URI.
    """
    figure, axes = _new_figure(height=1.9)
    draw_step_times(axes, [history])
    axes.set_xlabel("step")
    return data_uri(figure)


def _new_figure(height: float) -> tuple[Figure, Axes]:
    """A figure of the page's width, drawn without a window system."""
    figure = new_figure(8.0, height)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure, axes
