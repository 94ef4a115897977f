"""The folder of a compact model names a model, for every command that takes one."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tiny_task import network

import l0prune
from l0prune.cli.main import cli
from l0prune.sources.model_spec import load_model
from l0prune.surgery.plan import fingerprint

QUICK = ["--data", "tiny_task:data", "--budget", "macs=0.6", "--epochs", "2", "--batch-size", "16", "--align", "1"]


def invoke(*args: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == exit_code, result.stderr
    return result


def json_of(*args: object) -> dict:
    return json.loads(invoke(*args, "--json").stdout)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose images are normalised in a way that the network does not know."""
    out = tmp_path_factory.mktemp("compact-model") / "run"
    invoke("finetune", "tiny_task:network", *QUICK, "--mean", "0.3", "--std", "0.2", "--out", out)
    invoke("shrink", out)
    return out


def test_it_is_inspected_and_verified(run):
    n_parameters = sum(p.numel() for p in l0prune.load(run / "compact").parameters())

    assert "layer" in invoke("inspect", run / "compact").stdout
    verified = json_of("verify", run / "compact", "--no-onnx")
    assert verified["exact"]
    assert verified["params_before"] == n_parameters


def test_its_score_is_that_of_the_run(run):
    of_run = json_of("eval", run)["accuracy"]
    alone = json_of("eval", run / "compact", "--data", "tiny_task:data")["accuracy"]

    assert alone == {"compact": of_run["compact"]}


def test_it_is_pruned_in_a_run_of_its_own(run, tmp_path):
    again = tmp_path / "again"
    invoke("finetune", run / "compact", *QUICK, "--out", again)
    result = json_of("shrink", again)

    assert result["params_after"] < result["params_before"]
    dense, _ = network()
    plan = json.loads((again / "compact" / "surgery.json").read_text())
    assert plan["fingerprint"] == fingerprint(dense)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        l0prune.load(again / "compact", base=dense)(x), l0prune.load(again / "compact")(x), atol=1e-5, rtol=1e-5
    )
    assert json_of("eval", again)["accuracy"]["compact"] is not None


def test_the_library_loads_it_as_a_model_too(run):
    loaded = load_model(str(run / "compact"))
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    assert loaded.preprocessing is not None
    assert loaded.preprocessing.mean == (0.3,)
    assert torch.equal(loaded.model(x), l0prune.load(run / "compact")(x))


def test_a_run_is_no_model_and_the_message_says_what_is(run):
    assert str(run / "compact") in invoke("inspect", run, exit_code=1).stderr


def test_it_takes_no_arguments_and_needs_data_to_be_scored(run):
    assert "no model arguments" in invoke("inspect", run / "compact", "--model-arg", "width=3", exit_code=1).stderr
    assert "--data" in invoke("eval", run / "compact", exit_code=1).stderr
    scratch = ["finetune", run / "compact", *QUICK, "--from-scratch", "--out", run / "scratch"]
    assert "comes with weights" in invoke(*scratch, exit_code=1).stderr
