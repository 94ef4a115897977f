"""Prune within the Trainer of Lightning: `Trainer(callbacks=[L0Prune(budget=...)])` over a module that holds a gated model."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from l0prune.errors import ConfigError
from l0prune.integrations.pruning import Prunes

__all__ = ["L0Prune"]


class L0Prune(Prunes, Callback):
    """Learns the gates of the gated model in a LightningModule, cuts it on the way, and leaves the rest of the steps to recovery.

    The module's steps and optimizer stay as they are, with accumulated batches, mixed precision, several processes and the
    Trainer's own checkpoints; `trainer.fit(module, ckpt_path=...)` goes on where it stopped. Costs are in its log.

        self.net = l0prune.inject(net, l0prune.trace(net, example))        # in the module
        pruning = L0Prune(budget=l0prune.Budget("macs", 0.5))
        Trainer(callbacks=[pruning]).fit(module, data)
        l0prune.save(pruning.compact, "small")

    Arguments are those of `Prunes`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the gated model."""
        if stage == "fit":
            self.pruning.attach(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the pace."""
        total = trainer.estimated_stepping_batches
        if not 0 < total < float("inf"):
            raise ConfigError(
                "the pace of the gates needs the number of steps: give the Trainer max_steps or max_epochs"
            )
        self.pruning.begin(int(total))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Move the gates."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.pruning.before_step(1.0 if scaler is None else scaler.get_scale())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Freeze and cut when it is time; log the costs."""
        self.pruning.after_step(trainer.global_step, trainer.optimizers)
        self.log_dict(self.pruning.costs())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the compact network out."""
        self.pruning.finish()
