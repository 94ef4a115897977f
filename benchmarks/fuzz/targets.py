"""Readers under test: each takes a folder with the files of one case and reads them as l0prune does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from seeds import small_network

import l0prune
from l0prune.bench.benchmark import _file_facts
from l0prune.bench.report import BenchReport
from l0prune.cli.request import FinetuneRequest
from l0prune.errors import RunDirectoryError
from l0prune.finetuning.checkpoints import load_checkpoint
from l0prune.finetuning.metrics import MetricsLog, read_metrics
from l0prune.measuring.alignment import _read_cache
from l0prune.onnx.onnx_model import OnnxModel
from l0prune.report.histories import cost_history, gate_history
from l0prune.run_directory import RunDirectory
from l0prune.sources.datasets import load_data
from l0prune.sources.exported import load_example_inputs, load_exported
from l0prune.sources.model_spec import load_model
from l0prune.sources.weights import load_weights_

__all__ = ["TARGETS", "prepare"]


def prepare(target: str, folder: Path, *, honest: bool) -> None:
    """Before the files are read: a manifest that knows the hashes of what was damaged, unless `honest`."""
    manifest = folder / "compact" / "manifest.json"
    if target == "compact" and not honest and manifest.is_file() and manifest.stat().st_size < 1 << 20:
        try:
            content = json.loads(manifest.read_bytes())
            for name in list(content["files"]):
                if (manifest.parent / name).is_file() and (manifest.parent / name).stat().st_size < 1 << 30:
                    content["files"][name] = hashlib.sha256((manifest.parent / name).read_bytes()).hexdigest()
            manifest.write_text(json.dumps(content))
        except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError):
            return


def _metrics(folder: Path) -> None:
    lines = read_metrics(folder / "metrics.jsonl")
    if lines:
        cost_history("run", lines, "macs")
        for of in ("probability", "samples"):
            with suppress(RunDirectoryError):
                gate_history("run", lines, of=of).total.open_share  # noqa: B018 - computed when it is asked for
    MetricsLog(folder / "metrics.jsonl").truncate_after(1)


def _run(folder: Path) -> None:
    FinetuneRequest.from_record(RunDirectory.open(folder / "run").read())


def _alignment(folder: Path) -> None:
    os.environ["L0PRUNE_CACHE_DIR"] = str(folder)
    _read_cache()


def _compact(folder: Path) -> None:
    l0prune.load(folder / "compact")
    l0prune.load(folder / "compact", base=small_network())


def _onnx(folder: Path) -> None:
    OnnxModel(folder / "m.onnx")
    _file_facts(folder / "m.onnx")


def _program(folder: Path) -> None:
    load_exported(folder / "m.pt2")
    load_example_inputs(folder / "m.pt2")


TARGETS: dict[str, Callable[[Path], object]] = {
    "run.json": _run,
    "metrics.jsonl": _metrics,
    "bench.json": lambda folder: BenchReport.read(folder / "bench.json"),
    "alignment": _alignment,
    "compact": _compact,
    "checkpoint": lambda folder: load_checkpoint(folder / "checkpoint"),
    "safetensors": lambda folder: load_weights_(small_network(), folder / "w.safetensors"),
    "pt": lambda folder: load_weights_(small_network(), folder / "w.pt"),
    "pth": lambda folder: load_weights_(small_network(), folder / "w.pth"),
    "pt2": _program,
    "onnx": _onnx,
    "npz": lambda folder: load_data(f"npz:{folder}/d.npz"),
    "mnist": lambda folder: load_data(f"mnist:{folder}"),
    "cifar10": lambda folder: load_data(f"cifar10:{folder}"),
    "folder": lambda folder: load_data(f"folder:{folder}", image_size=(4, 4)),
    "hf": lambda folder: load_model(f"hf:{folder}/bert"),
}

torch.set_num_threads(1)
