"""What a run needs, looked at before anything is written; what runs from one checkpoint share is loaded once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from l0prune.cli.case import Case
from l0prune.cli.case_data import load_case
from l0prune.cli.gating import gated_model_of, traced
from l0prune.cli.loading import load, require_from_scratch, require_weights
from l0prune.cli.model_options import ModelOptions
from l0prune.cli.output import note
from l0prune.cli.request import FinetuneRequest, RunOptions
from l0prune.cli.trust import FactoryCall, data_call, model_call, task_call
from l0prune.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from l0prune.finetuning.preflight import RunPlan
    from l0prune.flow.channel_flow import ChannelFlow
    from l0prune.goals.goal import Goal

__all__ = ["DenseWeights", "Prepared", "Shared", "calls_of", "is_main_process", "prepare", "share"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run whose every part has been looked at.

    Args:
        request: With all defaults written out.
        case: Model, data and task.
        plan: What the library is asked for, looked over.
        dense_score: Score of the dense model on the data that judge.
        doubts: What speaks against that score, or None.
    """

    request: FinetuneRequest
    case: Case
    plan: "RunPlan"
    dense_score: float
    doubts: str | None


@dataclass(eq=False)
class Shared:
    """What runs have in common that start from the same checkpoint on the same data.

    Args:
        request: Of one of them.
        case: Model, data and task.
        flow: Of the dense model.
    """

    request: FinetuneRequest
    case: Case
    flow: "ChannelFlow"

    @cached_property
    def dense_score(self) -> float:
        """Score of the dense model on the data that judge; it is told as well."""
        score = self.case.score(self.case.loaded.model)
        name = self.request.model.spec
        note(f"{name}: {self.flow.n_gates} gates; dense {self.case.task.metric.name} {score:.4g}")
        return score

    @cached_property
    def doubts(self) -> str | None:
        """What speaks against that score; it is told as well."""
        doubts = None if self.request.starts_untrained else self.case.doubts(self.dense_score)
        if doubts:
            note(doubts)
        return doubts

    def prepare(self, request: FinetuneRequest) -> Prepared:
        """Look over one of the runs; the model has its dense weights.

        Args:
            request: Of this run: as that of the others but for what it may keep.

        Raises:
            L0PruneError: names what cannot work and what to do.
        """
        from l0prune.finetuning.counted import counted
        from l0prune.finetuning.preflight import preflight
        from l0prune.goals.by_layer import read_by_layer

        case = self.case
        droprate = read_by_layer(request.run.droprate_init) if request.run.droprate_init else None
        augment = case.augments if request.run.augment is None else request.run.augment
        made = case.train_batches(
            batch_size=request.run.batch_size,
            augment=bool(augment),
            epochs=request.training.epochs,
            seed=request.settings.seed,
        )
        batches = counted(made, request.training.batches_per_epoch)
        gated = gated_model_of(case.loaded, request, flow=self.flow, droprate=droprate)
        goal = goal_of(request.run).over_samples(lambda: case.n_train(batches))
        plan = preflight(gated, batches, task=case.task, goal=goal, config=request.asked_training)
        if goal.knows_widths and plan.settings.align != 1:
            note(f"--align {plan.settings.align} is not needed: the budget knows what every width costs")
        request = request.resolved(augment=augment, task=case.task_spec, settings=plan.settings)
        return Prepared(request, case, plan, self.dense_score, self.doubts)


@dataclass(frozen=True, eq=False)
class DenseWeights:
    """A copy of all tensors of a model, with which it starts again.

    Args:
        tensors: Parameters and buffers by name.
    """

    tensors: "Mapping[str, Tensor]"

    @classmethod
    def of(cls, model: "nn.Module") -> "DenseWeights":
        """Those it has now."""
        return cls({name: tensor.detach().clone() for name, tensor in named_tensors(model).items()})

    def restore_(self, model: "nn.Module") -> None:
        """Give them back, and drop gradients."""
        for name, tensor in named_tensors(model).items():
            tensor.detach().copy_(self.tensors[name])
            tensor.grad = None


def named_tensors(model: "nn.Module") -> "dict[str, Tensor]":
    """Parameters and buffers of a model, those included that its state dict leaves out."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def prepare(request: FinetuneRequest) -> Prepared:
    """Load, trace and check everything a run needs; writes nothing.

    Raises:
        L0PruneError: names what cannot work and what to do.
    """
    return share(request).prepare(request)


def share(request: FinetuneRequest) -> Shared:
    """Load and trace what a run needs, and others from the same checkpoint; what is typed is checked before anything is loaded.

    Raises:
        L0PruneError: names what cannot work and what to do.
    """
    from l0prune.gates.registry import gate_distribution
    from l0prune.goals.by_layer import read_by_layer

    run, settings = request.run, request.settings  # whose numbers are checked before anything is loaded
    goal_of(run)
    if run.droprate_init:
        read_by_layer(run.droprate_init)
    gate_distribution(run.gate, **run.gate_args)
    if run.from_scratch:
        require_from_scratch(request.model)
        if settings.distillation:
            raise ConfigError(
                "--from-scratch starts with an untrained network, which has nothing to teach: no distillation"
            )
    else:
        require_weights(request.model)
    choose_device(run.device)
    loaded = load(request.model, seed=request.initial_seed, run=run)
    case = load_case(loaded, request.model, run)
    flow = traced(loaded, run)
    if run.held_out is not None:
        case, _ = case.apart(run.held_out, seed=settings.seed)
    return Shared(request, case, flow)


def goal_of(options: RunOptions) -> "Goal":
    """What is asked for.

    Raises:
        ConfigError: if it is not exactly one of budget and penalty, or cannot be read.
    """
    import l0prune
    from l0prune.goals.budget import Budgets, one_goal

    budget = Budgets.parse(options.budget) if options.budget else None
    return one_goal(budget, l0prune.Penalty.parse(options.penalty) if options.penalty else None)


def calls_of(model: ModelOptions, run: RunOptions) -> tuple[FactoryCall | None, ...]:
    """The factories that model, data and task come from; None for what is no code of a user."""
    return model_call(model), data_call(run.data, run.data_args), task_call(run.task, run.task_args)


def choose_device(device: str) -> None:
    """Tell accelerate where to compute.

    Raises:
        ConfigError: if a GPU is asked for and there is none.
    """
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: this machine has no GPU that torch can use; choose cpu or auto")


def is_main_process() -> bool:
    """Whether this is the process that writes and prints, of those `accelerate launch` has started."""
    return int(os.environ.get("RANK", "0")) == 0
