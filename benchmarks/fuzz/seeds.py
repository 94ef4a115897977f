"""Small honest files of every format that l0prune reads."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import l0prune
from l0prune.bench.report import BenchReport, Latency, ModelTiming, Speedup
from l0prune.cli.request import FinetuneRequest
from l0prune.finetuning.checkpoints import Checkpoint, save_checkpoint
from l0prune.finetuning.metrics import MetricsLog, MetricsRecord
from l0prune.measuring.alignment import AlignmentReport
from l0prune.measuring.hardware import Environment
from l0prune.run_directory import RunDirectory
from l0prune.sources.weights import save_weights

__all__ = ["SEEDS", "small_network"]


def small_network() -> nn.Module:
    """The network that weights, checkpoints and programs are of."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def small_images() -> nn.Module:
    """The network of the exported program."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).eval()


def run_json(folder: Path) -> None:
    """A run just begun."""
    request = FinetuneRequest.asked({"spec": "lenet5", "data": "digits", "budget": "macs=0.5", "ignore": ("fc1",)})
    RunDirectory.create(folder / "run", argv=("l0prune", "finetune"), **request.to_record())


def metrics(folder: Path) -> None:
    """Lines with and without histograms."""
    log, counts = MetricsLog(folder / "metrics.jsonl"), (1,) * 20
    for step in range(4):
        histograms: dict[str, Any] = (
            {"open_histogram": counts, "layer_histograms": {"0": counts, "2": counts}} if step % 2 else {}
        )
        log.write(
            MetricsRecord(
                *(step, step / 2, "gate", 0.5, 0.4, None, 0.9, 0.8, 0.5, 1.0, 0.1, {"expected_macs": 0.9}, 0.01),
                **histograms,
                evaluation={"accuracy": 0.5} if step == 3 else None,
            )
        )


def bench(folder: Path) -> None:
    """Two models."""
    latency = Latency(1.0, 1.1, 1.0, tuple(np.linspace(0.9, 1.2, 21)))
    models = tuple(ModelTiming(name, latency, 10, 1000.0, 1234, 56) for name in ("dense", "compact"))
    environment = Environment("cpu", "avx2", 2, 1, 1, "1.0", "3.11", "Linux")
    report = BenchReport(
        models, "dense", {"compact": Speedup(1.5, 1.4, 1.6)}, "thread", 0.0, environment, "onnxruntime"
    )
    (folder / "bench.json").write_text(json.dumps(report.to_json()))


def alignment(folder: Path) -> None:
    """What one processor likes."""
    report = AlignmentReport(8, {1: 1.1, 8: 1.0}, {"1x1": {33: 1.0, 34: 2.0}}, "cpu", 1, "1.0")
    (folder / "alignment.json").write_text(json.dumps({"cpu": {**report.to_json(), **asdict(report)}}))


def compact(folder: Path) -> None:
    """A network with half of its units."""
    model, x = small_network(), torch.randn(2, 4)
    gated = l0prune.inject(model, l0prune.trace(model, x))
    gated.freeze((torch.arange(gated.n_gates) % 2).float())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        l0prune.save(l0prune.shrink(gated), folder / "compact")


def checkpoint(folder: Path) -> None:
    """Weights, gates and the state of a trainer."""
    weights = small_network().state_dict()
    state = {"step": 3, "identity": {"a": "b"}, "optimizer": {"state": {0: weights}}, "history": [1.0, (2, "x")]}
    save_checkpoint(folder / "checkpoint", Checkpoint(weights, {"log_alpha": torch.zeros(6)}, state, weights, weights))


def safetensors(folder: Path) -> None:
    """Weights."""
    save_weights(small_network(), folder / "w.safetensors")


def torch_zip(folder: Path) -> None:
    """Weights in a wrapper."""
    torch.save({"state_dict": small_network().state_dict(), "epoch": 1}, folder / "w.pt")


def torch_legacy(folder: Path) -> None:
    """Weights as torch wrote them before 1.6."""
    torch.save(small_network().state_dict(), folder / "w.pth", _use_new_zipfile_serialization=False)


def program(folder: Path) -> None:
    """A network with a free batch."""
    dynamic = ({0: torch.export.Dim.AUTO},)
    torch.export.save(
        torch.export.export(small_images(), (torch.randn(2, 1, 5, 5),), dynamic_shapes=dynamic), folder / "m.pt2"
    )


def onnx(folder: Path) -> None:
    """The same as ONNX."""
    from onnx import TensorProto, helper, numpy_helper, save

    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", 4), ("y", 3))
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], [weight])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(folder / "m.onnx"))


def npz(folder: Path) -> None:
    """Eight images."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (8, 4, 4), np.uint8), np.arange(8) % 2
    np.savez(folder / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y, n_classes=2)


def mnist(folder: Path) -> None:
    """Eight images, half of the files gzipped."""
    images = struct.pack(">4BIII", 0, 0, 8, 3, 8, 4, 4) + bytes(range(128))
    labels = struct.pack(">4BI", 0, 0, 8, 1, 8) + bytes([0, 1] * 4)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def cifar(folder: Path) -> None:
    """Two images a batch."""
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 9], b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def images(folder: Path) -> None:
    """A few formats."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    for label in "ab":
        (folder / label).mkdir()
        for number, suffix in enumerate(("png", "jpg", "bmp", "gif", "tiff", "webp", "ppm")):
            Image.fromarray(pixels).save(folder / label / f"{number}.{suffix}")


def transformers(folder: Path) -> None:
    """A BERT of one layer."""
    from transformers import BertConfig, BertModel
    from transformers.utils import logging

    torch.manual_seed(0)
    logging.disable_progress_bar()
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 20,
    }
    BertModel(BertConfig(**sizes, max_position_embeddings=20)).save_pretrained(folder / "bert")


SEEDS: dict[str, Callable[[Path], None]] = {
    "run.json": run_json,
    "metrics.jsonl": metrics,
    "bench.json": bench,
    "alignment": alignment,
    "compact": compact,
    "checkpoint": checkpoint,
    "safetensors": safetensors,
    "pt": torch_zip,
    "pth": torch_legacy,
    "pt2": program,
    "onnx": onnx,
    "npz": npz,
    "mnist": mnist,
    "cifar10": cifar,
    "folder": images,
    "hf": transformers,
}
