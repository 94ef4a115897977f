"""What holds for the project as a whole: one-way imports, a light start, documented names, one version."""

import ast
import inspect
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import l0prune

ROOT = Path(__file__).parents[2]

# A part may import the parts before it, never one after it.
ORDER = [
    *("errors", "kept", "machine", "files", "reading", "plain_data", "options", "pictures"),
    *(
        "recorded_directory",
        "run_directory",
        "sweep_directory",
        "measuring",
        "models",
        "tensor_names",
        "model_call",
        "recomputation",
        "randomness",
        "input_sizes",
    ),
    *("sources", "ops", "look"),
    *(
        "flow",
        "gates",
        "cost",
        "latency",
        "goals",
        "gated",
        "criteria",
        "surgery",
        "tasks",
        "quality",
        "finetuning",
        "onnx",
        "profiling",
        "compact",
        "hf",
        "integrations",
        "bench",
    ),
    *("verification", "study", "report", "cli"),
]
# And these know even less.
KNOWS_ONLY = {
    "errors": set(),
    "measuring": {"errors", "machine", "files", "reading", "plain_data"},
    "models": set(),
    "input_sizes": {"errors"},
    "randomness": set(),
    "sources": {"errors", "files", "reading", "plain_data", "models", "model_call", "randomness", "input_sizes"},
    "ops": {"errors", "kept"},
    "look": {"errors", "model_call", "ops"},
    "flow": {"errors", "kept", "model_call", "ops", "look"},
    "gates": {"errors"},
    "cost": {"errors", "flow", "ops"},
    "tasks": {"errors", "model_call", "sources"},
    "study": {"errors", "pictures", "gates"},
}
HEAVY = {"torch", "numpy", "scipy", "onnx", "onnxruntime", "onnxscript", "torch_pruning", "accelerate", "rich", "timm"}
START_SECONDS = 0.3


def parts_on_disk() -> dict[str, list[Path]]:
    """Part of l0prune -> its source files."""
    parts = {"cli": sorted((ROOT / "cli").rglob("*.py")), "models": sorted((ROOT / "models").rglob("*.py"))}
    for path in (ROOT / "l0prune").iterdir():
        if path.suffix == ".py" and path.stem != "__init__":
            parts[path.stem] = [path]
        elif (path / "__init__.py").exists():
            parts[path.name] = sorted(path.rglob("*.py"))
    return parts


def imported_parts(source: str) -> set[str]:
    """Parts that a module imports, at its top or inside a function."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "l0prune":
            names += [f"l0prune.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    found = {name.split(".")[1] for name in names if name.startswith("l0prune.")}
    return {defining_part(name) for name in found} - {"__version__"}


def defining_part(name: str) -> str:
    """The part behind a name imported from `l0prune`: itself, or where a public name is defined."""
    return l0prune._EXPORTS[name].split(".")[1] if name in l0prune._EXPORTS else name


def imports_against_the_order(part: str, imported: set[str]) -> set[str]:
    """What `part` must not import, of what it does import."""
    allowed = KNOWS_ONLY.get(part, set(ORDER[: ORDER.index(part)]))
    return imported - allowed - {part}


def modules_after(code: str) -> set[str]:
    """Top-level modules loaded in a fresh interpreter after running `code`."""
    printing = "\nimport sys; print('\\n'.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code + printing], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HELP = "from l0prune.cli.main import cli\ncli(['--help'], standalone_mode=False)"


@pytest.mark.parametrize("part", sorted(parts_on_disk()))
def test_imports_point_one_way(part):
    assert part in ORDER, f"add l0prune.{part} to ORDER, behind everything it imports"
    for path in parts_on_disk()[part]:
        wrong = imports_against_the_order(part, imported_parts(path.read_text()))
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}, which comes after {part}"


def test_the_import_test_sees_an_import_against_the_order():
    source = "def late():\n    from l0prune.surgery.plan import SurgeryPlan\n    from l0prune import trace"

    assert imported_parts(source) == {"surgery", "flow"}
    assert imports_against_the_order("cost", imported_parts(source)) == {"surgery"}


@pytest.mark.parametrize("code", ["import l0prune", HELP, "import l0prune\ndir(l0prune)"])
def test_starting_loads_nothing_heavy(code):
    assert not modules_after(code) & HEAVY


def test_the_start_test_sees_a_heavy_import():
    assert "numpy" in modules_after("import l0prune\nimport numpy") & HEAVY


@pytest.mark.parametrize("code", ["import l0prune", HELP])
def test_starting_is_quick(code):
    fastest = min(seconds_to_run(code) for _ in range(5))

    assert fastest < START_SECONDS


def seconds_to_run(code: str) -> float:
    """Processor time of a fresh interpreter: on a machine that is busy otherwise, the wall clock says little."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("name", sorted(set(l0prune.__all__) - {"__version__"}))
def test_public_names_are_documented(name):
    value = getattr(l0prune, name)

    assert inspect.getdoc(value), f"l0prune.{name} has no docstring"
    assert name in (ROOT / "README.md").read_text(), f"README.md does not mention {name}"


def test_an_unknown_name_says_which_exist():
    with pytest.raises(AttributeError, match=r"public names: .*trace"):
        l0prune.no_such_name  # noqa: B018


def test_the_version_is_the_same_everywhere():
    in_pyproject = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    in_changelog = re.search(r"^## \[?([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert in_pyproject is not None
    assert in_changelog is not None
    assert l0prune.__version__ == in_pyproject[1] == in_changelog[1]


def test_packages_on_disk_are_packaged():
    listed = set(re.findall(r'^    "(l0prune[.\w]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    on_disk = {path.parent for path in (ROOT / "l0prune").rglob("__init__.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in on_disk}

    assert listed == names | {"l0prune.cli", "l0prune.models"}


def tracked_texts() -> dict[str, str]:
    """Text files under version control."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listing.stdout.splitlines()]
    texts = {}
    for path in files:
        if path.exists():
            content = path.read_bytes()
            if b"\0" not in content:
                texts[str(path.relative_to(ROOT))] = content.decode("utf-8", errors="replace")
    return texts


def test_no_file_mentions_a_place_outside_the_repository():
    elsewhere = re.compile(r"(?<![\w.])/(?:root|home|work|opt)/|\.\./" + "shared")
    found = {
        f"{name}: {match[0]}"
        for name, text in tracked_texts().items()
        if name != "tests/project/test_structure.py"
        for match in elsewhere.finditer(text)
    }

    assert not found


def test_no_library_module_prints_or_exits():
    for part, paths in parts_on_disk().items():
        if part == "cli":
            continue
        for path in paths:
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            names = {ast.unparse(func) for func in calls}
            assert not names & {"print", "sys.exit", "exit", "quit"}, f"{path.relative_to(ROOT)} prints or exits"
