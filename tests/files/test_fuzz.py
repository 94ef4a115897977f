"""The fuzzer of the readers: a dozen cases of each find nothing, and a reader that is wrong is found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz"
READERS = (
    *("run.json", "metrics.jsonl", "bench.json", "alignment", "compact", "checkpoint", "safetensors"),
    *("pt", "pth", "pt2", "onnx", "npz", "mnist", "cifar10", "folder"),
)


def run(out, *arguments, code=None):
    start = [str(FUZZ / "run.py")] if code is None else ["-c", code]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FUZZ)}
    command = [sys.executable, *start, "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


def test_damaged_files_of_every_kind_find_nothing(tmp_path):
    pytest.importorskip("PIL")
    out = tmp_path / "findings"

    done = run(out, "--seconds", "60", "--cases", "12", "--seed", "7", "--only", ",".join(READERS))

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{12 * len(READERS)} cases in" in done.stdout
    assert not out.exists()


WRONG = """
import json
import targets
honest = []
def wrong(folder):
    found = json.loads((folder / "bench.json").read_text())
    honest.append(found)
    if found != honest[0]:
        (folder.parent.parent / "elsewhere").write_text("x")
targets.TARGETS["bench.json"] = wrong
import run
run.main()
"""


def test_a_reader_that_is_wrong_is_found_and_its_file_is_kept(tmp_path):
    done = run(tmp_path, "--cases", "60", "--seed", "1", "--only", "bench.json", code=WRONG)

    assert done.returncode == 1, done.stdout + done.stderr
    for kind in ("JSONDecodeError", "UnicodeDecodeError", "writes"):
        assert f"  {kind}" in done.stdout, done.stdout
    kept = next((tmp_path / "bench.json").iterdir())
    assert (kept / "case" / "bench.json").exists()
    assert (kept / "finding.txt").read_text()
