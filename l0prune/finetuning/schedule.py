"""When each phase runs, in optimizer steps, and what the learning rate is at each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from l0prune.errors import ConfigError
from l0prune.finetuning.settings import Settings

__all__ = ["GATE", "RECOVERY", "SETTLE", "WARMUP", "Phases", "learning_rate", "plan_phases"]

WARMUP = "warmup"
GATE = "gate"
SETTLE = "settle"
RECOVERY = "recovery"


@dataclass(frozen=True)
class Phases:
    """The run as consecutive stretches of optimizer steps.

    Args:
        warmup: Steps with all gates open, >= 0.
        gate: Steps that train gates and weights, >= 1; 0 where a criterion chooses.
        settle: Steps in which decided gates move to their frozen values, >= 0.
        recovery: Steps of the compact network, >= 0.
        steps_per_epoch: Batches in one pass over the data, >= 1.
    """

    warmup: int
    gate: int
    settle: int
    recovery: int
    steps_per_epoch: int

    @property
    def freeze_at(self) -> int:
        """Number of steps done when it is decided which gates stay."""
        return self.warmup + self.gate

    @property
    def cut_at(self) -> int:
        """Number of steps done when the network is cut."""
        return self.freeze_at + self.settle

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.cut_at + self.recovery

    def of_gates_alone(self) -> Phases:
        """The run of a network whose weights are not trained: there is nothing for them to do before, or to recover after."""
        return replace(self, warmup=0, settle=0, recovery=0)

    def name_at(self, step: int) -> str:
        """Phase of the step after `step` finished ones: "warmup", "gate", "settle" or "recovery"."""
        if step < self.warmup:
            return WARMUP
        if step < self.freeze_at:
            return GATE
        return SETTLE if step < self.cut_at else RECOVERY

    def extent(self, phase: str) -> tuple[int, int]:
        """(first step, number of steps) of a phase."""
        return {
            WARMUP: (0, self.warmup),
            GATE: (self.warmup, self.gate),
            SETTLE: (self.freeze_at, self.settle),
            RECOVERY: (self.cut_at, self.recovery),
        }[phase]

    def ends_pass(self, step: int) -> bool:
        """Whether `step` finished steps end a pass over the data, or the run."""
        return step % self.steps_per_epoch == 0 or step == self.total

    def learning_rate(self, step: int, config: Settings) -> float:
        """Learning rate of the step after `step` finished ones: one ramp and cosine over the run.

        With a `recovery_lr` there is one to the freeze and a second one after it; with `lr_drops` it goes down in steps to the
        freeze instead.
        """
        peak, start, length, end = config.lr, 0, self.total, config.recovery_lr_end
        if config.recovery_lr is not None and step < self.freeze_at:
            if config.lr_drops:
                n_drops = sum(step >= round(epoch * self.steps_per_epoch) for epoch in config.lr_drops)
                return config.lr * config.lr_drop_factor**n_drops
            length, end = self.freeze_at, config.gate_lr_end or 0.0
        elif config.recovery_lr is not None:
            peak, start, length = config.recovery_lr, self.freeze_at, self.settle + self.recovery
        return learning_rate(step - start, length, peak=peak, ramp=config.lr_ramp, end=end)


def plan_phases(config: Settings, steps_per_epoch: int) -> Phases:
    """Phases of a run in steps.

    Args:
        config: Lengths in epochs.
        steps_per_epoch: Batches in one pass over the data, >= 1.

    Raises:
        ConfigError: if the gate phase is shorter than one step.
    """
    warmup_epochs, gate_epochs, settle_epochs, _ = config.phase_epochs
    total = round(config.epochs * steps_per_epoch)
    warmup = round(warmup_epochs * steps_per_epoch)
    if not config.trains_gates:
        closing = min(total - warmup, round(settle_epochs * steps_per_epoch))
        return Phases(warmup, 0, closing, total - warmup - closing, steps_per_epoch)
    gate = min(total - warmup, round(gate_epochs * steps_per_epoch))
    if gate < 1:
        raise ConfigError(
            f"the gate phase ({gate_epochs:g} epochs of {steps_per_epoch} batches) has no step:"
            " raise epochs or gate_epochs"
        )
    settle = min((total - warmup - gate) // 2, round(settle_epochs * steps_per_epoch))
    return Phases(warmup, gate, settle, total - warmup - gate - settle, steps_per_epoch)


def learning_rate(step: int, steps: int, *, peak: float, ramp: float, end: float) -> float:
    """Linear rise to `peak`, then a half cosine to `end * peak`.

    Args:
        step: Steps already done, in [0, steps).
        steps: Length of the stretch, >= 1.
        peak: Largest learning rate, > 0.
        ramp: Share of `steps` that rises, in [0, 1).
        end: Last learning rate as a share of `peak`, in [0, 1].

    Returns:
        The learning rate, in (0, peak] where `end` > 0 or `step` < `steps`.

    Source: Loshchilov, Hutter (2017), SGDR, arXiv:1608.03983, equation 5 (one period).
    """
    rising = math.floor(ramp * steps)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    progress = (step - rising) / max(1, steps - rising)
    return peak * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress)))
