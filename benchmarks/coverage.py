"""What can be cut, and is it exact? Every timm family, torchvision's models, and transformers architectures.

Usage: python benchmarks/coverage.py [--suite timm] [--check cut --check onnx --check rival] [--jobs 2] [NAME ...]

Each model runs in a process of its own with limits on time and memory, with random weights and norm statistics. Results are
lines of JSON in the output folder; a model that has one for these versions is not run again, so that a run that was stopped
goes on where it was. Afterwards the table is written.
"""

import json
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from results_file import read

SUITES = ("timm", "classification", "segmentation", "video", "transformers")
PACKAGES = ("l0prune", "torch", "timm", "torchvision", "transformers", "torch-pruning", "onnxruntime", "onnxscript")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--suite", "suites", multiple=True, type=click.Choice(SUITES), help="Only these; all if not given.")
@click.option(
    "--check",
    "checks",
    multiple=True,
    default=("cut", "onnx"),
    show_default=True,
    type=click.Choice(("cut", "onnx", "rival")),
    help="cut: exactness and reach; onnx: the exported cut model; rival: torch-pruning's own pruner.",
)
@click.option("--rival", is_flag=True, help="The same as one more --check rival.")
@click.option("--jobs", default=1, show_default=True, help="Models at a time.")
@click.option("--timeout", default=400, show_default=True, help="Seconds a model and check may take.")
@click.option("--rival-timeout", default=150, show_default=True, help="Seconds the rival may take for a model.")
@click.option("--memory", default=18.0, show_default=True, help="GB a process may take.")
@click.option("--again", type=click.Choice(("failed", "all")), help="Run models again although they have a result.")
@click.option("--results", default="build/coverage", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("--table", default="docs/coverage.md", show_default=True, type=click.Path(path_type=Path), help="Table.")
@click.option("--run/--no-run", default=True, show_default=True, help="Run models, or write the table alone.")
def main(
    names: tuple[str, ...],
    suites: tuple[str, ...],
    checks: tuple[str, ...],
    rival: bool,
    jobs: int,
    timeout: int,
    rival_timeout: int,
    memory: float,
    again: str | None,
    results: Path,
    table: Path,
    run: bool,
) -> None:
    """Measure models and write the table."""
    from coverage_table import render

    results.mkdir(parents=True, exist_ok=True)
    file = results / "results.jsonl"
    checks = (*checks, "rival") if rival and "rival" not in checks else checks
    if run:
        os.environ |= {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        import coverage_case

        done = {key(r): r for r in read(file)}
        coverage_case.preload()
        names_of = [(suite, case.name) for suite, case in coverage_case.all_cases()]
        wanted = [(s, n) for s, n in names_of if (not suites or s in suites) and (not names or n in names)]
        todo: list[tuple[str, str, str]] = [
            (s, n, c) for c in checks for s, n in wanted if _is_due(done.get((s, n, c)), again)
        ]
        click.echo(f"{len(todo)} of {len(wanted) * len(checks)} to run")
        with ThreadPoolExecutor(jobs) as pool, file.open("a", encoding="utf-8") as sink:
            limits = {"rival": rival_timeout}
            for record in pool.map(lambda t: measured(t[0], t[1], t[2], limits.get(t[2], timeout), memory), todo):
                sink.write(json.dumps(record) + "\n")
                sink.flush()
                click.echo(line(record))
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(render(list({key(r): r for r in read(file)}.values()), versions()), encoding="utf-8")
    click.echo(f"wrote {table}")


def measured(suite: str, name: str, check: str, timeout: int, memory: float) -> dict[str, Any]:
    """One model in a process of its own, forked from this one: the libraries take longer to import than a model to cut."""
    import coverage_case

    record = {"suite": suite, "name": name, "check": check, "versions": versions()}
    forked = multiprocessing.get_context("fork")
    receiver, sender = forked.Pipe(duplex=False)
    process = forked.Process(target=coverage_case.measure_into, args=(sender, suite, name, check, memory))
    clock = time.perf_counter()
    process.start()
    sender.close()
    try:
        result = receiver.recv() if receiver.poll(timeout) else {"error": f"timeout after {timeout} s"}
    except EOFError:
        process.join()
        result = {"error": f"the process ended with exit code {process.exitcode}"}
    process.kill()
    process.join()
    return {**record, "wall_seconds": round(time.perf_counter() - clock, 1), **result}


def _is_due(record: dict[str, Any] | None, again: str | None) -> bool:
    if record is None or again == "all" or record["versions"] != versions():
        return True
    failed = "error" in record or not (record.get("exact", True) and record.get("ran", True))
    return again == "failed" and failed


def versions() -> dict[str, str]:
    """Versions of everything that takes part."""
    return {package: version(package) for package in PACKAGES if find_spec(package.replace("-", "_")) is not None}


def key(record: dict[str, Any]) -> tuple[str, str, str]:
    """What a later result replaces."""
    return record["suite"], record["name"], record["check"]


def line(record: dict[str, Any]) -> str:
    """A result for people."""
    what = record.get("error") or record.get("why") or record.get("onnx_error")
    if what is None:
        shown = ("max_rel_diff", "form", "prunable_params", "prunable_macs", "onnx_max_rel_diff", "ran", "unknown_ops")
        what = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k in shown if (v := record.get(k)))
    return f"{record['check']} {record['suite']}:{record['name']} {record.get('wall_seconds')} s: {what}"


if __name__ == "__main__":
    main()
