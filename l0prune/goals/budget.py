"""What the user asks for: upper bounds of costs, as shares of the dense model's or as amounts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from l0prune.cost.cost import Cost
from l0prune.cost.kinds import Costs, metric_named, metric_names, rounded_up
from l0prune.errors import ConfigError, L0PruneWarning
from l0prune.flow.branches import Branch
from l0prune.gates.bank import GateBank
from l0prune.goals.goal import BoolArray, FloatArray, Goal
from l0prune.goals.lagrangian import ConstrainedPursuit
from l0prune.goals.selection import require_feasible, select_open
from l0prune.goals.uniform import Alike, Bundles
from l0prune.latency.profile import Profile

__all__ = ["Bound", "Budget", "Budgets", "one_goal"]


@dataclass(frozen=True, init=False)
class Budget:
    """An upper bound on a cost of the compact model.

    Attributes:
        metric: "macs" (multiply-accumulates at batch 1), "params", "latency" (in onnxruntime, by a profile), or another
            registered metric.
        keep: A share of the dense model's cost, in (0, 1], or an amount: a number above 1, or one with a unit such as "20M".
        absolute: Whether `keep` is an amount; only needed for amounts of 1 or less.
        profile: What was measured of the network, or the file of it, for a metric that has to be measured ("latency").

    Raises:
        ConfigError: for another metric, a `keep` that is neither, or a profile for a metric that needs none.
    """

    metric: str
    keep: float
    absolute: bool
    profile: Profile | None = field(compare=False, repr=False)

    def __init__(
        self, metric: str, keep: float | str, *, absolute: bool = False, profile: Profile | Path | str | None = None
    ) -> None:
        """Check what is given, and read an amount."""
        known = metric_named(metric)
        if profile is not None and known.cost is not None:
            raise ConfigError(f"budget {metric}={keep} needs no profile: {known.title} are counted, not measured")
        given = known.amount(keep) if isinstance(keep, str) else keep
        value = given if isinstance(given, (int, float)) and not isinstance(given, bool) else math.nan
        fits = 0 < value < math.inf
        absolute = fits and (absolute or isinstance(keep, str) or value > 1)
        if not fits or (absolute and "" in known.units and value != int(value)):
            raise ConfigError(
                f"budget {metric}={keep}: the share to keep must be in (0, 1], such as {metric}=0.5 for half of the dense"
                f" cost; an amount of {known.title} needs a unit ({', '.join(filter(None, known.units))})"
            )
        read = Profile.load(profile) if isinstance(profile, (Path, str)) else profile
        for name, attribute in (("metric", metric), ("keep", float(value)), ("absolute", absolute), ("profile", read)):
            object.__setattr__(self, name, attribute)

    def by(self, profile: Profile | None) -> Budget:
        """The same, measured by a profile where its metric has to be and it has none yet."""
        if profile is None or self.profile is not None or metric_named(self.metric).cost is not None:
            return self
        return Budget(self.metric, self.keep, absolute=self.absolute, profile=profile)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `METRIC=KEEP`, such as `macs=0.5` or `macs=20M`.

        Raises:
            ConfigError: if the text has another form, or names an unknown metric or a share outside (0, 1].
        """
        name, separator, keep = (part.strip() for part in text.partition("="))
        try:
            share = float(keep)
        except ValueError:
            share = math.nan
        if not math.isnan(share):
            return cls(name, share)
        if not separator or metric_named(name).amount(keep) is None:
            raise ConfigError(
                f"budget {text!r} is not understood; expected METRIC=KEEP, such as macs=0.5 or macs=20M; "
                f"metrics: {', '.join(metric_names())}"
            )
        return cls(name, keep)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return f"{self.metric}={metric_named(self.metric).text(self.keep) if self.absolute else repr(self.keep)}"


class Bound(NamedTuple):
    """A budget of one network.

    Attributes:
        budget: What was asked for.
        cost: What the network costs in its metric.
    """

    budget: Budget
    cost: Cost

    @property
    def keep(self) -> float:
        """Upper bound as a fraction of the dense cost, in (0, 1]."""
        return min(1.0, self.budget.keep / self.cost.dense) if self.budget.absolute else self.budget.keep

    def told(self, fraction: float) -> tuple[str, str]:
        """A fraction of the dense cost in the terms of the budget: for people, and as one would ask for it."""
        metric = metric_named(self.budget.metric)
        if not self.budget.absolute:
            return f"{fraction:.3g} of the dense {metric.title}", f"{metric.name}={fraction:.3g}"
        amount = metric.short_text(rounded_up(fraction * self.cost.dense))
        return f"{amount} of the dense {metric.short_text(self.cost.dense)} {metric.title}", f"{metric.name}={amount}"


@dataclass(frozen=True)
class Budgets(Goal):
    """One or several budgets, all of which the compact model meets; the gates whose exact costs fill the tightest are cut.

    Attributes:
        budgets: The first one's metric is the run's.
        depth: Whether branches may close as a whole; None lets them where a metric goes in steps (`CostMetric.in_steps`).
        alike: Sizes that keep the same share of their indices, so that no branch closes; None leaves each to itself.

    Raises:
        ConfigError: if there is none, or two have the same metric.
    """

    kind: ClassVar[str] = "budget"
    cuts_as_trained: ClassVar[bool] = False
    budgets: tuple[Budget, ...]
    depth: bool | None = None
    alike: Alike | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check that each metric has one bound."""
        if not self.budgets:
            raise ConfigError("an empty sequence of budgets bounds nothing: give one, such as Budget('macs', 0.5)")
        for index, metric in enumerate(self.metrics):
            if metric in self.metrics[:index]:
                raise ConfigError(f"budget {self} bounds {metric} twice; give one bound per metric")

    @classmethod
    def of(cls, budget: Budget | Sequence[Budget] | Budgets) -> Budgets:
        """From what a caller may give."""
        if isinstance(budget, Budgets):
            return budget
        return cls((budget,) if isinstance(budget, Budget) else tuple(budget))

    @classmethod
    def parse(cls, text: str) -> Budgets:
        """Read one or several, separated by commas, as in `macs=0.5,params=300k`.

        Raises:
            ConfigError: as `Budget.parse`; or a metric occurs twice.
        """
        return cls(tuple(Budget.parse(part) for part in text.split(",")))

    def by(self, profile: Profile | None) -> Budgets:
        """The same, those measured by a profile that have to be and have none yet."""
        return replace(self, budgets=tuple(budget.by(profile) for budget in self.budgets))

    def with_depth(self, depth: bool | None) -> Budgets:
        """The same, with branches that may close as a whole or not; None leaves that as it is."""
        return self if depth is None else replace(self, depth=depth)

    def uniform(self, alike: Alike | None) -> Budgets:
        """The same, with sizes that have to be alike."""
        return replace(self, alike=alike)

    def branches(self, costs: Costs) -> tuple[Branch, ...]:
        """The branches that may close as a whole."""
        if self.alike is not None:
            return ()
        return costs.flow.branches if (self.knows_widths if self.depth is None else self.depth) else ()

    def __iter__(self) -> Iterator[Budget]:
        """One after another."""
        return iter(self.budgets)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return ",".join(map(str, self.budgets))

    @property
    def metrics(self) -> tuple[str, ...]:
        """What costs are counted in, the one of `hard_cost` first."""
        return tuple(budget.metric for budget in self.budgets)

    def bounds(self, costs: Costs) -> tuple[Bound, ...]:
        """What the compact network must not cost more than."""
        return tuple(Bound(budget, costs(budget.metric, budget.profile)) for budget in self.budgets)

    def check(self, costs: Costs, gates: GateBank) -> None:
        """See that closing gates can meet all of them; an amount that the dense network does not reach is warned of.

        Raises:
            BudgetInfeasibleError: names one that cannot be met, and which layers cost it.
        """
        for bound in self.bounds(costs):
            if bound.budget.absolute and bound.budget.keep > bound.cost.dense:
                metric = metric_named(bound.budget.metric)
                warnings.warn(
                    f"{bound.budget} bounds nothing: the dense network has {metric.short_text(bound.cost.dense)} {metric.title}",
                    L0PruneWarning,
                    stacklevel=2,
                )
        if self.alike is None:
            require_feasible(self.bounds(costs), costs.flow.dimensions, self.branches(costs))
        else:
            Bundles(costs.flow, np.zeros(costs.flow.n_gates), self.bounds(costs), self.alike).require_feasible()

    def pursuit(self, costs: Costs, steps: int, *, placed: bool = False) -> ConstrainedPursuit:
        """A multiplier for each, over a gate phase of so many steps."""
        return ConstrainedPursuit(
            [(bound.budget.metric, bound.cost, bound.keep) for bound in self.bounds(costs)], steps, placed=placed
        )

    def choose_open(
        self,
        costs: Costs,
        scores: FloatArray,
        is_open: BoolArray,
        *,
        align: int,
        salience: FloatArray | None = None,
    ) -> BoolArray:
        """The best-ranked gates within all bounds, whatever training left open; arguments and result as in `Goal`.

        Raises:
            BudgetInfeasibleError: closing every gate costs more.
        """
        flow = costs.flow
        if self.alike is not None:
            bundles = Bundles(flow, scores, self.bounds(costs), self.alike)
            chosen = select_open(
                bundles.scores,
                bundles.bounds,
                bundles.dimensions,
                bundles.groups,
                align=align,
                salience=None if salience is None else bundles.sums(salience),
                in_steps=self.knows_widths,
                weights=bundles.sizes,
            )
            return bundles.gates(bundles.accepted(chosen, align=align))
        return select_open(
            scores,
            self.bounds(costs),
            flow.dimensions,
            flow.gate_group,
            align=align,
            salience=salience,
            in_steps=self.knows_widths,
            branches=self.branches(costs),
        )

    def rounded(self, costs: Costs, scores: FloatArray, is_open: BoolArray, *, align: int) -> BoolArray:
        """Open gates whose widths are multiples of `align`; where sizes have to be alike, they are chosen anew."""
        if self.alike is None:
            return super().rounded(costs, scores, is_open, align=align)
        return self.choose_open(costs, scores, is_open, align=align)

    @property
    def knows_widths(self) -> bool:
        """Whether a bound goes in steps: widths that the runtime likes are cheap in it, so that none has to be rounded."""
        return any(metric_named(budget.metric).in_steps for budget in self.budgets)


def one_goal(budget: Budget | Sequence[Budget] | Budgets | None, penalty: Goal | None) -> Goal:
    """The one that is given.

    Raises:
        ConfigError: if both are, or neither.
    """
    if budget is not None and penalty is not None:
        raise ConfigError(
            f"budget {Budgets.of(budget)} and penalty {penalty} exclude each other: a budget finds the price of open gates by"
            " itself; give one of them"
        )
    if budget is not None:
        return Budgets.of(budget)
    if penalty is None:
        raise ConfigError("nothing says what may be kept: give a budget (macs=0.5) or a penalty (lambda=0.1)")
    return penalty
