"""Pruning as another library trains: when gates move, when the network is cut, what of it goes into a checkpoint."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from l0prune.errors import CheckpointError, ConfigError, L0PruneWarning
from l0prune.finetuning.config import FinetuneConfig
from l0prune.finetuning.features import FeatureSite, feature_sites
from l0prune.finetuning.freezing import decided_values
from l0prune.finetuning.schedule import plan_phases
from l0prune.finetuning.settings import resolve
from l0prune.gated.decision import choose_open
from l0prune.gated.model import GatedModel
from l0prune.goals.budget import Budget, one_goal
from l0prune.goals.goal import Goal
from l0prune.goals.penalty import Penalty
from l0prune.integrations.handover import hand_over_
from l0prune.integrations.teaching import DenseTeacher
from l0prune.surgery.shrink import absorb_, shrink, surgery_of

__all__ = ["Prunes", "Pruning"]

_STATE = "gates.training"


class Pruning:
    """The part of a training that prunes: gates learned beside the weights, a cut, and recovery of what is left.

    Before the cut the trainer's model is the gated one. From the cut on it holds the compact network, whose weights the optimizer
    takes over with what it has gathered about them; several processes go on with frozen gates instead, which is the same
    network, and cut at the end. All of it goes into the gated model's state dict, and so into the trainer's own checkpoints.

    Args:
        goal: What is wanted of the gates; None keeps the one that the gated model was injected with.
        config: Share of the steps that learns the gates, alignment, and the teacher, which teaches where the model's outputs
            have `loss` and `logits`, as those of transformers do.

    Attributes:
        compact: The network that was cut; None before.
    """

    def __init__(self, goal: Goal | None, config: FinetuneConfig) -> None:
        self._goal, self._config = goal, config
        self.compact: nn.Module | None = None
        self._gated: GatedModel | None = None
        self._restored: dict[str, Any] | None = None
        self._teacher: DenseTeacher | None = None
        self._freeze_at = 0

    @property
    def gated(self) -> GatedModel:
        """The gated model.

        Raises:
            ConfigError: none has been found yet.
        """
        if self._gated is None:
            raise ConfigError("there is no gated model to prune yet: this object works within a trainer")
        return self._gated

    def attach(self, model: nn.Module) -> None:
        """Find the gated model in what is trained, and have its state dict hold all that a resumed training needs.

        Raises:
            ConfigError: there is none, there are several, or nothing says what it may cost.
        """
        found = [module for module in model.modules() if isinstance(module, GatedModel)]
        if len(found) != 1:
            raise ConfigError(
                f"{len(found)} gated models in the {type(model).__name__} that is trained; expected one, from l0prune.inject()"
            )
        if self._gated is found[0]:
            return
        if self._goal is None and not found[0].goal.kind:
            raise ConfigError("nothing says what the network may cost: pass budget=l0prune.Budget('macs', 0.5)")
        self._gated = found[0]
        self._goal = found[0].goal if self._goal is None else self._goal
        self._goal.check(found[0].costs, found[0].gates)
        if self._config.distillation > 0:
            config = self._config
            self._teacher = DenseTeacher(
                found[0].model, config.distillation, config.distillation_temperature, config.feature_distillation
            )
            self._teacher.attach(found[0])
        found[0].register_state_dict_post_hook(partial(self._save))  # a method takes no mark
        found[0].register_load_state_dict_pre_hook(self._load)

    def begin(self, total: int, *, dtype: torch.dtype | None = None) -> None:
        """Before the first step, of this training or after it was resumed.

        Args:
            total: Optimizer steps of the whole training, >= 1.
            dtype: What the trainer computes in outside of the model's call, for the teacher; None is as it is.
        """
        gated, goal = self.gated, self._goal
        assert goal is not None
        asked = resolve(self._config, penalised=goal.kind == "penalty", steps_per_epoch=total)
        phases = plan_phases(asked, total)
        self._settings, self._freeze_at = asked, phases.freeze_at
        if self._teacher is not None:
            self._teacher.dtype = dtype
        gated.set_goal(goal, phases.gate)
        if self._restored is not None:
            gated.load_training_state(self._restored)
            self._restored = None
        gated.train()

    def before_step(self, scale: float = 1.0) -> None:
        """When all gradients of a step are there: move the gates.

        Args:
            scale: What the loss was multiplied by before the backward pass, and the weights' gradients divided by since.
        """
        gated = self.gated
        if gated.frozen or not gated.gates.unscale_gradient_(scale):
            return
        if not gated.gates.watched:  # gates that are placed by evidence have no use for its gradient
            gated.penalty().backward()
        gated.step()

    def after_step(self, step: int, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """When the weights have moved: freeze the gates and cut the network if it is time.

        Args:
            step: Optimizer steps done.
            optimizers: Those of the trainer.
        """
        if step >= self._freeze_at and not self.gated.frozen:
            self._freeze()
            dense = self.gated.model
            if _n_processes() == 1 and self._cut():
                for optimizer in optimizers:
                    hand_over_(optimizer, self.gated, dense, self.gated.model)

    def finish(self) -> nn.Module:
        """After the last step: the compact network in evaluation mode; the gated model computes the same."""
        gated = self.gated
        if self.compact is not None:
            gated.stand_for_(None)
            absorb_(gated, self.compact.eval())
            gated.eval()
            return self.compact
        if not gated.frozen:
            warnings.warn(
                "the training ended, or went back to a checkpoint, before the gates were decided: the network is cut without"
                " recovery; train longer, or set a smaller gate_fraction",
                L0PruneWarning,
                stacklevel=2,
            )
            self._freeze()
        with self._as_traced() as device:
            self.compact = shrink(gated).to(device)
        return self.compact

    def costs(self) -> dict[str, float]:
        """What the network costs now, in each metric of its budget, as shares of dense, to be logged."""
        gated, names = self.gated, self.gated.goal.metrics
        hard = {f"l0prune_{name}": gated.hard_cost(name) for name in names}
        if gated.frozen:
            return hard
        return hard | {f"l0prune_expected_{name}": float(gated.expected_cost(name).detach()) for name in names}

    def _freeze(self) -> None:
        """Decide which gates stay; alike in all processes."""
        gated, goal = self.gated, self.gated.goal
        is_open = choose_open(gated, goal, align=self._settings.align, salience=gated.worth)
        values = decided_values(gated, is_open, self._settings, floored=not goal.cuts_as_trained)
        values = values.to(gated.gates.locations)
        if _n_processes() > 1:
            dist.broadcast(values, src=0)
        gated.freeze(values)

    def _cut(self) -> bool:
        """Go on with the network that the frozen gates leave, unless it lost its class: a graph takes no labels, say."""
        gated = self.gated
        sites: Sequence[FeatureSite] = ()
        with self._as_traced() as device:
            compact = shrink(gated)
            if self._teacher is not None and self._teacher.teaches_features:
                sites = feature_sites(gated, compact)
            compact.to(device)
        gated.train()
        if type(compact) is not type(gated.model):
            warnings.warn(
                "the network cannot be cut in its own class, so it goes on with frozen gates and is cut at the end:"
                f" {surgery_of(compact).not_in_place_because}",
                L0PruneWarning,
                stacklevel=2,
            )
            return False
        self.compact = compact.train()
        gated.stand_for_(compact)
        if self._teacher is not None:
            self._teacher.teach_blocks(compact, sites)
        return True

    @contextmanager
    def _as_traced(self) -> Iterator[torch.device]:
        """The gated model on the CPU, where it was traced, and in its own precision; gives the device that it is trained on."""
        gated = self.gated
        device = gated.gates.locations.device
        wrapped = gated.__dict__.pop("forward", None)  # as accelerate puts it there for mixed precision
        gated.to("cpu")
        if self._teacher is not None:
            self._teacher.is_silent = True
        try:
            yield device
        finally:
            if self._teacher is not None:
                self._teacher.is_silent = False
            gated.to(device)
            if wrapped is not None:
                gated.forward = wrapped

    def _save(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        """Add what is not in weights and gates to a state dict; tensors with several names are stored under each."""
        del metadata
        seen: set[int] = set()
        for name, tensor in state.items():
            if isinstance(tensor, Tensor) and tensor.data_ptr() in seen and tensor.numel():
                state[name] = tensor.clone()
            elif isinstance(tensor, Tensor):
                seen.add(tensor.data_ptr())
        written = io.BytesIO()
        torch.save({"gates": self.gated.training_state(), "cut": self.compact is not None}, written)
        state[f"{prefix}{_STATE}"] = torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)

    def _load(self, module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take it out again; cut the network first if that is what was saved."""
        del rest
        packed = state.pop(f"{prefix}{_STATE}", None)
        if packed is None:
            return
        try:
            content = torch.load(io.BytesIO(packed.cpu().numpy().tobytes()), weights_only=True)
            self._restored, is_cut = content["gates"], bool(content["cut"])
        except Exception as error:
            raise CheckpointError(
                "the gates' state in the trainer's checkpoint cannot be read: resume from an older one"
            ) from error
        gated = self.gated
        if self.compact is not None:
            gated.stand_for_(None)
            gated.unfreeze()
            self.compact = None
            if self._teacher is not None:
                self._teacher.teach_blocks(gated.model, ())
        if is_cut:
            gated.freeze(state[f"{prefix}gates.frozen_values"])
            self._cut()


class Prunes:
    """What the callback of a trainer begins with.

    Args:
        budget: What the compact network may cost; None keeps the goal that the model was injected with.
        penalty: A fixed price of open gates instead.
        gate_fraction: Share of the steps that learns the gates; None chooses by their number, as `finetune` does.
        align: Widths are multiples of this; None is what onnxruntime likes on this machine.
        distillation: Weight of the dense network's outputs in the loss, in [0, 1], where they carry a loss of their own; 0 trains
            without a teacher.
        temperature: Softens the classes that it teaches, > 0.
        feature_distillation: Weight of what it teaches each block of the cut network by the channels that this kept, >= 0;
            None is that of `finetune`. Blocks are not taught by several processes, which train with frozen gates.
    """

    def __init__(
        self,
        *,
        budget: Budget | Sequence[Budget] | None = None,
        penalty: Penalty | None = None,
        gate_fraction: float | None = None,
        align: int | str | None = None,
        distillation: float = 0.9,
        temperature: float = 4.0,
        feature_distillation: float | None = None,
    ) -> None:
        given: dict[str, Any] = {} if feature_distillation is None else {"feature_distillation": feature_distillation}
        self.pruning = Pruning(
            None if budget is None and penalty is None else one_goal(budget, penalty),
            FinetuneConfig(
                epochs=1.0,
                gate_fraction=gate_fraction,
                align=align,
                distillation=distillation,
                distillation_temperature=temperature,
                **given,
            ),
        )

    @property
    def compact(self) -> nn.Module | None:
        """The network that was cut, in its own class; None before."""
        return self.pruning.compact


def _n_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
