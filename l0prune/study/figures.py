"""Pictures of the gradient study, after figures 3 and 4 of the mixture paper's supplement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from l0prune.gates.distribution import GateDistribution
from l0prune.pictures import new_figure, save_picture
from l0prune.study.gradients import FAMILIES, GradientPoint

__all__ = ["Curves", "curves", "draw_families", "draw_trade_off"]

COLORS = {
    "concrete": "#6b7785",
    "mdr-exponential": "#c0562f",
    "mdr-exponential-uniform": "#6b8e4e",
    "mdr-power": "#2f6f9f",
}
_N_POINTS = 999
_STYLES = (":", "--", "-")


@dataclass(frozen=True, eq=False)
class Curves:
    """A gate at q = 1/2, on grids inside (0, 1).

    Attributes:
        x: Values of the gate.
        density: At `x`.
        u: Levels.
        quantile: At `u`.
        gradient: Derivative of the quantile in q, at `u`.
    """

    x: Tensor
    density: Tensor
    u: Tensor
    quantile: Tensor
    gradient: Tensor


def curves(gate: GateDistribution) -> Curves:
    """Density, quantile and gradient of a gate at q = 1/2."""
    grid = torch.linspace(0, 1, _N_POINTS + 2, dtype=torch.float64)[1:-1]
    log_alpha = torch.zeros_like(grid).requires_grad_()
    quantile = gate.icdf(log_alpha, grid)
    (slope,) = torch.autograd.grad(quantile.sum(), log_alpha)
    density = gate.log_prob(torch.zeros_like(grid), grid).exp()
    return Curves(grid, density, grid, quantile.detach(), 4 * slope)


def draw_trade_off(points: Sequence[GradientPoint], path: Path) -> None:
    """Variance of the gradient against the distance from a binary gate, a curve a family, a dot a beta.

    The ends of each curve say its smallest and largest beta.

    Args:
        points: From `gradient_points`.
        path: Picture to write; the suffix says the format.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = new_figure(6.4, 4.4)
    axes = figure.subplots()
    for name, family in FAMILIES.items():
        dots = [point for point in points if point.family == name]
        axes.plot(
            [dot.variance for dot in dots],
            [dot.distance for dot in dots],
            "o-",
            color=COLORS[name],
            markersize=4,
            linewidth=1.4,
            label=family.label,
        )
        for dot in (dots[0], dots[-1]):
            place = (dot.variance, dot.distance)
            axes.annotate(f"{dot.beta:g}", place, (4, 4), textcoords="offset points", fontsize=7, color=COLORS[name])
    axes.set_title("q = 1/2; small numbers are beta", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("variance of dz/dq")
    axes.set_ylabel("mean |z - round(z)|")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    save_picture(figure, path)


def draw_families(path: Path) -> None:
    """Density, quantile and gradient of each family at its smallest, a middle and its largest beta.

    Args:
        path: Picture to write; the suffix says the format.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = new_figure(9.0, 9.0)
    grid = figure.subplots(len(FAMILIES), 3, squeeze=False)
    for row, (name, family) in zip(grid, FAMILIES.items(), strict=True):
        betas = (family.betas[0], family.betas[len(family.betas) // 2], family.betas[-1])
        for beta, style in zip(betas, _STYLES, strict=True):
            shown = curves(family.gate(float(beta)))
            for axes, x, y in (
                (row[0], shown.x, shown.density),
                (row[1], shown.u, shown.quantile),
                (row[2], shown.u, shown.gradient),
            ):
                axes.plot(x, y, style, color=COLORS[name], linewidth=1.4, label=f"beta {beta:g}")
        row[0].set_yscale("log")
        row[0].set_ylabel(family.label)
        row[1].legend(frameon=False, fontsize=7, loc="upper left")
    for top, bottom, title, label in zip(
        grid[0], grid[-1], ("density", "inverse CDF z(u)", "gradient dz/dq at u"), ("z", "u", "u"), strict=True
    ):
        top.set_title(f"{title}, q = 1/2", fontsize=10)
        bottom.set_xlabel(label)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    save_picture(figure, path)
