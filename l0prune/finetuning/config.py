"""Everything a fine-tuning run can be told, and what it comes to: validated once, with defaults that were measured."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

from l0prune.criteria.registry import GATES as TRAINED_GATES
from l0prune.criteria.registry import criterion_names, method_names
from l0prune.errors import ConfigError
from l0prune.options import GATES, MOST_USED, PHASES, RUN, TEACHING, WEIGHTS, Options, Rule, documented, option

__all__ = ["OPEN", "OPTIMIZERS", "FinetuneConfig", "alignment"]


OPTIMIZERS = {
    "sgd": {"lr": 0.03, "recovery_lr": 0.03, "weight_decay": 1e-4, "short_run": 0.2},
    "adam": {"lr": 1e-3, "recovery_lr": 1e-3, "weight_decay": 0.0, "short_run": 0.0},
    "adamw": {"lr": 5e-4, "recovery_lr": 1e-3, "weight_decay": 0.02, "short_run": 0.0},
}
"""What each starts from where no numbers are given; in a run of n < `FULL_STEPS` steps lr is lr (n / FULL_STEPS)^short_run."""
BUDGET_GATE_FRACTION, PENALTY_GATE_FRACTION = 0.2, 0.8
EVIDENCE_GATE_FRACTION, EVIDENCE_STEPS = 0.05, 400
"""Share of a run in which gates are placed by evidence; where it has more than so many steps, their share falls with the root of
the number of steps. What a longer phase adds to the choice is less than what the cut network gains from being there earlier."""
FULL_STEPS = 700
"""Steps of a run from which on its learning rate is full; in shorter ones the network needs one that it can come down from."""
UNTRAINED = "magnitude"
"""The criterion that chooses where nothing is trained."""
OPEN = "open"
"""The start of gates that nobody has ranked: all where the distribution has those of trained networks begin."""


def _of_optimizer(text: str, name: str, *, of_sgd: str = "", **about: Any) -> Any:
    """An option that each optimizer has its own default of; `of_sgd` is said of that of sgd."""
    notes = {"sgd": of_sgd}
    shown = ", ".join(f"{numbers[name]:g} {which}{notes.get(which, '')}" for which, numbers in OPTIMIZERS.items())
    return option(None, text, shown=shown, **{"group": WEIGHTS, **about})


def alignment(text: str, **about: Any) -> Any:
    """An option that says what widths are rounded to."""
    return option(None, text, within="auto or [1, inf)", metavar="AUTO|N", **about)


_most_used = partial(option, group=MOST_USED)
_phases = partial(option, group=PHASES)
_weights = partial(option, group=WEIGHTS)
_teaching = partial(option, group=TEACHING)
_gates = partial(option, group=GATES)
_run = partial(option, group=RUN)


@documented
@dataclass(frozen=True)
class FinetuneConfig(Options):
    """Options of `l0prune.finetune`, as asked for; what is None is left open until `resolve`.

    Raises:
        ConfigError: if a value is of another kind or out of its range, or options do not go together.

    Source: phases and freeze, docs of the budget in ARCHITECTURE.md; distillation, Hinton et al. (2015), section 2.
    """

    epochs: float = _most_used(
        6.0,
        "Passes over the training data, recovery included; fractions are allowed. With 0 nothing is trained: a criterion chooses,"
        " and layers recover in closed form.",
        within="[0, inf)",
    )
    method: str | None = _most_used(
        None,
        f"What chooses the units that stay: {TRAINED_GATES}, which are trained with the weights, or a criterion that scores the"
        f" units of the trained network: {', '.join(criterion_names())}.",
        shown=f"{TRAINED_GATES}; {UNTRAINED} where nothing is trained",
        metavar="NAME",
    )
    warmup_fraction: float = _phases(
        0.0, "Share of `epochs` with all gates open; `warmup_epochs` overrides it.", within="[0, 1)", flag=None
    )
    gate_fraction: float | None = _phases(
        None,
        "Share of `epochs` that learns the gates; `gate_epochs` overrides it.",
        within="(0, 1]",
        flag=None,
        shown=f"{EVIDENCE_GATE_FRACTION:g}, less in runs over {EVIDENCE_STEPS} steps; {BUDGET_GATE_FRACTION:g} by gradient;"
        f" {PENALTY_GATE_FRACTION:g} of what the warm-up leaves with a penalty",
    )
    settle_fraction: float = _phases(
        0.0, "Share of `epochs` spent settling; `settle_epochs` overrides it.", within="[0, 1)", flag=None
    )
    warmup_epochs: float | None = _phases(
        None, "Epochs with all gates open, before they are learned (part of `epochs`).", within="[0, inf)", shown="0"
    )
    gate_epochs: float | None = _phases(
        None,
        "Epochs that learn the gates together with the weights (part of `epochs`); recovery takes the rest. Under another"
        " `method` the chosen units close in them, one after another, those with the lowest scores first.",
        within="[0, inf)",
        shown=f"{EVIDENCE_GATE_FRACTION:g} of the run, less over {EVIDENCE_STEPS} steps; {BUDGET_GATE_FRACTION:g} by gradient,"
        f" {PENALTY_GATE_FRACTION:g} with a penalty, 0 under another method",
    )
    settle_epochs: float | None = _phases(
        None,
        "Epochs spent closing, one after another, the gates that the cut takes although they are open (part of `epochs`, at"
        " most half of what the others leave); 0 cuts them at once.",
        within="[0, inf)",
        shown="0",
    )
    optimizer: str | None = _weights(
        None,
        "Optimizer of the weights: sgd has Nesterov momentum, adam takes weight decay into the gradient, adamw does not.",
        choices=tuple(OPTIMIZERS),
        shown="by the network: adamw with attention, or where most norms are over features (LayerNorm, RMSNorm); else sgd",
    )
    lr: float | None = _of_optimizer(
        "Peak learning rate of the weights, of the whole run unless `recovery_lr` is given.",
        "lr",
        within="(0, inf)",
        group=MOST_USED,
        of_sgd=f" (less in runs under {FULL_STEPS} steps)",
    )
    recovery_lr: float | None = _weights(
        None,
        "Peak learning rate of settling and recovery, in a schedule of their own; without it one ramp and cosine spans the run.",
        within="(0, inf)",
        shown="one schedule for the run; with a penalty "
        + ", ".join(f"{numbers['recovery_lr']:g} {optimizer}" for optimizer, numbers in OPTIMIZERS.items()),
    )
    lr_ramp: float = _weights(
        0.05, "Share of each stretch of training in which its learning rate rises.", within="[0, 1)", flag=None
    )
    gate_lr_end: float | None = _weights(
        None,
        "Share of `lr` that is left when the gates are learned, before settling and recovery begin a schedule of their own; 1"
        " keeps it constant.",
        within="[0, 1]",
        shown="one schedule for the run; with a penalty 0",
    )
    recovery_lr_end: float = _weights(
        0.0, "Share of the peak learning rate that is left at the end.", within="[0, 1]", flag=None
    )
    lr_drops: tuple[float, ...] = _weights(
        (),
        "Epochs at which the learning rate before the freeze is multiplied by `lr_drop_factor`; it is constant in between.",
        shown="none, but a ramp and a cosine",
        metavar="EPOCH,...",
    )
    lr_drop_factor: float = _weights(0.2, "Factor on the learning rate at each of `lr_drops`.", within="(0, 1)")
    weight_decay: float | None = _of_optimizer(
        "Weight decay of matrices and filters; norms and biases never decay.", "weight_decay", within="[0, inf)"
    )
    gated_weight_decay: bool = _weights(
        False,
        "Decay the matrices that gates multiply as part of the loss, weighted by the probability that their gates are open, as in"
        " the L0 paper; not with adamw.",
    )
    momentum: float = _weights(0.9, "Nesterov momentum of sgd.", within="[0, 1)", flag=None)
    grad_clip: float = _weights(50.0, "Largest L2 norm of the weights' gradient; 0 sets no limit.", within="[0, inf)")
    grad_spike: float = _weights(
        4.0,
        "Largest norm of the gradient as a multiple of the median of the last 50; 0 sets no limit.",
        within="0 or [1, inf)",
    )
    gate_training: str | None = _gates(
        None,
        "What moves the gates: evidence, which puts each where the worth of its unit to the loss stands against its share of the"
        " cost; or their own gradient.",
        choices=("evidence", "gradient"),
        shown="evidence; gradient with a penalty or a gate_lr",
    )
    gate_lr: float | None = _gates(
        None, "Learning rate of gates that follow their gradient.", within="(0, inf)", shown="by the number of steps"
    )
    gate_start: str | None = _gates(
        None,
        "Where the gates start: all open, or, by the name of a criterion, the further open the higher it ranks their units.",
        shown=OPEN,
        metavar="NAME",
    )
    distillation: float = _teaching(
        0.9,
        "Weight of the dense network's outputs in the loss, with the rest for the task; 0 trains without a teacher.",
        within="[0, 1]",
        flag="--distillation-weight",
    )
    distillation_temperature: float = _teaching(
        4.0, "Temperature that softens the outputs of teacher and student.", within="(0, inf)"
    )
    feature_distillation: float = _teaching(
        60.0,
        "Weight of the loss that teaches each block of the cut network by the features of the channels it kept; 0 teaches by"
        " outputs alone. The teacher has to be the dense network itself.",
        within="[0, inf)",
        metavar="WEIGHT",
    )
    ema_decay: float | None = _weights(
        None,
        "Decay of a moving average of weights and gates, which is evaluated and cut in their place, and begun anew for the"
        " recovery.",
        within="(0, 1)",
        shown="no average",
    )
    gate_decision: str | None = _gates(
        None,
        "Value of an open gate after the freeze: its trained one (soft), or 1 (binary).",
        choices=("soft", "binary"),
        flag=None,
        shown="binary, but soft with a penalty, where exactly what was trained is cut",
    )
    gate_floor: float = _gates(
        0.1, "Least value of an open gate that keeps its trained one.", within="(0, 1]", flag=None
    )
    recalibration_batches: int = _gates(
        20, "Batches that re-estimate the statistics of batch norms after the cut; 0 leaves them.", within="[0, inf)"
    )
    closed_form: bool | None = _phases(
        None,
        "When the network is cut, give layers that lose inputs the weights that come closest to the dense layers' outputs, by"
        " least squares.",
        shown="where nothing is trained",
    )
    calibration_samples: int = _phases(
        512,
        "Inputs that this takes; the values that both networks compute of them are held in memory, one layer at a time.",
        within="[8, inf)",
    )
    salience_batches: int = _gates(
        20,
        "Batches that measure, before the freeze, how much the loss depends on each gate, which decides what `align` takes;"
        " 0 leaves that to the sizes of the widths.",
        within="[0, inf)",
        flag=None,
    )
    align: int | str | None = alignment(
        "Round kept widths to a multiple of this number, except one that fills the budget; auto picks what onnxruntime"
        " runs best on this CPU, measured once.",
        group=GATES,
        shown="auto; 1 with a penalty or a budget of latency, which knows what widths cost",
    )
    depth: bool | None = _gates(
        None,
        "Let residual branches (blocks, attention, feed-forward layers) close as a whole; else one goes only where all of its"
        " units close one by one.",
        shown="on with a budget of latency, else off",
    )
    uniform: bool = _gates(
        False,
        "Keep the same numbers of heads and widths in all layers, as the configuration of a model of transformers can say them:"
        " transformers then loads the result without l0prune.",
    )
    seed: int = _run(0, "Seed of everything random; batches passed in Python keep their own order.", within="[0, inf)")
    mixed_precision: str = _run(
        "no", "Mixed precision of the training; fp16 needs a GPU.", choices=("no", "bf16", "fp16"), key="precision"
    )
    channels_last: bool = _run(
        True, "Keep 4-dimensional weights and inputs in channels-last memory order while training.", flag=None
    )
    log_every: int = _run(20, "Steps between two lines of metrics.jsonl.", within="[1, inf)")
    batches_per_epoch: int | None = _run(
        None, "Batches that are taken of each pass over the training data.", within="[1, inf)", shown="all"
    )
    checkpoint_minutes: float = _run(
        5.0,
        "Minutes between two checkpoints, besides those that end an epoch; with 0, or in several processes, these are all.",
        within="[0, inf)",
    )
    histogram_every: int = _run(
        1, "Lines of metrics.jsonl between two histograms of the gates.", within="[1, inf)", flag=None
    )

    rules = (
        Rule(
            "distillation_temperature",
            "{distillation=0} leaves nothing for {distillation_temperature} to do: give one of them",
        ),
        Rule(
            "feature_distillation", "{distillation=0} leaves nothing for {feature_distillation} to do: give one of them"
        ),
        Rule(
            "lr_drop_factor",
            "{lr_drop_factor} says how far the learning rate falls at {lr_drops}, which is missing",
            unless=("lr_drops",),
        ),
        Rule("depth", "{uniform} keeps every layer, so {depth} has no effect: leave one of them out"),
        Rule(
            "gate_lr_end", "{gate_lr_end} is the end of the ramp and cosine that {lr_drops} replaces: give one of them"
        ),
    )

    def __post_init__(self) -> None:
        """Check every option alone, then those that depend on each other."""
        super().__post_init__()
        if self.gated_weight_decay and self.optimizer == "adamw":
            raise ConfigError(
                "gated_weight_decay makes the decay a part of the loss, whose gradient adamw would scale: choose adam or sgd"
            )
        if not all(later > earlier for earlier, later in itertools.pairwise((0.0, *self.lr_drops))):
            raise ConfigError(
                f"lr_drops={self.lr_drops!r}: expected epochs after 0 in ascending order, such as (60, 120)"
            )
        self._check_method()
        warmup, gate, settle, recovery = self.phase_lengths(penalised=False)
        closing = gate if self.trains_gates else settle
        if warmup + closing > self.epochs * (1 + 1e-9):
            raise ConfigError(
                f"warm-up ({warmup:g} epochs) and gate phase ({closing:g}) are longer than the whole run"
                f" (epochs={self.epochs:g}): shorten them or raise epochs"
            )
        if self.trains_gates and self.settle_epochs is not None and self.settle_epochs > settle + 1e-9 * self.epochs:
            raise ConfigError(
                f"settle_epochs={self.settle_epochs:g} is more than half of the {settle + recovery:g} epochs that warm-up and"
                " gate phase leave: shorten it, or raise epochs"
            )

    def _check_method(self) -> None:
        """See that method and start of the gates exist, and that what is asked for acts beside them."""
        if self.method not in (None, *method_names()):
            raise ConfigError(f"method={self.method!r} is unknown: choose one of {', '.join(method_names())}")
        if self.method == TRAINED_GATES and not self.epochs:
            raise ConfigError(
                f"epochs=0 trains no gates, so method={TRAINED_GATES} cannot choose: give one of"
                f" {', '.join(criterion_names())}"
            )
        if self.gate_start not in (None, OPEN, *criterion_names()):
            names = ", ".join((OPEN, *criterion_names()))
            raise ConfigError(f"gate_start={self.gate_start!r} is unknown: choose one of {names}")
        if self.gate_training == "evidence" and self.gate_lr is not None:
            raise ConfigError("gate_training=evidence places gates without a learning rate: leave out gate_lr")
        if self.trains_gates:
            return
        acting = {"gate_lr": self.gate_lr, "gate_start": None if self.gate_start == OPEN else self.gate_start}
        name = next((name for name, value in acting.items() if value is not None), None)
        if name is not None:
            raise ConfigError(
                f"method={self.chosen_by} trains no gates, so {name} has no effect: leave one of them out"
            )
        if self.settle_epochs or self.settle_fraction:
            raise ConfigError(
                f"under method={self.chosen_by} the chosen units close within gate_epochs, one after another: give these, and"
                " leave out settle_epochs and settle_fraction"
            )

    @property
    def trains_gates(self) -> bool:
        """Whether gates are trained, instead of being closed by a criterion."""
        return self.chosen_by == TRAINED_GATES

    @property
    def chosen_by(self) -> str:
        """What chooses the units: the method that was asked for, or else what the length of the run leaves."""
        return self.method or (TRAINED_GATES if self.epochs else UNTRAINED)

    def moved_by(self, *, penalised: bool) -> str:
        """What moves the gates, as `gate_training` names it."""
        return self.gate_training or ("gradient" if penalised or self.gate_lr is not None else "evidence")

    def phase_lengths(
        self, *, penalised: bool, steps_per_epoch: int | None = None
    ) -> tuple[float, float, float, float]:
        """Epochs of (warm-up, gate phase, settling, recovery); their sum is `epochs`, recovery is not under settling.

        Under a criterion there is no gate phase, and the epochs that are given for it are spent settling.
        """
        warmup = self.warmup_fraction * self.epochs if self.warmup_epochs is None else self.warmup_epochs
        if not self.trains_gates:
            closing = (self.gate_fraction or 0.0) * self.epochs if self.gate_epochs is None else self.gate_epochs
            return warmup, 0.0, closing, max(0.0, self.epochs - warmup - closing)
        usual = BUDGET_GATE_FRACTION
        if penalised:
            usual = PENALTY_GATE_FRACTION * (1 - warmup / self.epochs)
        elif self.moved_by(penalised=False) == "evidence":
            usual = EVIDENCE_GATE_FRACTION
            if steps_per_epoch is not None:
                n_steps = max(1.0, self.epochs * steps_per_epoch)
                usual = max(usual * min(1.0, (EVIDENCE_STEPS / n_steps) ** 0.5), 1.0 / n_steps)
        share = usual if self.gate_fraction is None else self.gate_fraction
        gate = share * self.epochs if self.gate_epochs is None else self.gate_epochs
        rest = max(0.0, self.epochs - warmup - gate)
        settle = self.settle_fraction * self.epochs if self.settle_epochs is None else self.settle_epochs
        settle = min(settle, rest / 2)
        return warmup, gate, settle, rest - settle
