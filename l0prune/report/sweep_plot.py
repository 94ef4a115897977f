"""What accuracy costs: the networks of a sweep over their MACs and, where it was measured, over their time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from l0prune.cost.kinds import metric_named
from l0prune.pictures import COMPACT, DENSE, new_figure
from l0prune.sweep_directory import SweepPoint, SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_sweep"]


def draw_sweep(result: SweepResult) -> Figure:
    """The score of each network over its MACs and, in a second panel, over its median time with the interval of its speedup.

    Args:
        result: Of a finished sweep.

    Returns:
        The figure, 8 inches wide.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    timed = result.dense.latency_ms is not None and all(point.latency_ms is not None for point in result.points)
    figure = new_figure(8.0, 3.2)
    panels = list(figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0])
    metric = metric_named("macs")
    _draw(panels[0], result, {point.name: point.shares["macs"] for point in _all(result)})
    panels[0].set_xlabel(f"{metric.title}, share of dense", fontsize=8)
    if timed:
        _draw(panels[1], result, {point.name: point.latency_ms or 0.0 for point in _all(result)})
        for point in result.points:
            if point.speedup is not None and result.dense.latency_ms is not None:
                ends = [result.dense.latency_ms / end for end in (point.speedup.high, point.speedup.low)]
                panels[1].plot(ends, [point.score] * 2, color=COMPACT, linewidth=3, alpha=0.4)
        panels[1].set_xlabel("latency, ms", fontsize=8)
    direction = "" if result.higher_is_better else ", lower is better"
    panels[0].set_ylabel(f"{result.metric}{result.unit and f', {result.unit}'}{direction}", fontsize=8)
    figure.suptitle(f"{result.model}{result.measured_on and f'; {result.measured_on}'}", fontsize=8)
    return figure


def _all(result: SweepResult) -> tuple[SweepPoint, ...]:
    return (result.dense, *result.points)


def _draw(axes: Axes, result: SweepResult, places: dict[str, float]) -> None:
    """One panel: cost to the right, score upwards; the compact networks are joined in the order of their cost."""
    ordered = sorted(result.points, key=lambda point: places[point.name])
    axes.plot(
        [places[point.name] for point in ordered],
        [point.score for point in ordered],
        "o-",
        color=COMPACT,
        linewidth=1.6,
        markersize=4,
    )
    axes.plot(places[result.dense.name], result.dense.score, "s", color=DENSE, markersize=6)
    axes.axhline(result.dense.score, color=DENSE, linewidth=1, linestyle=":")
    for point in _all(result):
        axes.annotate(
            point.name,
            (places[point.name], point.score),
            textcoords="offset points",
            xytext=(4, -9),
            fontsize=7,
        )
    axes.set_xlim(0, 1.12 * max(places.values()))
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
