"""The alternative to a budget: every open gate has a fixed price, as in the L0 paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l0prune.cost.kinds import Costs
from l0prune.errors import ConfigError
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.gates.bank import GateBank
from l0prune.goals.by_layer import read_by_layer, values_by_consumer
from l0prune.goals.goal import Goal, Pursuit

__all__ = ["Penalty"]

_SHARED = "lambda"


@dataclass(frozen=True)
class Penalty(Goal):
    """A fixed lambda: objective = mean loss + 1/N * sum over gates of P(open) * lambda * |group|.

    N is the number of training samples, |group| the number of parameters that the gate multiplies, in every layer that
    consumes its unit. Gates sit at the consumer here, as in the paper's fully connected layers; the paper's convolutions
    have them at the producer, where the group is a different one.

    Attributes:
        strength: lambda of all layers that `layers` does not name, >= 0.
        layers: lambda by the dotted name, or a prefix of it, of the layer whose inputs are gated. The longest name that
            matches counts. A gate whose unit feeds several layers pays each layer's price for its part.
        n_samples: N, >= 1; None lets `finetune` compute it from the number of batches and the rows of the first.

    Raises:
        ConfigError: if a number is negative or not finite.

    Source: Louizos, Welling, Kingma (2018), arXiv:1712.01312, sections 2.2 and 2.4; N is in the units of their tables.
    """

    kind: ClassVar[str] = "penalty"
    strength: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    n_samples: int | None = None

    def __post_init__(self) -> None:
        """Check every number."""
        for name, value in {_SHARED: self.strength, **self.layers}.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ConfigError(f"penalty {name}={value!r}: expected a number of 0 or more, such as {name}=0.1")
        if self.n_samples is not None and self.n_samples < 1:
            raise ConfigError(f"penalty of {self.n_samples} training samples; expected 1 or more")

    @classmethod
    def parse(cls, text: str, *, n_samples: int | None = None) -> Penalty:
        """Read `lambda=0.1`, `fc1=10,conv2=0.5`, or both.

        Args:
            text: As on the command line, several values separated by commas.
            n_samples: As in the class.

        Raises:
            ConfigError: if the text has another form or a number is out of range.
        """
        values = read_by_layer(text)
        if "" in values:
            raise ConfigError(f"penalty {text!r} has a number without a name; write lambda={values['']:g}")
        return cls(values.pop(_SHARED, 0.0), values, n_samples)

    def prices(self, flow: ChannelFlow) -> npt.NDArray[np.float64]:
        """What each gate adds to the objective while it is open, shape `(n_gates,)`, >= 0.

        Raises:
            ConfigError: if a name is not that of a layer with gated inputs, or `n_samples` is None.
        """
        if self.n_samples is None:
            raise ConfigError("the penalty needs n_samples, the number of training samples, outside of finetune()")
        prices = np.zeros(flow.n_gates)
        strengths = values_by_consumer(flow, self.strength, self.layers)
        for consumer, strength in zip(flow.consumers, strengths, strict=True):
            shape = flow.sizes[consumer.parameter]
            slice_size = math.prod(shape) / shape[consumer.dim]
            gates = consumer.gates[consumer.gates >= 0]
            prices += strength * slice_size * np.bincount(gates, minlength=flow.n_gates)
        return prices / self.n_samples

    def over_samples(self, count: Callable[[], int]) -> Penalty:
        """The same penalty for data of `count()` training samples, if `n_samples` is None."""
        return self if self.n_samples is not None else replace(self, n_samples=count())

    def check(self, costs: Costs, gates: GateBank) -> None:
        """Check that a price changes which gates are open, and that every layer it names has gated inputs.

        Raises:
            ConfigError: otherwise.
        """
        if gates.distribution.needs_budget:
            raise ConfigError(
                f"{gates.distribution.name} gates open as many units as a budget pays for: give a budget instead of a penalty,"
                " or choose another gate"
            )
        self.prices(costs.flow)

    def pursuit(self, costs: Costs, steps: int, *, placed: bool = False) -> Pursuit:
        """The prices of this network's gates."""
        return _Prices(torch.from_numpy(self.prices(costs.flow)))

    def __str__(self) -> str:
        """The text that `parse` reads."""
        named = {_SHARED: self.strength, **self.layers} if self.strength or not self.layers else self.layers
        return ",".join(f"{name}={value!r}" for name, value in named.items())


class _Prices(Pursuit):
    """What each gate adds to the objective while it is open, shape `(n_gates,)`."""

    def __init__(self, prices: Tensor) -> None:
        self._prices = prices

    def penalty(self, is_open: Tensor) -> Tensor:
        """The price of the gates that are open, on average."""
        return torch.dot(self._prices.to(is_open), is_open)
