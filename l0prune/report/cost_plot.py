"""What a network costs while it is trained: expected and hard cost beside the measured time of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from l0prune.cost.kinds import metric_named, metric_names
from l0prune.pictures import ACCENT, COMPACT, DENSE, GREEN, new_figure
from l0prune.report.histories import CostHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_costs", "draw_step_times"]

_COLORS = (COMPACT, ACCENT, GREEN, "#7a5195", "#b8860b", DENSE)
_STYLES = {"expected": ("-", 1.4), "hard": ("--", 1.4), "target": ("-", 0.6)}
"""What is drawn of a metric: line style and width."""
_HEADROOM = 1.25


def draw_costs(histories: Sequence[CostHistory]) -> Figure:
    """Expected and hard MACs and parameters over the steps, and the time that a step really took.

    A run has a colour; expected costs are solid, hard ones dashed, the target of a budget thin; a dotted line marks where
    the gates were decided, from which on both costs are those of the network that stays. What no run has recorded is left out.

    Args:
        histories: From `cost_history`, at least one.

    Returns:
        The figure, 8 inches wide.

    Raises:
        ConfigError: matplotlib is not installed.

    Source: expected cost of training with gates: Louizos, Welling, Kingma (2018), arXiv:1712.01312, section 4.
    """
    metrics = [name for name in metric_names() if any(f"expected_{name}" in history.costs for history in histories)]
    timed = any(history.ms_per_step is not None for history in histories)
    n_rows = len(metrics) + timed
    figure = new_figure(8.0, 0.6 + 1.9 * n_rows)
    panels = list(figure.subplots(n_rows, 1, sharex=True, squeeze=False)[:, 0])
    for axes, metric in zip(panels, metrics, strict=False):
        _draw_metric(axes, histories, metric)
    if timed:
        draw_step_times(panels[-1], histories)
    for axes in panels:
        _finish(axes, histories)
    panels[0].legend(frameon=False, fontsize=7, ncols=1 if len(histories) < 4 else 2)
    panels[-1].set_xlabel("step", fontsize=8)
    return figure


def draw_step_times(axes: Axes, histories: Sequence[CostHistory]) -> None:
    """Milliseconds a step over the steps; runs that have not measured them are left out.

    Args:
        axes: To draw on.
        histories: From `cost_history`.
    """
    usual = 0.0
    for history, color in zip(histories, _cycled(len(histories)), strict=True):
        if history.ms_per_step is not None:
            axes.plot(history.steps, history.ms_per_step, color=color, linewidth=1.2, label=history.name)
            known = sorted(time for time in history.ms_per_step if not math.isnan(time))
            usual = max(usual, known[int(0.9 * (len(known) - 1))])
    axes.set_ylim(0, _HEADROOM * usual or None)  # the first step may take far longer
    axes.set_ylabel("time of a step, ms", fontsize=8)


def _draw_metric(axes: Axes, histories: Sequence[CostHistory], metric: str) -> None:
    for history, color in zip(histories, _cycled(len(histories)), strict=True):
        for kind, (style, width) in _STYLES.items():
            values = history.costs.get(f"{kind}_{metric}")
            if values is not None:
                drawn = (history.steps, values) if kind == "target" else _broken(history, values)
                axes.plot(*drawn, style, color=color, linewidth=width, label=f"{history.name}, {kind}")
    axes.set_ylim(0, 1.05)
    axes.set_ylabel(f"{metric_named(metric).title}, share of dense", fontsize=8)


def _broken(history: CostHistory, values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Steps and values with a gap where the gates were decided: the cost jumps there."""
    end = sum(step <= history.decided_at for step in history.steps) if history.decided_at is not None else 0
    steps = [float(step) for step in history.steps]
    if end in (0, len(steps)):
        return steps, list(values)
    return [*steps[:end], steps[end - 1], *steps[end:]], [*values[:end], math.nan, *values[end:]]


def _finish(axes: Axes, histories: Sequence[CostHistory]) -> None:
    for history, color in zip(histories, _cycled(len(histories)), strict=True):
        if history.decided_at is not None:
            axes.axvline(
                history.decided_at, color=color, linewidth=0.9, linestyle=":", label=f"{history.name}, gates decided"
            )
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)


def _cycled(n: int) -> list[str]:
    return [_COLORS[index % len(_COLORS)] for index in range(n)]
