"""The pictures of a report, each an SVG that needs nothing from outside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["budget_chart", "latency_chart", "widths_chart"]

DENSE, COMPACT, ACCENT = "#9aa5b1", "#2f6f9f", "#c0562f"
MOST_WIDTHS = 60


def budget_chart(steps: Sequence[Mapping[str, Any]], keep: float) -> str:
    """Expected cost, hard cost, target and multiplier over the steps of the gate phase.

    Args:
        steps: Lines of metrics.jsonl; those without `expected_cost` are skipped.
        keep: The budget, fraction of the dense cost.

    Returns:
        A data URI.
    """
    rows = [row for row in steps if row.get("expected_cost") is not None]
    figure, axes = _new_figure(height=3.0)
    x = [row["step"] for row in rows]
    for name, label, color, style in (
        ("expected_cost", "expected cost", COMPACT, "-"),
        ("hard_cost", "hard cost", ACCENT, "-"),
        ("target", "target", DENSE, "--"),
    ):
        points = [(step, row[name]) for step, row in zip(x, rows, strict=True) if row.get(name) is not None]
        axes.plot([p[0] for p in points], [p[1] for p in points], style, color=color, label=label, linewidth=1.6)
    axes.axhline(keep, color="black", linewidth=0.7, linestyle=":", label=f"budget {keep:g}")
    axes.set_xlabel("step")
    axes.set_ylabel("share of the dense cost")
    axes.set_ylim(0, 1.05)
    multiplier = axes.twinx()
    points = [(step, row["multiplier"]) for step, row in zip(x, rows, strict=True) if row.get("multiplier") is not None]
    multiplier.plot([p[0] for p in points], [p[1] for p in points], color="#6b8e4e", linewidth=1, label="multiplier")
    multiplier.set_ylabel("multiplier", color="#6b8e4e")
    multiplier.spines["top"].set_visible(False)
    lines, labels = axes.get_legend_handles_labels()
    more_lines, more_labels = multiplier.get_legend_handles_labels()
    axes.legend(lines + more_lines, labels + more_labels, frameon=False, fontsize=8, ncols=5, loc="lower left")
    return _data_uri(figure)


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
    return _data_uri(figure)


def latency_chart(latencies_ms: Mapping[str, Sequence[float]]) -> str:
    """Distribution of the measured latencies of each model.

    Args:
        latencies_ms: Model -> its samples, milliseconds.

    Returns:
        A data URI.
    """
    import numpy as np

    figure, axes = _new_figure(height=2.6)
    everything = np.concatenate([np.asarray(values, dtype=float) for values in latencies_ms.values()])
    edges = np.linspace(*np.percentile(everything, [0, 99]), 80)
    for (name, values), color in zip(latencies_ms.items(), (DENSE, COMPACT, ACCENT, "#6b8e4e"), strict=False):
        axes.hist(values, bins=edges, color=color, alpha=0.75, label=f"{name}, median {np.median(values):.3g} ms")
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("runs")
    axes.legend(frameon=False, fontsize=8)
    return _data_uri(figure)


def _new_figure(height: float) -> tuple[Figure, Axes]:
    """A figure of the page's width, drawn without a window system."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure, axes


def _data_uri(figure: Figure) -> str:
    """The figure as an SVG inside a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
