"""The channel count step that onnxruntime likes on this machine, measured.

onnxruntime computes convolutions in blocks of channels. A width inside a block costs as much as the full block, and a
width its blocked kernels refuse costs more than that. So latency over width is a staircase, with cliffs; its step
depends on the processor. docs/alignment.md shows the measurements behind this module.
"""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from l0prune.errors import ConfigError, FileFormatError
from l0prune.files import write_whole
from l0prune.machine import cache_directory
from l0prune.measuring.hardware import processor
from l0prune.measuring.timing import interleave
from l0prune.plain_data import FileKind
from l0prune.reading import read_json, reading

__all__ = [
    "CANDIDATES",
    "AlignmentReport",
    "measure_alignment",
    "preferred_alignment",
    "require_alignment",
    "resolve_alignment",
]

CANDIDATES = (1, 4, 8, 16, 32)
"""Alignments that are compared."""

CACHE = "alignment.json"
_KIND = FileKind("l0prune.alignment", 1, "the measured alignment of a machine", "delete the file")
_WIDTHS = range(33, 65)  # two blocks of 16, four of 8; a multiple of every candidate at its end
_IMAGE_SIZE = 14
_OUTER_WIDTH = 64
_INDIFFERENCE = 1.03  # a coarser step that costs at most 3 % more latency is preferred: it keeps more units


@dataclass(frozen=True)
class AlignmentReport:
    """Latency of small convolution stacks over their width, and the alignment it speaks for.

    Attributes:
        alignment: The preferred step, one of `CANDIDATES`.
        relative_cost: Candidate -> mean latency over all widths when each is rounded up to the candidate's multiple,
            relative to the cheapest candidate, >= 1.
        latency_us: Kernel ("1x1", "3x3") -> width -> microseconds of the stack.
        processor: What it was measured on.
        threads: onnxruntime's threads.
        onnxruntime: Its version.
    """

    alignment: int
    relative_cost: dict[int, float]
    latency_us: dict[str, dict[int, float]]
    processor: str
    threads: int
    onnxruntime: str

    def __post_init__(self) -> None:
        """Check what a file may have got wrong."""
        if self.alignment not in CANDIDATES:
            raise FileFormatError(f"alignment {self.alignment!r}: expected one of {CANDIDATES}.")

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return _KIND.stamped(asdict(self))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AlignmentReport":
        """From the object `to_json` made.

        Raises:
            FileFormatError: on another format or version, and on missing or unknown keys.
        """
        return _KIND.read(cls, value, "alignment report")


def measure_alignment(*, threads: int = 1, max_seconds: float = 2.0) -> AlignmentReport:
    """Measure the latency staircase of this machine and choose the step of channel counts.

    Stacks of 1x1 and of 3x3 convolutions are timed at every width from 33 to 64 on a 14x14 image, batch 1, interleaved,
    each by the 10 % quantile of its runs. A candidate N is judged by the mean latency over these widths when each is
    rounded up to a multiple of N. Of the candidates within 3 % of the best, the coarsest wins: the units it keeps in
    addition are free.

    Args:
        threads: onnxruntime's threads, >= 1.
        max_seconds: Limit for the timing itself; the sessions take about half a second more.

    Raises:
        ConfigError: if `threads` is below 1.
    """
    import onnxruntime

    names = [(kernel, width) for kernel in (1, 3) for width in _WIDTHS]
    calls = [_stack(kernel, width, threads) for kernel, width in names]
    times = interleave(
        calls,
        one_thread=threads == 1,
        warmup_s=0.0005,
        min_samples=40,
        min_seconds=0.0,
        max_seconds=max_seconds,
        block_s=0.0005,
        seed=0,
    )
    seconds = [float(np.quantile(runs, 0.1)) for runs in times.seconds]
    curves: dict[str, dict[int, float]] = {"1x1": {}, "3x3": {}}
    for (kernel, width), value in zip(names, seconds, strict=True):
        curves[f"{kernel}x{kernel}"][width] = value * 1e6
    costs = _relative_costs(curves)
    return AlignmentReport(
        alignment=max(candidate for candidate, cost in costs.items() if cost <= _INDIFFERENCE),
        relative_cost=costs,
        latency_us=curves,
        processor=processor().key,
        threads=threads,
        onnxruntime=onnxruntime.__version__,
    )


def preferred_alignment(*, threads: int = 1) -> int:
    """`measure_alignment`, remembered in the user's cache directory by processor, onnxruntime version and threads.

    A cache that cannot be read is measured again, one that cannot be written is done without. The environment variable
    `L0PRUNE_CACHE_DIR` moves it.
    """
    import onnxruntime

    key = f"{processor().key}, onnxruntime {onnxruntime.__version__}, {threads} threads"
    reports = _read_cache()
    if key not in reports:
        reports[key] = measure_alignment(threads=threads)
        _write_cache(reports)
    return reports[key].alignment


def require_alignment(align: object) -> None:
    """See that something can be an alignment, without measuring any.

    Raises:
        ConfigError: if it is neither "auto", nor None, nor a whole number >= 1 or its digits.
    """
    if align is None or align == "auto":
        return
    is_number = isinstance(align, int) and not isinstance(align, bool)
    is_text = isinstance(align, str) and align.isdecimal()
    if not (is_number or is_text) or int(align) < 1:  # type: ignore[call-overload]
        raise ConfigError(f"align={align!r}: expected 'auto' or a whole number of channels, 1 or more.")


def resolve_alignment(align: str | int | None, *, threads: int = 1) -> int:
    """The alignment a user asked for, as a number.

    Args:
        align: "auto" for `preferred_alignment`, a number or its digits, or None for 1: any width.
        threads: onnxruntime's threads, for "auto".

    Raises:
        ConfigError: if it is neither "auto" nor a whole number >= 1.
    """
    require_alignment(align)
    if align is None:
        return 1
    return preferred_alignment(threads=threads) if align == "auto" else int(align)


def _relative_costs(curves: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """Mean latency over the widths, each rounded up to the candidate's multiple; kernels weigh the same; best = 1."""
    costs = {}
    for candidate in CANDIDATES:
        means = [np.mean([curve[-(-width // candidate) * candidate] for width in curve]) for curve in curves.values()]
        costs[candidate] = float(np.mean([mean / max(curve.values()) for mean, curve in zip(means, curves.values())]))
    best = min(costs.values())
    return {candidate: cost / best for candidate, cost in costs.items()}


def _stack(kernel: int, width: int, threads: int) -> Callable[[], object]:
    """One run of 64 -> width -> width -> width -> 64 channels, convolutions with ReLU between."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from l0prune.measuring.session import open_session

    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    widths = (_OUTER_WIDTH, width, width, width, _OUTER_WIDTH)
    for index, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        size = kernel if 0 < index < len(widths) - 2 else 1
        weight = rng.normal(size=(n_out, n_in, size, size)) / np.sqrt(n_in * size * size)
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], pads=[size // 2] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        value = f"r{index}"
    shape = [1, _OUTER_WIDTH, _IMAGE_SIZE, _IMAGE_SIZE]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", value)]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = open_session(onnx.shape_inference.infer_shapes(model).SerializeToString(), threads=threads)
    binding = session.io_binding()
    binding.bind_ortvalue_input(
        "x", onnxruntime.OrtValue.ortvalue_from_numpy(rng.normal(size=shape).astype(np.float32))
    )
    binding.bind_output(value, "cpu")
    return lambda: session.run_with_iobinding(binding)


def _read_cache() -> dict[str, AlignmentReport]:
    """What is remembered; nothing where the file is missing or damaged."""
    try:
        path = cache_directory() / CACHE
        with reading(path, "cache of alignments"):
            entries = read_json(path, "cache of alignments")
            return {key: AlignmentReport.from_json(value) for key, value in entries.items()}
    except (OSError, FileFormatError):
        return {}


def _write_cache(reports: Mapping[str, AlignmentReport]) -> None:
    """Remember for the next time, where that is possible."""
    text = json.dumps({key: report.to_json() for key, report in reports.items()}, indent=1)
    try:
        folder = cache_directory()
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CACHE, text)
    except OSError:
        return
