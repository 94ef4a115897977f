"""`finetune` with a fixed penalty and from random weights, and every command after it; what is refused."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file
from test_cli_refusals import DATA, finetune_refused, refused, weights_of
from test_run import invoke, json_of
from tiny_task import network

import l0prune
from l0prune.cli.main import cli

SCRATCH = [
    *("finetune", "tiny_task:network", *DATA, "--from-scratch", "--penalty", "lambda=0.05", "--penalty", "7=3"),
    *("--optimizer", "adam", "--lr", "0.01", "--gate-lr-end", "1", "--gate-lr", "0.1", "--batch-size", "16"),
    *("--epochs", "12", "--gate-epochs", "12"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and shrunk run."""
    out = tmp_path_factory.mktemp("cli") / "run"
    invoke(*SCRATCH, "--out", out)
    invoke("shrink", out)
    return out


def test_a_network_learns_and_loses_units_from_scratch(run):
    record = json.loads((run / "run.json").read_text())

    assert record["config"]["penalty"] == "lambda=0.05,7=3"
    assert record["config"]["budget"] == ""
    assert record["config"]["distillation"] == 0
    assert record["config"]["align"] == 1
    assert record["result"]["penalty"] == "lambda=0.05,7=3.0"
    assert record["result"]["n_open"] < record["result"]["n_gates"]
    assert record["result"]["final"] > record["result"]["dense"] + 20


def test_every_command_takes_the_run(run):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    scores = json_of("eval", run)["accuracy"]
    bench = json_of("bench", run, "--samples", 5, "--min-seconds", 0, "--warmup", 0, "--processes", 1)
    page = Path(json_of("report", run)["report"]).read_text()

    assert scores["gated"] == scores["compact"] == scores["onnx"]
    assert set(bench["models"]) == {"dense", "compact"}
    assert "Penalty lambda=0.05,7=3.0" in page
    assert "the dense network is the untrained one" in page


def test_the_seed_decides_about_the_weights(run, tmp_path):
    quick = [*SCRATCH, "--epochs", "1", "--gate-epochs", "1", "--out"]
    invoke(*quick, tmp_path / "other", "--seed", "1")
    invoke(*quick, tmp_path / "same")
    invoke(*quick, tmp_path / "again")

    first = {
        name: load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("other", "same", "again")
    }
    assert first["same"]["0.weight"].equal(first["again"]["0.weight"])
    assert not first["same"]["0.weight"].equal(first["other"]["0.weight"])
    invoke("shrink", tmp_path / "other")  # which begins with the same random weights
    assert l0prune.load(tmp_path / "other" / "compact")


def test_a_network_without_weights_is_refused_unless_it_is_meant(tmp_path):
    refusal = ("lenet5 has random weights", "--weights FILE", "--from-scratch")
    finetune_refused(tmp_path, ["finetune", "lenet5", "--data", "digits", "--budget", "macs=0.5"], *refusal)
    shipped = ["finetune", "digits_resnet", "--data", "digits", "--budget", "macs=0.5"]
    finetune_refused(tmp_path, shipped, "--weights bundled")
    finetune_refused(
        tmp_path, ["finetune", "timm:resnet18", "--data", "digits", "--budget", "macs=0.5"], "--pretrained"
    )


def test_from_scratch_takes_no_weights(tmp_path):
    path = weights_of(network()[0], tmp_path / "w.safetensors")

    finetune_refused(tmp_path, [*SCRATCH, "--weights", str(path)], "--from-scratch", "--weights")
    finetune_refused(tmp_path, [*SCRATCH, "--distillation-weight", "0.5"], "untrained", "no distillation")
    hub = ["finetune", "hf:somewhere", *DATA, "--from-scratch", "--penalty", "lambda=1"]
    finetune_refused(tmp_path, hub, "hf:somewhere comes with weights")


@pytest.mark.parametrize(
    ("penalty", "words"),
    [
        ("fc9=1", ["'fc9'", "layers whose inputs are gated: 3, 7"]),
        ("lambda=-1", ["lambda=-1.0", "0 or more"]),
        ("0.1", ["lambda=0.1"]),
    ],
)
def test_a_penalty_that_cannot_be_meant(tmp_path, penalty, words):
    finetune_refused(tmp_path, ["finetune", "tiny_task:network", *DATA, "--penalty", penalty], *words)


def test_gates_that_need_a_budget_refuse_a_penalty(tmp_path):
    args = ["finetune", "tiny_task:network", *DATA, "--penalty", "lambda=1", "--gate", "exact-k"]
    finetune_refused(tmp_path, args, "exact-k", "give a budget")


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        (["--budget", "macs=0.5", "--penalty", "lambda=1"], "give one of them"),
        ([], "--budget, --quality or --penalty is missing"),
        (["--penalty", "lambda=1", "--from-scratch", "--distillation"], "which cannot teach: leave out --distillation"),
    ],
)
def test_goals_that_exclude_each_other_are_wrong_usage(tmp_path, goal, words):
    result = CliRunner().invoke(cli, ["finetune", "tiny_task:network", *DATA, *goal, "--out", str(tmp_path / "run")])

    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rate", "words"), [("2", "droprate 2.0"), ("7=2", "droprate 7=2.0"), ("fc9=.5", "'fc9'"), ("half", "'half'")]
)
def test_a_drop_rate_that_cannot_be_meant(tmp_path, rate, words):
    finetune_refused(tmp_path, [*SCRATCH, "--droprate-init", rate], words)


def test_decay_and_start_of_the_gates_are_recorded_and_reach_the_training(tmp_path):
    quick = [*SCRATCH, "--epochs", "1", "--gate-epochs", "1"]
    invoke(
        *quick, "--droprate-init", "0.5", "--droprate-init", "7=0.2", "--gated-weight-decay", "--out", tmp_path / "run"
    )

    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert (config["droprate_init"], config["gated_weight_decay"]) == ("0.5,7=0.2", True)
    assert 0.75 < first["expected_params"] < 0.95  # gates would begin at 0.99


def test_a_resumed_run_keeps_its_penalty(run):
    refused(["finetune", "--out", str(run), "--resume", "--penalty", "lambda=1"], "--penalty", "lambda=0.05,7=3")
