"""What every cost of a gated network has: it follows from counts of open gates, layer by layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from l0prune.errors import ConfigError
from l0prune.flow.costs import Side

__all__ = ["Cost", "Sides", "SidesOn", "classes_of_columns"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
OpenGates = Tensor | npt.NDArray[np.bool_]

_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Sides:
    """The counts that a cost depends on. That of side u is `ungated[u] + per_class[u] . (open gates of each class)`.

    Side 0 is the constant 1.

    Attributes:
        ungated: Indices that no gate removes, shape `(n_sides,)`.
        gate_class: Class of each gate, shape `(n_gates,)`; gates of a class have the same multiplicity in every side.
        per_class: Multiplicities, shape `(n_sides, n_classes)`.
    """

    ungated: FloatArray
    gate_class: IntArray
    per_class: FloatArray

    @classmethod
    def collect(cls, layers: Sequence[tuple[str, Sequence[Side]]], n_gates: int) -> tuple[Sides, IntArray]:
        """The distinct sides of all layers.

        Args:
            layers: Name and sides of each.
            n_gates: Number of gates, >= 0.

        Returns:
            The sides, and which ones each layer has, shape `(n_layers, width)`; layers with fewer sides than the widest
            are padded with side 0.

        Raises:
            ConfigError: if a side names a gate outside [0, n_gates), or its count is negative.
        """
        index_of: dict[tuple[int, bytes], int] = {(1, b""): 0}
        ungated: list[float] = [1.0]
        gates: list[IntArray] = [np.empty(0, np.int64)]
        rows: list[list[int]] = []
        for name, sides in layers:
            row = []
            for side in sides:
                _check_side(name, side, n_gates)
                members = np.sort(np.asarray(side.gates, np.int64))
                key = (int(side.n_ungated), members.tobytes())
                if key not in index_of:
                    index_of[key] = len(ungated)
                    ungated.append(float(side.n_ungated))
                    gates.append(members)
                row.append(index_of[key])
            rows.append(row)
        width = max([1, *map(len, rows)])
        of_layers = np.array([row + [0] * (width - len(row)) for row in rows], np.int64).reshape(len(rows), width)
        owner = np.repeat(np.arange(len(gates)), [len(members) for members in gates])
        entries = (np.ones(len(owner)), (owner, np.concatenate(gates)))
        multiplicity = sparse.csr_array(entries, shape=(len(gates), n_gates))
        multiplicity.sum_duplicates()
        gate_class, representative = classes_of_columns(multiplicity)
        per_class = np.asarray(multiplicity[:, representative].todense(), np.float64)
        return cls(np.array(ungated), gate_class, per_class), of_layers

    @property
    def n_gates(self) -> int:
        """Number of gates."""
        return len(self.gate_class)

    def counts(self, open_gates: OpenGates) -> FloatArray:
        """Count of every side when exactly these gates are open, shape `(n_sides,)`.

        Args:
            open_gates: Shape `(n_gates,)`, bool; of another dtype, non-zero is open.

        Raises:
            ConfigError: another shape.
        """
        mask = open_gates.detach().cpu().numpy() if isinstance(open_gates, Tensor) else np.asarray(open_gates)
        if mask.shape != (self.n_gates,):
            raise ConfigError(f"open gates have shape {mask.shape}; expected ({self.n_gates},)")
        per_class = np.bincount(self.gate_class, weights=mask != 0, minlength=self.per_class.shape[1])
        return self.ungated + self.per_class @ per_class


class SidesOn:
    """The same counts as tensors of one dtype on one device: their means over independent gates."""

    def __init__(self, sides: Sides, like: Tensor) -> None:
        self.ungated = torch.as_tensor(sides.ungated, dtype=like.dtype, device=like.device)
        self.per_class = torch.as_tensor(sides.per_class, dtype=like.dtype, device=like.device)
        self.gate_class = torch.as_tensor(sides.gate_class, device=like.device)

    def class_sums(self, per_gate: Tensor) -> Tensor:
        """Sum of `per_gate` over each class, shape `(n_classes,)`."""
        return per_gate.new_zeros(self.per_class.shape[1]).index_add(0, self.gate_class, per_gate)

    def counts(self, open_probability: Tensor) -> Tensor:
        """Expected count of every side, shape `(n_sides,)`."""
        return torch.addmv(self.ungated, self.per_class, self.class_sums(open_probability))


class Cost(ABC):
    """A cost of a network as a function of its gates: the sum of what its layers cost at the widths they keep.

    A kind of cost says what a layer costs at given counts (`layer_costs`), and what all of it costs on average while gates are
    random (`expected`); everything else follows. Training, selection and reports know no more of it than this class.
    Every total is a fraction of the dense model's.

    Args:
        layers: Name and sides of what adds up.
        n_gates: Number of gates, >= 0.

    Raises:
        ConfigError: if a side is impossible, or the dense cost is not positive.

    Attributes:
        layers: Names, for people, shape `(n_layers,)`.
        sides: The counts it depends on.
        layer_sides: Which of them each layer has, shape `(n_layers, width)`, padded with side 0.
        dense: Cost with every gate open, in the metric's unit.
    """

    def __init__(self, layers: Sequence[tuple[str, Sequence[Side]]], n_gates: int) -> None:
        self.layers = tuple(name for name, _ in layers)
        self.sides, self.layer_sides = Sides.collect(layers, n_gates)
        self.dense = self._dense_cost()

    @abstractmethod
    def layer_costs(self, counts: FloatArray) -> FloatArray:
        """What each layer costs in the metric's unit; counts of the sides `(n_sides, ...)` -> `(n_layers, ...)`."""

    @abstractmethod
    def expected(self, open_probability: Tensor) -> Tensor:
        """Expected cost when the gates are independent and open with the given probabilities.

        Args:
            open_probability: P(z != 0), shape `(n_gates,)`, in [0, 1].

        Returns:
            Scalar, fraction of the dense cost, differentiable.
        """

    @property
    def n_gates(self) -> int:
        """Number of gates."""
        return self.sides.n_gates

    @property
    def dense_layers(self) -> FloatArray:
        """What each layer costs with every gate open, in the metric's unit, shape `(n_layers,)`."""
        return self.layer_costs(self.sides.counts(np.ones(self.n_gates, bool)))

    def of_counts(self, counts: FloatArray) -> FloatArray:
        """Fraction of the dense cost; counts of the sides `(n_sides, ...)` -> `(...)`."""
        return np.asarray(self.layer_costs(counts).sum(axis=0)) / self.dense

    def hard(self, open_gates: OpenGates) -> float:
        """Cost when exactly these gates are open, fraction of the dense cost.

        Args:
            open_gates: Shape `(n_gates,)`, bool, tensor or array; of another dtype, non-zero is open.
        """
        return float(self.of_counts(self.sides.counts(open_gates)))

    def hard_layers(self, open_gates: OpenGates) -> FloatArray:
        """What each layer costs when exactly these gates are open, shape `(n_layers,)`, fractions of the dense cost."""
        return self.layer_costs(self.sides.counts(open_gates)) / self.dense

    def affordable(self, scores: npt.NDArray[np.float64], keep: float) -> int:
        """How many gates, highest score first, can be open at a cost of at most `keep`.

        Args:
            scores: Shape `(n_gates,)`; of equal ones the earlier comes first.
            keep: Fraction of the dense cost.

        Returns:
            In [0, n_gates]; 0 also where even that costs more.
        """
        rank = np.empty(self.n_gates, dtype=np.int64)
        rank[np.argsort(-scores, kind="stable")] = np.arange(self.n_gates)
        fits, exceeds = 0, self.n_gates + 1
        while exceeds - fits > 1:
            middle = (fits + exceeds) // 2
            if self.hard(rank < middle) <= keep + _ROUNDING:
                fits = middle
            else:
                exceeds = middle
        return fits

    def _dense_cost(self) -> float:
        dense = float(self.dense_layers.sum())
        if not 0 < dense < np.inf:
            raise ConfigError(f"the dense cost is {dense:g}; expected a positive number from at least one cost term")
        return dense


def classes_of_columns(matrix: sparse.csr_array) -> tuple[IntArray, IntArray]:
    """Number equal columns alike.

    Returns:
        The class of every column, and one representative column of every class; classes are numbered in the order
        in which they first occur.
    """
    columns = sparse.csc_array(matrix)
    columns.sort_indices()
    class_of: dict[tuple[bytes, bytes], int] = {}
    classes = np.empty(columns.shape[1], np.int64)
    representative: list[int] = []
    start = columns.indptr
    for column in range(columns.shape[1]):
        entries = slice(start[column], start[column + 1])
        key = (columns.indices[entries].tobytes(), columns.data[entries].tobytes())
        if key not in class_of:
            class_of[key] = len(representative)
            representative.append(column)
        classes[column] = class_of[key]
    return classes, np.array(representative, np.int64)


def _check_side(name: str, side: Side, n_gates: int) -> None:
    if side.n_ungated < 0:
        raise ConfigError(f"cost term {name!r} has a side with {side.n_ungated} ungated indices; expected 0 or more")
    if len(side.gates) and not (side.gates.min() >= 0 and side.gates.max() < n_gates):
        raise ConfigError(
            f"cost term {name!r} names gate {int(side.gates.min())} to {int(side.gates.max())}; "
            f"expected ids in [0, {n_gates})"
        )
