"""Damaged files for every reader: each must be read, or refused in one short line, in little time and memory.

Usage: python benchmarks/fuzz/run.py [--minutes M | --seconds S] [--cases N] [--only NAME,...] [--seed N]
       [--out FOLDER] [--case NAME:NUMBER]

A case is a folder of honest files (seeds.py) of which one has been damaged (damage.py). A process of its own (worker.py)
reads it (targets.py); anything but success and a one-line L0PruneError is a finding: another exception, a message that is long
or names no file, a crash, a hang, a file written elsewhere, a program started. The same seed gives the same numbered cases.
Findings are kept with their files, one of each kind, in --out; the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

from damage import mutate_file
from seeds import SEEDS
from targets import prepare
from worker import serve

HANG_SECONDS = 300.0
HANG_CPU_SECONDS = 20.0
CASES_A_PROCESS = 2000
CASES_A_TURN = 20


class Reader:
    """The process that reads, replaced when it dies or hangs."""

    def __init__(self) -> None:
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
        self._process: Any = None
        self._n_cases = 0

    def __call__(self, target: str, folder: Path) -> tuple[str, str, float]:
        """Kind and text of a finding, empty if there is none, and processor seconds."""
        if self._process is None or self._n_cases >= CASES_A_PROCESS:
            self._start()
        self._n_cases += 1
        self._ours.send((target, folder))
        start, used = time.monotonic(), cpu_seconds(self._process.pid)
        try:
            while not self._ours.poll(1.0):
                busy, passed = cpu_seconds(self._process.pid) - used, time.monotonic() - start
                if busy > HANG_CPU_SECONDS or passed > HANG_SECONDS:
                    finding = ("hang", f"no answer in {passed:.0f} s, {busy:.0f} s of them of the processor", passed)
                    break
            else:
                return self._ours.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            finding = (f"crash {self._process.exitcode}", f"the process ended with {self._process.exitcode}", 0.0)
        self.stop()
        return finding

    def _start(self) -> None:
        self.stop()
        self._ours, theirs = self._context.Pipe()
        self._process = self._context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._n_cases = 0

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._ours.close()
            self._process = None


def cpu_seconds(pid: int) -> float:
    """Processor time of a process; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def damaged(target: str, number: int, seed: int, honest: Path, case: Path) -> str:
    """Make a case from honest files; says which file was damaged and how."""
    rng = random.Random(f"{seed}:{target}:{number}")
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(honest, case)
    files = sorted(path for path in case.rglob("*") if path.is_file())
    path = rng.choice(files)
    others = [other.read_bytes() for other in files if other != path and other.suffix == path.suffix]
    how = mutate_file(rng, path, others)
    prepare(target, case, honest=rng.random() < 0.1)
    return f"{path.relative_to(case)}: {how}"


def honest_files(names: list[str], folder: Path) -> dict[str, Path]:
    """A folder of honest files for each target."""
    folders = {}
    for name in names:
        folders[name] = folder / name
        folders[name].mkdir(parents=True)
        SEEDS[name](folders[name])
    return folders


def keep(out: Path, target: str, number: int, kind: str, text: str, case: Path) -> None:
    """Put a finding with its files aside."""
    folder = out / target / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(case, folder / "case", symlinks=True, ignore=_irregular)
    (folder / "finding.txt").write_text(f"{kind}\n\n{text}\n")


def _irregular(folder: str, names: list[str]) -> list[str]:
    """What is no file or folder, or too large to be kept."""
    paths = [Path(folder) / name for name in names]
    return [p.name for p in paths if not (p.is_dir() or p.is_file()) or p.is_symlink() or p.stat().st_size > 1 << 28]


def fuzz(names: list[str], *, seconds: float, seed: int, out: Path, first: int = 0, cases: float = float("inf")) -> int:
    """Read cases in turn until time is over, or so many of each reader; the number of kinds of findings."""
    found: dict[tuple[str, str], int] = {}
    n_cases, spent, slowest = Counter[str](), defaultdict[str, float](float), defaultdict[str, float](float)
    read = Reader()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="l0prune-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        honest = honest_files(names, Path(folder) / "honest")
        case = Path(folder) / "work" / "case"
        case.parent.mkdir()
        for name in names:
            shutil.copytree(honest[name], case)
            kind, text, _ = read(name, case)
            shutil.rmtree(case)
            if kind:
                raise SystemExit(f"{name}: the honest files are not read: {kind}\n{text}")
        start = reported = time.monotonic()
        number = first
        while time.monotonic() - start < seconds and number - first < cases:
            for name in names:
                for step in range(int(min(CASES_A_TURN, first + cases - number))):
                    how = damaged(name, number + step, seed, honest[name], case)
                    before = time.monotonic()
                    kind, text, cpu = read(name, case)
                    n_cases[name] += 1
                    spent[name] += time.monotonic() - before
                    slowest[name] = max(slowest[name], cpu)
                    if kind and (name, kind) not in found:
                        keep(out, name, number + step, kind, f"{how}\n{text}", case)
                        print(f"FINDING {name}:{number + step}  {kind}  ({how})\n    {text.strip()[-600:]}", flush=True)
                    if kind:
                        found[name, kind] = found.get((name, kind), 0) + 1
                    if time.monotonic() - start > seconds:
                        break
                if time.monotonic() - start > seconds:
                    break
            number += CASES_A_TURN
            if time.monotonic() - reported > 60:
                reported = time.monotonic()
                print(
                    f"{reported - start:.0f} s: {sum(n_cases.values())} cases, {sum(found.values())} findings",
                    flush=True,
                )
        passed = time.monotonic() - start
        read.stop()
    print(
        f"{sum(n_cases.values())} cases in {passed:.0f} s, {sum(n_cases.values()) / passed:.1f} a second, seed {seed}"
    )
    for name in names:
        kinds = {kind: count for (where, kind), count in found.items() if where == name}
        rate = n_cases[name] / max(spent[name], 1e-9)
        print(
            f"{name:14} {n_cases[name]:7} cases {rate:8.1f} a second, slowest {slowest[name]:.2f} s  findings: {kinds or 0}"
        )
    return len(found)


def main() -> None:
    """Read the command line."""
    warnings.simplefilter("ignore")  # of zipfile, about what is damaged on purpose
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--cases", type=float, default=float("inf"), help="of each reader, at most")
    parser.add_argument("--only", default="", help="names of readers, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--case", help="NAME:NUMBER of one case to read again")
    given = parser.parse_args()
    names = [name for name in SEEDS if name != "hf" or find_spec("transformers") is not None]
    wanted = given.case.rpartition(":")[0] if given.case else given.only
    names = wanted.split(",") if wanted else names
    first, cases = (int(given.case.rpartition(":")[2]), 1) if given.case else (0, given.cases)
    seconds = given.seconds if given.seconds is not None else 60 * given.minutes
    sys.exit(bool(fuzz(names, seconds=seconds, seed=given.seed, out=given.out, first=first, cases=cases)))


if __name__ == "__main__":
    main()
