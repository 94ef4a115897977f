"""What a run tells while it goes on: lines of metrics.jsonl, evaluations, progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from l0prune.finetuning.metrics import LayerHistograms, MetricsLog, MetricsRecord, histogram
from l0prune.finetuning.preflight import RunPlan
from l0prune.finetuning.results import Milestone
from l0prune.finetuning.schedule import GATE, WARMUP
from l0prune.finetuning.stage import Losses, LossMeans, LossWindow

__all__ = ["Journal", "Progress", "SilentProgress", "StepTimer"]


class Journal:
    """Writes down and shows how a run goes; decides nothing.

    Args:
        plan: Of the run.
        metrics: Path of metrics.jsonl; None writes none.
        progress: Is told how far it is.
    """

    def __init__(self, plan: RunPlan, *, metrics: Path | None, progress: Progress) -> None:
        self.history: list[Milestone] = []
        self.doubts: list[str] = []
        self._gated = plan.gated
        self._metrics = plan.goal.metrics
        self._histogram_every = plan.settings.histogram_every
        self._phases = plan.phases
        self._method = plan.settings.method
        self._bounds = {bound.budget.metric: bound.keep for bound in plan.goal.bounds(plan.gated.costs)}
        self._log = MetricsLog(metrics)
        self._by_layer = LayerHistograms(plan.gated.flow.gate_names)
        self._progress = progress
        self._window = LossWindow()
        self._timer = StepTimer()
        self._n_lines = 0
        self._shown = 0

    def continue_after(self, step: int) -> None:
        """Drop what an interrupted run wrote after `step`."""
        self._log.truncate_after(step)

    def enter(self, phase: str, step: int) -> None:
        """A phase begins, or goes on, with the step after `step` finished ones."""
        first, length = self._phases.extent(phase)
        self._progress.start(phase, length)
        if step > first:
            self._progress.advance(step - first, {})
        self._shown = step
        self._timer.start()

    def leave(self) -> None:
        """The phase is over."""
        self._timer.stop()
        self._progress.finish()

    def say(self, text: str) -> None:
        """Show one line."""
        self._progress.message(text)

    def doubt(self, text: str | None) -> None:
        """Show what speaks against the run, if anything does, and keep it."""
        if text is not None:
            self.doubts.append(text)
            self.say(text)

    def add(self, losses: Losses) -> None:
        """Take in one step."""
        self._window.add(losses)
        self._timer.count()

    def go_on(self) -> None:
        """What follows is the next step, and counts as its time."""
        self._timer.start()

    def means(self, *, step: int, phase: str, lr: float) -> LossMeans:
        """Of the losses since the last line; what follows does not count as the time of a step.

        Args:
            step: Finished steps.
            phase: Of the last of them.
            lr: Its learning rate.

        Raises:
            TrainingError: if one of them was not finite.
        """
        means = self._window.means(last_step=step, lr=lr, phase=phase)
        self._timer.stop()  # the means have waited for the device
        return means

    def write(self, means: LossMeans, *, step: int, phase: str, lr: float, evaluation: dict[str, float] | None) -> None:
        """Write a line.

        Args:
            means: Of the losses since the last one.
            step: Finished steps.
            phase: Of the last of them.
            lr: Its learning rate.
            evaluation: What was found after it, or None.
        """
        gated = self._gated
        pursued = {name: (one.target, one.multiplier) for name, one in gated.constraints.items()}
        if not self._phases.gate:  # no multiplier leads there
            pursued = {name: (keep, 0.0) for name, keep in self._bounds.items()}
        self._n_lines += 1
        counted = phase in (WARMUP, GATE) and (self._n_lines - 1) % self._histogram_every == 0
        expected = {name: float(gated.expected_cost(name).detach()) for name in gated.costs.names}
        hard = {name: gated.hard_cost(name) for name in gated.costs.names}
        target, multiplier = pursued.get(self._metrics[0], (None, None))
        record = MetricsRecord(
            step=step,
            epoch=round(step / self._phases.steps_per_epoch, 6),
            phase=phase,
            method=self._method,
            loss=means.total,
            task_loss=means.task or 0.0,
            distillation_loss=means.distillation,
            feature_loss=means.features,
            expected_cost=expected[self._metrics[0]],
            hard_cost=hard[self._metrics[0]],
            target=target,
            multiplier=multiplier,
            lr=lr,
            by_metric={
                **{f"expected_{name}": cost for name, cost in expected.items()},
                **{f"hard_{name}": cost for name, cost in hard.items()},
                **{f"target_{name}": keep for name, (keep, _) in pursued.items()},
                **{f"multiplier_{name}": price for name, (_, price) in pursued.items()},
            },
            seconds_per_step=round(self._timer.take(), 7),
            **(self._histograms(step) if counted else {}),
            evaluation=evaluation,
        )
        self._log.write(record)
        self._progress.advance(step - self._shown, record.figures)
        self._shown = step

    def note(self, when: str, step: int, figures: dict[str, float]) -> None:
        """Keep an evaluation, and say it."""
        self.history.append(Milestone(step, when, self._gated.hard_cost(), figures))
        self.say(f"{when}, step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))

    def _histograms(self, step: int) -> dict[str, Any]:
        """How the gates' open probabilities spread, and values drawn for this purpose alone."""
        gates = self._gated.gates
        with torch.no_grad():
            open_probability = gates.open_probability()
            drawn = gates.sample(torch.Generator().manual_seed(step))
        return {
            "open_histogram": histogram(open_probability),
            "layer_histograms": self._by_layer(open_probability),
            "sample_histogram": histogram(drawn),
            "layer_sample_histograms": self._by_layer(drawn),
        }

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        history = [milestone.to_json() for milestone in self.history]
        window = self._window.state_dict()
        return {"n_lines": self._n_lines, "history": history, "doubts": list(self.doubts), "window": window}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from `state_dict`; the losses since the last line are on a device."""
        self._window.load_state_dict(state.get("window", []), device)
        self._n_lines = state["n_lines"]
        self.history = [Milestone(**entry) for entry in state["history"]]
        self.doubts = list(state.get("doubts", ()))


class StepTimer:
    """Wall-clock time of the steps since the last reading; stopped while something else is done between them."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._seconds = 0.0
        self._n_steps = 0

    def start(self) -> None:
        """Time counts from here, if it did not already."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """Time no longer counts."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
        self._since = None

    def count(self) -> None:
        """A step is done."""
        self._n_steps += 1

    def take(self) -> float:
        """Seconds a step since the last call, 0 if there was none; the timer stops and begins anew."""
        self.stop()
        mean = self._seconds / self._n_steps if self._n_steps else 0.0
        self._seconds, self._n_steps = 0.0, 0
        return mean


class Progress(Protocol):
    """What `finetune` calls while it runs; how to show it is up to the receiver."""

    def start(self, phase: str, total: int) -> None:
        """A phase ("warmup", "gate", "settle", "recovery") begins and has `total` steps, of which none is done."""

    def advance(self, steps: int, figures: Mapping[str, float]) -> None:
        """`steps` more steps are done; `figures` are the latest means by name (loss, expected_cost, hard_cost, lr ...)."""

    def finish(self) -> None:
        """The phase has ended or was interrupted."""

    def message(self, text: str) -> None:
        """One line worth showing: a decision, an evaluation, a remedy."""


class SilentProgress:
    """A progress that shows nothing."""

    def start(self, phase: str, total: int) -> None:
        """Ignore the start of a phase."""

    def advance(self, steps: int, figures: Mapping[str, float]) -> None:
        """Ignore finished steps."""

    def finish(self) -> None:
        """Ignore the end of a phase."""

    def message(self, text: str) -> None:
        """Ignore a message."""
