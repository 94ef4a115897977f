"""`l0prune sweep` on a tiny task: each point is the run that `finetune` makes, wherever the sweep was stopped on the way."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from finetuning_case import stop_at, untimed
from safetensors.torch import load_file

from l0prune.cli.main import cli
from l0prune.errors import FileFormatError
from l0prune.sweep_directory import SweepDirectory

TASK = ["tiny_task:network", "--data", "tiny_task:data"]
QUICK = ["--epochs", "2", "--batch-size", "16", "--align", "1"]
BUDGETS = ["--budget", "macs=0.7", "--budget", "macs=0.4"]
SWEEP = ["sweep", *TASK, *BUDGETS, *QUICK, "--no-bench"]


def invoke(*args: object, fails_with: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == fails_with, result.stderr
    return result


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep."""
    out = tmp_path_factory.mktemp("sweep") / "sweep"
    invoke(*SWEEP, "--out", out)
    return out


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("model", "gates", "compact"):
        first, second = (load_file(run / "checkpoint" / f"{name}.safetensors") for run in (one, other))
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            assert tensor.equal(second[key]), f"{name}: {key}"
    assert untimed(one / "metrics.jsonl") == untimed(other / "metrics.jsonl")
    records = [json.loads((run / "run.json").read_text()) for run in (one, other)]
    for record in records:
        record.pop("argv")
    assert records[0] == records[1]


def test_every_point_of_a_sweep_is_the_run_that_finetune_makes_alone(sweep, tmp_path):
    for budget in ("macs=0.7", "macs=0.4"):
        alone = tmp_path / budget
        invoke("finetune", *TASK, "--budget", budget, *QUICK, "--out", alone)

        assert_same_run(sweep / budget, alone)


def test_the_record_has_every_network_within_its_budget(sweep):
    record = json.loads((sweep / "sweep.json").read_text())
    result = record["result"]

    assert (record["format"], record["version"], record["status"]) == ("l0prune.sweep", 1, "finished")
    assert [point["name"] for point in result["points"]] == record["budgets"] == ["macs=0.7", "macs=0.4"]
    for point, keep in zip(result["points"], (0.7, 0.4), strict=True):
        assert keep - 0.15 < point["shares"]["macs"] <= keep
        run = json.loads((sweep / point["name"] / "run.json").read_text())["result"]
        assert point["score"] == run["final"]
        assert point["amounts"]["params"] == run["params_after"] < result["dense"]["amounts"]["params"]
    assert result["dense"]["shares"] == {"macs": 1.0, "params": 1.0}


def test_a_point_of_a_sweep_takes_the_commands_of_a_run(sweep):
    scores = json.loads(invoke("eval", sweep / "macs=0.4", "--json").stdout)["accuracy"]

    assert scores["gated"] == scores["compact"] == scores["onnx"]
    invoke("shrink", sweep / "macs=0.4")


@pytest.mark.parametrize(
    "after",
    ["a checkpoint", *(pytest.param(moment, marks=pytest.mark.slow) for moment in ("the first run", "training"))],
)
def test_a_sweep_that_was_stopped_goes_on_to_the_same_result(sweep, tmp_path, monkeypatch, after):
    from l0prune.cli import sweep_run
    from l0prune.finetuning.trainer import Trainer

    out = tmp_path / "sweep"

    with monkeypatch.context() as patch:
        if after == "the first run":
            patch.setattr(sweep_run, "train_or_resume", stop_at(2, sweep_run.train_or_resume))
        elif after == "training":
            patch.setattr(sweep_run, "shrink_run", stop_at(1, sweep_run.shrink_run))
        else:
            patch.setattr(Trainer, "_train", stop_at(20, Trainer._train))  # 12 steps a run, 6 an epoch: in the second
        result = invoke(*SWEEP, "--out", out, fails_with=130)

    assert result.stderr.splitlines()[-1] == f"interrupted: continue with `l0prune sweep --out {out} --resume`"
    assert json.loads((out / "sweep.json").read_text())["status"] == "interrupted"
    invoke("sweep", "--out", out, "--resume", "--no-bench")
    for budget in ("macs=0.7", "macs=0.4"):
        assert_same_run(sweep / budget, out / budget)
    found, expected = (json.loads((path / "sweep.json").read_text())["result"] for path in (out, sweep))
    assert found == expected


@pytest.mark.slow
def test_all_networks_are_measured_in_turn(tmp_path):
    result = json.loads(invoke(*SWEEP[:-1], "--out", tmp_path / "sweep", "--json").stdout)

    assert result["dense"]["latency_ms"] > 0
    for point in result["points"]:
        assert point["speedup"]["low"] <= point["speedup"]["ratio"] <= point["speedup"]["high"]
    bench = json.loads((tmp_path / "sweep" / "bench.json").read_text())
    assert list(bench["models"]) == ["dense", "macs=0.7", "macs=0.4"]
    assert result["measured_on"].endswith("1 thread(s), batch 1")


def test_a_finished_sweep_is_drawn(sweep, tmp_path):
    pytest.importorskip("matplotlib")

    invoke("plot", "sweep", sweep, "--out", tmp_path / "picture.svg")

    assert "macs=0.4" in invoke("plot", "sweep", sweep, "--out", tmp_path / "p.svg", "--json").stdout
    for picture in (tmp_path / "picture.svg", sweep / "sweep.svg"):
        assert picture.read_text().count("<svg") == 1


@pytest.mark.parametrize(
    ("budgets", "code", "message"),
    [
        ([], 2, "--budget is missing"),
        (["macs=0.5", "macs=0.50"], 1, "--budget macs=0.50 is there twice"),
        (["macs=0.5", "macs=2"], 1, "macs=2 cannot be met"),
        (["macs=0.5", "macs=0.0001"], 1, "cannot be met: with every gate closed"),
        (["macs=0.5", "flops=0.5"], 1, "flops"),
    ],
)
def test_no_budget_is_begun_before_all_have_been_looked_at(tmp_path, budgets, code, message):
    typed = [word for budget in budgets for word in ("--budget", budget)]

    result = invoke("sweep", *TASK, *typed, *QUICK, "--out", tmp_path / "sweep", fails_with=code)

    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "sweep").exists()


def test_a_folder_that_is_taken_is_refused_and_replaced_only_when_asked(sweep, tmp_path):
    other = shutil.copytree(sweep, tmp_path / "sweep")
    (other / "mine.txt").touch()

    assert "already holds a sweep" in invoke(*SWEEP, "--out", other, fails_with=1).stderr
    assert "the sweep has finished" in invoke("sweep", "--out", other, "--resume", fails_with=1).stderr
    assert "holds no sweep" in invoke(*SWEEP, "--out", sweep / "macs=0.7", fails_with=1).stderr
    invoke("sweep", *TASK, "--budget", "macs=0.6", *QUICK, "--no-bench", "--out", other, "--overwrite")
    assert {path.name for path in other.iterdir()} - {"sweep.svg"} == {"macs=0.6", "sweep.json", "mine.txt"}


def test_a_sweep_goes_on_only_as_it_began(sweep, tmp_path):
    other = shutil.copytree(sweep, tmp_path / "sweep")
    SweepDirectory(other).set_status("running")

    resume = ["sweep", "--out", other, "--resume", "--no-bench"]
    assert "--epochs is 3.0 and was 2.0" in invoke(*resume, "--epochs", 3, fails_with=1).stderr
    assert "the budgets were macs=0.7, macs=0.4" in invoke(*resume, "--budget", "macs=0.5", fails_with=1).stderr


def test_a_sweep_can_write_nowhere_but_in_its_own_folder(sweep, tmp_path):
    other = shutil.copytree(sweep, tmp_path / "sweep")
    record = json.loads((other / "sweep.json").read_text())
    (other / "sweep.json").write_text(json.dumps({**record, "budgets": ["../elsewhere"]}))

    with pytest.raises(FileFormatError, match="no names of folders"):
        SweepDirectory(other).read()


def test_code_that_only_a_sweep_names_is_not_run(sweep, tmp_path, monkeypatch):
    other = shutil.copytree(sweep, tmp_path / "sweep")
    SweepDirectory(other).set_status("running")
    monkeypatch.setenv("L0PRUNE_STATE_DIR", str(tmp_path / "state"))

    assert "code that you have not typed" in invoke("sweep", "--out", other, "--resume", fails_with=1).stderr
