"""A quality that a network has to keep, as in `accuracy>=91`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from l0prune.errors import ConfigError

if TYPE_CHECKING:
    from l0prune.tasks.task import Metric

__all__ = ["Quality"]

_FORM = re.compile(r"\s*(\w+)\s*(>=|<=|≥|≤)\s*(\S+?)\s*%?\s*")
_SIGNS = {"≥": ">=", "≤": "<="}


@dataclass(frozen=True)
class Quality:
    """A bound on the score of a network.

    Args:
        metric: Name of the score.
        at_least: Whether it may not fall below the target; else it may not rise above it.
        target: As the metric is printed: per cent where that is its unit.
    """

    metric: str
    at_least: bool
    target: float

    @classmethod
    def parse(cls, text: str) -> Quality:
        """Read `METRIC>=NUMBER` or `METRIC<=NUMBER`.

        Raises:
            ConfigError: the text has another form, or the number is none.
        """
        match = _FORM.fullmatch(text)
        try:
            target = float(match[3]) if match else math.nan
        except ValueError:
            target = math.nan
        if match is None or not math.isfinite(target):
            raise ConfigError(
                f"quality {text!r} is not understood: expected METRIC>=NUMBER or METRIC<=NUMBER, such as accuracy>=91 or"
                " loss<=0.3 (in quotes, for the shell)"
            )
        return cls(match[1], _SIGNS.get(match[2], match[2]) == ">=", target)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return f"{self.metric}{'>=' if self.at_least else '<='}{self.target:g}"

    def require_fits(self, metric: Metric) -> None:
        """See that a network can be asked for it.

        Args:
            metric: What the network is judged by.

        Raises:
            ConfigError: that is another one, or one where the other direction is better, or the target is a share of one that
                is counted in per cent.
        """
        better = "higher" if metric.higher_is_better else "lower"
        right = f"{metric.name}{'>=' if metric.higher_is_better else '<='}"
        if self.metric != metric.name:
            raise ConfigError(f"quality {self}: the score of this task is {metric.name}; ask for {right}NUMBER")
        if self.at_least != metric.higher_is_better:
            raise ConfigError(f"quality {self}: a {better} {metric.name} is better; ask for {right}{self.target:g}")
        if metric.unit == "%" and 0 < self.target <= 1:
            raise ConfigError(f"quality {self}: {metric.name} is in per cent; ask for {right}{100 * self.target:g}")

    def kept_by(self, score: float) -> bool:
        """Whether a score is within the bound; NaN is not."""
        return score >= self.target if self.at_least else score <= self.target

    def lost(self, score: float, *, dense: float) -> float:
        """How much worse than the dense network's a score is; below 0 if it is better, infinite if it is no number."""
        lost = dense - score if self.at_least else score - dense
        return math.inf if math.isnan(lost) else lost
