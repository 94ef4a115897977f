"""Every gate family through the commands: finetune, shrink, eval, and verify."""

import json
import math

import pytest
from click.testing import CliRunner
from command_line import json_of

from l0prune.cli.main import cli
from l0prune.gates.registry import gate_names

FINETUNE = ["finetune", "tiny_task:network", "--data", "tiny_task:data", "--budget", "macs=0.6"]
QUICK = ["--epochs", "3", "--gate-epochs", "2", "--batch-size", "16", "--align", "1", "--log-every", "4"]
# A number of open gates, binary samples: what a family can do otherwise. The slow tests run all of them.
OTHERWISE = ("exact-k", "mdr-exponential-st")
EACH = [name if name in OTHERWISE else pytest.param(name, marks=pytest.mark.slow) for name in gate_names()]


@pytest.mark.parametrize("name", EACH)
def test_a_gate_goes_all_the_way(name, tmp_path):
    out = tmp_path / "run"

    trained = json_of(*FINETUNE, *QUICK, "--gate", name, "--out", out)
    shrunk = json_of("shrink", out)
    scores = json_of("eval", out)["accuracy"]

    assert trained["budget_met"]
    assert math.isfinite(trained["expected_cost"])
    assert 0.3 < trained["hard_cost"] <= 0.6
    assert shrunk["macs_after"] == pytest.approx(trained["hard_cost"] * shrunk["macs_before"])
    assert shrunk["max_rel_diff"] < 1e-5
    assert scores["gated"] == scores["compact"] == scores["onnx"] == pytest.approx(trained["final"])
    assert json.loads((out / "run.json").read_text())["config"]["gate"] == name


@pytest.mark.parametrize("name", EACH)
def test_a_gate_can_be_cut_exactly(name):
    result = json_of("verify", "tiny_task:network", "--gate", name, "--double", "--no-onnx")

    assert result["gate"] == name
    assert result["exact"]
    assert result["max_abs_diff"] < 1e-10
    assert result["params_after"] < result["params_before"]


def test_verify_refuses_an_unknown_gate():
    result = CliRunner().invoke(cli, ["verify", "tiny_task:network", "--gate", "no-such", "--no-onnx"])

    assert result.exit_code == 1
    assert result.stderr.startswith("error: unknown gate 'no-such'; use one of: concrete, ")
