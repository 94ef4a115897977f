"""Recurrent layers: a hidden unit is its rows in every gate, its column in the recurrent weight, and its output."""

from __future__ import annotations

import numpy as np

from l0prune.flow.op import NoRuleError, Op, register
from l0prune.flow.rules.contraction import contract, count_multiplications
from l0prune.flow.tracker import NO_UNIT, IdArray, Labels

__all__: list[str] = []

_BLOCKS = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Gates of a cell, whose rows lie in blocks one behind the other."""


@register(*_BLOCKS)
def recurrent(op: Op) -> list[Labels]:
    """Hidden units of all layers and directions are tied by their number, because one state tensor holds them all."""
    # the overload for packed sequences has no `input`: there is no rule for it
    x, n_layers, biases = op.arg("input"), op.arg("num_layers"), op.arg("has_biases")
    n_directions = 2 if op.arg("bidirectional") else 1
    states = op.arg("hx") if op.name == "lstm" else [op.arg("hx")]
    params = list(op.arg("params"))
    per_cell = 4 if biases else 2
    if len(params) != n_layers * n_directions * per_cell:
        raise NoRuleError  # projected outputs
    cells = [params[start : start + per_cell] for start in range(0, len(params), per_cell)]
    hidden = op.labels(cells[0][1])[1]
    labels = op.labels(x)
    if hidden is None or len(labels) != 3:
        raise NoRuleError
    steps = op.shape(x)[0] * op.shape(x)[1]
    ids = labels[2]
    for layer in range(n_layers):
        for cell in cells[layer * n_directions : (layer + 1) * n_directions]:
            _cell(op, cell, ids, hidden, steps)
        ids = np.concatenate([hidden] * n_directions)
    for state in states:
        layers, _, units = op.labels(state)
        op.tracker.pin(layers, NO_UNIT)
        op.tracker.tie(hidden, units)
    for d in (0, 1):
        op.tracker.pin(labels[d], "a recurrent layer runs along it")
    state_labels: Labels = [None, None, hidden]
    return [[None, None, ids], *(list(state_labels) for _ in states)]


def _cell(op: Op, cell: list, ids: IdArray | None, hidden: IdArray, steps: int) -> None:
    """Weights of one layer in one direction."""
    from_input, from_hidden, *biases = cell
    n_blocks = _BLOCKS[op.name]
    contract(op, ids, from_input, 1)
    contract(op, hidden, from_hidden, 1)
    for tensor in (from_input, from_hidden, *biases):
        rows = op.labels(tensor)[0]
        op.tracker.tie(rows, np.tile(hidden, n_blocks))
    width = op.shape(from_input)[1]
    rows = np.tile(hidden, n_blocks)
    count_multiplications(op, [(steps, None), (width, ids), (len(rows), rows)])
    count_multiplications(op, [(steps, None), (len(hidden), hidden), (len(rows), rows)])
