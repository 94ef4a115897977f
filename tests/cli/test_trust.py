"""A run from elsewhere runs no code; the user's own runs, and those that the user trusts, run the factories they name."""

import json
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from l0prune.cli.main import cli

FINETUNE = [
    *("finetune", "tiny_task:network", "--model-arg", "width=8", "--data", "tiny_task:data", "--budget", "macs=0.6"),
    *("--epochs", "2", "--batch-size", "16", "--align", "1"),
]
ELSEWHERE = """
from pathlib import Path
Path("imported").touch()
import tiny_task
def network(**arguments):
    Path("called").touch()
    return tiny_task.network(**arguments)
def data():
    Path("called").touch()
    return tiny_task.data()
def fails(**arguments):
    Path("called").touch()
    raise ValueError
"""
BUILDS = {
    "finetune": lambda run: ["finetune", "--out", run, "--resume"],
    "shrink": lambda run: ["shrink", run],
    "bench": lambda run: ["bench", run, "--min-seconds", "0", "--samples", "1", "--warmup", "0", "--processes", "1"],
    "eval": lambda run: ["eval", run],
}
READS = {
    "report": lambda run: ["report", run],
    "plot gates": lambda run: ["plot", "gates", run, "--out", "gates.svg"],
    "plot cost": lambda run: ["plot", "cost", run, "--out", "cost.svg"],
}


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and shrunk run of this user's."""
    out = tmp_path_factory.mktemp("own") / "run"
    for args in ([*FINETUNE, "--out", str(out)], ["shrink", str(out)]):
        result = invoke(*args)
        assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture(autouse=True)
def nothing_typed(tmp_path, monkeypatch) -> None:
    """A user who has typed nothing so far, in a folder that holds the module `elsewhere`."""
    monkeypatch.setenv("L0PRUNE_STATE_DIR", str(tmp_path / "state"))
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "elsewhere.py").write_text(ELSEWHERE)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(__import__("sys").modules, "elsewhere", raising=False)


def run_from_elsewhere(finished: Path, folder: Path, command: str, **named: object) -> Path:
    """A copy of a run with other things in its run.json; one that `bench` has to build has no ONNX files."""
    run = Path(shutil.copytree(finished, folder / "downloaded"))
    record = json.loads((run / "run.json").read_text())
    record["model"] |= {key: value for key, value in named.items() if key in record["model"]}
    record["data"] |= {"spec": named["data"]} if "data" in named else {}
    record["status"] = "interrupted" if command == "finetune" else "finished"
    (run / "run.json").write_text(json.dumps(record))
    if command == "bench":
        shutil.rmtree(run / "onnx")
        manifest = json.loads((run / "compact" / "manifest.json").read_text())
        (run / "compact" / "manifest.json").write_text(json.dumps(manifest | {"no_graph_because": "of this test"}))
    return run


def ran() -> bool:
    return Path("imported").exists() or Path("called").exists()


def commands_with_a_run(group: click.Group, *path: str) -> set[str]:
    """Names of the commands that take a run."""
    found = set()
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands_with_a_run(command, *path, name)
        elif any("RUN" in (p.metavar or "") or p.name == "resume" for p in command.params):
            found.add(" ".join((*path, name)))
    return found


def test_every_command_that_takes_a_run_is_tried_here():
    of_sweeps = {"sweep"}  # tried in test_sweep.py
    assert commands_with_a_run(cli) == BUILDS.keys() | READS.keys() | of_sweeps


@pytest.mark.parametrize("command", BUILDS)
@pytest.mark.parametrize("spec", ["elsewhere:network", "subprocess:call", "os.path:join"])
def test_a_model_factory_that_only_run_json_names_is_not_run(tmp_path, finished, command, spec):
    run = run_from_elsewhere(finished, tmp_path, command, spec=spec)

    result = invoke(*BUILDS[command](str(run)))

    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    typed = f"`l0prune inspect {spec} --model-arg width=8`"
    for word in (f"'{spec}' (", str(run / "run.json"), "--trust", typed, "none of it was run"):
        assert word in last
    assert not ran()


@pytest.mark.parametrize("command", ["finetune", "eval"])
def test_a_data_factory_that_only_run_json_names_is_not_run(tmp_path, finished, command):
    invoke("inspect", "tiny_task:network", "--model-arg", "width=8")  # the model is the user's own
    run = run_from_elsewhere(finished, tmp_path, command, data="elsewhere:data")

    result = invoke(*BUILDS[command](str(run)))

    assert result.exit_code == 1
    assert "elsewhere:data" in result.stderr.splitlines()[-1]
    assert not ran()


@pytest.mark.parametrize("command", READS)
def test_what_only_reads_a_run_runs_nothing(tmp_path, finished, command):
    run = run_from_elsewhere(finished, tmp_path, command, spec="elsewhere:network", data="elsewhere:data")

    assert invoke(*READS[command](str(run))).exit_code == 0
    assert not ran()


@pytest.mark.parametrize("command", BUILDS)
def test_trust_runs_it(tmp_path, finished, command):
    run = run_from_elsewhere(finished, tmp_path, command, spec="elsewhere:fails", data="elsewhere:data")

    invoke(*BUILDS[command](str(run)), "--trust")

    assert ran()
    assert not (tmp_path / "state").exists()


def test_a_run_of_ones_own_needs_no_word_wherever_it_lies(tmp_path):
    assert invoke(*FINETUNE, "--out", str(tmp_path / "run")).exit_code == 0
    run = (tmp_path / "run").rename(tmp_path / "moved")

    result = invoke("shrink", str(run))

    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    "typed", [["inspect", "elsewhere:network", "--model-arg", "width=8"], ["verify", "elsewhere:network", "--no-onnx"]]
)
def test_a_factory_typed_once_is_known_with_its_arguments(tmp_path, finished, typed):
    run = run_from_elsewhere(finished, tmp_path, "eval", spec="elsewhere:network")
    assert invoke(*typed).exit_code == 0
    Path("called").unlink()

    result = invoke("eval", str(run), "--data", "tiny_task:data")

    assert Path("called").exists() == ("width=8" in typed)
    assert (result.exit_code == 0) == ("width=8" in typed)


def test_the_same_name_in_another_folder_is_other_code(tmp_path, finished, monkeypatch):
    assert invoke("inspect", "elsewhere:network", "--model-arg", "width=8").exit_code == 0
    run = run_from_elsewhere(finished, tmp_path, "shrink", spec="elsewhere:network")
    shutil.copy("elsewhere.py", tmp_path / "elsewhere.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "elsewhere", raising=False)

    assert invoke("shrink", str(run)).exit_code == 1
    assert not ran()


def test_what_is_typed_with_resume_counts(tmp_path, finished):
    run = run_from_elsewhere(finished, tmp_path, "finetune", spec="elsewhere:network", data="elsewhere:data")
    resume = ["finetune", "--out", str(run), "--resume"]

    partly = invoke(*resume, "elsewhere:network", "--data", "elsewhere:data")
    assert "elsewhere:network --model-arg width=8" in partly.stderr.splitlines()[-1]
    assert not ran()
    invoke(*resume, "elsewhere:network", "--model-arg", "width=8", "--data", "elsewhere:data")

    assert ran()


def test_data_typed_for_eval_runs(tmp_path, finished):
    run = run_from_elsewhere(finished, tmp_path, "eval", data="subprocess:call")
    invoke("inspect", "tiny_task:network", "--model-arg", "width=8")

    assert invoke("eval", str(run), "--data", "elsewhere:data").exit_code == 0
    assert ran()


def test_where_nothing_can_be_kept_it_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("L0PRUNE_STATE_DIR", str(tmp_path / "file"))
    out = tmp_path / "run"

    result = invoke(*FINETUNE, "--out", str(out))

    assert result.exit_code == 0, result.stderr
    assert "cannot be remembered" in result.stderr
    assert "--trust for tiny_task:network" in result.stderr
    assert "--trust" in invoke("shrink", str(out)).stderr


@pytest.mark.parametrize(
    "args", [["eval", "lenet5", "--data", "digits"], [*FINETUNE, "--out", "run"], ["bench", "a.onnx"]]
)
def test_trust_without_a_run_is_wrong_usage(args):
    result = invoke(*args, "--trust")

    assert result.exit_code == 2
    assert "--trust is for" in result.stderr
