"""Recurrent layers: a hidden unit consists of its rows in every gate, its column in the recurrent weight, and its output.

Where outputs are projected, cells and outputs are units of their own: the projection contracts the ones and makes the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from l0prune.ops.contractions import contract, count_multiplications
from l0prune.ops.node import NoRuleError, argument_of
from l0prune.ops.operation import Op, Operation
from l0prune.ops.sizes import Cut
from l0prune.ops.tracker import NO_UNIT, IdArray, Labels

__all__: list[str] = []

_BLOCKS = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Gates of a cell, whose rows lie in blocks one behind the other."""

ALONG = "a recurrent layer runs along it"


def _cells(node: Node) -> tuple[list[list[Any]], bool]:
    """Weights and biases of every layer and direction, and whether outputs are projected, by the last of these."""
    params = list(argument_of(node, "params"))
    per_cell = len(params) // (argument_of(node, "num_layers") * (2 if argument_of(node, "bidirectional") else 1))
    return [params[start : start + per_cell] for start in range(0, len(params), per_cell)], per_cell % 2 == 1


def _widths(cut: Cut, node: Node) -> dict[str, tuple[int, int]]:
    cells, projected = _cells(node)
    from_input, from_outputs, last = cells[0][0], cells[0][1], cells[0][-1]
    sides = {"hidden_size": (last if projected else from_outputs, 1)}
    if projected:
        sides["proj_size"] = (last, 0)
    sides["input_size"] = (from_input, 1)
    found = {name: (cut.gates(weight) or (None, None))[dim] for name, (weight, dim) in sides.items()}
    return {name: (len(gates), cut.kept.count(gates)) for name, gates in found.items() if gates is not None}


@Operation(" ".join(_BLOCKS), attributes=_widths, training="train")
def recurrent(op: Op) -> list[Labels]:
    """Units of all layers and directions are tied by their number, because one state tensor holds them all.

    Sequences are padded, two dimensions beside the features, or packed, in one.
    """
    packed = op.node.target._overloadname == "data"  # type: ignore[union-attr]
    x = op.arg("data" if packed else "input")
    n_layers, n_directions = op.arg("num_layers"), 2 if op.arg("bidirectional") else 1
    states = op.arg("hx") if op.name == "lstm" else [op.arg("hx")]
    cells, projected = _cells(op.node)
    outputs = op.labels(cells[0][1])[1]
    hidden = op.labels(cells[0][-1])[1] if projected else outputs
    labels = op.labels(x)
    if outputs is None or hidden is None:
        raise NoRuleError
    steps = int(np.prod(op.shape(x)[:-1]))
    ids = labels[-1]
    for layer in range(n_layers):
        for cell in cells[layer * n_directions : (layer + 1) * n_directions]:
            _cell(op, cell[:-1] if projected else cell, ids, hidden, outputs, steps)
            if projected:
                _projection(op, cell[-1], hidden, outputs, steps)
        ids = np.concatenate([outputs] * n_directions)
    held = [outputs, hidden][: len(states)]
    for state, units in zip(states, held, strict=True):
        layers, _, own = op.labels(state)
        op.tracker.pin(layers, NO_UNIT)
        op.tracker.tie(units, own)
    for others in labels[:-1]:
        op.tracker.pin(others, ALONG)
    no_labels: Labels = [None] * (len(labels) - 1)
    return [[*no_labels, ids], *([None, None, units] for units in held)]


def _cell_widths(cut: Cut, node: Node) -> dict[str, tuple[int, int]]:
    sides = {"hidden_size": "w_hh", "input_size": "w_ih"}
    found = {name: (cut.gates(argument_of(node, weight)) or (None, None))[1] for name, weight in sides.items()}
    return {name: (len(gates), cut.kept.count(gates)) for name, gates in found.items() if gates is not None}


@Operation("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", attributes=_cell_widths)
def recurrent_cell(op: Op) -> Any:
    """One step of one layer, for the rows of a batch."""
    x, states = op.arg("input"), op.arg("hx") if op.name == "lstm_cell" else [op.arg("hx")]
    cell = [op.arg(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh") if op.arg(name) is not None]
    rows, ids = op.labels(x)
    hidden = op.labels(cell[1])[1]
    if hidden is None:
        raise NoRuleError
    _cell(op, cell, ids, hidden, hidden, op.shape(x)[0])
    for state in states:
        others, own = op.labels(state)
        op.tracker.tie(hidden, own)
        if rows is not None or others is not None:
            rows = op.tracker.tie(rows, others)
    after = [[rows, hidden] for _ in states]
    return after if op.name == "lstm_cell" else after[0]


def _cell(op: Op, cell: list[Any], ids: IdArray | None, hidden: IdArray, outputs: IdArray, steps: int) -> None:
    """Weights of one layer in one direction."""
    from_input, from_outputs, *biases = cell
    contract(op, ids, from_input, 1)
    contract(op, outputs, from_outputs, 1)
    rows = np.tile(hidden, _BLOCKS[op.name.removesuffix("_cell")])
    for tensor in (from_input, from_outputs, *biases):
        op.tracker.tie(op.labels(tensor)[0], rows)
    width = op.shape(from_input)[1]
    count_multiplications(op, [(steps, None), (width, ids), (len(rows), rows)])
    count_multiplications(op, [(steps, None), (len(outputs), outputs), (len(rows), rows)])


def _projection(op: Op, weight: Any, hidden: IdArray, outputs: IdArray, steps: int) -> None:
    """Outputs made of the hidden units."""
    contract(op, hidden, weight, 1)
    op.tracker.tie(op.labels(weight)[0], outputs)
    count_multiplications(op, [(steps, None), (len(hidden), hidden), (len(outputs), outputs)])


@Operation("_pack_padded_sequence")
def packed(op: Op) -> list[Labels]:
    """The steps of all sequences in one dimension, and the number of sequences at each time."""
    *others, features = op.labels(op.arg("input"))
    for ids in (*others, *op.labels(op.arg("lengths"))):
        op.tracker.pin(ids, ALONG)
    return [[None, features], [None]]


@Operation("_pad_packed_sequence")
def padded(op: Op) -> list[Labels]:
    """The reverse: time and batch as dimensions of their own, and the lengths."""
    steps, features = op.labels(op.arg("data"))
    for ids in (steps, *op.labels(op.arg("batch_sizes"))):
        op.tracker.pin(ids, ALONG)
    return [[None, None, features], [None]]
