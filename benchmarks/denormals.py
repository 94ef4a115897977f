"""What numbers below the normal range cost, and that they cost nothing after export and in bench.

Usage: python benchmarks/denormals.py

A convolution stack whose weights decayed until most of them are below float32's normal range, as onnxruntime would run it: with
the weights as they are, with onnxruntime's option that takes such numbers for zero, and as `export_onnx` writes it. A second line
has weights in order and inputs so small that what flows through the network is below the range.

`bench` sets the option; a program of yours does it with
`options.add_session_config_entry("session.set_denormal_as_zero", "1")`.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

import l0prune
from l0prune.measuring.hardware import Environment

SHAPE = (1, 32, 32, 32)
TINY = 1e-40

# In a process of its own, since the first session of a process decides for its main thread.
MEASURE = """
import json, sys, time
import numpy as np, onnxruntime
path, flush, scale = sys.argv[1], sys.argv[2] == "1", float(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
if flush:
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
x = np.random.default_rng(0).normal(size=(1, 32, 32, 32)).astype(np.float32) * np.float32(scale)
name = session.get_inputs()[0].name
times = []
for _ in range(60):
    start = time.thread_time()
    session.run(None, {name: x})
    times.append(1e3 * (time.thread_time() - start))
print(json.dumps(float(np.median(times[10:]))))
"""


def milliseconds(path: Path, *, flush: bool, scale: float = 1.0) -> float:
    command = [sys.executable, "-c", MEASURE, str(path), str(int(flush)), str(scale)]
    return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def main() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(32, 32, 3, padding=1, bias=False) for _ in range(4)]
    net = nn.Sequential(*layers).eval()
    x = torch.randn(SHAPE)
    with tempfile.TemporaryDirectory() as folder:
        normal = l0prune.export_onnx(net, x, Path(folder) / "normal.onnx")
        decayed = Path(folder) / "decayed.onnx"
        model = onnx.load(str(normal))
        draw = np.random.default_rng(0)
        for tensor in model.graph.initializer:
            weights = numpy_helper.to_array(tensor).copy()
            weights[draw.random(weights.shape) < 0.9] *= np.float32(TINY)
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
        onnx.save(model, str(decayed))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for layer, tensor in zip(layers, model.graph.initializer, strict=True):
                layer.weight.copy_(torch.from_numpy(numpy_helper.to_array(tensor).copy()))
            exported = l0prune.export_onnx(net, x, Path(folder) / "exported.onnx")
        print(Environment.here(threads=1, batch_size=1))
        print("weights, ms a run: file as trained", f"{milliseconds(decayed, flush=False):.3f}", end="; ")
        print("with the option", f"{milliseconds(decayed, flush=True):.3f}", end="; ")
        print("as export_onnx writes it", f"{milliseconds(exported, flush=False):.3f}", end="; ")
        print("weights in order", f"{milliseconds(normal, flush=False):.3f}")
        print("activations, ms a run: plain", f"{milliseconds(normal, flush=False, scale=TINY):.3f}", end="; ")
        print("with the option", f"{milliseconds(normal, flush=True, scale=TINY):.3f}", end="; ")
        print("inputs in order", f"{milliseconds(normal, flush=False):.3f}")


if __name__ == "__main__":
    main()
