"""What a run tells while it goes on: lines of metrics.jsonl, evaluations, progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from l0prune.cost.metrics import metric_names
from l0prune.finetuning.averaging import MovingAverage
from l0prune.finetuning.config import Settings
from l0prune.finetuning.metrics import LayerHistograms, MetricsLog, MetricsRecord, histogram
from l0prune.finetuning.results import Evaluate, Milestone, figures_of
from l0prune.finetuning.runtime import Runtime
from l0prune.finetuning.schedule import GATE, WARMUP, Phases
from l0prune.finetuning.stage import Losses, LossWindow
from l0prune.gated.model import GatedModel
from l0prune.goals.goal import Goal
from l0prune.model_call import evaluation_mode

__all__ = ["Journal", "Progress", "SilentProgress", "StepTimer"]


class Journal:
    """Writes down and shows how a run goes; decides nothing.

    Args:
        gated: The gated model of the run.
        goal: Of the run.
        config: How often to write.
        phases: The run in steps.
        runtime: Only its main process evaluates and writes.
        evaluate: Judges a model, or None.
        metrics: Path of metrics.jsonl; None writes none.
        progress: Is told how far it is.
    """

    def __init__(
        self,
        gated: GatedModel,
        goal: Goal,
        *,
        config: Settings,
        phases: Phases,
        runtime: Runtime,
        evaluate: Evaluate | None,
        metrics: Path | None,
        progress: Progress,
    ) -> None:
        self.history: list[Milestone] = []
        self._gated = gated
        self._metrics = goal.metrics
        self._config = config
        self._phases = phases
        self._runtime = runtime
        self._evaluate = evaluate
        self._log = MetricsLog(metrics)
        self._by_layer = LayerHistograms(gated.flow.gate_names)
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

    def add(self, losses: Losses) -> None:
        """Take in one step."""
        self._window.add(losses)
        self._timer.count()

    def go_on(self) -> None:
        """What follows is the next step, and counts as its time."""
        self._timer.start()

    def due(self, step: int) -> bool:
        """Whether a line follows after `step` finished steps."""
        return step % self._config.log_every == 0 or step in (1, self._phases.freeze_at) or self.ends_pass(step)

    def ends_pass(self, step: int) -> bool:
        """Whether `step` finished steps end a pass over the data, or the run."""
        return step % self._phases.steps_per_epoch == 0 or step == self._phases.total

    def write(
        self, model: nn.Module, *, step: int, phase: str, lr: float, average: MovingAverage | None = None
    ) -> None:
        """Write a line; at the end of a pass, but for the last, with an evaluation.

        Args:
            model: What is trained.
            step: Finished steps.
            phase: Of the last of them.
            lr: Its learning rate.
            average: Takes the place of the model's weights and gates in the evaluation, but not in the line's costs.

        Raises:
            TrainingError: if a loss since the last line was not finite.
        """
        loss, task, taught, hints = self._window.means(last_step=step, lr=lr, phase=phase)
        seconds = self._timer.take()  # the means have waited for the device
        gated, constraints = self._gated, self._gated.constraints
        self._n_lines += 1
        counted = phase in (WARMUP, GATE) and (self._n_lines - 1) % self._config.histogram_every == 0
        judged = self.ends_pass(step) and step < self._phases.total
        if self.ends_pass(step):
            self._runtime.average_buffers_(model)
        expected = {name: float(gated.expected_cost(name).detach()) for name in metric_names()}
        hard = {name: gated.hard_cost(name) for name in metric_names()}
        first = constraints.get(self._metrics[0])
        record = MetricsRecord(
            step=step,
            epoch=round(step / self._phases.steps_per_epoch, 6),
            phase=phase,
            loss=loss,
            task_loss=task,
            distillation_loss=taught,
            feature_loss=hints,
            expected_cost=expected[self._metrics[0]],
            hard_cost=hard[self._metrics[0]],
            target=None if first is None else first.target,
            multiplier=None if first is None else first.multiplier,
            lr=lr,
            by_metric={
                **{f"expected_{name}": cost for name, cost in expected.items()},
                **{f"hard_{name}": cost for name, cost in hard.items()},
                **{f"target_{name}": constraint.target for name, constraint in constraints.items()},
                **{f"multiplier_{name}": constraint.multiplier for name, constraint in constraints.items()},
            },
            seconds_per_step=round(seconds, 7),
            **(self._histograms(step) if counted else {}),
            evaluation=self.judge(model, phase, step=step, average=average) if judged else None,
        )
        self._log.write(record)
        self._progress.advance(step - self._shown, record.figures)
        self._shown = step

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

    def judge(
        self, model: nn.Module, when: str, *, step: int, average: MovingAverage | None = None
    ) -> dict[str, float] | None:
        """Evaluate, note it, and say it; None without `evaluate` and in other than the main process."""
        if self._evaluate is None or not self._runtime.is_main:
            self._runtime.wait()
            return None
        averaged = nullcontext() if average is None else average.in_place_of(model)
        with evaluation_mode(model), torch.no_grad(), averaged:
            figures = figures_of(self._evaluate(model))
            self.history.append(Milestone(step, when, self._gated.hard_cost(), figures))
        self.say(f"{when}, step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        self._runtime.wait()
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"n_lines": self._n_lines, "history": [milestone.to_json() for milestone in self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._n_lines = state["n_lines"]
        self.history = [Milestone(**entry) for entry in state["history"]]


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
    """What `finetune` calls while it works; a terminal renders it as it likes."""

    def start(self, phase: str, total: int) -> None:
        """A phase ("warmup", "gate", "settle", "recovery") begins and has `total` steps, of which none is done."""

    def advance(self, steps: int, figures: Mapping[str, float]) -> None:
        """`steps` more are done; `figures` are the latest means by name (loss, expected_cost, hard_cost, lr ...)."""

    def finish(self) -> None:
        """The phase is over, or was broken off."""

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
