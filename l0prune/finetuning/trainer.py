"""The run itself: steps through the phases, the freeze between them, log lines and checkpoints on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l0prune.finetuning.averaging import MovingAverage
from l0prune.finetuning.checkpoints import Checkpoint, save_checkpoint
from l0prune.finetuning.config import Settings
from l0prune.finetuning.features import FeatureSite, feature_sites
from l0prune.finetuning.freezing import Settling, decided_values, measure_salience, recalibrate_
from l0prune.finetuning.journal import Journal
from l0prune.finetuning.passes import Batches, place, share, steps
from l0prune.finetuning.preflight import require_converging
from l0prune.finetuning.results import FinetuneResult
from l0prune.finetuning.runtime import Runtime
from l0prune.finetuning.schedule import GATE, RECOVERY, SETTLE, WARMUP, Phases
from l0prune.finetuning.stage import Stage
from l0prune.gated.decision import choose_open
from l0prune.gated.model import GatedModel
from l0prune.goals.goal import Goal
from l0prune.surgery.shrink import absorb_, shrink
from l0prune.tasks.task import Task

__all__ = ["Trainer"]

FINISHED = "finished"


class Trainer:
    """A run in progress; everything that changes is in here and in the gated model.

    Args:
        gated: On the runtime's device, gates not frozen, its budget set.
        batches: The training data.
        task: What the network is trained for.
        teacher: Teaches by its outputs, on the device, or None.
        teaches_features: Whether it also teaches the blocks by their features; then it is the dense network itself.
        goal: What the compact network may cost, or what open gates do.
        config: Everything else.
        phases: The run in steps.
        runtime: Device, precision, processes.
        channels_last: Whether inputs and weights are kept in channels-last order.
        checkpoint: Where checkpoints are written, or None.
        identity: What a later resume must agree with, plain values.
        journal: Writes down how it goes.
    """

    def __init__(
        self,
        gated: GatedModel,
        batches: Batches,
        *,
        task: Task,
        teacher: nn.Module | None,
        teaches_features: bool,
        goal: Goal,
        config: Settings,
        phases: Phases,
        runtime: Runtime,
        channels_last: bool,
        checkpoint: Path | None,
        identity: dict[str, Any],
        journal: Journal,
    ) -> None:
        self.gated = gated
        self.step = 0
        self._batches = batches
        self._task = task
        self._teacher = teacher
        self._teaches_features = teaches_features
        self._goal = goal
        self._config = config
        self._phases = phases
        self._runtime = runtime
        self._channels_last = channels_last
        self._checkpoint = checkpoint
        self._identity = identity
        self._journal = journal
        self._phase = ""
        self._settling: Settling | None = None
        self._compact: nn.Module | None = None
        self._average = self._new_average(gated)
        self._stage = self._new_stage(gated)
        self._expected_cost = 1.0

    def run(self) -> None:
        """Train from the present step to the last; freeze on the way."""
        if self._phase == FINISHED:
            return
        self._journal.continue_after(self.step)
        total = self._phases.total
        source = steps(self._batches, self.step, total, seed=self._config.seed, rank=self._runtime.rank)
        for step, batch in source:
            self._enter(self._phases.name_at(step))
            self._train(step, batch)
        if self._compact is None:
            self._enter(RECOVERY)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where `checkpoint` was written."""
        state = checkpoint.trainer
        self.gated.model.load_state_dict(checkpoint.model)
        self.gated.gates.load_state_dict(checkpoint.gates)
        self.gated.load_training_state(state["gates"])
        self.step = state["step"]
        self._journal.load_state_dict(state["journal"])
        self._expected_cost = state["expected_cost"]
        if state["settling"] is not None:
            self._settling = Settling(**state["settling"])
        if checkpoint.compact is not None:
            self._cut()
            self._compacted.load_state_dict(checkpoint.compact)
        if checkpoint.average is not None and self._average is not None:
            self._average.load_state_dict(checkpoint.average)
        if state["stage"] is not None:
            self._stage.load_state_dict(state["stage"])
        if state["phase"] == FINISHED:
            self._phase = FINISHED

    def finish(self, *, home: torch.device) -> FinetuneResult:
        """Take the recovered weights back into the gated model, write the last checkpoint and sum up.

        Args:
            home: Device both models end on.
        """
        compact, done = self._compacted, self._phase == FINISHED
        if not done:
            if self._average is not None:
                self._average.copy_to_(compact)
            self._runtime.average_buffers_(compact)
            self._require_converging(compact.state_dict())
            self._journal.leave()
            self._journal.judge(compact, "end", step=self.step)
        for model in (self.gated, compact):
            model.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        absorb_(self.gated, compact.eval())
        self._phase = FINISHED
        if not done:
            self.save()
        compact.to(home)
        self.gated.to(home)
        return FinetuneResult(
            compact=compact,
            gated=self.gated,
            goal=self._goal,
            hard_costs={metric: self.gated.hard_cost(metric) for metric in self._goal.metrics},
            expected_cost=self._expected_cost,
            n_open=int((self.gated.gate_values() != 0).sum()),
            steps=self.step,
            history=tuple(self._journal.history),
        )

    @property
    def _compacted(self) -> nn.Module:
        if self._compact is None:
            raise RuntimeError("the network has not been cut yet")
        return self._compact

    @property
    def _settled(self) -> Settling:
        if self._settling is None:
            raise RuntimeError("it has not been decided yet which gates stay")
        return self._settling

    @property
    def _network(self) -> nn.Module:
        """What is trained now."""
        return self.gated if self._compact is None else self._compact

    def _new_stage(self, model: nn.Module, sites: Sequence[FeatureSite] = ()) -> Stage:
        return Stage(
            model, task=self._task, teacher=self._teacher, config=self._config, runtime=self._runtime, sites=sites
        )

    def _new_average(self, model: nn.Module) -> MovingAverage | None:
        return None if self._config.ema_decay is None else MovingAverage(model, self._config.ema_decay)

    def _take_average(self) -> None:
        """Go on from the average, which begins anew."""
        if self._average is not None:
            self._average.copy_to_(self.gated)
            self._average = self._new_average(self.gated)
        self._runtime.average_buffers_(self.gated)

    def _train(self, step: int, batch: Any) -> None:
        """One step, and what is due after it."""
        inputs, targets, weight = self._placed(batch)
        lr = self._phases.learning_rate(step, self._config)
        if self._phase == SETTLE:
            self.gated.freeze(self._settled.at((step + 1 - self._phases.freeze_at) / self._phases.settle))
        losses = self._stage.step(inputs, targets, lr=lr, weight=weight)
        if self._average is not None:
            self._average.update(self._network)
        self._journal.add(losses)
        self.step = step + 1
        if self._journal.due(self.step):
            self._journal.write(self._network, step=self.step, phase=self._phase, lr=lr, average=self._average)
        if self._journal.ends_pass(self.step) and self.step < self._phases.total:
            self.save()
        self._journal.go_on()

    def _enter(self, phase: str) -> None:
        """Do what the begin of a phase asks for, once."""
        if phase == self._phase:
            return
        self._journal.leave()
        if phase == WARMUP and not self.gated.frozen:
            self.gated.freeze(torch.ones(self.gated.n_gates))
        if phase == GATE and self.gated.frozen:
            self.gated.unfreeze()
        if phase in (SETTLE, RECOVERY) and self._settling is None:
            self._decide()
        if phase == RECOVERY and self._compact is None:
            self._freeze()
        self._phase = phase
        self._journal.enter(phase, self.step)

    def _require_converging(self, tensors: Mapping[str, Any]) -> None:
        """See that there are numbers in what a phase has trained."""
        late = self._phase in (SETTLE, RECOVERY)
        lr = self._config.recovery_lr if late else self._config.lr
        require_converging(tensors, step=self.step, option="recovery_lr" if late else "lr", lr=lr)

    def _decide(self) -> None:
        """Decide which gates stay; from here on the others are on their way out."""
        config, goal = self._config, self._goal
        self._take_average()
        self._require_converging(self.gated.state_dict())
        self._expected_cost = float(self.gated.expected_cost().detach())
        examples = islice(self._examples(), 0 if self._task.in_training_only else config.salience_batches)
        salience = measure_salience(self.gated, examples, self._stage.objective)
        self._runtime.average_(salience)
        self._require_converging({"salience of the gates": salience})
        salience = salience.cpu()
        is_open = choose_open(self.gated, goal, align=config.align, salience=salience)
        start = self.gated.gate_values().float().cpu()
        end = decided_values(self.gated, is_open, config, floored=not goal.cuts_as_trained)
        self._settling = Settling.plan(start, end, salience)
        hard = ", ".join(f"{metric} {self.gated.costs(metric).hard(is_open):.4f}" for metric in goal.metrics)
        self._journal.say(
            f"{int(is_open.sum())} of {self.gated.n_gates} gates stay open: {hard} of dense"
            f" ({goal.kind} {goal}, expected {self._expected_cost:.4f})"
        )

    def _freeze(self) -> None:
        """Fix the gates as decided, cut the closed units away and make the small network the one that is trained."""
        self._take_average()
        if self._phase == SETTLE:
            self._require_converging(self.gated.state_dict())
        self.gated.freeze(self._settled.end)
        self._cut()
        if self._config.recalibration_batches:
            calls = (partial(self._task.call, inputs=inputs, targets=targets) for inputs, targets in self._examples())
            recalibrate_(self._compacted, islice(calls, self._config.recalibration_batches))
            self._runtime.average_buffers_(self._compacted)
        self._journal.judge(self._compacted, "freeze", step=self.step)

    def _cut(self) -> None:
        """The compact network of the frozen gates, on the device, with an optimizer of its own."""
        gated, device = self.gated, self._runtime.device
        gated.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        compact = shrink(gated)
        sites = feature_sites(gated, compact) if self._teaches_features else ()
        order = torch.channels_last if self._channels_last else torch.contiguous_format
        gated.to(device)
        self._compact = compact.to(device, memory_format=order).train()  # type: ignore[call-overload]
        self._stage = self._new_stage(self._compacted, sites)
        self._average = self._new_average(self._compacted)

    def _examples(self) -> Iterator[tuple[Any, Any]]:
        """(inputs, targets) of a pass over the data, this process's rows, on the device."""
        for batch in self._batches:
            inputs, targets, _ = self._placed(batch)
            yield inputs, targets

    def _placed(self, batch: Any) -> tuple[Any, Any, float]:
        """Inputs and targets of this process's rows, on the device, and the weight of their loss."""
        runtime, task = self._runtime, self._task
        inputs, targets, weight = share(*task.split(batch), task, rank=runtime.rank, n_processes=runtime.n_processes)
        inputs = place(inputs, runtime.device, channels_last=self._channels_last)
        return inputs, place(targets, runtime.device, channels_last=False), weight

    def save(self) -> None:
        """Write a checkpoint of the present state."""
        if self._checkpoint is None:
            return
        compact = None if self._compact is None else dict(self._compact.state_dict())
        save_checkpoint(
            self._checkpoint,
            Checkpoint(
                model=dict(self.gated.model.state_dict()),
                gates=dict(self.gated.gates.state_dict()),
                compact=compact,
                average=None if self._average is None else self._average.state_dict(),
                trainer={
                    "identity": self._identity,
                    "step": self.step,
                    "phase": self._phase,
                    "epoch": self.step / self._phases.steps_per_epoch,
                    "expected_cost": self._expected_cost,
                    "journal": self._journal.state_dict(),
                    "stage": None if self._phase == FINISHED else self._stage.state_dict(),
                    "gates": self.gated.training_state(),
                    "settling": None if self._settling is None else self._settling.state_dict(),
                },
            ),
        )
