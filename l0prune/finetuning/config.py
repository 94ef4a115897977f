"""Everything a fine-tuning run can be told, validated once, with defaults that were measured."""

from __future__ import annotations

import itertools
import math
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

from l0prune.errors import ConfigError

__all__ = [
    "BUDGET_GATE_FRACTION",
    "OPTIMIZERS",
    "PENALTY_GATE_FRACTION",
    "PRECISIONS",
    "FinetuneConfig",
    "OptimizerDefaults",
]

LARGEST = 2**63 - 1


@dataclass(frozen=True)
class OptimizerDefaults:
    """What an optimizer starts from when the user names no numbers.

    Args:
        lr: Peak learning rate while gates are trained.
        recovery_lr: Peak learning rate of the recovery of the compact network.
        weight_decay: Decay of matrices and filters (never of norms and biases).
    """

    lr: float
    recovery_lr: float
    weight_decay: float


OPTIMIZERS = {
    "sgd": OptimizerDefaults(lr=0.02, recovery_lr=0.03, weight_decay=1e-4),
    "adam": OptimizerDefaults(lr=1e-3, recovery_lr=1e-3, weight_decay=0.0),
    "adamw": OptimizerDefaults(lr=3e-4, recovery_lr=1e-3, weight_decay=0.02),
}
PRECISIONS = ("no", "bf16", "fp16")
GATE_DECISIONS = ("soft", "binary")
BUDGET_GATE_FRACTION, PENALTY_GATE_FRACTION = 0.2, 0.8


@dataclass(frozen=True)
class FinetuneConfig:
    """Options of `l0prune.finetune`.

    Args:
        epochs: Length of the whole run, > 0; fractions of an epoch are allowed.
        warmup_fraction: Share of `epochs` with all gates open, in [0, 1).
        gate_fraction: Share of `epochs` that trains gates and weights together, in (0, 1]; recovery takes the rest. None is
            0.2 with a budget, and with a penalty 0.8 of what the warm-up leaves.
        settle_fraction: Share of `epochs`, taken from the recovery, in which the gates that the cut takes although
            training left them open close one after another, at most half of it, in [0, 1); 0 cuts them at once.
        warmup_epochs: Length of the warm-up in epochs; overrides `warmup_fraction`.
        gate_epochs: Length of the gate phase in epochs, > 0; overrides `gate_fraction`.
        settle_epochs: Length of the settling in epochs; overrides `settle_fraction`.
        optimizer: "sgd" (Nesterov momentum), "adam" (weight decay as a part of the gradient) or "adamw" (apart from it).
        lr: Peak learning rate of the weights while gates are trained; None takes the optimizer's own.
        recovery_lr: Peak learning rate of settling and recovery, which share one schedule; None takes the optimizer's own.
        lr_ramp: Share of each stretch of training over which its learning rate rises linearly, in [0, 1).
        gate_lr_end: Learning rate at the end of the gate phase as a share of `lr`, in [0, 1] (cosine between them).
        recovery_lr_end: The same for the recovery.
        lr_drops: Epochs, ascending, at which the learning rate before the freeze is multiplied by `lr_drop_factor`. It is `lr`
            from the first step to the first of them; ramp and cosine only take place where there are none.
        lr_drop_factor: In (0, 1).
        weight_decay: Decay of matrices and filters, >= 0; norms and biases never decay; None takes the optimizer's own.
        gated_weight_decay: While gates are trained, decay the matrices they multiply as a part of the loss, each weight by
            the probability that its gates are open, as in the L0 paper; all others decay as ever. Not with "adamw".
        momentum: Nesterov momentum of "sgd", in [0, 1).
        grad_clip: Largest L2 norm of the weights' gradient, >= 0; 0 does not clip.
        grad_spike: A gradient's norm is at most this many times the median of the last 50, >= 1; 0 does not look at them.
        gate_lr: Learning rate of the gates; None lets the gated model choose by the number of gate steps.
        distillation: Weight of the teacher's loss, in [0, 1]; the task loss has the rest. 0 trains without a teacher.
        distillation_temperature: Temperature of teacher and student, > 0.
        feature_distillation: Weight of the loss that teaches each block of the cut network by the channels it kept of the
            dense one's, >= 0; needs `distillation` > 0 and no other teacher. 0 teaches by logits alone.
        ema_decay: Decay of a moving average of all weights and of the gates from the first step on, in (0, 1). It is evaluated in
            their place, the freeze decides by it and cuts it, and, begun anew, it is what the recovery ends with. None takes
            weights and gates as they are.
        gate_decision: What an open gate is worth after the freeze: "soft" keeps its trained value (at least
            `gate_floor`), "binary" makes it 1. None is "binary" with a budget, and "soft" with a penalty, where exactly what
            was trained is cut.
        gate_floor: Least value of an open gate under "soft", in (0, 1].
        recalibration_batches: Batches that re-estimate the BatchNorm statistics after the cut; 0 leaves them.
        salience_batches: Batches that measure how much the loss depends on each gate before the freeze, which decides
            what rounding to `align` takes; 0 leaves that to the widths' sizes.
        align: The freeze rounds kept widths to multiples of this, >= 1, or to what onnxruntime likes on this machine
            ("auto"), measured once; None is "auto" with a budget, 1 with a penalty.
        seed: Seed of everything random but the data's order, which belongs to the batches.
        mixed_precision: "no", "bf16" or "fp16" (GPU only).
        channels_last: Keep 4-dimensional weights and inputs in channels-last memory order while training.
        log_every: Steps between lines of metrics.jsonl, >= 1.
        histogram_every: Log lines between histograms of the open probabilities, >= 1.

    Raises:
        ConfigError: if a value is out of its range.

    Source: phases and freeze, docs of the budget in ARCHITECTURE.md; distillation, Hinton et al. (2015), section 2.
    """

    epochs: float = 6.0
    warmup_fraction: float = 0.0
    gate_fraction: float | None = None
    settle_fraction: float = 0.0
    warmup_epochs: float | None = None
    gate_epochs: float | None = None
    settle_epochs: float | None = None
    optimizer: str = "sgd"
    lr: float | None = None
    recovery_lr: float | None = None
    lr_ramp: float = 0.05
    gate_lr_end: float = 0.0
    recovery_lr_end: float = 0.0
    lr_drops: tuple[float, ...] = ()
    lr_drop_factor: float = 0.2
    weight_decay: float | None = None
    gated_weight_decay: bool = False
    momentum: float = 0.9
    grad_clip: float = 50.0
    grad_spike: float = 4.0
    gate_lr: float | None = None
    distillation: float = 0.9
    distillation_temperature: float = 4.0
    feature_distillation: float = 5.0
    ema_decay: float | None = None
    gate_decision: str | None = None
    gate_floor: float = 0.1
    recalibration_batches: int = 20
    salience_batches: int = 20
    align: int | str | None = None
    seed: int = 0
    mixed_precision: str = "no"
    channels_last: bool = True
    log_every: int = 20
    histogram_every: int = 1

    def __post_init__(self) -> None:
        """Check every field; the message names the field, the value and the range."""
        self._check_types()
        self._check_phases()
        self._check_optimization()
        self._check_one_of("gate_decision", GATE_DECISIONS)
        self._check_one_of("mixed_precision", PRECISIONS)
        self._check_range("distillation", 0, 1)
        self._check_range("distillation_temperature", 0, math.inf, open_low=True)
        for name in ("feature_distillation", "grad_clip"):
            self._check_range(name, 0, math.inf)
        if self.grad_spike != 0:
            self._check_range("grad_spike", 1, math.inf)
        self._check_range("gate_floor", 0, 1, open_low=True)
        for name in ("recalibration_batches", "salience_batches"):
            self._check_range(name, 0, LARGEST)
        for name in ("log_every", "histogram_every"):
            self._check_range(name, 1, LARGEST)
        self._check_range("seed", 0, LARGEST)
        self._check_align()

    @property
    def defaults(self) -> OptimizerDefaults:
        """Numbers of the chosen optimizer."""
        return OPTIMIZERS[self.optimizer]

    @property
    def peak_lr(self) -> float:
        """Peak learning rate of warm-up and gate phase."""
        return self.defaults.lr if self.lr is None else self.lr

    @property
    def peak_recovery_lr(self) -> float:
        """Peak learning rate of the recovery."""
        return self.defaults.recovery_lr if self.recovery_lr is None else self.recovery_lr

    @property
    def decay(self) -> float:
        """Weight decay of matrices and filters."""
        return self.defaults.weight_decay if self.weight_decay is None else self.weight_decay

    @property
    def phase_epochs(self) -> tuple[float, float, float, float]:
        """Epochs of (warm-up, gate phase, settling, recovery); their sum is `epochs`, recovery is not under settling."""
        warmup = self.warmup_fraction * self.epochs if self.warmup_epochs is None else self.warmup_epochs
        share = BUDGET_GATE_FRACTION if self.gate_fraction is None else self.gate_fraction
        gate = share * self.epochs if self.gate_epochs is None else self.gate_epochs
        rest = max(0.0, self.epochs - warmup - gate)
        settle = self.settle_fraction * self.epochs if self.settle_epochs is None else self.settle_epochs
        settle = min(settle, rest / 2)
        return warmup, gate, settle, rest - settle

    @property
    def rounding(self) -> int:
        """What kept widths are multiples of; "auto" is measured, and remembered."""
        from l0prune.measuring.alignment import resolve_alignment

        return resolve_alignment("auto" if self.align is None else self.align)

    def resolved(self, *, penalised: bool) -> FinetuneConfig:
        """With what depends on the goal of the run written out.

        Args:
            penalised: Whether open gates have a fixed price, instead of a budget for all.
        """
        if not penalised:
            share = self.gate_fraction or BUDGET_GATE_FRACTION
            decision = self.gate_decision or "binary"
            return replace(self, gate_fraction=share, gate_decision=decision, align=self.rounding)
        warmup, *_ = self.phase_epochs
        share = PENALTY_GATE_FRACTION * (1 - warmup / self.epochs) if self.gate_fraction is None else self.gate_fraction
        align, decision = 1 if self.align is None else self.rounding, self.gate_decision or "soft"
        return replace(self, gate_fraction=share, gate_decision=decision, align=align)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one key a field."""
        return {**asdict(self), "lr_drops": list(self.lr_drops)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FinetuneConfig:
        """The configuration that `to_json` wrote.

        Raises:
            ConfigError: if a key is unknown or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise ConfigError(f"fine-tuning has no option {', '.join(map(repr, unknown))}; options: {', '.join(known)}")
        return cls(**{**data, "lr_drops": tuple(data.get("lr_drops", ()))})

    def _check_types(self) -> None:
        """Each value has the kind of its default; None only where the default allows it."""
        for field in fields(self):
            value = getattr(self, field.name)
            optional = "None" in str(field.type)
            kind = str(field.type).removesuffix(" | None")
            if value is None and optional:
                continue
            fits = {
                "float": isinstance(value, (int, float)) and not isinstance(value, bool),
                "int": isinstance(value, int) and not isinstance(value, bool),
                "bool": isinstance(value, bool),
                "int | str": isinstance(value, (int, str)) and not isinstance(value, bool),
                "str": isinstance(value, str),
                "tuple[float, ...]": isinstance(value, tuple) and all(isinstance(v, (int, float)) for v in value),
            }[kind]
            if not fits:
                default = None if field.default is MISSING else field.default
                raise ConfigError(f"{field.name}={value!r}: expected {field.type}, such as {default!r}")

    def _check_range(
        self, name: str, low: float, high: float, *, open_low: bool = False, open_high: bool = False
    ) -> None:
        value = getattr(self, name)
        if value is None:
            return
        inside = (low < value if open_low else low <= value) and (value < high if open_high else value <= high)
        if not inside or not math.isfinite(value):
            left, right = ("(" if open_low else "["), (")" if open_high or high == math.inf else "]")
            raise ConfigError(f"{name}={value!r} is out of range: give a value in {left}{low}, {high}{right}")

    def _check_one_of(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value is not None and value not in choices:
            raise ConfigError(f"{name}={value!r} is unknown: choose one of {', '.join(choices)}")

    def _check_align(self) -> None:
        is_number = isinstance(self.align, int) and self.align >= 1
        if not is_number and self.align not in (None, "auto"):
            raise ConfigError(
                f"align={self.align!r} is out of range: give 'auto' or a whole number of channels, 1 or more"
            )

    def _check_phases(self) -> None:
        self._check_range("epochs", 0, math.inf, open_low=True)
        self._check_range("warmup_fraction", 0, 1, open_high=True)
        self._check_range("gate_fraction", 0, 1, open_low=True)
        self._check_range("warmup_epochs", 0, math.inf)
        self._check_range("gate_epochs", 0, math.inf, open_low=True)
        self._check_range("settle_fraction", 0, 1, open_high=True)
        self._check_range("settle_epochs", 0, math.inf)
        warmup, gate, settle, recovery = self.phase_epochs
        if warmup + gate > self.epochs * (1 + 1e-9):
            raise ConfigError(
                f"warm-up ({warmup:g} epochs) and gate phase ({gate:g}) are longer than the whole run"
                f" (epochs={self.epochs:g}): shorten them or raise epochs"
            )
        if self.settle_epochs is not None and self.settle_epochs > settle + 1e-9 * self.epochs:
            raise ConfigError(
                f"settle_epochs={self.settle_epochs:g} is more than half of the {settle + recovery:g} epochs that warm-up and"
                " gate phase leave: shorten it, or raise epochs"
            )

    def _check_optimization(self) -> None:
        self._check_one_of("optimizer", tuple(OPTIMIZERS))
        for name in ("lr", "recovery_lr", "gate_lr"):
            self._check_range(name, 0, math.inf, open_low=True)
        self._check_range("weight_decay", 0, math.inf)
        for name in ("lr_ramp", "momentum"):
            self._check_range(name, 0, 1, open_high=True)
        for name in ("gate_lr_end", "recovery_lr_end"):
            self._check_range(name, 0, 1)
        if self.gated_weight_decay and self.optimizer == "adamw":
            raise ConfigError(
                "gated_weight_decay makes the decay a part of the loss, whose gradient adamw would scale: choose adam or sgd"
            )
        self._check_range("lr_drop_factor", 0, 1, open_low=True, open_high=True)
        if not all(later > earlier for earlier, later in itertools.pairwise((0.0, *self.lr_drops))):
            raise ConfigError(
                f"lr_drops={self.lr_drops!r}: expected epochs after 0 in ascending order, such as (60, 120)"
            )
        self._check_range("ema_decay", 0, 1, open_low=True, open_high=True)
