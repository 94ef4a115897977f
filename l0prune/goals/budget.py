"""What the user asks for: a metric and the share of the dense cost that may be kept."""

import math
from dataclasses import dataclass

from l0prune.cost.floor import Floor, rounded_up
from l0prune.errors import BudgetInfeasibleError, ConfigError

__all__ = ["METRICS", "Budget", "require_feasible"]

METRICS = ("macs", "params")
_UNITS = {"macs": "MACs", "params": "parameters"}


@dataclass(frozen=True)
class Budget:
    """An upper bound on the cost of the compact model: cost(compact) <= keep * cost(dense).

    Attributes:
        metric: `macs` (multiply-accumulates at batch 1) or `params`.
        keep: in (0, 1].

    Raises:
        ConfigError: for another metric or a `keep` outside (0, 1].
    """

    metric: str
    keep: float

    def __post_init__(self) -> None:
        """Check both fields."""
        if self.metric not in METRICS:
            raise ConfigError(f"budget metric {self.metric!r} is not available; use one of: {', '.join(METRICS)}")
        number = isinstance(self.keep, (int, float)) and not isinstance(self.keep, bool)
        if not number or not (0 < self.keep <= 1):
            raise ConfigError(
                f"budget {self.metric}={self.keep}: the share to keep must be in (0, 1], such as {self.metric}=0.5 "
                "for half of the dense cost"
            )
        object.__setattr__(self, "keep", float(self.keep))

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read `METRIC=KEEP`, such as `macs=0.5`.

        Raises:
            ConfigError: if the text has another form, or names an unknown metric or a share outside (0, 1].
        """
        metric, separator, share = text.partition("=")
        try:
            keep = float(share)
        except ValueError:
            keep = math.nan
        if not separator or math.isnan(keep):
            raise ConfigError(
                f"budget {text!r} is not understood; expected METRIC=KEEP, such as macs=0.5; "
                f"metrics: {', '.join(METRICS)}"
            )
        return cls(metric.strip(), keep)

    @property
    def unit(self) -> str:
        """What the metric counts, for messages: `MACs` or `parameters`."""
        return _UNITS[self.metric]

    def to_json(self) -> dict[str, str | float]:
        """The two fields as plain values."""
        return {"metric": self.metric, "keep": self.keep}

    @classmethod
    def from_json(cls, data: dict[str, str | float]) -> "Budget":
        """The inverse of `to_json`.

        Raises:
            ConfigError: if a key is missing, unknown, or its value cannot work.
        """
        if set(data) != {"metric", "keep"}:
            raise ConfigError(f"a budget has the keys metric and keep, found: {', '.join(sorted(data)) or 'none'}")
        try:
            return cls(str(data["metric"]), float(data["keep"]))
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"budget keep is {data['keep']!r}; expected a number in (0, 1]") from error

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return f"{self.metric}={self.keep!r}"


def require_feasible(floor: Floor, budget: Budget | float) -> None:
    """See that some set of gates costs no more than a budget.

    Args:
        floor: The smallest reachable cost, in the budget's metric.
        budget: Upper bound of the cost; a bare number is a fraction of dense.

    Raises:
        BudgetInfeasibleError: says what can be met, and which layers stand in the way.
    """
    if isinstance(budget, Budget):
        metric, unit, keep = budget.metric, budget.unit, budget.keep
    else:
        metric, unit, keep = "keep", "cost", budget
    if floor.fraction <= keep:
        return
    largest = [held for held in floor.held_by[:3] if held[1] >= 0.1 * floor.fraction] or list(floor.held_by[:1])
    ask = rounded_up(floor.fraction)
    raise BudgetInfeasibleError(
        f"{metric}={keep:g} cannot be met: with every gate closed that may close, {ask:g} of the dense {unit} is left "
        f"({', '.join(f'{name} {share:.2g}' for name, share in largest)}). Ask for {metric}={ask:g} or more, "
        f"or make {largest[0][0]!r} prunable."
    )
