"""The same measurement in several fresh processes."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l0prune.bench.running import Start
from l0prune.errors import L0PruneError
from l0prune.measuring.timing import PairedTimes

__all__ = ["Sessions", "measure_in_processes"]

_STARTS = 3  # cold starts of each model, at most: their median


@dataclass(frozen=True)
class Sessions:
    """What several processes measured.

    Attributes:
        times: Of each process.
        starts: Of each model, in as many processes of its own.
    """

    times: tuple[PairedTimes, ...]
    starts: tuple[tuple[Start, ...], ...]


def measure_in_processes(
    paths: Sequence[Path], feeds: Sequence[Mapping[str, np.ndarray]], *, threads: int, processes: int, **how: Any
) -> Sessions:
    """Time ONNX files in turn in each of several processes, one after another, and start each of them cold.

    Args:
        paths: The files.
        feeds: Inputs of each.
        threads: Within one operator.
        processes: Two or more.
        how: As of `interleave`, in all; each process does its share.

    Raises:
        L0PruneError: a process failed, or cannot be started.
    """
    share = {**how, "min_samples": -(-how["min_samples"] // processes)}
    share |= {name: how[name] / processes for name in ("min_seconds", "max_seconds")}
    times: list[PairedTimes] = []
    starts: list[list[Start]] = [[] for _ in paths]
    with tempfile.TemporaryDirectory(prefix="l0prune-bench-") as folder:
        for index, arrays in enumerate(feeds):
            named: dict[str, Any] = {f"in:{name}": array for name, array in arrays.items()}
            np.savez(Path(folder) / f"feeds{index}.npz", **named)
        for process in range(processes):
            job = {"paths": [str(path.absolute()) for path in paths], "threads": threads, "cold": None}
            job["how"] = {**share, "seed": how["seed"] + process}
            times.append(_times(Path(folder), job))
            for index in range(len(paths) if process < _STARTS else 0):
                starts[index].append(_start(Path(folder), {**job, "cold": index}))
    return Sessions(tuple(times), tuple(map(tuple, starts)))


def _times(folder: Path, job: Mapping[str, Any]) -> PairedTimes:
    _run(folder, job)
    with np.load(folder / "result.npz") as found:
        seconds = tuple(found[f"seconds{index}"] for index in range(len(job["paths"])))
        return PairedTimes(seconds, str(found["clock"]), float(found["busy"]))


def _start(folder: Path, job: Mapping[str, Any]) -> Start:
    _run(folder, job)
    return Start(**json.loads((folder / "start.json").read_text(encoding="utf-8")))


def _run(folder: Path, job: Mapping[str, Any]) -> None:
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", "l0prune.bench.worker", str(folder)]
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd=folder, env=environment
        )
    except OSError as error:
        raise L0PruneError(
            f"no process can be started to measure in ({error}): measure in this one, processes=1"
        ) from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise L0PruneError(
            f"a process that measured failed: {said[:300]}. Try processes=1, which measures in this one."
        )
