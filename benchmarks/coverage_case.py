"""One model of the coverage table, measured.

Usage: python benchmarks/coverage_case.py SUITE NAME CHECK
"""

from __future__ import annotations

import copy
import json
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coverage_models import CASES, Case
from coverage_vision import vision_cases
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import l0prune
from l0prune.errors import CaptureError, EquivalenceError, ExportError
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.flow.trace import aliases_of, trace_program, trace_refused
from l0prune.look.capture import capture
from l0prune.model_call import call, output_tensors
from l0prune.onnx.export import export_onnx, onnx_difference
from l0prune.surgery.shrink import shrink, surgery_of
from l0prune.verification import random_decision

__all__ = ["CHECKS", "all_cases", "measure", "measure_into", "preload"]

LARGEST_DOUBLE = 200_000_000
"""Parameters beyond which float32 has to do for the cut."""


def preload() -> None:
    """Import what a model needs, before processes fork."""
    for module in ("timm", "torchvision", "transformers", "torch._dynamo", "torch.export", "torch_pruning"):
        import_module(module)


def all_cases() -> Iterator[tuple[str, Case]]:
    """(suite, case) of the whole table."""
    yield from vision_cases()
    for case in CASES:
        yield "transformers", case


def measure(suite: str, name: str, check: str) -> dict[str, Any]:
    """Run one check on one model; what fails is in the result under "error"."""
    case = next(case for kind, case in all_cases() if (kind, case.name) == (suite, name))
    result: dict[str, Any] = {"seconds": {}}
    warnings.simplefilter("ignore")
    try:
        with _timed(result, "build"):
            model = case.build()
            inputs = case.inputs(model)
        result["params"] = sum(p.numel() for p in model.parameters())
        result["input"] = [list(t.shape) for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)]
        CHECKS[check](model, inputs, result)
    except Exception as error:  # noqa: BLE001 - whatever a model or a tool raises is the result
        result["error"] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
        traceback.print_exc()
    return result


def check_cut(model: nn.Module, inputs: Any, result: dict[str, Any]) -> None:
    """Capture, analyse, close half the units at random, cut, compare; in float64 where memory allows."""
    double = result["params"] <= LARGEST_DOUBLE
    dtype = torch.float64 if double else torch.float32
    model, inputs = randomise_(model.to(dtype)), _to(inputs, dtype)
    result["dtype"] = str(dtype).removeprefix("torch.")
    flow = _traced(model, inputs, result)
    result["prunable_params"] = prunable_share(flow, "params")
    result["prunable_macs"] = prunable_share(flow, "macs")
    result["n_gates"] = flow.n_gates
    result |= {"tracer": flow.tracer, "refusal": flow.refusal}
    result["unknown_ops"] = flow.unknown_ops
    result["unreached"] = dict(list(flow.unreached.items())[:6])
    compact = _cut(model, flow, result)
    if compact is not None:
        record = surgery_of(compact)
        result |= {"exact": True, "max_rel_diff": record.difference.max_rel, "form": record.form}
        result["calls_given_sizes"] = len(record.plan.calls)
        result["not_compared"] = sum(record.not_compared.values())
        result["kept_params"] = sum(p.numel() for p in compact.parameters()) / result["params"]
        result["smallest_output"] = min(
            (float(t.abs().max()) for t in output_tensors(_run(compact, inputs)) if t.numel()), default=0.0
        )


def check_onnx(model: nn.Module, inputs: Any, result: dict[str, Any]) -> None:
    """Cut in float32, export the compact model, compare onnxruntime with torch; the dense model where that fails."""
    model = randomise_(model.float())
    flow = _traced(model, inputs, result)
    compact = _cut(model, flow, result)
    if compact is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with _timed(result, "onnx"):
            try:
                export_onnx(compact, inputs, path, tolerance=float("inf"))
                result["onnx_max_rel_diff"] = onnx_difference(path, compact, inputs).max_rel
                result["float32_max_rel_diff"] = _rounding(compact, inputs)
            except ExportError as error:
                result["onnx_error"] = str(error).strip().splitlines()[0][:300]
        if "onnx_error" in result:
            try:
                export_onnx(model, inputs, path, tolerance=float("inf"))
                result["dense_onnx"] = "exported"
            except ExportError as error:
                result["dense_onnx"] = str(error).strip().splitlines()[0][:300]


def check_rival(model: nn.Module, inputs: Any, result: dict[str, Any]) -> None:
    """torch-pruning's high-level pruner at half the channels: does it run, and is a forward pass possible afterwards?"""
    import torch_pruning as tp

    example = inputs if isinstance(inputs, (Tensor, dict)) else tuple(inputs)
    n_outputs = output_tensors(_run(model, inputs))[0].shape[-1]
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == n_outputs][-1:]
    with _timed(result, "rival"):
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=heads,
        )
        pruner.step()
        outputs = output_tensors(_run(model, inputs))
    result["kept_params"] = sum(p.numel() for p in model.parameters()) / result["params"]
    result["ran"] = all(t.shape[0] == 2 for t in outputs[:1])


CHECKS = {"cut": check_cut, "onnx": check_onnx, "rival": check_rival}


def randomise_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random numbers for every parameter and norm statistic: none is at an initial value that would hide a mistake.

    Matrices keep the variance of what they are applied to; vectors are away from zero, mostly positive.
    """
    generator = torch.Generator().manual_seed(seed)
    statistics = {id(b) for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))}
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or not (isinstance(tensor, nn.Parameter) or id(tensor) in statistics):
                continue
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise)
            elif tensor.dim() > 1 and tensor.numel() > tensor.shape[0]:
                tensor.copy_((2 * noise - 1) * (3 / (tensor.numel() / tensor.shape[0])) ** 0.5)
            else:
                tensor.copy_((0.3 + noise) * torch.where(noise > 0.2, 1.0, -1.0))
    return model.eval()


def prunable_share(flow: ChannelFlow, metric: str) -> float:
    """Share of the cost that some gate can remove, in [0, 1]."""
    stays = sum(t.coefficient * float(np.prod([s.n_ungated for s in t.sides])) for t in flow.terms(metric))
    dense = flow.dense_cost(metric)
    return 1.0 - stays / dense if dense else 0.0


def _traced(model: nn.Module, inputs: Any, result: dict[str, Any]) -> ChannelFlow:
    refusal: CaptureError | None = None
    with _timed(result, "export"):
        try:
            captured = capture(model, inputs)
        except CaptureError as error:
            refusal = error
    with _timed(result, "analysis"):
        if refusal is None:
            return trace_program(captured, aliases=aliases_of(model))
        result["capture"] = "fallback"
        return trace_refused(model, inputs, refusal=refusal)


def _cut(model: nn.Module, flow: ChannelFlow, result: dict[str, Any]) -> nn.Module | None:
    gated = l0prune.inject(model, flow).eval()
    gated.freeze(torch.from_numpy(random_decision(flow, closed=0.5, seed=0)))
    with _timed(result, "cut"):
        try:
            return shrink(gated)
        except EquivalenceError as error:
            result |= {"exact": False, "why": str(error).splitlines()[0][:300]}
            return None


def _rounding(compact: nn.Module, inputs: Any) -> float | None:
    """How far float32 itself is off: torch in float32 against torch in float64, relative; None where it cannot be said."""
    single = output_tensors(_run(compact, inputs))
    try:
        double = output_tensors(_run(copy.deepcopy(compact).double(), _to(inputs, torch.float64)))
    except RuntimeError:  # a dtype is written into the graph
        return None
    pairs = [(a.double(), b.double()) for a, b in zip(single, double, strict=True) if a.is_floating_point()]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


@torch.no_grad()
def _run(model: nn.Module, inputs: Any) -> Any:
    return call(model, inputs)


def _to(inputs: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map(lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, inputs)


@contextmanager
def _timed(result: dict[str, Any], stage: str) -> Iterator[None]:
    clock = time.perf_counter()
    try:
        yield
    finally:
        result["seconds"][stage] = round(time.perf_counter() - clock, 2)


def measure_into(sender: Connection, suite: str, name: str, check: str, gigabytes: float) -> None:
    """`measure` within a limit on memory, with the result sent to another process and the output thrown away."""
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        result = measure(suite, name, check)
    result["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sender.send(result)


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:4])))
