"""Prune an ONNX file with onnxsim to shares of its MACs; closed_form.py runs it in an environment that has it.

    python benchmarks/closed_form_onnxsim.py dense.onnx CALIBRATION.npz OUT KEEP ...

onnxsim takes the share of channels to remove, the same for all layers or over all of them, so that is searched for. Writes
a file for both of its scores (magnitude and Wanda) and for either kind of share, each with its recovery by ridge
regression, which covers MatMul and Gemm; prints one line of JSON a file.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx

os.environ.setdefault(
    "ORT_DISABLE_TELEMETRY", "1"
)  # before the first import: there is no l0prune here that would do it
onnxruntime = import_module("onnxruntime")
onnxsim = import_module("onnxsim")

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
TRIALS = 9
Batches = list[dict[str, np.ndarray]]


def macs_of(model: onnx.ModelProto, one: dict[str, np.ndarray]) -> float:
    """Multiply-accumulates for one input, from the shapes that a run shows."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    weights = {tensor.name: tuple(tensor.dims) for tensor in probe.graph.initializer}
    nodes = [node for node in probe.graph.node if node.op_type in PRODUCTS]
    wanted = {name for node in nodes for name in (*node.input[:2], *node.output)} - weights.keys() - one.keys()
    kept = {output.name for output in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted - kept)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    shapes = weights | {name: value.shape for name, value in one.items()}
    shapes |= {name: value.shape for name, value in zip(names, session.run(names, one), strict=True)}
    total = 0.0
    for node in nodes:
        out, first, second = shapes[node.output[0]], shapes[node.input[0]], shapes[node.input[1]]
        if node.op_type == "Conv":
            total += math.prod(out) * math.prod(second[1:])
        elif node.op_type == "ConvTranspose":
            total += math.prod(first) * math.prod(second[1:])
        else:
            flipped = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
            total += math.prod(out) * first[-2 if flipped else -1]
    return total


def pruned(dense: onnx.ModelProto, batches: Batches, score: str, share: float, *, over_all: bool) -> onnx.ModelProto:
    """With a share of channels, and of attention heads, removed."""
    model = onnx.ModelProto()
    model.CopyFrom(dense)
    if score == "wanda":
        heads = partial(onnxsim.apply_attention_head_wanda_pruning, calibration_data=batches)
        channels = partial(onnxsim.apply_structured_wanda_pruning, calibration_data=batches)
    else:
        heads, channels = onnxsim.apply_attention_head_pruning, onnxsim.apply_structured_pruning
    return channels(heads(model, sparsity=share), sparsity=share, global_sparsity=over_all)


def at_cost(
    prune: Callable[[float], onnx.ModelProto], cost: Callable[[Any], float], keep: float
) -> onnx.ModelProto | None:
    """The least pruned model that costs no more than `keep`; None where none does."""
    low, high, found = 0.0, 0.99, None
    for _ in range(TRIALS):
        share = (low + high) / 2
        model = prune(share)
        if cost(model) <= keep:
            high, found = share, model
        else:
            low = share
    if found is None:
        raise ValueError(f"no share of channels brings the MACs to {keep:g}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("keep", type=float, nargs="+")
    arguments = parser.parse_args()
    dense = onnx.load(arguments.dense)
    with np.load(arguments.calibration) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    n = len(next(iter(inputs.values())))
    batches = [{name: array[i : i + 64] for name, array in inputs.items()} for i in range(0, n, 64)]
    one = {name: array[:1] for name, array in inputs.items()}
    whole = macs_of(dense, one)
    for score in ("magnitude", "wanda"):
        for over_all in (False, True):
            for keep in arguments.keep:
                clock, name = time.perf_counter(), f"{score}{', shares over all layers' if over_all else ''}"
                prune = partial(pruned, dense, batches, score, over_all=over_all)
                try:
                    model = at_cost(prune, lambda found: macs_of(found, one) / whole, keep)
                    recovered = onnxsim.apply_pruning_finetune(dense, model, calibration_data=batches)
                except Exception as error:  # noqa: BLE001 - whatever the other tool raises is a result
                    print(
                        json.dumps({"name": name, "keep": keep, "error": f"{type(error).__name__}: {error}"[:300]}),
                        flush=True,
                    )
                    continue
                for kind, made in (("", model), (", recovered", recovered)):
                    file = f"{name}{kind} {keep:g}.onnx"
                    onnx.save(made, arguments.out / file)
                    row = {"name": name + kind, "keep": keep, "macs": macs_of(made, one) / whole, "file": file}
                    print(json.dumps({**row, "seconds": round(time.perf_counter() - clock, 1)}), flush=True)


if __name__ == "__main__":
    main()
