"""Gates that are alike put into widths, so that choosing open gates becomes choosing one count a width."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from l0prune.cost.cost import FlatTerms, FloatArray, IntArray, classes_of_columns
from l0prune.errors import ConfigError
from l0prune.flow.costs import Dimension

__all__ = ["Widths"]

BoolArray = npt.NDArray[np.bool_]


class Widths:
    """The widths of a network: sets of gates that cost the same and live in the same dimensions.

    Within a width only the number of open gates matters for cost and alignment, so the best-ranked ones stay open and
    a selection is a vector of counts, shape `(n_widths,)`. "Counts" below may also be a batch, shape `(n_widths, n)`.

    Args:
        scores: rank of the gates, higher is kept first, shape `(n_gates,)`; equal scores rank by gate number.
        flat: cost terms.
        dimensions: dimensions that must not vanish, or are to be aligned.
        groups: gates with different numbers are never put into one width, shape `(n_gates,)`.
        first: gates that rank before all others of their width, shape `(n_gates,)`, bool; optional.

    Raises:
        ConfigError: if a shape is wrong or a score is not a number.
    """

    def __init__(
        self,
        scores: npt.ArrayLike,
        flat: FlatTerms,
        dimensions: Sequence[Dimension],
        groups: npt.ArrayLike,
        *,
        first: BoolArray | None = None,
    ) -> None:
        n_gates = len(flat.gate_class)
        self.flat = flat
        self.scores = _checked("scores", scores, n_gates).astype(np.float64)
        wrong = ~np.isfinite(self.scores)
        if wrong.any():
            gate = int(wrong.argmax())
            raise ConfigError(
                f"gate {gate} has score {self.scores[gate]}; expected finite numbers to rank the gates by"
            )
        members = _dimension_members(dimensions, n_gates)
        dimension_class, _ = classes_of_columns(members)
        keys = np.stack([_checked("groups", groups, n_gates).astype(np.int64), flat.gate_class, dimension_class])
        _, representative, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        self.of_gate: IntArray = inverse.reshape(-1).astype(np.int64)
        self.sizes: IntArray = np.bincount(self.of_gate, minlength=len(representative)).astype(np.int64)
        self.in_sides: FloatArray = flat.per_class[:, flat.gate_class[representative]]
        self.in_dimensions: IntArray = np.asarray(members[:, representative].todense(), dtype=np.int64)
        self.ungated: IntArray = np.array([dimension.n_ungated for dimension in dimensions], dtype=np.int64)
        self.totals: IntArray = self.ungated + self.in_dimensions @ self.sizes
        removable = np.array([dimension.removable for dimension in dimensions], dtype=bool)
        self.required: IntArray = np.where(removable | (self.totals == 0), 0, 1)
        late = np.zeros(n_gates, bool) if first is None else ~first
        self.order: IntArray = np.lexsort((np.arange(n_gates), -self.scores, late, self.of_gate)).astype(np.int64)
        self.starts: IntArray = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    @property
    def n(self) -> int:
        """Number of widths."""
        return len(self.sizes)

    def cost(self, counts: npt.NDArray[Any]) -> FloatArray:
        """Fraction of the dense cost, shape `()` or `(n,)`."""
        ungated = self.flat.ungated.reshape(-1, *([1] * (counts.ndim - 1)))
        return self.flat.cost(ungated + self.in_sides @ counts)

    def cost_of_moves(self, counts: IntArray, widths: IntArray, new_counts: IntArray) -> FloatArray:
        """Cost after setting one of `widths` to its entry of `new_counts`, one at a time; shape `(n_moves,)`."""
        sides = self.flat.ungated + self.in_sides @ counts
        return self.flat.cost(sides[:, None] + self.in_sides[:, widths] * (new_counts - counts[widths]))

    def dimension_counts(self, counts: IntArray) -> IntArray:
        """Kept indices of every dimension, shape `(n_dimensions,)` or `(n_dimensions, n)`."""
        return self.ungated.reshape(-1, *([1] * (counts.ndim - 1))) + self.in_dimensions @ counts

    def covers(self, counts: IntArray) -> npt.NDArray[np.bool_]:
        """Whether every dimension that must not vanish keeps an index, shape `()` or `(n,)`."""
        required = self.required.reshape(-1, *([1] * (counts.ndim - 1)))
        return np.asarray((self.dimension_counts(counts) >= required).all(axis=0))

    def counts_of(self, is_open: BoolArray) -> IntArray:
        """Open gates of every width, shape `(n_widths,)`."""
        return np.bincount(self.of_gate[is_open], minlength=self.n).astype(np.int64)

    def best_gates(self, counts: IntArray) -> BoolArray:
        """The gates that are open when each width keeps its `counts` best, shape `(n_gates,)`."""
        rank = np.empty(len(self.order), np.int64)
        rank[self.order] = np.arange(len(self.order)) - self.starts[self.of_gate[self.order]]
        return np.asarray(rank < counts[self.of_gate])

    def kept_salience(self, salience: FloatArray) -> FloatArray:
        """Share of all salience that the best `count` gates of a width hold; laid out as `capacities`.

        Args:
            salience: how much the loss suffers when a gate closes, >= 0, shape `(n_gates,)`.
        """
        ordered = salience[self.order] / max(float(salience.sum()), 1e-300)
        values = np.zeros(len(ordered) + self.n)
        for width, (start, stop) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            values[start + width + 1 : stop + width + 1] = np.cumsum(ordered[start:stop])
        return values

    def capacities(self, counts: IntArray, threshold: float) -> FloatArray:
        """Value of every possible count of every width, relative to `counts`; width after width, sizes + 1 entries each.

        What a width can represent is taken to grow with the logarithm of its open gates, as in a divergence: with r the
        gates kept over those in `counts`, a width of n gates is worth -n (r - 1 - log r). So taking a fifth from a width
        costs little, emptying one that the ranking wants costs most, and adding to one is hardly rewarded. Gates count
        by how far they rank above `threshold`, from a quarter (never wanted) to one.
        """
        distance = np.clip(self.scores[self.order] - threshold, -30.0, 30.0)
        worth = 0.25 + 0.75 / (1.0 + np.exp(-distance))
        values = np.zeros(len(worth) + self.n)
        for width, (start, stop) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            kept = np.concatenate([[0.0], np.cumsum(worth[start:stop])])
            wanted = kept[counts[width]]
            if wanted > 0:
                share = np.maximum(kept, 0.1) / wanted
                values[start + width : stop + width + 1] = -wanted * (share - 1.0 - np.log(share))
            else:
                values[start + width : stop + width + 1] = -0.01 * kept
        return values


def _checked(name: str, values: npt.ArrayLike, n_gates: int) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.shape != (n_gates,):
        raise ConfigError(f"{name} have shape {array.shape}; expected ({n_gates},), one a gate")
    return array


def _dimension_members(dimensions: Sequence[Dimension], n_gates: int) -> sparse.csr_array:
    """Multiplicity of every gate in every dimension, shape `(n_dimensions, n_gates)`."""
    gates = [np.asarray(dimension.gates, np.int64) for dimension in dimensions]
    rows = np.repeat(np.arange(len(gates)), [len(members) for members in gates])
    columns = np.concatenate([*gates, np.empty(0, np.int64)])
    members = sparse.csr_array((np.ones(len(rows), np.int64), (rows, columns)), shape=(len(gates), n_gates))
    members.sum_duplicates()
    return members
