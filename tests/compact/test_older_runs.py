"""Runs and compact models that an earlier version wrote are resumed, shrunk, scored and loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from command_line import json_of

import l0prune
from l0prune.cli.main import cli
from l0prune.cli.request import FinetuneRequest
from l0prune.run_directory import RunDirectory

OLDER = Path(__file__).parents[1] / "fixtures" / "older_runs"
RESULTS = json.loads((OLDER / "results.json").read_text())
"""Figures of the same runs, not interrupted, by the version that wrote them."""


@pytest.fixture
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the run that the test names, its weights where its run.json says."""
    run = tmp_path / request.param
    shutil.copytree(OLDER / request.param, run)
    record = run / "run.json"
    record.write_text(record.read_text().replace("OLDER_RUNS", str(OLDER)))
    return run


TYPED_AGAIN = [
    "--lr-drops",
    "0.5,1",
    "--no-distillation",
    "--penalty",
    "lambda=0.1",
    "--grad-clip",
    "0",
    "--lr",
    "0.005",
]


@pytest.mark.parametrize(("older", "typed"), [("interrupted", []), ("priced", TYPED_AGAIN)], indirect=["older"])
def test_an_interrupted_run_goes_on_to_the_result_it_would_have_had(older, typed):
    expected = RESULTS[older.name]

    result = json_of("finetune", "--out", older, "--resume", *typed)

    for name in (
        "budget",
        "penalty",
        "budget_met",
        "n_gates",
        "n_open",
        "steps",
        "macs_after",
        "params_after",
        "dense",
    ):
        assert result[name] == expected[name], name
    assert [(entry["step"], entry["when"]) for entry in result["history"]] == [
        (entry["step"], entry["when"]) for entry in expected["history"]
    ]
    assert result["final"] == pytest.approx(expected["final"], abs=15)  # processors round differently


@pytest.mark.parametrize(
    ("older", "typed", "named"),
    [
        ("interrupted", ["--recovery-lr", "0.02"], "--recovery-lr is 0.02 and was 0.01"),
        ("priced", ["--lr-drops", "0.5,2"], "--lr-drops is "),
    ],
    indirect=["older"],
)
def test_it_does_not_go_on_with_other_options(older, typed, named):
    result = CliRunner().invoke(cli, ["finetune", "--out", str(older), "--resume", *typed])

    assert result.exit_code == 1
    assert named in result.stderr


@pytest.mark.parametrize("older", ["finished"], indirect=True)
def test_a_finished_run_is_shrunk_and_scored(older):
    expected = RESULTS["finished"]

    shrunk, scores = json_of("shrink", older), json_of("eval", older)["accuracy"]

    assert (shrunk["macs_after"], shrunk["params_after"]) == (expected["macs_after"], expected["params_after"])
    assert shrunk["max_rel_diff"] < 1e-5
    assert scores == pytest.approx({"dense": 87.5} | dict.fromkeys(("gated", "compact", "onnx"), 32.5), abs=1)


def test_a_compact_model_is_loaded():
    compact = l0prune.load(OLDER / "finished" / "compact")

    assert sum(parameter.numel() for parameter in compact.parameters()) == RESULTS["finished"]["params_after"]
    assert compact(torch.zeros(3, 1, 32, 32)).shape == (3, 10)


@pytest.mark.parametrize("older", ["finished", "interrupted", "priced"], indirect=True)
def test_what_a_run_was_asked_for_is_written_down_as_ever(older):
    began = RunDirectory.open(older).read()

    now = FinetuneRequest.from_record(began).to_record()

    assert now["model"] == now["model"] | began.model
    assert not any(value for key, value in now["model"].items() if key not in began.model)  # what it did not know of
    assert now["data"] == began.data
    epochs = {"lr_drops": [float(epoch) for epoch in filter(None, began.config["lr_drops"].split(","))]}  # text once
    unused = {} if began.config["distillation"] else {"feature_distillation": now["config"]["feature_distillation"]}
    assert now["config"] == now["config"] | began.config | epochs | unused
