"""The run itself: steps through the phases, the freeze between them, log lines and checkpoints on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.criteria.criterion import Evidence, score
from l0prune.criteria.ranking import place_
from l0prune.criteria.registry import load_criterion
from l0prune.criteria.sensitivity import measure_salience, projected_outputs
from l0prune.finetuning.averaging import MovingAverage
from l0prune.finetuning.checkpoints import Checkpoint, Store
from l0prune.finetuning.config import OPEN
from l0prune.finetuning.doubts import hurried_gates, too_few_steps, undecided_gates
from l0prune.finetuning.features import FeatureSite, feature_sites
from l0prune.finetuning.freezing import Settling, decided_values, recalibrate_
from l0prune.finetuning.journal import Journal
from l0prune.finetuning.passes import begin_pass, first_samples, share, steps
from l0prune.finetuning.preflight import RunPlan, require_converging
from l0prune.finetuning.results import Evaluate, FinetuneResult, figures_of
from l0prune.finetuning.runtime import Runtime, send_home
from l0prune.finetuning.schedule import GATE, RECOVERY, SETTLE, WARMUP
from l0prune.finetuning.stage import Stage
from l0prune.gated.decision import choose_open
from l0prune.model_call import evaluation_mode
from l0prune.randomness import Randomness
from l0prune.surgery.compensation import compensate_
from l0prune.surgery.shrink import absorb_, shrink

__all__ = ["Trainer"]

FINISHED = "finished"


@dataclass(frozen=True, eq=False)
class Teacher:
    """Who teaches.

    Attributes:
        model: Teaches by its outputs; on the device.
        by_features: Whether its blocks teach as well; then it is the dense network itself.
        is_dense: Whether it is the dense network itself.
    """

    model: nn.Module
    by_features: bool
    is_dense: bool = False


class Trainer:
    """A run in progress; everything that changes is in here and in the gated model.

    Args:
        plan: What is done; its gated model is on the runtime's device, its budget or penalty set.
        runtime: Where: device, precision, processes.
        journal: Writes down how it goes.
        store: Keeps its checkpoints.
        teacher: Teaches, or None.
        evaluate: Judges a network, or None.
    """

    def __init__(
        self,
        plan: RunPlan,
        *,
        runtime: Runtime,
        journal: Journal,
        store: Store,
        teacher: Teacher | None,
        evaluate: Evaluate | None,
    ) -> None:
        self.step = 0
        self._gated, self._phases, self._settings = plan.gated, plan.phases, plan.settings
        self._plan = plan
        self._runtime = runtime
        self._journal = journal
        self._store = store
        self._teacher = teacher
        self._evaluate = evaluate
        self._phase = ""
        self._settling: Settling | None = None
        self._compact: nn.Module | None = None
        self._average = self._new_average(self._gated)
        self._stage = self._new_stage(self._gated)
        self._expected_cost = 1.0
        self._randomness: Randomness | None = None
        self._saved_at = time.monotonic()

    def run(self) -> None:
        """Train from the present step to the last; freeze on the way."""
        if self._phase == FINISHED:
            return
        self._journal.continue_after(self.step)
        total = self._phases.total
        if not total:
            begin_pass(self._plan.batches, 0, seed=self._settings.seed)
        source = steps(
            self._plan.batches,
            self.step,
            total,
            seed=self._settings.seed,
            rank=self._runtime.rank,
            randomness=self._randomness,
        )
        for step, batch in source:
            self._enter(self._phases.name_at(step))
            self._train(step, batch)
        if self._compact is None:
            self._enter(RECOVERY)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where `checkpoint` was written."""
        state = checkpoint.trainer
        self._gated.model.load_state_dict(checkpoint.model)
        self._gated.gates.load_state_dict(checkpoint.gates)
        self._gated.load_training_state(state["gates"])
        self.step = state["step"]
        self._journal.load_state_dict(state["journal"], self._runtime.device)
        self._expected_cost = state["expected_cost"]
        if state.get("randomness") is not None:
            self._randomness = Randomness.from_state(state["randomness"])
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
            self._judge("end")
        for model in (self._gated, compact):
            send_home(model)
        absorb_(self._gated, compact.eval())
        self._phase = FINISHED
        if not done:
            self.save()
        compact.to(home)
        self._gated.to(home)
        return FinetuneResult(
            compact=compact,
            gated=self._gated,
            goal=self._plan.goal,
            hard_costs={metric: self._gated.hard_cost(metric) for metric in self._plan.goal.metrics},
            expected_cost=self._expected_cost,
            n_open=int((self._gated.gate_values() != 0).sum()),
            steps=self.step,
            history=tuple(self._journal.history),
            method=self._settings.method,
            doubts=tuple(self._journal.doubts),
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
        return self._gated if self._compact is None else self._compact

    def _new_stage(self, model: nn.Module, sites: Sequence[FeatureSite] = ()) -> Stage:
        teacher = None if self._teacher is None else self._teacher.model
        return Stage(
            model, task=self._plan.task, teacher=teacher, config=self._settings, runtime=self._runtime, sites=sites
        )

    def _new_average(self, model: nn.Module) -> MovingAverage | None:
        return None if self._settings.ema_decay is None else MovingAverage(model, self._settings.ema_decay)

    def _take_average(self) -> None:
        """Go on from the average, which begins anew."""
        if self._average is not None:
            self._average.copy_to_(self._gated)
            self._average = self._new_average(self._gated)
        self._runtime.average_buffers_(self._gated)

    def _train(self, step: int, batch: Any) -> None:
        """One step, and what is due after it."""
        inputs, targets, weight = self._placed(batch)
        lr = self._phases.learning_rate(step, self._settings)
        if self._phase == SETTLE:
            self._gated.freeze(self._settled.at((step + 1 - self._phases.freeze_at) / self._phases.settle))
        losses = self._stage.step(inputs, targets, lr=lr, weight=weight)
        if self._average is not None:
            self._average.update(self._network)
        self._journal.add(losses)
        self.step = step + 1
        ends_pass = self._phases.ends_pass(self.step)
        if ends_pass or self.step % self._settings.log_every == 0 or self.step in (1, self._phases.freeze_at):
            self._tell(lr, ends_pass=ends_pass)
        if (ends_pass or self._is_due()) and self.step < self._phases.total:
            self.save()
        self._journal.go_on()

    def _is_due(self) -> bool:
        """Whether it is time for one within a pass, where several processes differ in more than a checkpoint holds."""
        seconds = 60 * self._settings.checkpoint_minutes
        return 0 < seconds <= time.monotonic() - self._saved_at and self._runtime.n_processes == 1

    def _tell(self, lr: float, *, ends_pass: bool) -> None:
        """Have a line written; at the end of a pass, but for the last, with an evaluation."""
        at: dict[str, Any] = {"step": self.step, "phase": self._phase, "lr": lr}
        means = self._journal.means(**at)
        if ends_pass:
            self._runtime.average_buffers_(self._network)
        is_judged = ends_pass and self.step < self._phases.total
        figures = self._judge(self._phase, average=self._average) if is_judged else None
        self._journal.write(means, **at, evaluation=figures)

    def _judge(self, when: str, *, average: MovingAverage | None = None) -> dict[str, float] | None:
        """Evaluate what is trained now; None without `evaluate` and in other than the main process.

        Args:
            when: What is over.
            average: Takes the place of weights and gates meanwhile.
        """
        figures = None
        if self._evaluate is not None and self._runtime.is_main:
            model = self._network
            averaged = nullcontext() if average is None else average.in_place_of(model)
            with evaluation_mode(model), torch.no_grad(), averaged:
                figures = figures_of(self._evaluate(model))
                self._journal.note(when, self.step, figures)
        self._runtime.wait()
        return figures

    def _enter(self, phase: str) -> None:
        """Do what the begin of a phase asks for, once."""
        if phase == self._phase:
            return
        self._journal.leave()
        if phase == WARMUP and not self._gated.frozen:
            self._gated.freeze(torch.ones(self._gated.n_gates))
        if phase == GATE and self._gated.frozen:
            self._gated.unfreeze()
        if phase == GATE and self.step == self._phases.warmup:
            self._start_gates()
        if phase in (SETTLE, RECOVERY) and self._settling is None:
            self._decide()
        if phase == RECOVERY and self._compact is None:
            self._freeze()
        self._phase = phase
        self._journal.enter(phase, self.step)

    def _require_converging(self, tensors: Mapping[str, Any]) -> None:
        """See that there are numbers in what a phase has trained."""
        late = self._phase in (SETTLE, RECOVERY)
        settings = self._settings
        option = "recovery_lr" if late and settings.recovery_lr is not None else "lr"
        require_converging(tensors, step=self.step, option=option, lr=getattr(settings, option))

    def _start_gates(self) -> None:
        """Put the gates where they start; say so where that is too far for their steps."""
        if self._settings.gate_start != OPEN:
            self._place(self._settings.gate_start)
        elif self._settings.gate_training == "gradient" and not self._plan.goal.cuts_as_trained:
            self._journal.doubt(too_few_steps(self._gated, self._phases.gate, self._settings.gate_lr))
        if self._settings.gate_training == "evidence":
            if not self._plan.goal.cuts_as_trained:
                self._journal.doubt(hurried_gates(self._phases.gate, self._settings.salience_batches))
            self._gather_evidence()

    def _place(self, name: str) -> None:
        """Put the gates where a criterion ranks them."""
        criterion = load_criterion(name)
        evidence = Evidence(self._scored_examples(), self._stage.objective, self._settings.seed)
        scores = score(criterion, self._gated, evidence)
        self._runtime.average_(scores)
        costs = None
        if criterion.per_cost and self._plan.goal.bounds(self._gated.costs):
            added = self._plan.goal.pursuit(self._gated.costs, 1).marginal(torch.ones(self._gated.n_gates))
            costs = added.mean(0)
        place_(self._gated, criterion, scores, costs=costs)

    def _gather_evidence(self) -> None:
        """See what the loss depends on before the first gate moves."""
        squares = measure_salience(self._gated, self._scored_examples(), self._stage.objective)
        self._runtime.average_(squares)
        n_batches = min(self._settings.salience_batches, self._phases.steps_per_epoch)
        if n_batches and not self._plan.task.in_training_only:
            self._gated.observe(squares / (n_batches * self._runtime.scaler.get_scale() ** 2), n_batches)

    def _decide(self) -> None:
        """Decide which gates stay; from here on the others are on their way out."""
        settings, goal = self._settings, self._plan.goal
        self._take_average()
        self._require_converging(self._gated.state_dict())
        if not settings.trains_gates:
            self._gated.freeze(torch.ones(self._gated.n_gates))
            self._place(settings.method)
        self._expected_cost = float(self._gated.expected_cost().detach())
        by_gradient = settings.trains_gates and settings.gate_training == "gradient"
        if by_gradient and settings.gate_start == OPEN and not goal.cuts_as_trained:
            self._journal.doubt(undecided_gates(self._gated, self._phases.gate))
        salience = measure_salience(self._gated, self._scored_examples(), self._stage.objective)
        if not bool(salience.any()):  # a network that is only compared with itself
            signs = torch.Generator().manual_seed(settings.seed)
            told = partial(projected_outputs, partial(self._plan.task.call, self._gated), signs)
            salience = measure_salience(self._gated, self._scored_examples(), told)
        self._runtime.average_(salience)
        self._require_converging({"salience of the gates": salience})
        salience = salience.cpu()
        is_open = choose_open(self._gated, goal, align=settings.align, salience=salience)
        start = self._gated.gate_values().float().cpu()
        end = decided_values(self._gated, is_open, settings, floored=not goal.cuts_as_trained)
        importance = salience if settings.trains_gates else self._gated.gates.locations.cpu()
        self._settling = Settling.plan(start, end, importance)
        hard = ", ".join(f"{metric} {self._gated.costs(metric).hard(is_open):.4f}" for metric in goal.metrics)
        how, expected = ("gates", f", expected {self._expected_cost:.4f}")
        if not settings.trains_gates:
            how, expected = (f"units, by {settings.method},", "")
        closed = [branch.name for branch in self._gated.flow.branches if not is_open[branch.gates].any()]
        gone = (
            f"; {len(closed)} {'branches' if len(closed) > 1 else 'branch'} gone: {', '.join(closed)}" if closed else ""
        )
        self._journal.say(
            f"{int(is_open.sum())} of {self._gated.n_gates} {how} stay open: {hard} of dense"
            f" ({goal.kind} {goal}{expected}){gone}"
        )

    def _freeze(self) -> None:
        """Fix the gates as decided, cut the closed units away and make the small network the one that is trained."""
        self._take_average()
        if self._phase == SETTLE:
            self._require_converging(self._gated.state_dict())
        self._gated.freeze(self._settled.end)
        if self._settings.closed_form:
            self._compensate()
        elif not self._settings.epochs and self._gated.flow.refusal:
            self._journal.say(
                f"closed form: none, as that needs the graph of the model, and {self._gated.flow.refusal}"
            )
        self._cut()
        if self._settings.recalibration_batches and not self._settings.closed_form:
            calls = (
                partial(self._plan.task.call, inputs=inputs, targets=targets) for inputs, targets in self._examples()
            )
            recalibrate_(self._compacted, islice(calls, self._settings.recalibration_batches))
            self._runtime.average_buffers_(self._compacted)
        self._judge("freeze")

    def _compensate(self) -> None:
        """Fit layers that lose inputs to the dense network's, in closed form; on the CPU, where graphs are captured."""
        task, teacher = self._plan.task, self._teacher
        dense = teacher.model if teacher is not None and teacher.is_dense else None
        examples = first_samples(self._examples(), task, self._settings.calibration_samples)
        at_home = (pytree.tree_map_only(Tensor, Tensor.cpu, example) for example in examples)
        calls = (partial(task.call, inputs=inputs, targets=targets) for inputs, targets in at_home)
        send_home(self._gated)
        done = compensate_(self._gated, calls, teacher=dense, seed=self._settings.seed)
        self._gated.to(self._runtime.device)
        self._runtime.broadcast_(self._gated)
        self._journal.say(f"closed form: {done}")

    def _cut(self) -> None:
        """The compact network of the frozen gates, on the device, with an optimizer of its own."""
        gated = self._gated
        send_home(gated)
        compact = shrink(gated)
        sites = feature_sites(gated, compact) if self._teacher is not None and self._teacher.by_features else ()
        gated.to(self._runtime.device)
        self._runtime.take_(compact)
        self._compact = compact.train()
        self._stage = self._new_stage(self._compacted, sites)
        self._average = self._new_average(self._compacted)

    def _scored_examples(self) -> Iterator[tuple[Any, Any]]:
        """The examples that units are scored on; none where the loss exists in training alone."""
        return islice(self._examples(), 0 if self._plan.task.in_training_only else self._settings.salience_batches)

    def _examples(self) -> Iterator[tuple[Any, Any]]:
        """(inputs, targets) of a pass over the data, this process's rows, on the device."""
        for batch in self._plan.batches:
            inputs, targets, _ = self._placed(batch)
            yield inputs, targets

    def _placed(self, batch: Any) -> tuple[Any, Any, float]:
        """Inputs and targets of this process's rows, on the device, and the weight of their loss."""
        runtime, task = self._runtime, self._plan.task
        inputs, targets, weight = share(*task.split(batch), task, rank=runtime.rank, n_processes=runtime.n_processes)
        return *runtime.place(inputs, targets), weight

    def save(self) -> None:
        """Write a checkpoint of the present state, which may lie within a pass."""
        compact = None if self._compact is None else dict(self._compact.state_dict())
        self._store.save(
            Checkpoint(
                model=dict(self._gated.model.state_dict()),
                gates=dict(self._gated.gates.state_dict()),
                compact=compact,
                average=None if self._average is None else self._average.state_dict(),
                trainer={
                    "step": self.step,
                    "phase": self._phase,
                    "epoch": self.step / self._phases.steps_per_epoch,
                    "expected_cost": self._expected_cost,
                    "journal": self._journal.state_dict(),
                    "stage": None if self._phase == FINISHED else self._stage.state_dict(),
                    "gates": self._gated.training_state(),
                    "randomness": Randomness.now(self._runtime.device).state_dict(),
                    "settling": None if self._settling is None else self._settling.state_dict(),
                },
            ),
        )
        self._saved_at = time.monotonic()
