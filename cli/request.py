"""What a fine-tuning run was asked for: read from the command line, written to run.json, read back."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0prune.cli.options import ModelOptions, flag
from l0prune.errors import ConfigError, FileFormatError
from l0prune.plain_data import read_fields

if TYPE_CHECKING:
    from l0prune.finetuning.config import FinetuneConfig
    from l0prune.run_directory import RunRecord

__all__ = ["FinetuneOptions", "FinetuneRequest"]

PATH_PREFIXES = ("npz", "mnist", "cifar10", "folder", "hf")
CONFIG_FIELDS = (
    *("epochs", "warmup_epochs", "gate_epochs", "settle_epochs"),
    *(
        "optimizer",
        "lr",
        "gate_lr_end",
        "lr_drop_factor",
        "recovery_lr",
        "grad_clip",
        "grad_spike",
        "gate_lr",
        "ema_decay",
    ),
    *("weight_decay", "gated_weight_decay"),
    *("distillation_temperature", "feature_distillation", "recalibration_batches", "log_every", "seed"),
)


@dataclass(frozen=True)
class FinetuneOptions:
    """The options of `l0prune finetune`, one field each; None leaves the choice to the library.

    Args:
        budget: As in `macs=0.5`; empty with a penalty.
        penalty: As in `lambda=0.1` or `fc1=10,conv2=0.5`; empty with a budget.
        from_scratch: Begin with the random weights that `seed` gives.
        gate: Name of the gate distribution.
        gate_args: Parameters of it in the place of its defaults.
        ignore: Modules and parameters whose units stay.
        task: What the network is for; None until resolved.
        task_args: Arguments of the task in the place of its defaults.
        epochs: Length of the run in passes over the training data.
        warmup_epochs: Passes with all gates open.
        gate_epochs: Passes that learn the gates.
        settle_epochs: Passes in which the gates that the cut takes close one after another.
        batch_size: Inputs of one step.
        optimizer: "sgd" or "adamw".
        lr: Peak learning rate while gates are learned.
        gate_lr_end: Share of it that is left at the end.
        lr_drops: Epochs at which it falls instead, as in `60,120`; empty for a ramp and a cosine.
        lr_drop_factor: What it is multiplied by then.
        recovery_lr: Peak learning rate of the recovery.
        weight_decay: Decay of matrices and filters.
        gated_weight_decay: Decay of gated matrices by the probability that their gates are open.
        droprate_init: Where gates start, as in `0.5,fc1=0.2`; empty for nearly open.
        grad_clip: Largest norm of the gradient; 0 does not limit it.
        grad_spike: Largest norm as a multiple of what was usual lately; 0 does not look at it.
        gate_lr: Learning rate of the gates.
        ema_decay: Decay of a moving average of weights and gates.
        augment: Change training images at random.
        distillation: Weight of the dense network's teaching, in [0, 1]; 0 trains without it.
        distillation_temperature: Temperature of teacher and student.
        feature_distillation: Weight of the dense network's teaching by the features of each block.
        recalibration_batches: Batches that re-estimate BatchNorm statistics after the freeze.
        align: Round kept widths to multiples of this; "auto" or None until resolved.
        precision: "no", "bf16" or "fp16".
        device: "auto", "cpu" or "cuda".
        seed: Seed of everything random.
        log_every: Steps between lines of metrics.jsonl.
    """

    budget: str = ""
    penalty: str = ""
    from_scratch: bool = False
    gate: str = "hard-concrete"
    gate_args: dict[str, Any] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    task: str | None = None
    task_args: dict[str, Any] = field(default_factory=dict)
    epochs: float | None = None
    warmup_epochs: float | None = None
    gate_epochs: float | None = None
    settle_epochs: float | None = None
    batch_size: int = 128
    optimizer: str | None = None
    lr: float | None = None
    gate_lr_end: float | None = None
    lr_drops: str = ""
    lr_drop_factor: float | None = None
    recovery_lr: float | None = None
    weight_decay: float | None = None
    gated_weight_decay: bool = False
    droprate_init: str = ""
    grad_clip: float | None = None
    grad_spike: float | None = None
    gate_lr: float | None = None
    ema_decay: float | None = None
    augment: bool | None = None
    distillation: float | None = None
    distillation_temperature: float | None = None
    feature_distillation: float | None = None
    recalibration_batches: int | None = None
    align: str | int | None = None
    precision: str = "no"
    device: str = "auto"
    seed: int = 0
    log_every: int | None = None

    def config(self) -> "FinetuneConfig":
        """The library's configuration, `align` being a number by now.

        Raises:
            ConfigError: if a value is out of its range.
        """
        from l0prune.finetuning.config import FinetuneConfig

        given = {name: getattr(self, name) for name in (*CONFIG_FIELDS, "distillation")}
        known = {name: value for name, value in given.items() if value is not None}
        known["lr_drops"] = read_epochs(self.lr_drops)
        if self.from_scratch:
            known.setdefault("distillation", 0.0)
        config = FinetuneConfig(**known, align=int(self.align or 1), mixed_precision=self.precision)
        return config.resolved(penalised=bool(self.penalty))

    def resolved(self, *, augment: bool) -> "FinetuneOptions":
        """The same options with every default written out.

        Args:
            augment: What to do where the user did not say.

        Raises:
            ConfigError: if a value is out of its range.
        """
        from l0prune.measuring.alignment import resolve_alignment

        numbered = replace(
            self,
            align=resolve_alignment(self.align or (1 if self.penalty else "auto")),
            augment=augment if self.augment is None else self.augment,
        )
        config = numbered.config()
        warmup, gate, settle, _ = config.phase_epochs
        lengths = {"warmup_epochs": warmup, "gate_epochs": gate, "settle_epochs": settle}
        defaults = {name: getattr(config, name) for name in (*CONFIG_FIELDS, "distillation")} | lengths
        rates = {"lr": config.peak_lr, "recovery_lr": config.peak_recovery_lr, "weight_decay": config.decay}
        return replace(numbered, **(defaults | rates))


@dataclass(frozen=True)
class FinetuneRequest:
    """Model, data and options of a run.

    Args:
        model: The dense model.
        data: Data specification.
        options: Everything else.
    """

    model: ModelOptions
    data: str
    options: FinetuneOptions

    @property
    def initial_seed(self) -> int:
        """Seed of the weights that the model is built with."""
        return self.options.seed if self.options.from_scratch else 0

    def to_record(self) -> dict[str, dict[str, Any]]:
        """The parts of run.json that describe it: config, model and data, plain JSON values."""
        model = self.model.to_json()
        return {
            "config": asdict(self.options),
            "model": {**model, "spec": absolute(model["spec"])},
            "data": {"spec": absolute(self.data)},
        }

    @classmethod
    def from_record(cls, record: "RunRecord") -> "FinetuneRequest":
        """What a run was asked for. Options that came after it have their defaults.

        Raises:
            FileFormatError: if a part has unknown keys or values of another kind.
        """
        remedy = "start the run again"
        if set(record.data) != {"spec"} or not isinstance(record.data["spec"], str):
            raise FileFormatError(f"run.json, data, is no specification; {remedy}")
        options = read_fields(FinetuneOptions, record.config, "run.json, config", remedy=remedy)
        return cls(ModelOptions.from_json(record.model), record.data["spec"], options)

    def require_same(self, given: "FinetuneRequest", explicit: set[str]) -> None:
        """See that what is typed with `--resume` is what the run began with.

        Args:
            given: The request as typed.
            explicit: Names of the parameters that were typed; the others do not count.

        Raises:
            ConfigError: names the first difference.
        """
        before, now = self._flat(), given._flat()
        for name in sorted(explicit & now.keys()):
            same = now[name] == before[name] or (name == "align" and now[name] == "auto")
            if not same:
                raise ConfigError(
                    f"{flag(name)} is {as_typed(now[name])} and was {as_typed(before[name])} when the run began; "
                    "leave it out to resume, or begin another run with --out or --overwrite"
                )

    def _flat(self) -> dict[str, Any]:
        """Every option by the name of its parameter, as it comes back from run.json: a tuple is a list there."""
        record = json.loads(json.dumps(self.to_record()))
        named = {"distillation_weight": record["config"]["distillation"], "data_spec": record["data"]["spec"]}
        return {**record["model"], **record["config"], **named}


def as_typed(value: Any) -> str:
    """The value of an option as it is typed."""
    if value is None or (value in ({}, [], "") and not isinstance(value, bool | int | float)):
        return "not given"
    if isinstance(value, dict):
        return " ".join(f"{key}={inner}" for key, inner in value.items())
    if isinstance(value, list):
        return ",".join(map(str, value))
    return repr(value)


def read_epochs(text: str) -> tuple[float, ...]:
    """Numbers separated by commas; none of an empty text.

    Raises:
        ConfigError: if a part is not a number.
    """
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise ConfigError(f"--lr-drops {text}: expected epochs separated by commas, as in 60,120,160") from error


def absolute(spec: str) -> str:
    """A specification whose path, if it has one, does not depend on the working directory."""
    kind, colon, rest = spec.partition(":")
    if colon and kind in PATH_PREFIXES and rest:
        return f"{kind}:{Path(rest).expanduser().absolute()}"
    from l0prune.sources.compact_folder import is_compact_folder

    return str(Path(spec).expanduser().absolute()) if spec.endswith(".pt2") or is_compact_folder(spec) else spec
