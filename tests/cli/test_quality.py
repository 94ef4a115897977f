"""`l0prune finetune --quality`: the cheapest network that keeps a score, decided on rows that nothing else has seen."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from finetuning_case import stop_at, untimed
from learned_task import arrays
from safetensors.torch import load_file

from l0prune.cli.main import cli

QUICK = ["--epochs", "1", "--batch-size", "32", "--align", "1", "--lr", "0.005", "--recovery-lr", "0.005"]
SEARCH = ["finetune", "learned_task:trained", *QUICK, "--quality", "accuracy>=70", "--quality-runs", "3"]
DATA = ["--data", "learned_task:arrays"]


def invoke(*args: object, fails_with: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == fails_with, result.stderr
    return result


def result_of(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())["result"]


def without_places(run: Path) -> dict:
    return {name: value for name, value in result_of(run).items() if name not in ("run", "model")}


def assert_same_network(one: Path, other: Path) -> None:
    for name in ("model", "gates", "compact"):
        first, second = (load_file(run / "checkpoint" / f"{name}.safetensors") for run in (one, other))
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            assert tensor.equal(second[key]), f"{name}: {key}"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search."""
    out = tmp_path_factory.mktemp("quality") / "run"
    invoke(*SEARCH, *DATA, "--out", out)
    return out


def test_the_answer_keeps_the_quality_on_rows_held_out_and_the_next_cheaper_does_not(found):
    quality, result = result_of(found)["quality"], result_of(found)
    runs = sorted(quality["runs"], key=lambda tried: tried["hard_cost"])
    answer = next(tried for tried in runs if tried["budget"] == result["budget"])

    assert (quality["asked"], quality["held_out"], quality["n"]) == ("accuracy>=70", "train", 40)
    assert answer["score"] == quality["score"] >= 70
    assert result["hard_cost"] == answer["hard_cost"] < 1
    assert all(tried["score"] < 70 and not tried["kept"] for tried in runs[: runs.index(answer)])
    assert quality["dense"] >= 70
    assert len(runs) <= 3


def test_the_answer_is_scored_on_the_test_data(found):
    scores = json.loads(invoke("eval", found, "--json").stdout)

    assert scores["n"] == result_of(found)["n_scored"] == 400
    assert scores["accuracy"]["gated"] == result_of(found)["final"]
    assert scores["accuracy"]["dense"] == result_of(found)["dense"]


def test_the_answer_is_a_run_that_other_commands_take(found, tmp_path):
    run = shutil.copytree(found, tmp_path / "run")
    invoke("shrink", run)
    scores = json.loads(invoke("eval", run, "--json").stdout)["accuracy"]

    assert scores["gated"] == scores["compact"] == scores["onnx"]
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    invoke("report", run)
    assert "accuracy&gt;=70 was decided on 40 rows held out of the training data" in (run / "report.html").read_text()


def test_a_try_is_the_run_that_finetune_makes_alone(found, tmp_path):
    budget = result_of(found)["quality"]["runs"][0]["budget"]
    alone = tmp_path / "run"
    command = ["finetune", "learned_task:trained", *DATA, *QUICK, "--budget", budget, "--held-out", "train"]
    invoke(*command, "--out", alone)

    assert_same_network(found / "tries" / budget, alone)
    assert untimed(found / "tries" / budget / "metrics.jsonl") == untimed(alone / "metrics.jsonl")


def test_rows_held_out_are_never_trained_on(tmp_path, monkeypatch):
    from l0prune.sources import held_out
    from l0prune.sources.batches import ArrayBatches

    trained, apart = [], []
    init, set_apart = ArrayBatches.__init__, held_out.set_apart

    def watched(self, x, *args, **kwargs):
        if kwargs.get("shuffle"):
            trained.append({image.tobytes() for image in x})
        init(self, x, *args, **kwargs)

    def noting(*args, **kwargs):
        apart.append(set_apart(*args, **kwargs))
        return apart[-1]

    monkeypatch.setattr(ArrayBatches, "__init__", watched)
    monkeypatch.setattr(held_out, "set_apart", noting)

    invoke(*SEARCH, *DATA, "--quality", "accuracy>=30", "--held-out", "train", "--out", tmp_path / "run")

    x_train = arrays()["x_train"]
    held = {x_train[row].tobytes() for row in apart[0].rows}
    assert len(held) == 40
    assert len(trained) > 1
    for images in trained:
        assert len(images) == 360
        assert not images & held
    assert all(np.array_equal(apart[0].rows, other.rows) for other in apart)


def test_the_test_data_do_not_decide(found, tmp_path):
    out = tmp_path / "run"
    result = invoke(*SEARCH, "--data", "learned_task:wrong_tests", "--held-out", "train", "--out", out)

    assert result_of(out)["final"] < 50
    assert_same_network(found, out)
    assert "CAREFUL: the network has" in result.stdout
    assert "than chance explains" in result.stdout
    assert result_of(found)["quality"]["doubts"] is None


def test_networks_that_are_not_trained_are_searched_through_as_well(tmp_path):
    command = ["finetune", "learned_task:trained", *DATA, "--align", "1", "--epochs", "0", "--batch-size", "32"]
    invoke(*command, "--quality", "accuracy>=60", "--quality-runs", "2", "--out", tmp_path / "run")

    invoke("shrink", tmp_path / "run")


@pytest.mark.parametrize("after", ["the first run", "all runs", "a checkpoint"])
def test_a_search_that_was_stopped_goes_on_to_the_same_answer(found, tmp_path, monkeypatch, after):
    from l0prune.cli import quality_run
    from l0prune.finetuning.trainer import Trainer

    out = tmp_path / "run"

    with monkeypatch.context() as patch:
        if after == "the first run":
            patch.setattr(quality_run, "train_or_resume", stop_at(2, quality_run.train_or_resume))
        elif after == "all runs":
            patch.setattr(quality_run, "write_whole", stop_at(1, quality_run.write_whole))
        else:
            patch.setattr(Trainer, "_enter", stop_at(15, Trainer._enter))
        stopped = invoke(*SEARCH, *DATA, "--out", out, fails_with=130)

    assert stopped.stderr.splitlines()[-1] == f"interrupted: continue with `l0prune finetune --out {out} --resume`"
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    invoke("finetune", "--out", out, "--resume")
    assert_same_network(found, out)
    assert result_of(out) == result_of(found)
    assert "the run has finished" in invoke("finetune", "--out", out, "--resume", fails_with=1).stderr


def test_a_network_that_has_learned_the_training_data_is_judged_on_test_data(tmp_path):
    goal = ["--quality", "accuracy>=30"]
    result = invoke(*SEARCH, *goal, "--data", "learned_task:seen", "--out", tmp_path / "run", "--json")
    found = json.loads(result.stdout)

    assert "the dense network has learned the training data" in result.stderr
    assert (found["quality"]["held_out"], found["quality"]["n"], found["n_scored"]) == ("test", 200, 200)
    scores = json.loads(invoke("eval", tmp_path / "run", "--json").stdout)
    assert scores["n"] == 200
    assert scores["accuracy"]["gated"] == found["final"]


def test_what_nothing_keeps_is_an_error_and_more_runs_may_follow(tmp_path):
    out = tmp_path / "run"
    command = ["finetune", "learned_task:trained", *DATA, *QUICK, "--quality", "accuracy>=95", "--quality-runs", "1"]
    missed = invoke(*command, "--recovery-lr", "1e-9", "--lr", "1e-9", "--out", out, fails_with=1)

    assert "accuracy>=95 is kept by none of 1 networks; macs=0.5 comes closest with" in missed.stderr
    assert f"`l0prune finetune --out {out} --resume --quality-runs 2`" in missed.stderr
    again = invoke("finetune", "--out", out, "--resume", "--quality-runs", 2, fails_with=1)
    assert "kept by none of 2 networks" in again.stderr
    assert len(list((out / "tries").iterdir())) == 2
    assert json.loads((out / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("typed", "code", "message"),
    [
        (["--quality", "accuracy>=101"], 1, "accuracy>=101 cannot be kept: the dense network itself has"),
        (["--quality", "f1>=70"], 1, "the score of this task is accuracy; ask for accuracy>=NUMBER"),
        (["--quality", "accuracy<=70"], 1, "a higher accuracy is better; ask for accuracy>=70"),
        (["--quality", "accuracy>=0.7"], 1, "accuracy is in per cent; ask for accuracy>=70"),
        (["--quality", "accuracy"], 1, "expected METRIC>=NUMBER"),
        (["--quality", "accuracy>=70", "--budget", "macs=0.5"], 2, "--quality looks for the smallest --budget"),
        (["--quality", "accuracy>=70", "--penalty", "lambda=1"], 2, "--penalty sets none"),
        (["--quality", "accuracy>=70", "--from-scratch"], 2, "has no quality to keep: leave out --quality"),
        (["--budget", "macs=0.5", "--quality-runs", "3"], 2, "--quality-runs is for a search"),
        (["--quality", "accuracy>=70", "--held-out", "elsewhere"], 2, "'elsewhere' is not one of 'train', 'test'"),
        (["--quality", "accuracy>=70", "--quality-runs", "0"], 2, "0 is out of range"),
    ],
)
def test_what_cannot_be_searched_for_is_said_before_anything_is_written(tmp_path, typed, code, message):
    result = invoke(
        "finetune", "learned_task:trained", *DATA, *QUICK, *typed, "--out", tmp_path / "run", fails_with=code
    )

    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_scores_of_a_run_may_be_those_of_rows_held_out(tmp_path):
    command = ["finetune", "learned_task:trained", *DATA, *QUICK, "--budget", "macs=0.6", "--held-out", "train"]
    result = invoke(*command, "--out", tmp_path / "run")

    assert "Scores are of 40 rows held out of the training data" in result.stdout
    assert json.loads(invoke("eval", tmp_path / "run", "--json").stdout)["n"] == 400
