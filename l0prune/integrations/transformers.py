"""Prune within the Trainer of transformers: `Trainer(model=gated, callbacks=[L0PruneCallback(budget=...)])`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from l0prune.errors import ConfigError
from l0prune.integrations.pruning import Prunes

__all__ = ["L0PruneCallback"]


class L0PruneCallback(Prunes, TrainerCallback):
    """Learns the gates of the Trainer's model, cuts it on the way, and leaves the rest of the steps to its recovery.

    The Trainer is used as it is, with gradient accumulation, mixed precision, several processes, activation checkpointing and its
    own checkpoints; `trainer.train(resume_from_checkpoint=True)` goes on where it stopped. Costs are in its log.

        gated = l0prune.inject(model, l0prune.trace(model, example))
        pruning = L0PruneCallback(budget=l0prune.Budget("macs", 0.5))
        Trainer(model=gated, args=args, train_dataset=data, callbacks=[pruning]).train()
        l0prune.hf.save_pretrained(pruning.compact, "small")

    Arguments are those of `Prunes`.
    """

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """See that the Trainer trains a gated model, in a way that it can be."""
        if args.n_gpu > 1:
            raise ConfigError("one process cannot share a gated model among GPUs: start one for each with torchrun")
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise ConfigError(
                "FSDP and DeepSpeed split the weights that gates multiply: train with DDP, or in one process"
            )
        self.pruning.attach(given["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Set the pace."""
        half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self.pruning.begin(state.max_steps, dtype=half)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Move the gates."""
        scaler = getattr(given.get("optimizer"), "scaler", None)
        self.pruning.before_step(1.0 if scaler is None else scaler.get_scale())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Freeze and cut when it is time."""
        self.pruning.after_step(state.global_step, [given["optimizer"]])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Add the costs to the log."""
        logs = given.get("logs")
        if logs and "loss" in logs:
            costs = self.pruning.costs()
            logs.update(costs)
            if state.log_history:
                state.log_history[-1].update(costs)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Take the compact network out."""
        self.pruning.finish()
