"""What a benchmark found: figures as data, their JSON, and their table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0prune.errors import FileFormatError
from l0prune.measuring.hardware import Environment
from l0prune.plain_data import FileKind, from_plain, read_fields
from l0prune.reading import read_json, reading

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["BenchReport", "Latency", "ModelTiming", "Speedup", "bench_table"]

_KIND = FileKind("l0prune.bench", 1, "a bench report", "run bench again")
_BUSY = 0.1  # share of the time lost to other processes from which the table mentions it
_SLOWER = 0.98  # upper end of a speedup's interval below which a smaller model counts as slower; 1 apart is chance
_SHOWN_WIDTHS = 6


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one run over the whole batch.

    Attributes:
        p50: Median.
        p90: 90 % quantile.
        mean: Mean.
        quantiles: Of 0, 5 ... 100 %, so that the distribution can be drawn.
    """

    p50: float
    p90: float
    mean: float
    quantiles: tuple[float, ...]

    def __post_init__(self) -> None:
        """A list from a file becomes a tuple."""
        object.__setattr__(self, "quantiles", tuple(self.quantiles))


@dataclass(frozen=True)
class ModelTiming:
    """One model's size and time.

    Attributes:
        name: What the caller calls it.
        latency_ms: Milliseconds a run.
        samples: Timed runs.
        throughput_per_s: Inputs (not batches) a second, from the median.
        file_bytes: Size of its ONNX file, with the weights' own where there is one; of its tensors where it has no file.
        n_parameters: Floating-point values stored in it.
        odd_widths: Channels that convolutions of its ONNX file read, ascending, where they are 16 or more and no multiple of
            4: onnxruntime takes such layers out of its fast, blocked kernels.
    """

    name: str
    latency_ms: Latency
    samples: int
    throughput_per_s: float
    file_bytes: int
    n_parameters: int
    odd_widths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Speedup:
    """How many times faster a model is than the baseline, with its 95 % interval.

    Attributes:
        ratio: Baseline's time / this model's time, from runs measured in turn; above 1 is faster.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchReport:
    """A benchmark of one or more models, run in turn on one machine.

    Attributes:
        models: One timing per model, in the caller's order.
        baseline: Name of the first model, with which the others are compared.
        speedup: Name -> speedup over the baseline, for every model but the first.
        clock: "thread" (one thread: its processor time) or "wall".
        busy: Share of the time in which other processes held the core, in [0, 1); 0 for the wall clock, which cannot tell.
        environment: Machine, versions, threads and batch size.
        runtime: What ran the models, with its version: onnxruntime, or torch for models that no ONNX file can hold.
    """

    models: tuple[ModelTiming, ...]
    baseline: str
    speedup: dict[str, Speedup]
    clock: str
    busy: float
    environment: Environment
    runtime: str

    def __getitem__(self, name: str) -> ModelTiming:
        """The timing of a model by its name."""
        return next(timing for timing in self.models if timing.name == name)

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence or two for each model that has fewer parameters than the baseline but is nevertheless slower."""
        whole = self[self.baseline].n_parameters
        return tuple(
            f"{name} has {self[name].n_parameters / whole:.0%} of the parameters of {self.baseline} and is slower: "
            f"{speedup.ratio:.2f} times its speed, 95 % interval {speedup.low:.2f} to {speedup.high:.2f}. "
            f"{_what_to_do(self[name].odd_widths)}"
            for name, speedup in self.speedup.items()
            if speedup.high < _SLOWER and self[name].n_parameters < whole
        )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object: `models` and `speedup` are keyed by model name."""
        timings = {
            timing.name: {key: val for key, val in asdict(timing).items() if key != "name"} for timing in self.models
        }
        content = {
            "models": timings,
            "baseline": self.baseline,
            "speedup": {name: asdict(speedup) for name, speedup in self.speedup.items()},
            "clock": self.clock,
            "busy": self.busy,
            "environment": asdict(self.environment),
            "runtime": self.runtime,
        }
        return _KIND.stamped(content)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "BenchReport":
        """From the object `to_json` made.

        Raises:
            FileFormatError: on another format or version, and on missing or unknown keys.
        """
        keys = [field.name for field in fields(cls)]
        value = {"runtime": "onnxruntime", **_KIND.content(value, "bench report", keys, optional=("runtime",))}
        timings = from_plain(dict[str, dict[str, Any]], value["models"], "bench report, models")
        models = [
            read_fields(ModelTiming, {**timing, "name": name}, f"timing of {name!r}")
            for name, timing in timings.items()
        ]
        report = read_fields(cls, {**value, "models": models}, "bench report")
        names = [timing.name for timing in report.models]
        if report.baseline not in names or not report.speedup.keys() <= set(names):
            raise FileFormatError(f"bench report: baseline and speedups are of models that it does not have: {names}.")
        return report

    @classmethod
    def read(cls, path: Path) -> "BenchReport":
        """The report in a bench.json.

        Raises:
            FileFormatError: it is missing or damaged, or as `from_json`.
        """
        with reading(path, "bench report", remedy="run bench again"):
            return cls.from_json(read_json(path, "bench report", remedy="run bench again"))


def bench_table(report: BenchReport) -> "Table":
    """The report for people, as a rich table; the caption names the machine."""
    from rich import box
    from rich.table import Table

    environment = report.environment
    caption = (
        f"{environment.cpu}, {environment.instruction_set}, {environment.n_cores} cores; "
        f"{report.runtime}, {environment.threads} thread(s), batch {environment.batch_size}"
    )
    if report.busy > _BUSY:
        caption += f"\nbusy machine: {report.busy:.0%} of the time went to other processes, and is not counted"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("model", overflow="fold")
    for name in ("p50 ms", "p90 ms", "per second", "parameters", "file bytes", "runs", "speedup", "95 % interval"):
        table.add_column(name, justify="right")
    for timing in report.models:
        speedup = report.speedup.get(timing.name)
        table.add_row(
            timing.name,
            f"{timing.latency_ms.p50:.3f}",
            f"{timing.latency_ms.p90:.3f}",
            f"{timing.throughput_per_s:.1f}",
            f"{timing.n_parameters:,}",
            f"{timing.file_bytes:,}",
            f"{timing.samples:,}",
            f"{speedup.ratio:.2f}x" if speedup else "",
            f"{speedup.low:.2f} - {speedup.high:.2f}" if speedup else "",
        )
    return table


def _what_to_do(odd_widths: Sequence[int]) -> str:
    """What helps a small model that is slow."""
    if not odd_widths:
        return (
            "Its convolutions have no odd widths, so rounding does not help: measure it with the batch size and threads it "
            "will run with, and prune further if that is not faster."
        )
    shown = ", ".join(map(str, odd_widths[:_SHOWN_WIDTHS]))
    more = f" and {len(odd_widths) - _SHOWN_WIDTHS} more" if len(odd_widths) > _SHOWN_WIDTHS else ""
    return (
        f"It has convolutions of {shown}{more} channels, which onnxruntime computes slowly: round them with "
        "`l0prune shrink RUN --align auto`, in Python shrink(gated, align=16)."
    )
