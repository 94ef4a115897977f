"""What a benchmark found: figures as data, their JSON, and their table."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0prune.errors import FileFormatError
from l0prune.measuring.hardware import Environment
from l0prune.plain_data import FileKind, from_plain, read_fields
from l0prune.reading import read_json, reading

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["BenchReport", "ColdStart", "Latency", "ModelTiming", "Speedup", "bench_table", "reports_to_json"]

_KIND = FileKind("l0prune.bench", 1, "a bench report", "run bench again")
_TABLE_KIND = FileKind("l0prune.bench-table", 1, "bench reports of several settings", "run bench again")
_OPTIONAL = ("runtime", "processes", "sizes", "scores", "metric", "unit", "layers")
"""That earlier versions did not write."""
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
class ColdStart:
    """The first use of a model in a fresh process.

    Attributes:
        load_ms: Milliseconds from the file to a session that can run, on the wall.
        first_run_ms: Of the first run.
        peak_bytes: The most memory that it takes to load and run it, beyond Python and onnxruntime; None where the system does
            not say.
    """

    load_ms: float
    first_run_ms: float
    peak_bytes: int | None


@dataclass(frozen=True)
class ModelTiming:
    """One model's size and time.

    Attributes:
        name: What the caller calls it.
        latency_ms: Milliseconds a run.
        samples: Timed runs.
        throughput_per_s: Inputs (not batches) a second, from the median.
        file_bytes: Size of its ONNX file, with the weights' own where there is one; of its tensors where it has no file.
        n_parameters: Values of the weights stored in it.
        odd_widths: Channels that convolutions of its ONNX file read, ascending, where they are 16 or more and no multiple of
            4: onnxruntime takes such layers out of its fast, blocked kernels.
        start: Its first use; None where all was measured in one process.
    """

    name: str
    latency_ms: Latency
    samples: int
    throughput_per_s: float
    file_bytes: int
    n_parameters: int
    odd_widths: tuple[int, ...] = ()
    start: ColdStart | None = None


@dataclass(frozen=True)
class Speedup:
    """How many times faster a model is than the baseline, with its 95 % interval.

    Over several processes the interval is the one that another process lies in; in one process it is that of the median over
    its blocks.

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
        processes: That were measured in.
        sizes: Of free dimensions other than the batch, where they are not those of the example.
        scores: Name -> what a model scores on test data; empty where none were scored.
        metric: What is scored, as in "accuracy"; empty where nothing is.
        unit: Of the scores; may be empty.
        layers: Name -> layer -> milliseconds, which add up to the model's median; empty where layers were not timed.
    """

    models: tuple[ModelTiming, ...]
    baseline: str
    speedup: dict[str, Speedup]
    clock: str
    busy: float
    environment: Environment
    runtime: str
    processes: int = 1
    sizes: dict[str, int] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    metric: str = ""
    unit: str = ""
    layers: dict[str, dict[str, float]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> ModelTiming:
        """The timing of a model by its name."""
        return next(timing for timing in self.models if timing.name == name)

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence or two for each model that has fewer parameters than the baseline but is slower, or not faster."""
        whole = self[self.baseline].n_parameters
        return tuple(
            f"{name} has {self[name].n_parameters / whole:.0%} of the parameters of {self.baseline} and is "
            f"{'slower' if speedup.high < _SLOWER else 'not faster'}: "
            f"{speedup.ratio:.2f} times its speed, 95 % interval {speedup.low:.2f} to {speedup.high:.2f}. "
            f"{_what_to_do(self[name].odd_widths)}"
            for name, speedup in self.speedup.items()
            if speedup.low <= 1 and self[name].n_parameters < whole
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
            "processes": self.processes,
            "sizes": self.sizes,
            "scores": self.scores,
            "metric": self.metric,
            "unit": self.unit,
            "layers": self.layers,
        }
        return _KIND.stamped(content)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "BenchReport":
        """From the object `to_json` made.

        Raises:
            FileFormatError: on another format or version, and on missing or unknown keys.
        """
        keys = [known.name for known in fields(cls)]
        content = _KIND.content(value, "bench report", keys, optional=_OPTIONAL)
        value = {"runtime": "onnxruntime", **content}
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


def reports_to_json(reports: Sequence[BenchReport]) -> dict[str, Any]:
    """One report as its own object; several, of other threads, batches or sizes, as a list in one."""
    if len(reports) == 1:
        return reports[0].to_json()
    return _TABLE_KIND.stamped({"settings": [report.to_json() for report in reports]})


def bench_table(reports: BenchReport | Sequence[BenchReport]) -> "RenderableType":
    """Reports for people, as two rich tables, of times and of sizes; a caption names the machine.

    Args:
        reports: One, or several of the same models with other threads, batch sizes or lengths.
    """
    from rich.console import Group

    reports = [reports] if isinstance(reports, BenchReport) else list(reports)
    columns = ["p50 ms", "p90 ms", "per second", "speedup", "95 % interval"]
    if any(report.scores for report in reports):
        columns.append(" ".join(filter(None, (reports[0].metric, reports[0].unit))))
    times = _table(reports, columns, _times)
    cold = any(timing.start for report in reports for timing in report.models)
    starts = ("load ms", "first ms", "peak MB") if cold else ()
    sizes = _table(reports, ("parameters", "file bytes", *starts), _sizes if cold else _file_sizes)
    sizes.caption, sizes.caption_justify = _caption(reports), "left"
    return Group(times, sizes)


def _table(
    reports: Sequence[BenchReport],
    columns: Sequence[str],
    cells: Callable[[BenchReport, ModelTiming], Sequence[str]],
) -> "Table":
    """A row for each model of each report, with the settings that several reports differ in."""
    from rich import box
    from rich.table import Table

    settings = [_setting(report) for report in reports] if len(reports) > 1 else [{}]
    named = [name for name in dict.fromkeys(itertools.chain(*settings)) if len({s.get(name) for s in settings}) > 1]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in named:
        table.add_column(name, justify="right")
    table.add_column("model", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    for report, setting in zip(reports, settings, strict=True):
        for timing in report.models:
            table.add_row(*(str(setting.get(name, "")) for name in named), timing.name, *cells(report, timing))
    return table


def _caption(reports: Sequence[BenchReport]) -> str:
    first = reports[0]
    environment = first.environment
    settings = [_setting(report).items() for report in reports]
    common = ", ".join(f"{name} {value}" for name, value in settings[0] if all((name, value) in s for s in settings))
    caption = f"{environment.cpu}, {environment.instruction_set}, {environment.n_cores} cores; {first.runtime}"
    caption += f", {common}" if common else ""
    if first.processes > 1:
        caption += f"\n{first.processes} processes; another one lies within the interval 19 times of 20"
    busy = max(report.busy for report in reports)
    if busy > _BUSY:
        caption += f"\nbusy machine: {busy:.0%} of the time went to other processes, and is not counted"
    return caption


def _setting(report: BenchReport) -> dict[str, int]:
    return {"threads": report.environment.threads, "batch": report.environment.batch_size, **report.sizes}


def _times(report: BenchReport, timing: ModelTiming) -> list[str]:
    speedup, score = report.speedup.get(timing.name), report.scores.get(timing.name)
    return [
        f"{timing.latency_ms.p50:.3f}",
        f"{timing.latency_ms.p90:.3f}",
        f"{timing.throughput_per_s:.1f}",
        f"{speedup.ratio:.2f}x" if speedup else "",
        f"{speedup.low:.2f} - {speedup.high:.2f}" if speedup else "",
        *([f"{score:.2f}"] if score is not None else []),
    ]


def _file_sizes(_: BenchReport, timing: ModelTiming) -> list[str]:
    return [f"{timing.n_parameters:,}", f"{timing.file_bytes:,}"]


def _sizes(report: BenchReport, timing: ModelTiming) -> list[str]:
    start = timing.start
    return [
        *_file_sizes(report, timing),
        f"{start.load_ms:.1f}" if start else "",
        f"{start.first_run_ms:.2f}" if start else "",
        f"{start.peak_bytes / 1e6:.1f}" if start and start.peak_bytes is not None else "",
    ]


def _what_to_do(odd_widths: Sequence[int]) -> str:
    """What helps a small model that is slow."""
    if not odd_widths:
        return (
            "Its convolutions have no odd widths, so rounding does not help: measure it with the batch size and threads it "
            "will run with, and if that is not faster, ask for the time itself (`l0prune profile`, then `--budget latency=0.5`), "
            "let whole branches close (`--depth`), or prune further."
        )
    shown = ", ".join(map(str, odd_widths[:_SHOWN_WIDTHS]))
    more = f" and {len(odd_widths) - _SHOWN_WIDTHS} more" if len(odd_widths) > _SHOWN_WIDTHS else ""
    return (
        f"It has convolutions of {shown}{more} channels, which onnxruntime computes slowly: round them with "
        "`l0prune shrink RUN --align auto`, in Python shrink(gated, align=16)."
    )
