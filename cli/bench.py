"""`l0prune bench`: latency of dense and compact in onnxruntime, measured in turn."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l0prune.cli.flags import FilePath, chosen, common_options, flag, flags_of, given
from l0prune.cli.gating import price_by_profile
from l0prune.cli.opened_run import compact_model, dense_model, gated_model, open_finished
from l0prune.cli.output import console, note, say, show, working
from l0prune.cli.request import RunOptions
from l0prune.cli.trust import trust_option
from l0prune.errors import ConfigError, RunDirectoryError
from l0prune.machine import most_threads
from l0prune.options import Options, documented, option, options_of

if TYPE_CHECKING:
    from torch import nn

    from l0prune.bench.report import BenchReport
    from l0prune.latency.predicted import PredictedLayers
    from l0prune.run_directory import RunDirectory

__all__ = ["BenchOptions", "bench_command", "bench_run", "bench_runs"]


OF_FILES = ("data", "data_args", "task", "task_args")
"""Options of data that ONNX files are scored on."""


@documented
@dataclass(frozen=True)
class BenchOptions(Options):
    """How long and on what terms to measure."""

    threads: tuple[int, ...] = option(
        (1,),
        "Threads per operator in onnxruntime, or threads of torch; several give a table.",
        within=f"[1, {most_threads()}]",
        shown="1",
    )
    batch_size: tuple[int, ...] = option((1,), "Inputs per run; several give a table.", within="[1, inf)", shown="1")
    length: tuple[int, ...] = option(
        (), "Lengths of sequences; several give a table.", within="[1, inf)", shown="that of the example"
    )
    image_size: tuple[int, ...] = option(
        (), "Heights and widths of images; several give a table.", within="[1, inf)", shown="that of the example"
    )
    processes: int = option(
        5, "Fresh processes to measure in; the interval holds what another one would show.", within="[1, inf)"
    )
    warmup_s: float = option(0.3, "Seconds of untimed runs of each model.", within="[0, inf)", flag="--warmup")
    min_samples: int = option(100, "Minimum number of timed runs of each model.", within="[1, inf)", flag="--samples")
    min_seconds: float = option(2.0, "Minimum seconds of timing in total.", within="[0, inf)")
    max_seconds: float = option(60.0, "Seconds after which timing stops.", within="[0, inf)")
    int8: bool = option(
        False,
        "Beside each file, one in int8, calibrated where it is convolutional on the run's data or --data; with scores.",
        shown="",
    )
    by_layer: bool | None = option(
        None,
        "Time each layer as well, by onnxruntime's profiler, on the terms of the first row.",
        shown="on for a run with a profile",
    )
    seed: int = option(0, "Seed of the inputs and of the order of runs.", within="[0, inf)")

    def settings(self) -> list[dict[str, Any]]:
        """The arguments of `benchmark`, for every row of the table."""
        several = {option.name for option in options_of(BenchOptions).values() if option.items is int}
        alike = {name: value for name, value in vars(self).items() if name not in several | {"int8", "by_layer"}}
        sizes = [
            {**({"length": length} if length else {}), **({"height": side, "width": side} if side else {})}
            for length, side in itertools.product(self.length or (0,), self.image_size or (0,))
        ]
        rows = itertools.product(self.threads, self.batch_size, sizes)
        return [{**alike, "threads": t, "batch_size": b, "sizes": s} for t, b, s in rows]


@click.command("bench")
@click.argument("paths", nargs=-1, required=True, type=FilePath(), metavar="RUN | A.onnx [B.onnx ...]")
@flags_of(BenchOptions)
@click.option(
    "--profile",
    type=FilePath(),
    metavar="FILE",
    help="Of the run's model, whose predictions are shown beside the times.",
)
@flags_of(RunOptions, only=OF_FILES, group="")
@trust_option
@common_options
def bench_command(paths: tuple[Path, ...], profile: Path | None, as_json: bool, trust: bool, **values: Any) -> None:
    """Time a run's ONNX files, or the ones you name, in onnxruntime.

    Speedups are relative to the first file. With --data, files that belong to no run are scored as well, and calibrated for
    --int8. Free sizes other than the batch are those of the inputs that the file was
    exported with, unless --length or --image-size say otherwise.
    """
    from l0prune.bench.report import reports_to_json

    data = given({name: values.pop(name) for name in OF_FILES})
    options = chosen(BenchOptions, values)
    predicted: PredictedLayers | None = None
    with working():
        if is_onnx(paths):
            if trust:
                raise click.UsageError("--trust is for runs; these are ONNX files, which hold no code")
            if profile is not None:
                raise click.UsageError("--profile is for runs, whose widths are known; these are ONNX files")
            reports = bench_files(paths, options, data)
        else:
            if data:
                raise click.UsageError(f"{flag(next(iter(data)))} is for ONNX files; a run has its own data")
            if profile is not None:
                predicted = predicted_layers(paths[0], profile, options, trust=trust)
            else:
                predicted = known_prediction(paths[0])
            reports = bench_run(paths[0], options, predicted=predicted, trust=trust)
            if profile is None and predicted is not None and not all(predicted.is_for(report) for report in reports):
                predicted = None
    said = {} if predicted is None else {"predicted_ms": {"dense": predicted.dense_ms, "compact": predicted.compact_ms}}
    show(reports_to_json(reports) | said, as_json, lambda: print_bench(reports, predicted))


def predicted_layers(path: Path, profile: Path, options: BenchOptions, *, trust: bool) -> "PredictedLayers":
    """What a profile says of a run's dense and compact network.

    Raises:
        ConfigError: the profile is of another network, other threads, another batch, length or size of images.
    """
    from l0prune.latency.cost import LatencyCost
    from l0prune.latency.predicted import PredictedLayers
    from l0prune.latency.profile import Profile

    known = Profile.load(profile)
    for setting in options.settings():
        known.require_terms(threads=setting["threads"], batch_size=setting["batch_size"])
    known.require_lengths(options.length)
    known.require_image_sizes([(side, side) for side in options.image_size])
    run = open_finished(path, trust=trust)
    gated = gated_model(run, dense_model(run))
    price_by_profile(gated.costs, profile, profile=known)
    cost = gated.costs("latency")
    assert isinstance(cost, LatencyCost)
    return PredictedLayers.of(cost, (gated.gate_values() != 0).cpu().numpy())


def known_prediction(path: Path) -> "PredictedLayers | None":
    """What the profile of a run has said when it was cut; None where there was none.

    Raises:
        FileFormatError: the file that says so is damaged.
    """
    from l0prune.latency.predicted import PredictedLayers
    from l0prune.run_directory import RunDirectory

    file = RunDirectory(path).latency
    return PredictedLayers.read(file) if file.exists() else None


def is_onnx(paths: Sequence[Path]) -> bool:
    """Whether files are named rather than a run.

    Raises:
        click.UsageError: if there are several paths and one of them is a directory.
    """
    if len(paths) > 1 and any(path.is_dir() for path in paths):
        raise click.UsageError("name one run directory, or ONNX files only")
    return len(paths) > 1 or not (paths[0].is_dir() or paths[0].suffix != ".onnx")


def bench_run(
    path: Path, options: BenchOptions, *, predicted: "PredictedLayers | None" = None, trust: bool = False
) -> "list[BenchReport]":
    """Measure a run's two ONNX files and write RUN/bench.json; torch itself where no ONNX file can hold the network.

    Args:
        path: The run.
        options: How long, and on what terms.
        predicted: What the profile says that was named; None where none was.
        trust: Whether factories may run that only a run.json names.

    Returns:
        A report of each setting; the first is that in RUN/bench.json.

    Raises:
        RunDirectoryError: if the run has no ONNX files yet.
    """
    from l0prune.files import write_json
    from l0prune.run_directory import RunDirectory

    run = RunDirectory.open(path)
    reports = bench_runs({"compact": path}, options, trust=trust)
    files = {form: run.onnx / f"{form}.onnx" for form in ("dense", "compact")}
    knows_layers = predicted is not None or run.latency.exists()
    if options.by_layer or (options.by_layer is None and knows_layers and all(map(Path.exists, files.values()))):
        reports[0] = layers_of(reports[0], files, options)
    write_json(run.bench, reports[0].to_json())
    return reports


def bench_runs(paths: Mapping[str, Path], options: BenchOptions, *, trust: bool = False) -> "list[BenchReport]":
    """Measure the dense network of runs that have it in common, and the compact one of each, in turn.

    Args:
        paths: Name -> directory of a run that has been shrunk.
        options: How long, and on what terms.
        trust: Whether factories may run that only a run.json names.

    Raises:
        RunDirectoryError: if a run has no ONNX files yet.
    """
    from l0prune.bench.benchmark import benchmark
    from l0prune.run_directory import RunDirectory

    files: dict[str, Path] = {}
    in_torch = False
    about: dict[str, Any] = {}
    for name, path in paths.items():
        run = RunDirectory(path)
        forms = {form: run.onnx / f"{form}.onnx" for form in ("dense", "compact")}
        missing = [file for file in forms.values() if not file.exists()]
        if missing and not (run.compact.exists() and _has_no_onnx(run)):
            raise RunDirectoryError(f"{missing[0]} does not exist: run `l0prune shrink {path}` first")
        in_torch = in_torch or bool(missing)
        files = {"dense": forms["dense"], **files, name: forms["compact"]}
    if in_torch:
        return bench_in_torch(paths, options, trust=trust)
    if options.int8:
        from l0prune.cli.bench_int8 import DataOfFiles, with_int8

        data = DataOfFiles.of_run(next(iter(paths.values())), trust=trust)
        files, about = with_int8(files, data, seed=options.seed)
    return [replace(benchmark(files, **setting), **about) for setting in options.settings()]


def _has_no_onnx(run: "RunDirectory") -> bool:
    """Whether no ONNX file can hold the networks of a run that has been shrunk, as was seen then."""
    from l0prune.compact import has_graph

    return bool((run.read().result or {}).get("no_onnx_because")) or not has_graph(run.compact)


def bench_in_torch(paths: Mapping[str, Path], options: BenchOptions, *, trust: bool) -> "list[BenchReport]":
    """Measure the dense network of runs, and the compact one of each, as torch runs them, in this process.

    Raises:
        ConfigError: other sizes are asked for: nobody knows which of the inputs' dimensions have them.
    """
    from l0prune.bench.torch_models import benchmark_modules

    models: dict[str, nn.Module] = {}
    for name, path in paths.items():
        note(f"{path}: no ONNX file can hold this network (see `l0prune shrink {path}`), so torch itself is timed")
        run = open_finished(path, trust=trust)
        loaded = dense_model(run)
        models.setdefault("dense", loaded.model)
        models[name] = compact_model(run, loaded)
    if options.length or options.image_size or options.int8 or options.by_layer:
        raise ConfigError(
            "--length, --image-size, --int8 and --by-layer are for ONNX files; torch is timed on the inputs of the run"
        )
    settings = [{k: v for k, v in s.items() if k not in ("sizes", "processes")} for s in options.settings()]
    return [benchmark_modules(models, loaded.example_inputs, **setting) for setting in settings]


def bench_files(
    paths: Sequence[Path], options: BenchOptions, data: Mapping[str, Any] | None = None
) -> "list[BenchReport]":
    """Measure ONNX files, named by their file names, or by their paths where these are not unique.

    Args:
        paths: The files.
        options: How long, and on what terms.
        data: Options of data and task that they are scored on; nothing scores none.
    """
    from l0prune.bench.benchmark import benchmark

    short = [path.stem for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    files = named = dict(zip(names, paths, strict=True))
    about: dict[str, Any] = {}
    if options.int8 or data:
        from l0prune.cli.bench_int8 import DataOfFiles, with_int8

        known = DataOfFiles.of(paths[0], data) if data else None
        if options.int8:
            files, about = with_int8(files, known, seed=options.seed)
        elif known is not None:
            about = known.scores(files)
    reports = [replace(benchmark(files, **setting), **about) for setting in options.settings()]
    return [layers_of(reports[0], named, options), *reports[1:]] if options.by_layer else reports


def layers_of(report: "BenchReport", files: Mapping[str, Path], options: BenchOptions) -> "BenchReport":
    """The same report, with the time of each layer of these files."""
    from l0prune.bench.by_layer import with_layers

    return with_layers(report, files, seed=options.seed)


def print_bench(reports: "Sequence[BenchReport]", predicted: "PredictedLayers | None" = None) -> None:
    """The figures as a table, those of layers where they were timed, and what a profile has predicted."""
    from l0prune.bench.by_layer import layer_table
    from l0prune.bench.report import bench_table

    console().print(bench_table(reports))
    if reports[0].layers:
        console().print(layer_table(reports[0], predicted.by_layer if predicted is not None else None))
    if predicted is not None:
        for name, ms in (("dense", predicted.dense_ms), ("compact", predicted.compact_ms)):
            measured = reports[0][name].latency_ms.p50
            say(f"{name}: predicted {ms:.3f} ms, {ms / measured:.3f} of what was measured")
