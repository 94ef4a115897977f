"""A profile made of timed graphs: parts of a kind share their observations, and what is left out checks the result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from l0prune.latency.profile import Check, Piece, ProfiledLayer, Table, Where
from l0prune.latency.tables import ReadTable
from l0prune.latency.whole import WholeNetwork
from l0prune.profiling.fit import Blocks, Observations, closed_piece, pieces
from l0prune.profiling.names import layer_names
from l0prune.profiling.outline import Moment, Outline
from l0prune.profiling.parts import Part, parts_of, times_of_parts
from l0prune.profiling.whole import whole_curve

__all__ = ["MULTIPLE", "Tables", "checks_of", "tables_of"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

MULTIPLE = 4
"""Counts of a block and more enter onnxruntime's blocked kernels where they are multiples of this (nchwc_transformer.cc)."""


@dataclass(frozen=True)
class Tables:
    """What a profile says of the layers.

    Attributes:
        tables: Times.
        layers: With their sides.
        fixed_us: What depends on no width.
        block: Channels of a block.
        multiple: Of counts in the blocked layout.
        whole: What the layers add up to -> what the network takes, microseconds.
    """

    tables: tuple[Table, ...]
    layers: tuple[ProfiledLayer, ...]
    fixed_us: float
    block: int
    multiple: int
    whole: tuple[tuple[float, float], ...] = ()


def tables_of(outline: Outline, moments: Sequence[Moment], needs: dict[str, list[int]], *, block: int) -> Tables:
    """Fit the tables.

    Args:
        outline: Of the network.
        moments: Graphs of random widths that were timed.
        needs: Part -> dimensions without which it is dropped.
        block: Channels of a block of the processor's kernels.
    """
    sizes = np.array([moment.sizes for moment in moments])
    timed = [times_of_parts(outline.nodes, outline.weights, moment.sample) for moment in moments]
    parts = parts_of(outline, timed, sizes)
    us = {part.name: np.array([moment.us.get(part.name, 0.0) for moment in timed]) for part in parts}
    tables: list[Table] = []
    layers: list[ProfiledLayer] = []
    fixed = 0.0
    alike: dict[tuple[object, ...], list[Part]] = defaultdict(list)
    for part in parts:
        part.needs = [number for number in needs.get(part.name, []) if number not in part.sides]
        if not part.sides or (all(side < 0 for side in part.sides) and not part.needs):
            fixed += float(np.median(us[part.name]))
        else:
            alike[(*part.kind, len(part.sides))].append(part)
    names = layer_names(outline.nodes, outline.shapes)
    for kind, group in alike.items():
        made = _tables(kind, group, us, sizes, Blocks(block, MULTIPLE, "Conv" in str(kind[0])))
        for part, number in zip(group, made.number, strict=True):
            layers.append(
                ProfiledLayer(
                    names[part.name],
                    len(tables) + number,
                    tuple(_where(outline, side) for side in part.sides),
                    tuple(_where(outline, side) for side in part.needs),
                )
            )
        tables += made.tables
    found = Tables(tuple(tables), tuple(layers), fixed, block, MULTIPLE)
    predicted = predictions(outline, found, moments)
    measured = np.array([moment.sample.total_us for moment in moments])
    factor = float(np.median(measured / predicted))
    return replace(_scaled(found, factor), whole=whole_curve(predicted * factor, measured))


def predictions(outline: Outline, tables: Tables, moments: Sequence[Moment]) -> FloatArray:
    """Microseconds of each graph, by the tables."""
    numbers = {where: at for at, where in enumerate(outline.dimensions) if where is not None}
    sizes = np.array([moment.sizes for moment in moments])

    def counts(where: Where) -> IntArray:
        return sizes[:, numbers[where]] if where.name else np.full(len(moments), where.size)

    total = np.full(len(moments), tables.fixed_us)
    for layer in tables.layers:
        table = tables.tables[layer.table]
        rule = {"block": tables.block, "multiple": tables.multiple}
        read = ReadTable(table, [where.size for where in layer.sides], **rule)
        times = read(*[counts(where) for where in layer.sides])
        total += times * np.logical_and.reduce([np.ones(len(moments), bool), *(counts(w) > 0 for w in layer.needs)])
    return WholeNetwork(tables.whole)(total)


@dataclass(frozen=True)
class _Made:
    tables: list[Table]
    number: list[int]


def _tables(
    kind: tuple[object, ...], group: Sequence[Part], us: dict[str, FloatArray], sizes: IntArray, blocks: Blocks
) -> _Made:
    """A table for each tail of the parts of a kind."""
    tails = sorted({part.tail for part in group})
    number = [tails.index(part.tail) for part in group]
    counts = np.concatenate([np.stack([_column(sizes, side) for side in part.sides], axis=1) for part in group])
    times = np.concatenate([us[part.name] for part in group])
    tail = np.repeat(number, len(sizes))
    is_there = times > 0
    largest = counts.max(axis=0)
    usual = is_there & (counts > 0).all(axis=1)
    made = pieces(Observations(counts[usual], times[usual], tail[usual]), largest.tolist(), blocks, len(tails))
    title = " ".join(map(str, kind[:-1]))
    tables = []
    for at, (name, own) in enumerate(zip(tails, made, strict=True)):
        left = is_there & (tail == at) & (counts[:, 0] == 0)
        closed: Piece | None = None
        if left.any():
            closed = closed_piece(counts[left][:, -1], times[left], int(largest[-1]))
        tables.append(Table(f"{title}{''.join(f', {one}' for one in name)}", own, closed))
    return _Made(tables, number)


def _column(sizes: IntArray, side: int) -> IntArray:
    return np.full(len(sizes), -side) if side < 0 else sizes[:, side]


def _where(outline: Outline, side: int) -> Where:
    if side < 0:
        return Where("", (), -side)
    where = outline.dimensions[side]
    assert where is not None
    return where


def _scaled(tables: Tables, factor: float) -> Tables:
    """All times multiplied."""

    def piece(one: Piece) -> Piece:
        return replace(one, us=tuple(float(f"{time * factor:.5g}") for time in one.us))

    scaled = tuple(
        replace(
            table,
            pieces=tuple(map(piece, table.pieces)),
            closed=None if table.closed is None else piece(table.closed),
        )
        for table in tables.tables
    )
    return replace(tables, tables=scaled, fixed_us=tables.fixed_us * factor)


def checks_of(outline: Outline, tables: Tables, moments: Sequence[Moment]) -> tuple[Check, ...]:
    """What the tables say of graphs that took no part in them."""
    if not moments:
        return ()
    predicted = predictions(outline, tables, moments)
    return tuple(
        Check(float(us) / 1000, moment.sample.total_us / 1000) for us, moment in zip(predicted, moments, strict=True)
    )
