"""One self-contained page about a run: figures, pictures, environment."""

from __future__ import annotations

import importlib.util
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0prune.bench.report import BenchReport
from l0prune.cost.kinds import metric_named, metric_names
from l0prune.criteria.registry import GATES
from l0prune.errors import ConfigError, RunDirectoryError
from l0prune.files import write_whole
from l0prune.goals.budget import Budgets
from l0prune.latency.predicted import PredictedLayers
from l0prune.reading import read_json, reading
from l0prune.run_directory import RunDirectory, RunRecord

if TYPE_CHECKING:
    from l0prune.surgery.plan import SurgeryPlan

__all__ = ["Chart", "SummaryRow", "write_report"]

PACKAGES = ("jinja2", "matplotlib")
REMEDY = "run shrink and bench again"


@dataclass(frozen=True)
class SummaryRow:
    """One line of the comparison, as text.

    Args:
        name: What is compared, with its unit.
        dense: Of the dense network.
        compact: Of the compact network.
        ratio: Compact over dense, or empty.
    """

    name: str
    dense: str
    compact: str
    ratio: str = ""


@dataclass(frozen=True)
class Chart:
    """A picture of the page.

    Args:
        title: Its heading.
        uri: A data URI.
    """

    title: str
    uri: str


def write_report(path: Path | str) -> Path:
    """Write RUN/report.html about a finished run.

    Benchmark and widths are shown where the run has been benchmarked and shrunk.

    Args:
        path: Directory of the run.

    Returns:
        The page.

    Raises:
        ConfigError: if jinja2 or matplotlib is not installed.
        RunDirectoryError: if there is no run, or it has not finished.
        FileFormatError: if a file of the run cannot be understood.
    """
    _require_packages()
    from jinja2 import Environment, PackageLoader

    run = RunDirectory.open(Path(path))
    record = run.read()
    if record.status != "finished" or record.result is None:
        raise RunDirectoryError(
            f"{run.path}: the run is {record.status}; finish it with `l0prune finetune --out {run.path} --resume`"
        )
    bench = _read_bench(run)
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=PackageLoader("l0prune.report", "")
    )
    with reading(run.record_path, "description of a finished run", remedy="start the run again"):
        page = environment.get_template("page.html.jinja").render(
            title=f"{record.model['spec']}, {record.result['budget'] or record.result['penalty']}",
            lead=_lead(record),
            summary=_summary(record.result, bench),
            notes=_notes(run, record.result, bench),
            charts=_charts(run, record.result, bench),
            environment=_environment(record, bench),
            command=shlex.join(("l0prune", *record.argv[1:])),
        )
    write_whole(run.report, page)
    return run.report


def _require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"a report needs {' and '.join(missing)}: install them with pip install 'l0prune[report]'")


def _lead(record: RunRecord) -> str:
    start = " from scratch: the dense network is the untrained one" if record.config.get("from_scratch") else ""
    return f"Trained on {record.data['spec']} with seed {record.seed}{start}."


def _summary(result: Mapping[str, Any], bench: BenchReport | None) -> list[SummaryRow]:
    unit = result.get("unit", "%" if result["metric"] == "accuracy" else "")
    rows = [
        SummaryRow(f"{result['metric']}{unit and f' ({unit})'}", f"{result['dense']:.2f}", f"{result['final']:.2f}")
    ]
    rows += [
        _counted(metric_named(metric).title, result[f"{metric}_before"], result[f"{metric}_after"])
        for metric in metric_names()
        if f"{metric}_before" in result  # not of metrics that came after the run
    ]
    if bench is not None:
        dense, compact = bench["dense"], bench["compact"]
        rows.append(_counted("ONNX file (bytes)", dense.file_bytes, compact.file_bytes))
        for quantile in ("p50", "p90"):
            before, after = getattr(dense.latency_ms, quantile), getattr(compact.latency_ms, quantile)
            rows.append(
                SummaryRow(f"latency {quantile} (ms)", f"{before:.3f}", f"{after:.3f}", f"{after / before:.2f}")
            )
    return rows


def _counted(name: str, before: float, after: float) -> SummaryRow:
    return SummaryRow(name, f"{before:,.0f}", f"{after:,.0f}", f"{after / before:.2f}" if before else "")


def _notes(run: RunDirectory, result: Mapping[str, Any], bench: BenchReport | None) -> list[str]:
    notes = [
        f"{_goal(result)}: hard cost {result['hard_cost']:.4f} of dense, {_chosen(result)};"
        f" {result['n_open']} of {result['n_gates']} units stayed open."
    ]
    if result.get("held_out"):
        notes.append(_held_out(result))
        if result.get("quality", {}).get("doubts"):
            notes.append(str(result["quality"]["doubts"]))
    if result.get("doubts"):
        notes += str(result["doubts"]).splitlines()
    if result.get("cut_again"):
        notes.append(
            f"After its training the network was cut again, with {result['cut_again']}: file, latencies, widths and speedup"
            f" describe what is left; {result['metric']}, MACs and parameters describe the network that was trained. l0prune eval"
            f" {run.path} scores what is left."
        )
    if bench is not None:
        speedup = bench.speedup["compact"]
        notes.append(
            f"Speedup in {bench.runtime.split()[0]} {speedup.ratio:.2f}, 95 % interval {speedup.low:.2f} to {speedup.high:.2f}, "
            "measured in turn."
        )
        notes += [*_predicted(_read_predicted(run), bench), *bench.warnings]
    else:
        notes += _predicted(_read_predicted(run), None)
        notes.append(f"Not benchmarked yet: l0prune shrink {run.path}, then l0prune bench {run.path}.")
    return notes


def _held_out(result: Mapping[str, Any]) -> str:
    """What was decided, and is drawn, on rows held out."""
    found, place = result.get("quality"), {"train": "training", "test": "test"}[result["held_out"]]
    if not found:
        return f"All scores are of {result['n_scored']} rows held out of the {place} data."
    return (
        f"{found['asked']} was decided on {found['n']} rows held out of the {place} data, where the network scores"
        f" {found['score']:.4g} and the dense one {found['dense']:.4g}; {len(found['runs'])} networks were tried. The table is of"
        f" {result['n_scored']} rows of test data that decided nothing, the score over the steps of the rows held out."
    )


def _chosen(result: Mapping[str, Any]) -> str:
    """How its units were chosen."""
    method = result.get("method", GATES)
    if method != GATES:
        return f"units chosen by {method}"
    return f"units chosen by gates, expected cost before the freeze {result['expected_cost']:.4f}"


def _goal(result: Mapping[str, Any]) -> str:
    return f"Budget {result['budget']}" if result["budget"] else f"Penalty {result['penalty']} (costs in MACs)"


def _charts(run: RunDirectory, result: Mapping[str, Any], bench: BenchReport | None) -> list[Chart]:
    from l0prune.finetuning.metrics import read_metrics
    from l0prune.report.charts import latency_chart, score_chart, widths_chart

    charts = []
    lines = read_metrics(run.metrics) if run.metrics.exists() else []
    if lines:
        charts += _cost_charts(lines, Budgets.parse(result["budget"]).metrics if result["budget"] else ())
        charts += _gate_charts(lines)
    if result["history"]:
        judged = result.get("quality") or result  # in a search, the rows held out, until the end
        dense = None if result.get("from_scratch") else judged["dense"]
        charts.append(Chart(result["metric"].capitalize(), score_chart(result["history"], result["metric"], dense)))
    plan = _read_plan(run)
    if plan is not None:
        charts.append(Chart("Kept widths", widths_chart(kept_widths(plan))))
    charts += _layer_charts(_read_predicted(run), bench)
    if bench is not None:
        charts.append(
            Chart("Latency", latency_chart({timing.name: timing.latency_ms.quantiles for timing in bench.models}))
        )
    return charts


def _read_predicted(run: RunDirectory) -> PredictedLayers | None:
    """What the run's profile says of its layers; None where it has none."""
    return PredictedLayers.read(run.latency) if run.latency.exists() else None


def _layer_charts(predicted: PredictedLayers | None, bench: BenchReport | None) -> list[Chart]:
    """The time by layer, measured and predicted in one picture where both are of the same terms."""
    from l0prune.pictures import data_uri
    from l0prune.report.layer_plot import draw_layers

    measured = bench.layers if bench is not None and {"dense", "compact"} <= bench.layers.keys() else None
    if predicted is None or measured is None or bench is None or predicted.is_for(bench):
        pairs = [(predicted, measured)]
    else:
        pairs = [(None, measured), (predicted, None)]
    titles = {(True, True): "Time by layer", (False, True): "Measured time by layer"}
    return [
        Chart(
            titles.get((said is not None, took is not None), "Predicted time by layer"),
            data_uri(draw_layers(said, took)),
        )
        for said, took in pairs
        if said is not None or took is not None
    ]


def _predicted(found: PredictedLayers | None, bench: BenchReport | None) -> list[str]:
    """What the run's profile says of the whole, beside what was measured on the same terms."""
    if found is None:
        return []
    measured = ""
    if bench is not None and found.is_for(bench):
        dense, compact = (bench[form].latency_ms.p50 for form in ("dense", "compact"))
        measured = f"; measured {dense:.3f} and {compact:.3f} ms, {compact / dense:.3f} of dense"
    share = found.compact_ms / found.dense_ms
    return [
        f"The profile predicts {found.dense_ms:.3f} ms dense and {found.compact_ms:.3f} ms compact, {share:.3f} of"
        f" dense{measured}. It is of {found.processor}, {found.threads} thread(s), batch {found.batch_size}."
    ]


def _cost_charts(lines: Sequence[Mapping[str, Any]], budgets: Sequence[str]) -> list[Chart]:
    """The cost that each budget bounds, or the MACs without one; and the time of a step, where it was measured."""
    from l0prune.report.charts import budget_chart, step_time_chart
    from l0prune.report.histories import cost_history

    history = cost_history("", lines, budgets[0] if budgets else "macs")
    charts = []
    for metric in budgets or ("macs",):
        targets = [target for target in history.costs.get(f"target_{metric}", ()) if not math.isnan(target)]
        title = f"Cost and target, {metric_named(metric).title}" if targets else "Cost"
        charts.append(Chart(title, budget_chart(history, metric, targets[-1] if targets else None)))
    if history.ms_per_step is not None:
        charts.append(Chart("Time of a training step", step_time_chart(history)))
    return charts


def _gate_charts(lines: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Of what older runs have not recorded."""
    from l0prune.pictures import data_uri
    from l0prune.report.gate_plot import draw_gates
    from l0prune.report.histories import gate_history

    if not any(line.get("layer_histograms") for line in lines):
        return []
    return [Chart("Gates over the epochs", data_uri(draw_gates(gate_history("", lines))))]


def kept_widths(plan: SurgeryPlan) -> list[tuple[str, int, int]]:
    """(layer, dense width, kept width) of every weight whose outputs were cut."""
    widths = []
    for name, cut in plan.tensors.items():
        if len(cut.dense_shape) > 1 and 0 in cut.kept:
            kept = sum(stop - start for start, stop in cut.kept[0])
            widths.append((name.removesuffix(".weight"), cut.dense_shape[0], kept))
    return widths


def _environment(record: RunRecord, bench: BenchReport | None) -> dict[str, str]:
    shown = {f"{name} (training)": version for name, version in record.versions.items()}
    if bench is not None:
        found = bench.environment
        shown |= {
            "processor": f"{found.cpu}, {found.instruction_set}, {found.n_cores} cores",
            "benchmark": f"{bench.runtime}, {found.threads} thread(s), batch {found.batch_size}",
            "system": f"{found.os}, Python {found.python}",
        }
    return shown


def _read_bench(run: RunDirectory) -> BenchReport | None:
    if not run.bench.exists():
        return None
    return BenchReport.read(run.bench)


def _read_plan(run: RunDirectory) -> SurgeryPlan | None:
    from l0prune.surgery.plan import SurgeryPlan

    path = run.compact / "surgery.json"
    if not path.exists():
        return None
    return SurgeryPlan.from_json(read_json(path, "surgery plan", remedy=REMEDY), source=str(path))
