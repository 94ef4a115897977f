"""`l0prune demo`: the whole path on the bundled network and data."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from l0prune.cli.bench import BenchOptions, bench_run
from l0prune.cli.evaluate import evaluate_run
from l0prune.cli.finetune_run import begin
from l0prune.cli.flags import THREADS, FilePath, common_options
from l0prune.cli.model_options import BUNDLED, ModelOptions
from l0prune.cli.output import console, cost_rows, note, print_table, ratio, say, score_text, show, size, working
from l0prune.cli.report import report_run
from l0prune.cli.request import FinetuneRequest, RunOptions
from l0prune.cli.shrink_run import shrink_run
from l0prune.errors import ConfigError, RunDirectoryError
from l0prune.finetuning.config import FinetuneConfig

__all__ = ["demo_command", "run_demo"]

REQUEST = FinetuneRequest(
    ModelOptions("digits_resnet", weights=Path(BUNDLED)),
    RunOptions(data="digits", budget="macs=0.4", batch_size=32),
    FinetuneConfig(epochs=4.0, gate_epochs=2.0, recovery_lr=0.02),
)
BENCH = BenchOptions(min_seconds=2.0)


@click.command("demo")
@click.option("--out", type=FilePath(), default=Path("demo-run"), show_default=True, help="Directory of the run.")
@click.option("--threads", type=THREADS, default=1, show_default=True, help="CPU threads torch may use.")
@common_options
def demo_command(out: Path, threads: int, as_json: bool) -> None:
    """Run every step, from finetune to report, on a bundled network.

    Everything it needs is in the package; it takes about a minute on two cores. An earlier demo in --out is replaced.
    """
    import torch

    torch.set_num_threads(threads)
    with working():
        result = run_demo(out)
    show(result, as_json, lambda: print_demo(result))


def run_demo(out: Path) -> dict[str, Any]:
    """Every step, as its own command would do it; plain data."""
    start = time.perf_counter()
    require_own(out)
    announce("finetune", f"{REQUEST.model.spec} --data digits --budget {REQUEST.run.budget} --out {out}")
    begin(out, REQUEST, argv=sys.argv, overwrite=True)
    announce("shrink", str(out))
    shrunk = shrink_run(out)
    announce("bench", str(out))
    (bench,) = bench_run(out, BENCH)
    announce("eval", str(out))
    scores = evaluate_run(out)
    announce("report", str(out))
    speedup = bench.speedup["compact"]
    return {
        **shrunk,
        "accuracy": scores["accuracy"],
        "latency_ms_before": bench["dense"].latency_ms.p50,
        "latency_ms_after": bench["compact"].latency_ms.p50,
        "speedup": {"ratio": speedup.ratio, "low": speedup.low, "high": speedup.high},
        "report": report_or_none(out),
        "seconds": time.perf_counter() - start,
    }


def require_own(out: Path) -> None:
    """See that what the demo would replace is a demo.

    Raises:
        RunDirectoryError: another run, or something else, is there.
    """
    from l0prune.run_directory import RunDirectory

    run = RunDirectory(out)
    run.require_free(overwrite=True)
    if not run.record_path.exists():
        return
    record = run.read()
    same = record.model.get("spec") == REQUEST.model.spec and record.config.get("epochs") == REQUEST.training.epochs
    if not (same and record.data == {"spec": REQUEST.run.data}):
        raise RunDirectoryError(f"{out} holds a run that is not a demo: name another directory with --out")


def announce(command: str, arguments: str) -> None:
    """Say which command the next step is."""
    note(f"\n$ l0prune {command} {arguments}")


def report_or_none(out: Path) -> str | None:
    """The page, or None where the `report` extra is not installed."""
    try:
        return str(report_run(out))
    except ConfigError as error:
        note(str(error))
        return None


def print_demo(result: dict[str, Any]) -> None:
    """Dense against compact."""
    accuracy, scored = result["accuracy"], {"metric": "accuracy", "unit": "%"}
    rows = [
        (
            "accuracy",
            score_text(accuracy["dense"], scored),
            score_text(accuracy["onnx"], scored),
            f"{accuracy['onnx'] - accuracy['dense']:+.2f} points",
        )
    ]
    rows += cost_rows(result)
    before, after = result["bytes_before"], result["bytes_after"]
    rows.append(("ONNX file, bytes", size(before), size(after), ratio(after, before)))
    before, after = result["latency_ms_before"], result["latency_ms_after"]
    rows.append(("latency, ms", f"{before:.3f}", f"{after:.3f}", ratio(after, before)))
    print_table(console(), f"digits_resnet on digits, {result['run']}", ("", "dense", "compact", "ratio"), rows)
    speedup = result["speedup"]
    say(
        f"{speedup['ratio']:.2f} times faster in onnxruntime (95 % interval {speedup['low']:.2f} to "
        f"{speedup['high']:.2f}); cut and gated networks differ by {result['max_rel_diff']:.1e} at most; "
        f"{result['seconds']:.0f} s in all."
    )
    if result["report"]:
        say(f"Pictures: {result['report']}")
