"""One run of the MNIST benchmark: train under a budget or a penalty, cut, verify, measure."""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn import functional as F

import l0prune
from l0prune import Budget, Penalty, models
from l0prune.errors import BudgetInfeasibleError, TrainingError
from l0prune.finetuning.config import FinetuneConfig
from l0prune.finetuning.results import FinetuneResult
from l0prune.sources.augmentation import Augmentation
from l0prune.sources.batches import ArrayBatches, make_batches
from l0prune.sources.datasets import DataSource, load_data
from l0prune.sources.model_spec import LoadedModel, load_model
from l0prune.surgery.shrink import surgery_of
from l0prune.tasks.provided.classification import Classification

__all__ = ["ARCHITECTURES", "MnistCase", "measure"]

ARCHITECTURES: dict[str, dict[str, Any]] = {"lenet300": {"select_inputs": True}, "lenet5": {}}
THEN = " then "
DECISION: dict[str, Any] = {"gate_decision": "soft"}
"""Open gates keep their trained values at the freeze, also under a budget, where they become 1 by default."""
CONFIGS: dict[str, dict[str, Any]] = {
    "checkpoint": {"optimizer": "sgd"},
    "scratch": {"optimizer": "adam", "lr": 1e-3, "recovery_lr": 1e-3, "weight_decay": 0.0, "distillation": 0.0},
}


BUDGETS = ("macs", "params")
BUDGET_FROM_SCRATCH: dict[str, Any] = {"warmup_fraction": 0.1, "gate_fraction": 0.5}
DROPRATES = {"lenet300": {"": 0.5, "fc1": 0.2}, "lenet5": {"": 0.5}}
"""Where gates start under a penalty from scratch, as in the paper; under a budget all of them are open at first."""


@dataclass(frozen=True)
class MnistCase:
    """What one run is; its fields are the columns that tell runs apart.

    Attributes:
        arch: "lenet300" (784-300-100, pixels gated too) or "lenet5" (20-50-800-500).
        start: "checkpoint" (a dense network trained with shifts of two pixels, which teaches as well; the same shifts here)
            or "scratch" (random weights, no teacher, no shifts, as in the papers).
        gate: Name of the gate distribution.
        mode: "macs=0.1" or "params=0.1", a budget; or "lambda=0.1" or "fc1=0.1,fc2=10", a penalty shared or by layer. With
            "lenet5", "macs=0.1 then params=0.01" cuts the channels first, and then single features of what is left; both
            are shares of the dense network.
        seed: Of weights, order, gates.
        epochs: Of each part of the run.
    """

    arch: str
    start: str
    gate: str
    mode: str
    seed: int
    epochs: float

    def __str__(self) -> str:
        """For people."""
        return " ".join(map(str, asdict(self).values()))


def measure(case: MnistCase, data_spec: str, weights: Path | None) -> dict[str, Any]:
    """Train, cut, verify, export, time.

    Args:
        case: What to run.
        data_spec: MNIST as `l0prune` takes it.
        weights: Checkpoint of the dense network; None starts at random.

    Returns:
        A JSON object: figures, or "error".
    """
    data = _data(data_spec)
    dense = load_model(case.arch, weights=weights, model_args=ARCHITECTURES[case.arch], seed=case.seed)
    test = _batches(dense, data, case)[1]
    dense_error = 100 - Classification().evaluate(dense.model, test)
    original, costs = copy.deepcopy(dense.model), _costs(dense)
    first, *others = case.mode.split(THEN)
    try:
        result, seconds = _train(dense, data, case, _bound(first, costs, costs))
        for mode in others:
            loaded = _with_features(dense, result.compact)
            result, more = _train(loaded, data, case, _bound(mode, costs, _costs(loaded)))
            seconds += more
    except (BudgetInfeasibleError, TrainingError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    compact, gated = result.compact.eval(), result.gated.eval()
    macs = gated.hard_cost("macs") * gated.flow.dense_cost("macs")
    return {
        "dense_error": dense_error,
        "error_percent": 100 - Classification().evaluate(compact, test),
        "gated_error_percent": 100 - Classification().evaluate(gated, test),
        "architecture": widths(compact, case.arch),
        "expected_cost": result.expected_cost,
        "macs": macs,
        "macs_fraction": macs / costs["macs"],
        "params": _n_params(compact),
        "params_fraction": _n_params(compact) / costs["params"],
        "difference": surgery_of(compact).difference.max_rel,
        "form": surgery_of(compact).form,
        "train_seconds": seconds,
        **_latency(original, compact, dense.example_inputs),
    }


def _train(
    loaded: LoadedModel, data: DataSource, case: MnistCase, bound: dict[str, Any]
) -> tuple[FinetuneResult, float]:
    """One part of a run, and its seconds."""
    train, _ = _batches(loaded, data, case)
    flow = l0prune.trace(loaded.model, loaded.example_inputs)
    scratch, budget = case.start == "scratch", "budget" in bound
    droprate = DROPRATES[case.arch] if scratch and not budget else None
    gated = l0prune.inject(loaded.model, flow, gate=case.gate, droprate=droprate, seed=case.seed)
    phases = BUDGET_FROM_SCRATCH if scratch and budget else {}
    config = FinetuneConfig(epochs=case.epochs, seed=case.seed, align=1, **CONFIGS[case.start], **DECISION, **phases)
    clock = time.perf_counter()
    result = l0prune.finetune(gated, train, loss=F.cross_entropy, config=config, **bound)
    return result, time.perf_counter() - clock


def _with_features(dense: LoadedModel, compact: nn.Module) -> LoadedModel:
    """A LeNet-5 of the widths of a cut one, with its weights, whose single features can be gated."""
    conv1, conv2, _, fc1 = widths(compact, "lenet5")
    model = models.entry("lenet5").factory(widths=(conv1, conv2, fc1), select_features=True).eval()
    model.load_state_dict(compact.state_dict())
    return replace(dense, model=model)


def _costs(loaded: LoadedModel) -> dict[str, float]:
    flow = l0prune.trace(loaded.model, loaded.example_inputs)
    return {metric: flow.dense_cost(metric) for metric in BUDGETS}


def _n_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def widths(model: nn.Module, arch: str) -> list[int]:
    """The architecture as the papers write it: inputs of each fully connected layer, channels of each convolution."""
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    if arch == "lenet300":
        return [shapes["fc1.weight"][1], shapes["fc2.weight"][1], shapes["fc3.weight"][1]]
    return [shapes["conv1.weight"][0], shapes["conv2.weight"][0], shapes["fc1.weight"][1], shapes["fc2.weight"][1]]


@cache
def _data(spec: str) -> DataSource:
    return load_data(spec)


def _batches(loaded: LoadedModel, data: DataSource, case: MnistCase) -> tuple[ArrayBatches, ArrayBatches]:
    shifts = Augmentation(pad=2, flip=False) if case.start == "checkpoint" else None
    train = make_batches(
        loaded, data.x_train, data.y_train, batch_size=100, augment=shifts, shuffle=True, seed=case.seed, drop_last=True
    )
    return train, make_batches(loaded, data.x_test, data.y_test, batch_size=1000)


def _bound(mode: str, dense: dict[str, float], present: dict[str, float]) -> dict[str, Budget | Penalty]:
    """The budget or the penalty of a mode; a budget is a share of the costs `dense`, not of the `present` ones."""
    if not mode.startswith(BUDGETS):
        return {"penalty": Penalty.parse(mode)}
    budget = Budget.parse(mode)
    return {"budget": replace(budget, keep=budget.keep * dense[budget.metric] / present[budget.metric])}


def _latency(dense: nn.Module, compact: nn.Module, example: Any) -> dict[str, float]:
    """Microseconds in onnxruntime, batch 1, one thread, and how many times faster the compact network is."""
    with tempfile.TemporaryDirectory() as folder:
        files = {"dense": Path(folder) / "dense.onnx", "compact": Path(folder) / "compact.onnx"}
        for name, model in (("dense", dense), ("compact", compact)):
            l0prune.export_onnx(model.eval(), example, files[name])
        report = l0prune.benchmark(files, min_seconds=1.0)
    return {
        "dense_us": report["dense"].latency_ms.p50 * 1e3,
        "compact_us": report["compact"].latency_ms.p50 * 1e3,
        "speedup": report.speedup["compact"].ratio,
    }
