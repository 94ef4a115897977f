"""LeNet-300-100 and LeNet-5-Caffe on MNIST, as in the L0 papers: every gate, from a checkpoint and from scratch, three seeds.

    python benchmarks/mnist_l0.py npz:mnist.npz [--arch lenet300] [--gate NAME ...] [--mode macs=0.1 ...] [--jobs 2]

Each run is a process with one thread. Results are lines of JSON; a run that has one is not run again, so that a benchmark
that was stopped goes on where it was. Afterwards the table is written. The dense networks are trained first, once a seed.
"""

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from mnist_case import ARCHITECTURES, MnistCase, measure
from mnist_table import render
from results_file import read

from l0prune.gates.registry import gate_names
from l0prune.measuring.hardware import processor

EPOCHS = {"checkpoint": 12.0, "scratch": 30.0}
DENSE_EPOCHS = {"lenet300": 30, "lenet5": 12}
PACKAGES = ("l0prune", "torch", "onnxruntime")


@click.command()
@click.argument("data")
@click.option("--arch", "archs", multiple=True, default=tuple(ARCHITECTURES), type=click.Choice(tuple(ARCHITECTURES)))
@click.option("--start", "starts", multiple=True, default=("checkpoint",), type=click.Choice(tuple(EPOCHS)))
@click.option("--gate", "gates", multiple=True, default=("hard-concrete",), help="A gate, or all.")
@click.option(
    "--mode", "modes", multiple=True, default=("macs=0.1",), help="A budget or a penalty, as for the command line."
)
@click.option("--seeds", default=3, show_default=True)
@click.option("--epochs", type=float, help="Of a run.  [default: 12 from a checkpoint, 30 from scratch]")
@click.option("--jobs", default=1, show_default=True, help="Runs at a time.")
@click.option("--again", is_flag=True, help="Also runs that have a result.")
@click.option("--dense", default="build/mnist", show_default=True, type=click.Path(path_type=Path), help="Checkpoints.")
@click.option(
    "--results", default="benchmarks/results/mnist_l0.jsonl", show_default=True, type=click.Path(path_type=Path)
)
@click.option("--table", default="docs/mnist.md", show_default=True, type=click.Path(path_type=Path))
@click.option("--run/--no-run", default=True, help="Run, or write the table alone.")
def main(
    data: str,
    archs: tuple[str, ...],
    starts: tuple[str, ...],
    gates: tuple[str, ...],
    modes: tuple[str, ...],
    seeds: int,
    epochs: float | None,
    jobs: int,
    again: bool,
    dense: Path,
    results: Path,
    table: Path,
    run: bool,
) -> None:
    """Run what has no result yet and write the table."""
    os.environ["OMP_NUM_THREADS"] = "1"
    names = gate_names() if "all" in gates else gates
    cases = [
        MnistCase(arch, start, gate, mode, seed, epochs or EPOCHS[start])
        for arch, start, mode, gate, seed in itertools.product(archs, starts, modes, names, range(seeds))
    ]
    results.parent.mkdir(parents=True, exist_ok=True)
    if run:
        done = {json.dumps(r["case"]) for r in read(results)}
        todo = [case for case in cases if again or json.dumps(asdict(case)) not in done]
        click.echo(f"{len(todo)} of {len(cases)} to run")
        with results.open("a", encoding="utf-8") as sink:
            for record in records(todo, data, dense, jobs):
                sink.write(json.dumps(record) + "\n")
                sink.flush()
                click.echo(line(record))
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(render(list({json.dumps(r["case"]): r for r in read(results)}.values())), encoding="utf-8")
    click.echo(f"wrote {table}")


def records(cases: list[MnistCase], data: str, dense: Path, jobs: int) -> Iterator[dict[str, Any]]:
    """Results of the cases in order, `jobs` at a time, with what they ran on."""
    where = {
        "versions": {package: version(package) for package in PACKAGES},
        "machine": f"{processor().name}, one thread a run, runs at a time: {jobs}",
    }
    weights = {
        key: checkpoint(*key, data, dense)
        for key in dict.fromkeys((case.arch, case.seed) for case in cases if case.start == "checkpoint")
    }
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        found = [
            pool.submit(measure, case, data, weights[case.arch, case.seed] if case.start == "checkpoint" else None)
            for case in cases
        ]
        for case, future in zip(cases, found, strict=True):
            yield {"case": asdict(case), **where, **future.result()}


def checkpoint(arch: str, seed: int, data: str, folder: Path) -> Path:
    """The dense network of a seed, trained if it is not there."""
    path = folder / f"{arch}-{seed}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        script = Path(__file__).parents[1] / "examples" / "train_mnist.py"
        options = ["--model", arch, "--epochs", str(DENSE_EPOCHS[arch]), "--seed", str(seed), "--out", str(path)]
        subprocess.run([sys.executable, str(script), data, *options], check=True)
    return path


def line(record: dict[str, Any]) -> str:
    """A result for people."""
    case = MnistCase(**record["case"])
    if "error" in record:
        return f"{case}: {record['error']}"
    shape = "-".join(map(str, record["architecture"]))
    return (
        f"{case}: {shape}, error {record['error_percent']:.2f} %, MACs {record['macs_fraction']:.4f}, "
        f"params {record['params_fraction']:.4f}, {record['speedup']:.2f}x, {record['train_seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
