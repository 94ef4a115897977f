"""Costs that are products of counts, as MACs and parameters are: a layer costs its inputs times its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l0prune.cost.cost import Cost, FloatArray, SidesOn
from l0prune.errors import ConfigError
from l0prune.flow.costs import CostTerm

__all__ = ["ProductCost"]


class ProductCost(Cost):
    """The sum over layers of `coefficient * N_in * N_out`, where N counts the ungated and the open indices of a dimension.

    The work a call is a handful of tensor operations whatever the number of layers, on whatever device and dtype
    the argument has.

    Args:
        terms: What the layers cost.
        n_gates: Number of gates, >= 0.

    Raises:
        ConfigError: if a term names a gate that does not exist, or the dense cost is not positive.

    Source: gates at both sides of a layer, counted as products, as in CoFi (Xia, Zhong, Chen 2022, arXiv:2204.00408).
    """

    def __init__(self, terms: Sequence[CostTerm], n_gates: int) -> None:
        for term in terms:
            if not 0 <= term.coefficient < np.inf:
                raise ConfigError(
                    f"cost term {term.name!r} has coefficient {term.coefficient}; expected a finite number >= 0"
                )
        self.coefficient = np.array([term.coefficient for term in terms], np.float64)
        super().__init__([(term.name, term.sides) for term in terms], n_gates)
        # Multiples of a common power of two make every sum exact, so a cost does not depend on the order of summation.
        quantum = min(1.0, 2.0 ** (np.ceil(np.log2(self.dense)) - 51))
        self.coefficient = np.round(self.coefficient / quantum) * quantum
        self.dense = self._dense_cost()
        self._shared = _SharedGates(self)
        self._on: dict[tuple[torch.device, torch.dtype], _TermsOn] = {}

    def layer_costs(self, counts: FloatArray) -> FloatArray:
        """What each layer costs; counts of the sides `(n_sides, ...)` -> `(n_layers, ...)`."""
        product = counts[self.layer_sides[:, 0]]
        for column in range(1, self.layer_sides.shape[1]):
            product = product * counts[self.layer_sides[:, column]]
        return self.coefficient.reshape(-1, *([1] * (counts.ndim - 1))) * product

    def expected(self, open_probability: Tensor) -> Tensor:
        """Expected cost when the gates are independent and open with the given probabilities.

        Exact also for layers whose sides share gates: E[(a + sum m_j z_j)(b + sum n_j z_j)] is the product of the
        expectations plus sum m_j n_j p_j (1 - p_j).

        Args:
            open_probability: P(z != 0), shape `(n_gates,)`, in [0, 1].

        Returns:
            Scalar, fraction of the dense cost, differentiable.
        """
        terms = self._terms_on(open_probability)
        counts = terms.counts(open_probability)
        sides = [counts[index] for index in terms.layer_sides]
        product = sides[0]
        for side in sides[1:]:
            product = product * side
        cost = torch.dot(terms.coefficient, product)
        if terms.pair_weight is None:
            return cost
        variance = open_probability * (1 - open_probability)
        cost = cost + torch.dot(terms.pair_weight, variance)
        if len(terms.third_weight):
            covariance = terms.class_sums(variance)[terms.third_class] * counts[terms.third_side]
            skew = torch.dot(terms.triple_weight, variance * (1 - 2 * open_probability))
            cost = cost + torch.dot(terms.third_weight, covariance) + skew
        return cost

    def _terms_on(self, like: Tensor) -> _TermsOn:
        if like.shape != (self.n_gates,):
            raise ConfigError(f"open probabilities have shape {tuple(like.shape)}; expected ({self.n_gates},)")
        key = (like.device, like.dtype)
        if key not in self._on:
            with torch.inference_mode(mode=False):  # they are kept, and autograd takes no tensor of inference mode
                self._on[key] = _TermsOn(self, self._shared, like)
        return self._on[key]


class _SharedGates:
    """Corrections for terms in which a gate counts in more than one side.

    It is the cumulant expansion of the mean of a product of up to three sums over independent gates.

    Attributes:
        pair: Weight of p (1 - p) a gate, shape `(n_gates,)`.
        triple: Weight of p (1 - p) (1 - 2 p) a gate, shape `(n_gates,)`.
        third: (gate class, side, weight) of the terms with three sides: weight * E[count of that side] multiplies the
            class's sum of p (1 - p).
    """

    def __init__(self, cost: ProductCost) -> None:
        per_class = cost.sides.per_class
        pair, triple = np.zeros(per_class.shape[1]), np.zeros(per_class.shape[1])
        self.third: list[tuple[int, int, float]] = []
        terms = zip(cost.layers, cost.coefficient / cost.dense, cost.layer_sides, strict=True)
        for name, coefficient, layer_sides in terms:
            sides = [side for side in layer_sides if side != 0]
            joint = {(i, j): per_class[sides[i]] * per_class[sides[j]] for i in range(len(sides)) for j in range(i)}
            if not any(weight.any() for weight in joint.values()):
                continue
            if len(sides) > 3:
                raise ConfigError(f"cost term {name!r} has {len(sides)} sides that share gates; expected at most 3")
            if len(sides) == 2:
                pair += coefficient * joint[1, 0]
                continue
            for (i, j), weight in joint.items():
                other = int(sides[3 - i - j])
                self.third.extend((int(k), other, coefficient * float(weight[k])) for k in np.flatnonzero(weight))
            triple += coefficient * joint[1, 0] * per_class[sides[2]]
        self.pair, self.triple = pair[cost.sides.gate_class], triple[cost.sides.gate_class]


class _TermsOn(SidesOn):
    """The constants of `ProductCost.expected` with one dtype on one device."""

    def __init__(self, cost: ProductCost, shared: _SharedGates, like: Tensor) -> None:
        super().__init__(cost.sides, like)

        def real(array: npt.NDArray[np.float64]) -> Tensor:
            return torch.as_tensor(array, dtype=like.dtype, device=like.device)

        def index(array: npt.NDArray[Any]) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), dtype=torch.int64, device=like.device)

        self.coefficient = real(cost.coefficient / cost.dense)
        self.layer_sides = [index(column) for column in cost.layer_sides.T]
        third = np.array(shared.third, np.float64).reshape(-1, 3)
        self.third_class, self.third_side = index(third[:, 0]), index(third[:, 1])
        self.third_weight = real(third[:, 2])
        self.triple_weight = real(shared.triple)
        self.pair_weight = real(shared.pair) if shared.pair.any() or len(third) else None
