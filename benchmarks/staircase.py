"""Print how onnxruntime's latency on this CPU depends on channel counts (the tables of docs/alignment.md).

Usage: python benchmarks/staircase.py [--threads 1] [--table widths|blocks|pairs|resnet20|kernels]
"""

import argparse
import itertools
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from l0prune.measuring.hardware import Environment
from l0prune.measuring.session import onnxruntime, open_session  # type: ignore[attr-defined]
from l0prune.measuring.timing import interleave

WIDTHS = (4, 8, 12, 15, 16, 17, 20, 24, 28, 31, 32, 33, 36, 40, 44, 47, 48, 49, 50, 52, 56, 60, 61, 62, 63, 64)
STAGES = ((16, 32), (32, 16), (64, 8))  # channels and image size of the stages of a CIFAR ResNet
RESNETS = {
    "dense": (16, 16, 16, 32, 32, 32, 64, 64, 64),
    "half, aligned: 8, 16, 32": (8, 8, 8, 16, 16, 16, 32, 32, 32),
    "half, one less: 7, 15, 31": (7, 7, 7, 15, 15, 15, 31, 31, 31),
    "half, one more: 9, 17, 33": (9, 9, 9, 17, 17, 17, 33, 33, 33),
    "multiples of 4: 8, 20, 36": (8, 8, 8, 20, 20, 20, 36, 36, 36),
    "first stage whole: 16, 16, 32": (16, 16, 16, 16, 16, 16, 32, 32, 32),
    "a block less in stage 1: 16, 16, 32": (16, 0, 16, 16, 16, 16, 32, 32, 32),
    "two blocks less in stage 1: 16, 16, 48": (16, 0, 0, 16, 16, 16, 48, 48, 48),
    "a block less in each stage": (16, 16, 0, 32, 32, 0, 64, 64, 0),
    "one block a stage": (16, 0, 0, 32, 0, 0, 64, 0, 0),
}


class Network:
    """A small ONNX graph, written node by node; `macs` counts what its layers cost."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.macs = shape, 0
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def constant(self, array: np.ndarray) -> str:
        """Name of a new initialiser."""
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def op(self, kind: str, *inputs: str, **attributes) -> str:
        """Name of the output of a new node."""
        self.nodes.append(helper.make_node(kind, inputs, [f"v{len(self.nodes)}"], **attributes))
        return self.nodes[-1].output[0]

    def conv(self, x: str, n_in: int, n_out: int, size: int, image: int, *, stride: int = 1, groups: int = 1) -> str:
        """A convolution with bias; `image` is the side of its output."""
        shape = (n_out, n_in // groups, size, size)
        weight = self.rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        self.macs += int(np.prod(shape)) * image * image
        inputs = (x, self.constant(weight.astype(np.float32)), self.constant(np.zeros(n_out, np.float32)))
        return self.op("Conv", *inputs, pads=[size // 2] * 4, strides=[stride] * 2, group=groups)

    def linear(self, x: str, n_in: int, n_out: int) -> str:
        """A matrix product."""
        weight = self.rng.normal(size=(n_in, n_out)) / np.sqrt(n_in)
        return self.op("MatMul", x, self.constant(weight.astype(np.float32)))

    def proto(self) -> onnx.ModelProto:
        """The model; its output is that of the last node."""
        ends = [("x", list(self.shape)), (self.nodes[-1].output[0], None)]
        inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in ends)
        graph = helper.make_graph(self.nodes, "network", inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model)

    def run(self, threads: int):
        """A function that runs it once, inputs and outputs bound."""
        session = open_session(self.proto().SerializeToString(), threads=threads)
        binding = session.io_binding()
        x = self.rng.normal(size=self.shape).astype(np.float32)
        binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
        binding.bind_output(session.get_outputs()[0].name, "cpu")
        return lambda: session.run_with_iobinding(binding)


def conv_stack(width: int, kind: str, image: int) -> Network:
    """64 -> width, eight layers of `kind` at that width, -> 64."""
    net = Network(1, 64, image, image)
    x = net.op("Relu", net.conv("x", 64, width, 1, image))
    for _ in range(8):
        size, groups = (1, 1) if kind == "1x1" else (3, width if kind == "depthwise" else 1)
        x = net.op("Relu", net.conv(x, width, width, size, image, groups=groups))
    net.conv(x, width, 64, 1, image)
    return net


def linear_stack(width: int, tokens: int) -> Network:
    """192 -> width, eight linear layers at that width, -> 192."""
    net = Network(tokens, 192)
    x = net.linear("x", 192, width)
    for _ in range(8):
        x = net.op("Relu", net.linear(x, width, width))
    net.linear(x, width, 192)
    return net


def residual_blocks(channels: int, width: int, image: int, n_blocks: int = 6) -> Network:
    """A convolution, then blocks channels -> width -> channels."""
    net = Network(1, channels, image, image)
    x = net.op("Relu", net.conv("x", channels, channels, 3, image))
    for _ in range(n_blocks):
        y = net.op("Relu", net.conv(x, channels, width, 3, image))
        x = net.op("Relu", net.op("Add", net.conv(y, width, channels, 3, image), x))
    return net


def conv_pairs(first: int, second: int, size: int, image: int) -> Network:
    """Six pairs of convolutions first -> second -> first."""
    net = Network(1, first, image, image)
    x = "x"
    for n_in, n_out in [(first, second), (second, first)] * 6:
        x = net.op("Relu", net.conv(x, n_in, n_out, size, image))
    return net


def resnet20(inner: tuple[int, ...]) -> Network:
    """ResNet-20 for 32x32 images with shortcuts that stride and pad; an inner width of 0 is a block left out."""
    net = Network(1, 3, 32, 32)
    x, channels, image = net.op("Relu", net.conv("x", 3, 16, 3, 32)), 16, 32
    for index, width in enumerate(inner):
        outer, new_image = STAGES[index // 3]
        stride, shortcut = image // new_image, x
        if stride == 2:
            ints = (np.array(values) for values in ([0, 0], [99, 99], [2, 3], [2, 2]))
            shortcut = net.op("Slice", x, *map(net.constant, ints))
            side = (outer - channels) // 2
            shortcut = net.op("Pad", shortcut, net.constant(np.array([0, side, 0, 0, 0, side, 0, 0])))
        image = new_image
        if width:
            y = net.op("Relu", net.conv(x, channels, width, 3, image, stride=stride))
            x = net.op("Relu", net.op("Add", net.conv(y, width, outer, 3, image), shortcut))
        else:
            x = shortcut
        channels = outer
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.linear(x, channels, 10)
    return net


def microseconds(nets: dict, threads: int) -> dict:
    """Fast decile of each network's runs, measured in turn."""
    runs = [net.run(threads) for net in nets.values()]
    times = interleave(
        runs,
        one_thread=threads == 1,
        warmup_s=0.005,
        min_samples=100,
        min_seconds=1.0,
        max_seconds=60.0,
        block_s=0.001,
        seed=0,
    )
    return {key: float(np.quantile(seconds, 0.1)) * 1e6 for key, seconds in zip(nets, times.seconds, strict=True)}


def show(title: str, figures: dict) -> None:
    print(f"{title}\n  " + "  ".join(f"{key}:{value:.1f}" for key, value in figures.items()), flush=True)


def widths_table(threads: int) -> None:
    print("\nStacks of eight layers, microseconds at width: C -> C")
    for kind, image in itertools.product(("1x1", "3x3", "depthwise"), (28, 14, 7)):
        nets = {width: conv_stack(width, kind, image) for width in WIDTHS}
        show(f"{kind}, {image}x{image}", microseconds(nets, threads))
    for tokens in (1, 50, 197):
        nets = {width: linear_stack(width, tokens) for width in (32, 40, 48, 56, 61, 62, 64, 65, 72, 80, 96, 112, 128)}
        show(f"linear, {tokens} rows", microseconds(nets, threads))


def blocks_table(threads: int) -> None:
    print("\nResidual blocks C -> width -> C of 3x3 convolutions, microseconds a block")
    for channels, image in STAGES:
        widths = range(1, 17) if channels == 16 else [width for width in WIDTHS if width <= channels]
        nets = {width: residual_blocks(channels, width, image) for width in widths}
        nets[0] = residual_blocks(channels, 1, image, n_blocks=0)
        found = microseconds(nets, threads)
        stem = found.pop(0)
        show(f"C = {channels}, {image}x{image}", {width: (value - stem) / 6 for width, value in found.items()})


def pairs_table(threads: int) -> None:
    print("\nPairs of convolutions a -> b -> a, microseconds a pair, over b")
    for size, (channels, image) in itertools.product((3, 1), STAGES):
        widths = [width for width in (4, 8, 12, 16, 20, 24, 32, 40, 48, 56, 64) if width <= channels]
        nets = {pair: conv_pairs(*pair, size, image) for pair in itertools.combinations_with_replacement(widths, 2)}
        found = microseconds(nets, threads)
        for first in widths:
            row = {low: found[low, first] / 6 for low in widths if low <= first}
            show(f"{size}x{size}, {image}x{image}, a = {first}", row)


def resnet20_table(threads: int) -> None:
    print("\nResNet-20, inner widths of its nine blocks (0: block left out)")
    nets = {name: resnet20(inner) for name, inner in RESNETS.items()}
    found = microseconds(nets, threads)
    for name, net in nets.items():
        share, speedup = net.macs / nets["dense"].macs, found["dense"] / found[name]
        print(f"  {name:40s} {share:.3f} of the MACs  {found[name]:6.0f} us  {speedup:.2f}x")


def kernels_table(threads: int) -> None:
    print("\nConvolution kernels in onnxruntime's optimised graph (blocked / plain) of a 3x3 stack of ten, by width")
    for width in (8, 12, 16, 20, 48, 52, 61, 64):
        net = conv_stack(width, "3x3", 14)
        with tempfile.TemporaryDirectory() as folder:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 4
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            onnxruntime.InferenceSession(net.proto().SerializeToString(), options, providers=["CPUExecutionProvider"])
            kinds = Counter((n.domain, n.op_type) for n in onnx.load(options.optimized_model_filepath).graph.node)
        blocked = kinds["com.microsoft.nchwc", "Conv"]
        reorders = sum(count for (_, kind), count in kinds.items() if kind.startswith("Reorder"))
        print(f"  width {width:2d}: {blocked:2d} / {10 - blocked:2d}, {reorders} reorders")


TABLES = {
    "widths": widths_table,
    "blocks": blocks_table,
    "pairs": pairs_table,
    "resnet20": resnet20_table,
    "kernels": kernels_table,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="onnxruntime's threads (1)")
    parser.add_argument("--table", choices=TABLES, help="print this table only")
    chosen = parser.parse_args()
    print(Environment.here(threads=chosen.threads, batch_size=1))
    for name, table in TABLES.items():
        if chosen.table in (None, name):
            table(chosen.threads)
