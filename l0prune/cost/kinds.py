"""What a network can be priced in: one entry a metric, from which budgets, tables, plots and records follow.

Names and amounts are known without loading torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from l0prune.errors import ConfigError

if TYPE_CHECKING:
    from l0prune.cost.cost import Cost
    from l0prune.flow.channel_flow import ChannelFlow

__all__ = ["COUNTS", "CostMetric", "Costs", "Measured", "metric_named", "metric_names", "register", "rounded_up"]

COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
"""Units of what is counted."""


class Measured(Protocol):
    """What was measured of a network, and prices it."""

    def cost(self, flow: ChannelFlow) -> Cost:
        """The cost of a traced network.

        Raises:
            ConfigError: something else was measured.
        """


@dataclass(frozen=True)
class CostMetric:
    """Something that a network costs.

    Attributes:
        name: As in `macs=0.5`; files have columns of this name.
        title: For tables, plots and messages: what is counted.
        cost: The cost of a traced network; None where it follows from a measurement (`Measured`).
        units: Suffix of an amount -> its size, in what `Cost.dense` is given in, as in {"ms": 1, "s": 1000}. With an empty
            suffix the metric counts whole things.
        measure: Where there is no `cost`: how to get what is needed, for the error that says it is missing.
        in_steps: Whether it goes in the steps that hardware takes. Then widths that suit it follow from the cost, and branches,
            which cost time beside their work, close as a whole.
    """

    name: str
    title: str
    cost: Callable[[ChannelFlow], Cost] | None
    units: Mapping[str, float]
    measure: str = ""
    in_steps: bool = False

    def amount(self, text: str) -> float | None:
        """An amount from text with a unit, as in `20M`; None where it has none of the units or is no finite number."""
        number = text.rstrip("".join(self.units) + " ")
        size = self.units.get(text.removeprefix(number).strip(), math.nan)
        try:
            amount = float(number) * size
        except ValueError:
            return None
        return amount if math.isfinite(amount) else None

    def text(self, amount: float) -> str:
        """An amount with the largest unit that says it exactly; `amount` reads it."""
        for suffix, size in sorted(self.units.items(), key=lambda unit: -unit[1]):
            number = f"{amount / size:.12g}"
            if amount >= size and "e" not in number and float(number) * size == amount:
                return f"{number}{suffix}"
        suffix, size = min(self.units.items(), key=lambda unit: unit[1])
        return f"{amount / size!r}{suffix}"

    def short_text(self, amount: float) -> str:
        """An amount for people, with three significant digits."""
        suffix, size = max(
            ((s, n) for s, n in self.units.items() if n <= amount), key=lambda u: u[1], default=("", 1.0)
        )
        return f"{amount / size:.3g}{suffix}"


def _product_cost(name: str) -> Callable[[ChannelFlow], Cost]:
    def cost(flow: ChannelFlow) -> Cost:
        from l0prune.cost.products import ProductCost

        return ProductCost(flow.terms(name), flow.n_gates)

    return cost


_METRICS = {
    "macs": CostMetric("macs", "MACs", _product_cost("macs"), COUNTS),
    "params": CostMetric("params", "parameters", _product_cost("params"), COUNTS),
    "latency": CostMetric(
        "latency",
        "latency",
        None,
        {"us": 1e-3, "ms": 1.0, "s": 1e3},
        measure="make a profile with `l0prune profile MODEL --out PROFILE`, and give it as --profile PROFILE, or in Python as"
        " Budget('latency', 0.5, profile='PROFILE')",
        in_steps=True,
    ),
}


def register(metric: CostMetric) -> None:
    """Add a metric, or replace the one of its name."""
    _METRICS[metric.name] = metric


def metric_names() -> tuple[str, ...]:
    """Names of all metrics, in the order in which they are shown."""
    return tuple(_METRICS)


def metric_named(name: str) -> CostMetric:
    """The metric called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in _METRICS:
        raise ConfigError(
            f"metric {name!r} is not available; use one of: {', '.join(_METRICS)}, as in the budget macs=0.5"
        )
    return _METRICS[name]


class Costs:
    """The costs of one network by metric, each made when it is first asked for.

    Args:
        flow: The traced network.
    """

    def __init__(self, flow: ChannelFlow) -> None:
        self.flow = flow
        self._by_metric: dict[str, Cost] = {}
        self._measured: dict[str, Measured] = {}

    def __deepcopy__(self, memo: object) -> Costs:
        """Immutable but for what it remembers, so a copy of a model shares it."""
        return self

    def __call__(self, metric: str, measured: Measured | None = None) -> Cost:
        """The cost in a metric.

        Args:
            metric: Its name.
            measured: Of the network, for a metric that follows from a measurement; it is remembered.

        Raises:
            ConfigError: there is no such metric; or it follows from a measurement, and none was given so far.
        """
        known = metric_named(metric)
        if measured is not None and known.cost is None and self._measured.get(metric) is not measured:
            self._by_metric[metric] = measured.cost(self.flow)
            self._measured[metric] = measured
        if metric not in self._by_metric:
            if known.cost is None:
                raise ConfigError(f"{metric} has to be measured first: {known.measure}")
            self._by_metric[metric] = known.cost(self.flow)
        return self._by_metric[metric]

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that this network can be priced in: those that need no measurement, and those that were measured."""
        return tuple(name for name, metric in _METRICS.items() if metric.cost is not None or name in self._measured)

    def amounts(self, hard: Callable[[str], float] = lambda metric: 1.0) -> dict[str, float]:
        """Metric -> cost in its own unit, for all of `names`; whole numbers where things are counted.

        Args:
            hard: Metric -> fraction of dense.
        """
        found = {name: self(name).dense * hard(name) for name in self.names}
        return {name: round(amount) if "" in _METRICS[name].units else amount for name, amount in found.items()}


def rounded_up(number: float, *, digits: int = 3) -> float:
    """A number rounded up to so many significant digits, so that asking for that much of a cost works."""
    if number <= 0:
        return 0.0
    places = digits - 1 - math.floor(math.log10(number))
    return math.ceil(round(number * 10.0**places, 9)) / 10.0**places
