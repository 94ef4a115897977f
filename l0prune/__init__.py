"""l0prune: L0 gates for trained networks, cut into smaller dense layers, verified, exported and measured."""

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Recent builds of onnxruntime write into the user's cache folder and report to their maker unless this is set before their
# import. No module of l0prune is imported before this one. A user's own setting, also "0", stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Public name -> module that defines it. Nothing heavy is imported before a name is used.
_EXPORTS = {
    "Batches": "l0prune.finetuning.passes",
    "Budget": "l0prune.goals.budget",
    "BenchReport": "l0prune.bench.report",
    "ChannelFlow": "l0prune.flow.channel_flow",
    "FinetuneConfig": "l0prune.finetuning.config",
    "FinetuneResult": "l0prune.finetuning.loop",
    "GateDistribution": "l0prune.gates.distribution",
    "GateOptimizerConfig": "l0prune.gates.optimizer",
    "GatedModel": "l0prune.gated.model",
    "L0PruneError": "l0prune.errors",
    "ModelCall": "l0prune.model_call",
    "Penalty": "l0prune.goals.penalty",
    "Preprocessing": "l0prune.sources.preprocessing",
    "Progress": "l0prune.finetuning.journal",
    "Surgery": "l0prune.surgery.record",
    "SurgeryPlan": "l0prune.surgery.plan",
    "Task": "l0prune.tasks.task",
    "VerifyReport": "l0prune.verification",
    "benchmark": "l0prune.bench.benchmark",
    "export_onnx": "l0prune.onnx.export",
    "finetune": "l0prune.finetuning.loop",
    "inject": "l0prune.gated.model",
    "load": "l0prune.compact",
    "load_task": "l0prune.tasks.registry",
    "save": "l0prune.compact",
    "shrink": "l0prune.surgery.shrink",
    "trace": "l0prune.flow.trace",
    "verify": "l0prune.verification",
}

_PARTS = ("hf",)  # that are used by their own name, as in l0prune.hf.save_pretrained

__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    module = _EXPORTS.get(name)
    if name in _PARTS:
        return import_module(f"l0prune.{name}")
    if module is None:
        raise AttributeError(
            f"module 'l0prune' has no attribute {name!r}; public names: {', '.join((*_EXPORTS, *_PARTS))}"
        )
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Names for completion."""
    return sorted((*__all__, *_PARTS))
