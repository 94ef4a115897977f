"""onnxruntime reports nothing and leaves nothing in the user's folders, unless the user says otherwise."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SWITCH = "ORT_DISABLE_TELEMETRY"
CONVERT_AND_RUN = """
import torch, l0prune
from l0prune.onnx.onnx_model import OnnxModel
l0prune.export_onnx(torch.nn.Linear(2, 2), torch.zeros(2, 2), "linear.onnx")
OnnxModel("linear.onnx")(torch.zeros(2, 2))
"""
IMPORTED_BY_OTHERS = "import l0prune, torch, torch.onnx, onnxscript, onnxruntime"


def run(code: str, folder: Path, *wrapper: str, setting: str | None = None) -> None:
    """Run code in a process whose home is an empty folder."""
    home = folder / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {} if setting is None else {SWITCH: setting}
    subprocess.run([*wrapper, sys.executable, "-c", code], env=environment, cwd=folder, check=True, capture_output=True)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("code", [IMPORTED_BY_OTHERS, pytest.param(CONVERT_AND_RUN, marks=pytest.mark.slow)])
def test_nothing_is_written_into_the_users_folders(tmp_path, code):
    run(code, tmp_path)

    assert files_in(tmp_path / "home") == []


def test_a_user_may_switch_it_on(tmp_path):
    run(IMPORTED_BY_OTHERS, tmp_path, setting="0")

    import onnxruntime

    if not files_in(tmp_path / "home"):
        pytest.skip(f"onnxruntime {onnxruntime.__version__} writes nothing either way")


@pytest.mark.slow
def test_no_address_is_looked_for(tmp_path):
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "calls"
    wrapper = (strace, "-f", "-e", "trace=connect,sendto", "-o", str(log))
    if subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here")

    run(CONVERT_AND_RUN + "import time; time.sleep(0.5)", tmp_path, *wrapper)

    calls = log.read_text()
    assert "exited with 0" in calls
    assert "AF_INET" not in calls


@pytest.mark.parametrize("setting", [None, "0", "1"])
def test_what_the_user_has_set_stays(setting):
    before = {name: value for name, value in os.environ.items() if name != SWITCH}
    before |= {} if setting is None else {SWITCH: setting}
    code = f"import l0prune, os; print(os.environ[{SWITCH!r}])"

    printed = subprocess.run(
        [sys.executable, "-c", code], env=before, capture_output=True, text=True, check=True
    ).stdout

    assert printed == f"{setting or '1'}\n"


def test_nothing_beside_the_package_imports_onnxruntime_before_it():
    """Scripts take it from l0prune, whose import has switched the telemetry off."""
    for path in [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "onnxruntime" not in {name.partition(".")[0] for name in names}, path.relative_to(ROOT)
