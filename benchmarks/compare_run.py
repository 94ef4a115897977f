"""One row of the comparison: the commands that a user would type, and what they leave, as a record."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from compare_case import NETWORKS, Case, Inputs, code_version, file_hash, row_key
from safetensors import safe_open

from l0prune import models
from l0prune.measuring.hardware import processor

__all__ = [
    "Files",
    "finetune_arguments",
    "inputs_of",
    "missing_files",
    "run_row",
    "split_data",
    "stop_running",
    "widths",
]

HERE = Path(__file__).parent
HELD_OUT = 10  # a tenth of the training data
DIGITS = Path(models.__file__).parent / "data" / "digits.npz"
SST2 = "compare_networks:sst2"
PACKAGES = ("l0prune", "torch", "onnxruntime")
EXIT_BUDGET_MISSED = 3
INTERRUPTED = {130, -2, -15}  # exit codes


@dataclass(frozen=True)
class Files:
    """Where things are.

    Attributes:
        checkpoints: Folders that hold the dense networks.
        data: An npz file by the name of the data.
        work: Folder of the runs.
        align: What kept widths are rounded to: the same for all rows, however busy the machine was when it was measured.
    """

    checkpoints: tuple[Path, ...]
    data: Mapping[str, Path]
    work: Path
    align: int

    def weights_of(self, network: str) -> Path | None:
        """The checkpoint, or None where it is not there; that of a network that brings its own has its name alone."""
        name = NETWORKS[network].weights
        if name == "bundled":
            return Path(name)
        return next((folder / name for folder in self.checkpoints if (folder / name).exists()), None)

    def data_of(self, network: str) -> Path | None:
        """The npz file, or None where it is not there."""
        name = NETWORKS[network].data
        beside = [folder / f"{name}.npz" for folder in self.checkpoints]
        known = self.data.get(name, DIGITS if name == "digits" else None)
        return next((path for path in (known, *beside) if path is not None and path.is_file()), None)


def missing_files(network: str, files: Files) -> list[str]:
    """What a network's rows need and is not there, for people."""
    about = NETWORKS[network]
    weights = [] if files.weights_of(network) else [about.weights]
    return weights + ([] if files.data_of(network) else [f"{about.data}.npz"])


def inputs_of(case: Case, files: Files) -> Inputs:
    """What a row depends on; its files are there."""
    weights, data = files.weights_of(case.network), files.data_of(case.network)
    assert weights is not None
    assert data is not None
    dense = file_hash(weights) if weights.exists() else str(weights)
    return Inputs(dense, file_hash(data), NETWORKS[case.network].options, files.align, code_version()["code"])


def finetune_arguments(case: Case, files: Files, data: Path) -> list[str]:
    """What is typed after `l0prune finetune`, without the folder of the run.

    Args:
        case: The row.
        files: Where its network is.
        data: The npz file to train and score on.
    """
    about, weights = NETWORKS[case.network], files.weights_of(case.network)
    of_data = SST2 if about.data == "sst2" else f"npz:{data.absolute()}"
    where = str(weights) if weights == Path("bundled") else str(Path(str(weights)).absolute())
    from_file = [] if "{weights}" in about.spec else ["--weights", where]
    rate = [] if case.lr is None else ["--lr", f"{case.lr:g}"]
    return [
        *(about.spec.format(weights=where), *from_file, "--data", of_data),
        *("--budget", f"macs={case.macs:g}", "--epochs", f"{case.epochs:g}", "--seed", str(case.seed)),
        *("--method", case.method, "--align", str(files.align), *rate, *about.options),
    ]


def split_data(source: Path, target: Path) -> None:
    """Write the training data as an npz file of its own, whose test part is a tenth of it, drawn once and for all."""
    with np.load(source, allow_pickle=False) as file:
        train = {name: file[name] for name in file.files if name.endswith("_train")}
        others = {name: file[name] for name in file.files if not name.endswith(("_train", "_test"))}
    n = len(train["y_train"])
    order = np.random.default_rng(0).permutation(n)
    held, kept = np.sort(order[: n // HELD_OUT]), np.sort(order[n // HELD_OUT :])
    parts = {name: array[kept] for name, array in train.items()}
    parts |= {name.removesuffix("_train") + "_test": array[held] for name, array in train.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.stem}.draft.npz")
    np.savez(draft, **parts, **others)
    draft.replace(target)


_WRITING = Lock()


def held_out_file(source: Path, work: Path) -> Path:
    """The file of `split_data`, written where it is not there yet."""
    target = work / "held-out" / f"{source.stem}-{file_hash(source)}.npz"
    with _WRITING:  # rows that run at the same time wait for one another
        if not target.is_file():
            split_data(source, target)
    return target


def run_row(case: Case, files: Files, *, n_jobs: int) -> dict[str, Any]:
    """Train, and, unless it only helps to choose a rate, cut, export and time.

    Args:
        case: What to run.
        files: Its files, which are there.
        n_jobs: Rows at a time, for the record.

    Returns:
        A record: the case, what it depends on, where it ran, and figures, or "error".

    Raises:
        KeyboardInterrupt: a command was interrupted; another call goes on with its run.
    """
    inputs = inputs_of(case, files)
    source = files.data_of(case.network)
    assert source is not None
    data = held_out_file(source, files.work) if case.held_out else source
    run = files.work / "runs" / f"{slug(case)}-{hashlib.sha256(row_key(case, inputs).encode()).hexdigest()[:8]}"
    arguments = finetune_arguments(case, files, data)
    record = {
        "case": asdict(case),
        "inputs": {**asdict(inputs), "options": list(inputs.options)},
        "commit": code_version()["commit"],
        "versions": {package: version(package) for package in PACKAGES},
        "machine": f"{processor().name}, one thread a run, runs at a time: {n_jobs}",
        "typed": typed(arguments),
    }
    environment = environment_for(data, files.work)
    try:
        figures = train(run, arguments, environment)
        if not case.held_out:
            figures |= measure(run, environment)
    except CommandError as error:
        return {**record, "error": str(error)}
    if case.held_out:
        shutil.rmtree(run)
    return {**record, **figures}


def train(run: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """`l0prune finetune`, or what is left of it; what it found."""
    seconds = wall = None
    before = status(run)
    goes_on = before is not None and (run / "checkpoint").is_dir()
    if before != "finished":
        began = ["--resume"] if goes_on else [*arguments, "--overwrite"]
        _, wall, seconds = command(["finetune", *began, "--out", str(run)], environment)
    result = json.loads((run / "run.json").read_text(encoding="utf-8"))["result"]
    whole = not goes_on  # a run that was interrupted has no time of its own
    metric = result["metric"]
    return {
        **{
            key: result[key]
            for key in ("metric", "higher_is_better", "dense", "final", "budget_met", "n_open", "n_gates")
        },
        **{key: result[key] for key in ("expected_cost", "hard_cost", "macs_before", "macs_after", "steps")},
        **{key: result[key] for key in ("params_before", "params_after")},
        "history": [[at["when"], at["step"], at["figures"][metric], at["hard_cost"]] for at in result["history"]],
        "wall_seconds": round(wall, 1) if whole and wall is not None else None,
        "cpu_seconds": round(seconds, 1) if whole and seconds is not None else None,
    }


def measure(run: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """`l0prune shrink` and `l0prune bench`; what they found."""
    shrunk, *_ = command(["shrink", str(run)], environment)
    found, *_ = command(["bench", str(run), "--threads", "1"], environment)
    times = {form: model["latency_ms"]["p50"] for form, model in found["models"].items()}
    return {
        "difference": shrunk["max_rel_diff"],
        "form": shrunk["form"],
        "dense_ms": times["dense"],
        "compact_ms": times["compact"],
        "speedup": found["speedup"]["compact"],
        "widths": widths(run / "compact"),
    }


def widths(compact: Path) -> dict[str, int]:
    """Outputs of every matrix and filter of a compact network, by the name of the weight."""
    found: dict[str, int] = {}
    for file in sorted(compact.glob("*.safetensors")):
        with safe_open(file, "pt") as content:
            shapes = {name: content.get_slice(name).get_shape() for name in content.keys()}  # noqa: SIM118 - no mapping
            found |= {name: shape[0] for name, shape in shapes.items() if len(shape) > 1 and name.endswith("weight")}
    return found


class CommandError(Exception):
    """A command ended with an error; the message is its last line."""


_RUNNING: set[subprocess.Popen[bytes]] = set()


def stop_running() -> None:
    """End the commands that are running; each run keeps its last checkpoint."""
    for process in tuple(_RUNNING):
        process.terminate()


def command(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[dict[str, Any], float, float]:
    """Run `l0prune` in a process of its own.

    Returns:
        What it printed, the seconds it took, and those of the processor.

    Raises:
        CommandError: it failed.
        KeyboardInterrupt: it was interrupted.
    """
    argv = [str(Path(sysconfig.get_path("scripts")) / "l0prune"), *arguments, "--json"]
    log = Path(environment["COMPARE_LOGS"]) / f"{hashlib.sha256(' '.join(argv).encode()).hexdigest()[:12]}.log"
    clock = time.perf_counter()
    with log.with_suffix(".json").open("w+") as out, log.open("w+") as err:
        process = subprocess.Popen(argv, stdout=out, stderr=err, env=dict(environment))
        _RUNNING.add(process)
        _, ended, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
        _RUNNING.discard(process)
        wall = time.perf_counter() - clock
        out.seek(0)
        err.seek(0)
        printed, said = out.read(), err.read()
    if process.returncode in INTERRUPTED:
        raise KeyboardInterrupt
    if process.returncode not in {0, EXIT_BUDGET_MISSED}:
        lines = said.strip().splitlines() or [f"exit code {process.returncode}"]
        raise CommandError(lines[-1].removeprefix("error: "))
    for file in (log, log.with_suffix(".json")):
        file.unlink()
    return json.loads(printed), wall, usage.ru_utime + usage.ru_stime


def environment_for(data: Path, work: Path) -> dict[str, str]:
    """Of the commands: one thread, the factories of the benchmarks, what was typed remembered in the work folder alone."""
    logs = work.absolute() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")])),
        "SST2_NPZ": str(data.absolute()),
        "L0PRUNE_STATE_DIR": str(work.absolute() / "state"),
        "COMPARE_LOGS": str(logs),
    }


def status(run: Path) -> str | None:
    """How far a run is, or None where there is none."""
    try:
        return str(json.loads((run / "run.json").read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError):
        return None


def slug(case: Case) -> str:
    """A name for folders."""
    return re.sub(r"[^\w.=-]+", "-", str(case))


def typed(arguments: Sequence[str]) -> str:
    """The command without the folders of this machine."""
    return " ".join(re.sub(r"(^|:)/.*/", r"\1", argument) if "/" in argument else argument for argument in arguments)
