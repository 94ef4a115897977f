"""`python -m l0prune.bench.worker JOB`: measure in a process of its own, as JOB/job.json says, and leave JOB/result.npz.

A session lays out its memory and its packed weights once, and keeps what it got: in another process the same file is a few per
cent faster or slower. Only several processes show by how much.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from l0prune.bench.running import bound_run, cold_start
from l0prune.measuring.session import open_session
from l0prune.measuring.timing import interleave

__all__ = ["main"]


def main(folder: Path) -> None:
    """Do the job in a folder."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if job["cold"] is None:
        _time(folder, job)
    else:
        start = cold_start(Path(job["paths"][job["cold"]]), _feeds(folder, job["cold"]), threads=job["threads"])
        (folder / "start.json").write_text(json.dumps(asdict(start)))


def _time(folder: Path, job: dict[str, Any]) -> None:
    order = np.random.default_rng(job["how"]["seed"]).permutation(len(job["paths"]))
    sessions = {
        index: open_session(Path(job["paths"][index]), threads=job["threads"], flush_denormals=True) for index in order
    }
    runs = [bound_run(job["paths"][i], sessions[i], _feeds(folder, i)) for i in range(len(sessions))]
    times = interleave(runs, one_thread=job["threads"] == 1, **job["how"])
    arrays: dict[str, Any] = {f"seconds{i}": seconds for i, seconds in enumerate(times.seconds)}
    np.savez(folder / "result.npz", clock=times.clock, busy=times.busy, **arrays)


def _feeds(folder: Path, index: int) -> dict[str, np.ndarray]:
    with np.load(folder / f"feeds{index}.npz") as found:
        return {key.removeprefix("in:"): found[key] for key in found.files}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
