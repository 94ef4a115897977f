"""What the options of a run come to, with every number that they leave open written out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from l0prune.criteria.registry import GATES as TRAINED_GATES
from l0prune.errors import ConfigError
from l0prune.finetuning.config import FULL_STEPS, OPEN, OPTIMIZERS, FinetuneConfig

__all__ = ["Settings", "continued", "resolve"]


def resolve(
    config: FinetuneConfig,
    *,
    penalised: bool,
    knows_widths: bool = False,
    steps_per_epoch: int | None = None,
    suited: str = "sgd",
) -> Settings:
    """What these options come to, all numbers written out.

    Args:
        config: Options, or settings, which stay as they are.
        penalised: Whether open gates have a fixed price, instead of a budget for all.
        knows_widths: Whether a budget is measured (`Goal.knows_widths`), so that widths are rounded only on request.
        steps_per_epoch: Batches in one pass over the data, >= 1; None leaves out what follows from the number of steps.
        suited: The optimizer of a network like this one, where none is asked for.

    Raises:
        ConfigError: a criterion is to choose, and there is no budget that says how many units.
    """
    from l0prune.measuring.alignment import resolve_alignment

    if penalised and not config.trains_gates:
        raise ConfigError(
            f"method={config.chosen_by} closes as many units as a budget asks for, and a penalty is a price for gates that are"
            f" trained: give a budget, or method={TRAINED_GATES}"
        )
    if penalised and config.gate_training == "evidence":
        raise ConfigError(
            "gate_training=evidence finds the price that a budget leaves, and a penalty fixes it: leave out one of them"
        )
    warmup, gate, settle, _ = config.phase_lengths(penalised=penalised, steps_per_epoch=steps_per_epoch)
    align = (1 if penalised or knows_widths else "auto") if config.align is None else config.align
    optimizer = config.optimizer or ("adam" if suited == "adamw" and config.gated_weight_decay else suited)
    usual = OPTIMIZERS[optimizer]
    restarts = penalised or config.recovery_lr is not None or config.gate_lr_end is not None or bool(config.lr_drops)
    n_steps = FULL_STEPS if steps_per_epoch is None else min(FULL_STEPS, max(1.0, config.epochs * steps_per_epoch))
    written_out = {
        "optimizer": optimizer,
        "lr": config.lr or usual["lr"] * (1.0 if restarts else (n_steps / FULL_STEPS) ** usual["short_run"]),
        "weight_decay": usual["weight_decay"] if config.weight_decay is None else config.weight_decay,
        "recovery_lr": (config.recovery_lr or usual["recovery_lr"]) if restarts else None,
        "gate_lr_end": (config.gate_lr_end or 0.0) if restarts else None,
        "method": config.chosen_by,
        "closed_form": config.epochs == 0 if config.closed_form is None else config.closed_form,
        "warmup_epochs": warmup,
        "gate_epochs": gate if config.trains_gates else settle,
        "settle_epochs": settle if config.trains_gates else 0.0,
        "gate_start": config.gate_start or OPEN,
        "gate_training": config.moved_by(penalised=penalised),
        "warmup_fraction": 0.0,
        "gate_fraction": None,
        "settle_fraction": 0.0,
        "gate_decision": config.gate_decision or ("soft" if penalised else "binary"),
        "align": resolve_alignment(align),
        "depth": knows_widths and not penalised if config.depth is None else config.depth,
    }
    return Settings(**{**vars(config), **written_out})


def continued(config: FinetuneConfig | None, began: Settings) -> FinetuneConfig:
    """The options of a run that goes on: what they leave open is as it was when the run began.

    What it comes to by itself may be another now: the defaults, the look at the network or the processor.

    Args:
        config: As `finetune` takes it; None leaves all open.
        began: What the run is trained with.

    Returns:
        Options that differ from `began` in what was asked for alone.
    """
    if config is None:
        return began
    shares = {"warmup_epochs": config.warmup_fraction, "gate_epochs": config.gate_fraction}
    shares["settle_epochs"] = config.settle_fraction
    left_open = [
        name
        for name, value in vars(config).items()
        if (value is None or (name, value) == ("align", "auto")) and not shares.get(name)
    ]
    try:
        return replace(config, **{name: getattr(began, name) for name in left_open})
    except ConfigError:  # beside what is asked for now, it cannot be: the checkpoint will say what differs
        return config


class Settings(FinetuneConfig):
    """What the options of a run come to: what was left open is written out, under the same names."""

    if TYPE_CHECKING:
        method: str
        closed_form: bool
        optimizer: str
        lr: float
        weight_decay: float
        warmup_epochs: float
        gate_epochs: float
        settle_epochs: float
        gate_decision: str
        gate_start: str
        gate_training: str
        align: int
        depth: bool

    @property
    def phase_epochs(self) -> tuple[float, float, float, float]:
        """Epochs of (warm-up, gate phase, settling, recovery)."""
        return self.phase_lengths(penalised=False)
