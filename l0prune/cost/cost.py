"""Cost terms as flat arrays: each distinct side once, gates that count alike put into classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from l0prune.errors import ConfigError
from l0prune.flow.costs import CostTerm, Side

__all__ = ["FlatTerms", "classes_of_columns", "flatten_terms"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FlatTerms:
    """Cost terms as arrays. The count of side u is `ungated[u] + per_class[u] . (open gates of each class)`.

    Side 0 is the constant 1; terms with fewer sides than the widest are padded with it.

    Attributes:
        coefficient: in MACs or parameters, shape `(n_terms,)`.
        term_sides: index of each term's sides, shape `(n_terms, width)`.
        ungated: shape `(n_sides,)`.
        gate_class: class of each gate, shape `(n_gates,)`; gates of a class have the same multiplicity in every side.
        per_class: multiplicities, shape `(n_sides, n_classes)`.
        dense_cost: cost with every gate open, in MACs or parameters.
    """

    coefficient: FloatArray
    term_sides: IntArray
    ungated: FloatArray
    gate_class: IntArray
    per_class: FloatArray
    dense_cost: float

    def term_costs(self, side_counts: FloatArray) -> FloatArray:
        """Cost of every term as a fraction of the dense model; `side_counts` `(n_sides, ...)` -> `(n_terms, ...)`."""
        coefficient = self.coefficient.reshape(-1, *([1] * (side_counts.ndim - 1)))
        return coefficient * self._products(side_counts) / self.dense_cost

    def cost(self, side_counts: FloatArray) -> FloatArray:
        """Total cost as a fraction of the dense model; `side_counts` `(n_sides, ...)` -> `(...)`.

        Exactly 1 for the dense model: whole coefficients are summed without rounding, and divided once.
        """
        return np.asarray(np.tensordot(self.coefficient, self._products(side_counts), axes=1)) / self.dense_cost

    def _products(self, side_counts: FloatArray) -> FloatArray:
        product = side_counts[self.term_sides[:, 0]]
        for column in range(1, self.term_sides.shape[1]):
            product = product * side_counts[self.term_sides[:, column]]
        return product


def flatten_terms(terms: Sequence[CostTerm], n_gates: int) -> FlatTerms:
    """Collect the distinct sides of all terms.

    Raises:
        ConfigError: if a side names a gate outside [0, n_gates), a count or a coefficient is negative, or the dense
            cost is zero.
    """
    index_of: dict[tuple[int, bytes], int] = {(1, b""): 0}
    ungated: list[float] = [1.0]
    gates: list[IntArray] = [np.empty(0, np.int64)]
    rows: list[list[int]] = []
    for term in terms:
        _check(term, n_gates)
        row = []
        for side in term.sides:
            members = np.sort(np.asarray(side.gates, np.int64))
            key = (int(side.n_ungated), members.tobytes())
            if key not in index_of:
                index_of[key] = len(ungated)
                ungated.append(float(side.n_ungated))
                gates.append(members)
            row.append(index_of[key])
        rows.append(row)
    width = max([1, *map(len, rows)])
    term_sides = np.array([row + [0] * (width - len(row)) for row in rows], np.int64).reshape(len(rows), width)
    sides = np.repeat(np.arange(len(gates)), [len(members) for members in gates])
    multiplicity = sparse.csr_array((np.ones(len(sides)), (sides, np.concatenate(gates))), shape=(len(gates), n_gates))
    multiplicity.sum_duplicates()
    gate_class, representative = classes_of_columns(multiplicity)
    flat = FlatTerms(
        coefficient=np.array([term.coefficient for term in terms], np.float64),
        term_sides=term_sides,
        ungated=np.array(ungated),
        gate_class=gate_class,
        per_class=np.asarray(multiplicity[:, representative].todense(), np.float64),
        dense_cost=1.0,
    )
    dense = float(flat.cost(flat.ungated + multiplicity.sum(axis=1)))
    if not 0 < dense < np.inf:
        raise ConfigError(f"the dense cost is {dense:g}; expected a positive number from at least one cost term")
    # Multiples of a common power of two make every sum exact, so a cost does not depend on the order of summation.
    quantum = min(1.0, 2.0 ** (np.ceil(np.log2(dense)) - 51))
    flat = replace(flat, coefficient=np.round(flat.coefficient / quantum) * quantum)
    return replace(flat, dense_cost=float(flat.cost(flat.ungated + multiplicity.sum(axis=1))))


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


def _check(term: CostTerm, n_gates: int) -> None:
    if not 0 <= term.coefficient < np.inf:
        raise ConfigError(f"cost term {term.name!r} has coefficient {term.coefficient}; expected a finite number >= 0")
    for side in term.sides:
        _check_side(term.name, side, n_gates)


def _check_side(name: str, side: Side, n_gates: int) -> None:
    if side.n_ungated < 0:
        raise ConfigError(f"cost term {name!r} has a side with {side.n_ungated} ungated indices; expected 0 or more")
    if len(side.gates) and not (side.gates.min() >= 0 and side.gates.max() < n_gates):
        raise ConfigError(
            f"cost term {name!r} names gate {int(side.gates.min())} to {int(side.gates.max())}; "
            f"expected ids in [0, {n_gates})"
        )
