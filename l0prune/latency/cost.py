"""Latency as a cost of gates: a staircase over widths, as a profile has it, and a smooth floor under it to train with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l0prune.cost.cost import Cost, FloatArray, IntArray, SidesOn
from l0prune.errors import ConfigError
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.flow.costs import Side
from l0prune.latency.profile import Profile, ProfiledLayer, Where
from l0prune.latency.tables import ReadTable
from l0prune.latency.whole import WholeNetwork

__all__ = ["LatencyCost"]

FIXED = "everything without a width"
_LEAST_VARIANCE = 1e-12
_LEAST_US = 1e-9


class LatencyCost(Cost):
    """Milliseconds that a network takes in onnxruntime, by a profile.

    The hard cost (`layer_costs`) is the staircase: each layer at the whole counts it keeps, in blocks, with what counts off
    the blocks cost in addition. A layer costs nothing where a dimension is empty that it cannot do without; where only its
    input is empty, it costs what surgery leaves of a branch that it drops. What all layers add up to is corrected by what
    networks of about that size took (`Profile.whole`), in the same proportion for every layer.

    The expected cost (`expected`) is that of widths as the selection will round them. Each table is replaced by its floor,
    the least time of any counts at least as large, which is monotone and has no cliffs, linear between the edges of blocks;
    and of this its mean is taken over counts that are normally distributed, with the mean and variance that they have over
    independent gates. A dimension whose gates may all close is empty with the chance that they do, and the mean is over an
    empty and a non-empty one. The counts of the two sides of a layer are taken as independent of each other.

    Args:
        flow: The traced network.
        profile: Of this network.

    Raises:
        ConfigError: the profile is of another network.
    """

    def __init__(self, flow: ChannelFlow, profile: Profile) -> None:
        profile.require_network(flow)
        self.profile = profile
        self._whole = WholeNetwork(profile.whole)
        sides = [[_side(flow, where) for where in _read_by(layer)] for layer in profile.layers]
        self._n_sides = np.array([len(layer.sides) for layer in profile.layers], np.int64)
        self._by_table: dict[int, IntArray] = {}
        for index in sorted({layer.table for layer in profile.layers}):
            rows = [at for at, layer in enumerate(profile.layers) if layer.table == index]
            self._by_table[index] = np.array(rows, np.int64)
        largest = {
            index: tuple(
                max(profile.layers[row].sides[side].size for row in rows)
                for side in range(profile.tables[index].n_sides)
            )
            for index, rows in self._by_table.items()
        }
        self._tables = {
            index: ReadTable(profile.tables[index], size, block=profile.block, multiple=profile.multiple)
            for index, size in largest.items()
        }
        self._knots = {
            index: [_edges(size, rows, side, profile) for side, size in enumerate(largest[index])]
            for index, rows in self._by_table.items()
        }
        self._on: dict[tuple[torch.device, torch.dtype], _Smooth] = {}
        names = [layer.name for layer in profile.layers]
        super().__init__([*zip(names, sides, strict=True), (FIXED, ())], flow.n_gates)

    def layer_costs(self, counts: FloatArray) -> FloatArray:
        """Milliseconds of each layer; counts of the sides `(n_sides, ...)` -> `(n_layers, ...)`."""
        whole = np.rint(counts).astype(np.int64)
        found = np.zeros((len(self.layers), *counts.shape[1:]))
        for index, rows in self._by_table.items():
            sides = [whole[self.layer_sides[rows, side]] for side in range(self._tables[index].n_sides)]
            found[rows] = self._tables[index](*sides)
        found *= self._is_needed(whole)
        found[-1] = self.profile.fixed_us
        total = found.sum(axis=0)
        return found * (self._whole(total) / np.maximum(total, _LEAST_US)) / 1000

    def _is_needed(self, whole: IntArray) -> Any:
        """Whether no dimension is empty that a layer needs beside its sides, shape `(n_layers, ...)`."""
        needed = np.ones((len(self.layers), *whole.shape[1:]), bool)
        for column in range(1, self.layer_sides.shape[1]):
            rows = np.append(self._n_sides <= column, False)
            needed[rows] &= whole[self.layer_sides[rows, column]] > 0
        return needed

    def expected(self, open_probability: Tensor) -> Tensor:
        """Expected cost when the gates are independent and open with the given probabilities; see the class.

        Args:
            open_probability: P(z != 0), shape `(n_gates,)`, in [0, 1].

        Returns:
            Scalar, fraction of the dense cost, differentiable.
        """
        if open_probability.shape != (self.n_gates,):
            raise ConfigError(
                f"open probabilities have shape {tuple(open_probability.shape)}; expected ({self.n_gates},)"
            )
        key = (open_probability.device, open_probability.dtype)
        if key not in self._on:
            with torch.inference_mode(mode=False):
                self._on[key] = _Smooth(self, open_probability)
        return self._on[key](open_probability)


def _side(flow: ChannelFlow, where: Where) -> Side:
    """The count of a dimension that a profile names.

    Raises:
        ConfigError: the traced network has no such dimension.
    """
    nothing = np.empty(0, np.int64)
    if not where.name:
        return Side(where.size, nothing)
    labels: Any = flow.tensors.get(where.name, flow.nodes.get(where.name))
    try:
        for place in where.place:
            labels = labels[place]
    except (TypeError, IndexError):
        raise ConfigError(f"this profile speaks of {where.name}{list(where.place)}, which this network lacks") from None
    return Side(where.size, nothing) if labels is None else Side.of(labels)


def _read_by(layer: ProfiledLayer) -> Sequence[Where]:
    return (*layer.sides, *layer.needs)


def _edges(size: int, rows: IntArray, side: int, profile: Profile) -> IntArray:
    """Counts between which the smooth cost is linear: a few in the first block, edges of blocks, and the dense ones."""
    block = profile.block
    dense = {profile.layers[row].sides[side].size for row in rows}
    first = {1, *range(max(1, block // 4), block + 1, max(1, block // 4))}
    edges = {count for count in first | set(range(block, size + 1, block)) | dense if count <= size}
    return np.array(sorted(edges), np.int64)


@dataclass(frozen=True, eq=False)
class _Floor:
    """The floor of one table, for the layers that have it.

    Attributes:
        rows: The layers.
        knots: For each side.
        times: At the knots, fractions of the dense cost.
        closed: At the knots of the last side, where nothing comes in.
    """

    rows: Tensor
    knots: list[Tensor]
    times: Tensor
    closed: Tensor


class _Smooth(SidesOn):
    """The constants of `LatencyCost.expected` with one dtype on one device."""

    def __init__(self, cost: LatencyCost, like: Tensor) -> None:
        super().__init__(cost.sides, like)
        scale = 1 / (1000 * cost.dense)

        def real(array: FloatArray) -> Tensor:
            return torch.as_tensor(np.asarray(array, np.float64), dtype=like.dtype, device=like.device)

        self.layer_sides = torch.as_tensor(cost.layer_sides, device=like.device)
        self.can_close = torch.as_tensor(cost.sides.ungated == 0, device=like.device)
        self.members = (self.per_class > 0).to(like.dtype)
        self.squares = self.per_class.square()
        self.needs = [
            (torch.as_tensor(rows, device=like.device), column)
            for column in range(1, cost.layer_sides.shape[1])
            if len(rows := np.flatnonzero(cost._n_sides <= column))
        ]
        self.fixed = cost.profile.fixed_us * scale
        self.whole = WholeNetwork(cost.profile.whole, scale)
        self.floors = []
        for index, rows in cost._by_table.items():
            table, knots = cost._tables[index], cost._knots[index]
            none = np.zeros_like(knots[-1])
            closed = table(*([none, knots[-1]] if len(knots) > 1 else [none]))
            self.floors.append(
                _Floor(
                    torch.as_tensor(rows, device=like.device),
                    [real(axis.astype(np.float64)) for axis in knots],
                    real(table.floor(*knots) * scale),
                    real(closed * scale),
                )
            )

    def __call__(self, open_probability: Tensor) -> Tensor:
        p = open_probability.clamp(max=1 - torch.finfo(open_probability.dtype).eps)
        means = self.counts(open_probability)
        variances = self.squares @ self.class_sums(open_probability * (1 - open_probability))
        all_closed = torch.exp(self.members @ self.class_sums(torch.log1p(-p)))
        chance = torch.where(self.can_close, 1 - all_closed, torch.ones_like(means))
        some = chance.clamp(min=torch.finfo(means.dtype).tiny)
        if_open = means / some
        spread = (variances / some - if_open * (if_open - means)).clamp(min=_LEAST_VARIANCE).sqrt()
        needed = torch.ones_like(means[self.layer_sides[:, 0]])
        for rows, column in self.needs:
            needed = needed.index_put((rows,), needed[rows] * chance[self.layer_sides[rows, column]])
        total = means.new_tensor(self.fixed)
        for floor in self.floors:
            sides = [self.layer_sides[floor.rows, side] for side in range(len(floor.knots))]
            near = [_nearness(axis, if_open[side], spread[side]) for axis, side in zip(floor.knots, sides, strict=True)]
            chances = [chance[side] for side in sides]
            if len(sides) == 1:
                layers = chances[0] * (near[0] @ floor.times) + (1 - chances[0]) * floor.closed[0]
            else:
                open_time = ((near[0] @ floor.times) * near[1]).sum(dim=1)
                layers = chances[1] * (chances[0] * open_time + (1 - chances[0]) * (near[1] @ floor.closed))
            total = total + (needed[floor.rows] * layers).sum()
        return self.whole.smooth(total)


def _nearness(knots: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Mean weight of each knot in the linear interpolation at normally distributed counts, shape `(n_layers, n_knots)`."""
    if len(knots) == 1:
        return torch.ones_like(mean)[:, None]
    above = mean[:, None] - knots
    z = above / spread[:, None]
    density = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5
    beyond = spread[:, None] * density + above * torch.special.ndtr(z)
    ramps = (beyond[:, :-1] - beyond[:, 1:]) / (knots[1:] - knots[:-1])
    return torch.cat([1 - ramps[:, :1], ramps[:, :-1] - ramps[:, 1:], ramps[:, -1:]], dim=1)
