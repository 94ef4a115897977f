"""The product cost of a gated network: expected under the gate distributions, and exact after thresholding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l0prune.cost.cost import FlatTerms, flatten_terms
from l0prune.cost.floor import Floor
from l0prune.cost.widths import Widths
from l0prune.errors import ConfigError
from l0prune.flow.costs import CostTerm, Dimension

__all__ = ["ProductCost"]

_ROUNDING = 1e-12

OpenGates = Tensor | npt.NDArray[np.bool_]


class ProductCost:
    """Cost of a network as a function of its gates: the sum over layers of `coefficient * N_in * N_out`.

    N counts the ungated and the open indices of a dimension. Every cost is a fraction of the dense model's.
    The work a call is a handful of tensor operations whatever the number of layers, on whatever device and dtype
    the argument has.

    Args:
        terms: what the layers cost.
        n_gates: number of gates, >= 0.

    Raises:
        ConfigError: if a term names a gate that does not exist, or the dense cost is not positive.

    Source: gates at both sides of a layer, counted as products, as in CoFi (Xia, Zhong, Chen 2022, arXiv:2204.00408).
    """

    def __init__(self, terms: Sequence[CostTerm], n_gates: int) -> None:
        self.terms = tuple(terms)
        self.n_gates = n_gates
        self.flat: FlatTerms = flatten_terms(self.terms, n_gates)
        self._shared = _shared_gates(self.flat, [term.name for term in self.terms])
        self._on: dict[tuple[torch.device, torch.dtype], _Arrays] = {}

    @property
    def dense_cost(self) -> float:
        """Cost with every gate open, in MACs or parameters."""
        return self.flat.dense_cost

    def expected(self, open_probability: Tensor) -> Tensor:
        """Expected cost when the gates are independent and open with the given probabilities.

        Exact also for layers whose sides share gates: E[(a + sum m_j z_j)(b + sum n_j z_j)] is the product of the
        expectations plus sum m_j n_j p_j (1 - p_j).

        Args:
            open_probability: P(z != 0), shape `(n_gates,)`, in [0, 1].

        Returns:
            Scalar, fraction of the dense cost, differentiable.
        """
        arrays = self._arrays(open_probability)
        counts = arrays.counts(open_probability)
        sides = [counts[index] for index in arrays.term_sides]
        product = sides[0]
        for side in sides[1:]:
            product = product * side
        cost = torch.dot(arrays.coefficient, product)
        if arrays.pair_weight is None:
            return cost
        variance = open_probability * (1 - open_probability)
        cost = cost + torch.dot(arrays.pair_weight, variance)
        if len(arrays.third_weight):
            covariance = arrays.class_sums(variance)[arrays.third_class] * counts[arrays.third_side]
            skew = torch.dot(arrays.triple_weight, variance * (1 - 2 * open_probability))
            cost = cost + torch.dot(arrays.third_weight, covariance) + skew
        return cost

    def hard(self, open_gates: OpenGates) -> float:
        """Cost when exactly these gates are open.

        Args:
            open_gates: shape `(n_gates,)`, bool, tensor or array; of another dtype, non-zero is open.

        Returns:
            Fraction of the dense cost, in [0, 1].
        """
        return float(self.flat.cost(self._hard_counts(open_gates)))

    def affordable(self, scores: npt.NDArray[np.float64], keep: float) -> int:
        """How many gates, highest score first, can be open at a cost of at most `keep`.

        Args:
            scores: shape `(n_gates,)`; of equal ones the earlier comes first.
            keep: fraction of the dense cost.

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

    def hard_terms(self, open_gates: OpenGates) -> npt.NDArray[np.float64]:
        """What each term costs when exactly these gates are open, shape `(n_terms,)`, fractions of the dense cost."""
        return self.flat.term_costs(self._hard_counts(open_gates))

    def floor(self, dimensions: Sequence[Dimension]) -> Floor:
        """The smallest cost that leaves no dimension empty unless it is removable, and the terms that hold it."""
        alike = np.zeros(self.n_gates)
        return Floor.of(Widths(alike, self.flat, dimensions, alike), [term.name for term in self.terms])

    def _hard_counts(self, open_gates: OpenGates) -> npt.NDArray[np.float64]:
        mask = open_gates.detach().cpu().numpy() if isinstance(open_gates, Tensor) else np.asarray(open_gates)
        if mask.shape != (self.n_gates,):
            raise ConfigError(f"open gates have shape {mask.shape}; expected ({self.n_gates},)")
        n_classes = self.flat.per_class.shape[1]
        per_class = np.bincount(self.flat.gate_class, weights=mask != 0, minlength=n_classes)
        return self.flat.ungated + self.flat.per_class @ per_class

    def _arrays(self, like: Tensor) -> "_Arrays":
        if like.shape != (self.n_gates,):
            raise ConfigError(f"open probabilities have shape {tuple(like.shape)}; expected ({self.n_gates},)")
        key = (like.device, like.dtype)
        if key not in self._on:
            self._on[key] = _Arrays(self.flat, self._shared, like)
        return self._on[key]


@dataclass(frozen=True, eq=False)
class _SharedGates:
    """Corrections for terms in which a gate counts in more than one side.

    Attributes:
        pair: weight of p (1 - p) a gate, shape `(n_gates,)`.
        triple: weight of p (1 - p) (1 - 2 p) a gate, shape `(n_gates,)`.
        third: (gate class, side, weight) of the terms with three sides: weight * E[count of that side] multiplies the
            class's sum of p (1 - p).
    """

    pair: npt.NDArray[np.float64]
    triple: npt.NDArray[np.float64]
    third: tuple[tuple[int, int, float], ...]


def _shared_gates(flat: FlatTerms, names: Sequence[str]) -> _SharedGates:
    """Cumulant expansion of the mean of a product of up to three sums over independent gates."""
    n_classes = flat.per_class.shape[1]
    pair, triple = np.zeros(n_classes), np.zeros(n_classes)
    third: list[tuple[int, int, float]] = []
    for name, coefficient, term_sides in zip(names, flat.coefficient / flat.dense_cost, flat.term_sides, strict=True):
        sides = [side for side in term_sides if side != 0]
        joint = {
            (i, j): flat.per_class[sides[i]] * flat.per_class[sides[j]] for i in range(len(sides)) for j in range(i)
        }
        if not any(weight.any() for weight in joint.values()):
            continue
        if len(sides) > 3:
            raise ConfigError(f"cost term {name!r} has {len(sides)} sides that share gates; expected at most 3")
        if len(sides) == 2:
            pair += coefficient * joint[1, 0]
            continue
        for (i, j), weight in joint.items():
            other = int(sides[3 - i - j])
            third.extend((int(k), other, coefficient * float(weight[k])) for k in np.flatnonzero(weight))
        triple += coefficient * joint[1, 0] * flat.per_class[sides[2]]
    return _SharedGates(pair[flat.gate_class], triple[flat.gate_class], tuple(third))


class _Arrays:
    """The constants of `ProductCost.expected` with one dtype on one device."""

    def __init__(self, flat: FlatTerms, shared: _SharedGates, like: Tensor) -> None:
        def real(array: npt.NDArray[np.float64]) -> Tensor:
            return torch.as_tensor(array, dtype=like.dtype, device=like.device)

        def index(array: npt.NDArray[Any]) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), dtype=torch.int64, device=like.device)

        self.coefficient = real(flat.coefficient / flat.dense_cost)
        self.ungated = real(flat.ungated)
        self.per_class = real(flat.per_class)
        self.gate_class = index(flat.gate_class)
        self.term_sides = [index(column) for column in flat.term_sides.T]
        third = np.array(shared.third, np.float64).reshape(-1, 3)
        self.third_class, self.third_side = index(third[:, 0]), index(third[:, 1])
        self.third_weight = real(third[:, 2])
        self.triple_weight = real(shared.triple)
        self.pair_weight = real(shared.pair) if shared.pair.any() or len(third) else None

    def class_sums(self, per_gate: Tensor) -> Tensor:
        """Sum of `per_gate` over each class, shape `(n_classes,)`."""
        return per_gate.new_zeros(self.per_class.shape[1]).index_add(0, self.gate_class, per_gate)

    def counts(self, open_probability: Tensor) -> Tensor:
        """Expected count of every side, shape `(n_sides,)`."""
        return torch.addmv(self.ungated, self.per_class, self.class_sums(open_probability))
