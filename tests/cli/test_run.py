"""The commands on a tiny task: finetune, shrink, bench, eval, report, and what each prints."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from tiny_task import network

import l0prune
from l0prune.cli.main import cli
from l0prune.cli.request import FinetuneRequest
from l0prune.cost.kinds import rounded_up
from l0prune.errors import ConfigError
from l0prune.onnx.onnx_model import OnnxModel
from l0prune.run_directory import RunDirectory

FINETUNE = ["finetune", "tiny_task:network", "--data", "tiny_task:data", "--budget", "macs=0.6"]
QUICK = ["--epochs", "2", "--batch-size", "16", "--align", "1"]


def invoke(*args: object) -> Result:
    """Run a command that must succeed."""
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == 0, result.stderr
    return result


def json_of(*args: object) -> dict:
    """What a command prints with --json: one object and nothing else on stdout."""
    return json.loads(invoke(*args, "--json").stdout)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and shrunk run."""
    out = tmp_path_factory.mktemp("cli") / "run"
    invoke(*FINETUNE, *QUICK, "--out", out)
    invoke("shrink", out)
    return out


def test_finetune_meets_the_budget_and_says_so(tmp_path):
    result = json_of(*FINETUNE, *QUICK, "--out", tmp_path / "run")

    assert result["budget_met"]
    assert 0.5 < result["hard_cost"] <= 0.6
    assert result["macs_after"] / result["macs_before"] == pytest.approx(result["hard_cost"])
    assert result["params_after"] < result["params_before"]
    assert {"dense", "final", "metric", "run", "model"} <= set(result)


def test_finetune_records_what_it_was_asked_for(run):
    record = json.loads((run / "run.json").read_text())

    assert record["status"] == "finished"
    assert record["config"]["budget"] == "macs=0.6"
    assert record["config"]["lr"] > 0
    assert record["model"]["spec"] == "tiny_task:network"
    assert record["data"] == {"spec": "tiny_task:data"}


def test_ignored_layers_keep_their_units_through_all_commands(tmp_path):
    out = tmp_path / "run"
    invoke(*FINETUNE, *QUICK, "--ignore", "0", "--out", out)
    invoke("shrink", out)

    scores = json_of("eval", out)["accuracy"]

    shapes = {name: tuple(value.shape) for name, value in load_file(out / "compact" / "model.safetensors").items()}
    assert shapes["0.weight"][0] == 8
    assert shapes["3.weight"][0] < 8
    assert scores["gated"] == scores["compact"] == scores["onnx"]


def test_parameters_of_the_gates_reach_training_and_shrink(tmp_path):
    out = tmp_path / "run"
    gate = ["--gate", "mdr-exponential-stretched", "--gate-arg", "temperature=18", "--gate-arg", "stretch=(-0.3,1.3)"]

    invoke(*FINETUNE, *QUICK, *gate, "--out", out)
    invoke("shrink", out)

    assert json.loads((out / "run.json").read_text())["config"]["gate_args"] == {
        "temperature": 18,
        "stretch": [-0.3, 1.3],
    }
    scores = json_of("eval", out)["accuracy"]
    assert scores["gated"] == scores["compact"] == scores["onnx"]


def test_a_run_is_resumed_with_the_options_it_began_with_also_where_one_is_a_tuple(run):
    record = RunDirectory.open(run).read()
    stretch = {"gate_args": {"stretch": (-0.3, 1.3)}}
    began = replace(record, config=json.loads(json.dumps(record.config | stretch)))
    request = FinetuneRequest.from_record(began)

    request.require_same(stretch)

    with pytest.raises(ConfigError, match="--gate-args is"):
        request.require_same({"gate_args": {"stretch": (-0.2, 1.3)}})


def test_a_run_that_is_older_than_an_option_has_its_default(run, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(run, older)
    record = json.loads((older / "run.json").read_text())
    del record["config"]["ignore"], record["config"]["grad_spike"]
    (older / "run.json").write_text(json.dumps(record))

    assert json_of("eval", older)["accuracy"] == json_of("eval", run)["accuracy"]


def test_eval_says_what_it_took_for_granted():
    notes = invoke("eval", "digits_resnet", "--data", "digits").stderr
    plain = invoke("eval", "tiny_task:network", "--data", "tiny_task:data").stderr
    told = invoke("eval", "tiny_task:network", "--data", "tiny_task:data", "--mean", "0", "--std", "1").stderr

    assert "digits_resnet has random weights" in notes
    assert "tiny_task:network does not state mean and std" in plain
    assert "mean and std" not in told


def test_finetune_ends_with_a_table_for_people(tmp_path):
    result = invoke(*FINETUNE, *QUICK, "--out", tmp_path / "run")

    for word in ("accuracy", "MACs", "parameters", "dense", "final", "l0prune shrink"):
        assert word in result.stdout
    assert "learning gates" in result.stderr


def test_shrink_writes_a_compact_model_that_computes_what_its_onnx_file_computes(run):
    from l0prune.onnx.onnx_model import onnx_difference

    compact = l0prune.load(run / "compact")
    x = torch.randn(3, 1, 8, 8)

    assert onnx_difference(run / "onnx" / "compact.onnx", compact, x).max_rel < 1e-5


def test_a_compact_model_is_loaded_with_torch_numpy_and_safetensors_alone(run):
    others = ["scipy", "onnx", "onnxruntime", "onnxscript", "torch_pruning", "accelerate", "click", "rich"]
    code = f"""
import sys
sys.modules |= dict.fromkeys({others})
import torch, l0prune
print(tuple(l0prune.load({str(run / "compact")!r})(torch.zeros(3, 1, 8, 8)).shape))
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stdout == "(3, 4)\n", done.stderr


def test_dense_onnx_has_the_original_weights(run):
    from l0prune.cli.loading import load
    from l0prune.cli.model_options import ModelOptions
    from l0prune.onnx.onnx_model import onnx_difference

    dense = load(ModelOptions("tiny_task:network")).model

    assert onnx_difference(run / "onnx" / "dense.onnx", dense, torch.randn(3, 1, 8, 8)).max_rel < 1e-5


def test_shrink_says_what_was_saved(run):
    result = json_of("shrink", run)

    assert result["form"] in {"in-place", "graph"}
    assert result["max_rel_diff"] < 1e-5
    assert result["macs_after"] <= 0.6 * result["macs_before"]
    assert result["params_before"] == sum(p.numel() for p in network()[0].parameters())
    assert result["params_after"] == sum(p.numel() for p in l0prune.load(run / "compact").parameters())
    assert result["bytes_after"] == (run / "onnx" / "compact.onnx").stat().st_size
    assert result["bytes_before"] == (run / "onnx" / "dense.onnx").stat().st_size


def test_the_report_says_that_the_network_was_cut_again(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")
    invoke("report", other)
    assert "was cut again" not in (other / "report.html").read_text()

    shrunk = invoke("shrink", other, "--align", 4)

    assert "changed the network after its training: score it with `l0prune eval" in shrunk.stderr
    assert not (other / "report.html").exists()
    invoke("report", other)
    assert "the network was cut again, with shrink --align 4" in (other / "report.html").read_text()
    invoke("shrink", other)
    invoke("report", other)
    assert "was cut again" not in (other / "report.html").read_text()


@pytest.mark.parametrize(
    ("share", "text"), [(0.000105, "0.00011"), (0.00014, "0.00014"), (0.0996, "0.1"), (0.5, "0.5")]
)
def test_the_smallest_budget_is_printed_so_that_it_can_be_asked_for(share, text):
    assert f"{rounded_up(share, digits=2):g}" == text
    assert float(text) >= share


def test_shrink_rounds_widths_when_asked(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")

    result = json_of("shrink", other, "--align", 4)

    state = l0prune.load(other / "compact").state_dict()
    assert result["align"] == 4
    assert {state["0.weight"].shape[0] % 4, state["3.weight"].shape[0] % 4} == {0}
    assert result["max_rel_diff"] < 1e-5


def test_shrink_writes_files_as_deployers_want_them(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")

    invoke("shrink", other, "--opset", 21, "--static", "--output-names", "scores")

    for form in ("dense", "compact"):
        model = OnnxModel(other / "onnx" / f"{form}.onnx")
        assert [node.name for node in model.session.get_outputs()] == ["scores"]
        assert model.static_batch is not None
        assert onnx.load(str(model.path)).opset_import[0].version == 21


def test_shrink_leaves_no_drafts(run):
    assert {path.name for path in run.iterdir()} <= {
        *("run.json", "metrics.jsonl", "checkpoint", "compact", "onnx", "bench.json", "report.html")
    }


def test_bench_measures_a_run_and_keeps_the_figures(run):
    result = json_of("bench", run, "--samples", 5, "--min-seconds", 0, "--warmup", 0, "--processes", 1)

    assert set(result["models"]) == {"dense", "compact"}
    assert result["models"]["dense"]["latency_ms"]["p50"] > 0
    assert result["speedup"]["compact"]["low"] <= result["speedup"]["compact"]["ratio"]
    assert json.loads((run / "bench.json").read_text()) == result


def test_bench_sets_int8_beside_each_file_of_a_run_with_its_score(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")

    result = json_of("bench", other, "--samples", 2, "--min-seconds", 0, "--warmup", 0, "--processes", 1, "--int8")

    forms = ["dense", "dense int8", "compact", "compact int8"]
    assert list(result["models"]) == list(result["scores"]) == forms
    assert result["metric"] == "accuracy"
    evaluated = json_of("eval", other)["accuracy"]
    assert (result["scores"]["dense"], result["scores"]["compact"]) == (evaluated["dense"], evaluated["onnx"])
    assert (other / "onnx" / "compact.int8.onnx").exists()
    refused = CliRunner().invoke(cli, ["bench", str(other / "onnx" / "dense.onnx"), "--int8"])
    assert refused.exit_code == 1
    assert "name the run it belongs to" in refused.stderr


def test_bench_measures_files_under_their_names(run):
    files = [run / "onnx" / "dense.onnx", run / "onnx" / "compact.onnx"]

    result = invoke("bench", *files, "--samples", 5, "--min-seconds", 0, "--warmup", 0, "--processes", 1)

    assert "dense" in result.stdout
    assert "compact" in result.stdout


def test_eval_scores_every_form_alike(run):
    result = json_of("eval", run)

    scores = result["accuracy"]
    assert list(scores) == ["dense", "gated", "compact", "onnx"]
    assert scores["gated"] == scores["compact"] == scores["onnx"]
    assert result["metric"] == "accuracy"
    assert result["n"] == 40


def test_eval_of_a_model_is_its_accuracy():
    result = json_of("eval", "tiny_task:network", "--data", "tiny_task:data")

    assert list(result["accuracy"]) == ["dense"]
    assert 0 <= result["accuracy"]["dense"] <= 100


def test_the_report_stands_alone(run):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    invoke("bench", run, "--samples", 5, "--min-seconds", 0, "--warmup", 0, "--processes", 1)

    page = Path(json_of("report", run)["report"]).read_text()

    assert page.count("data:image/svg+xml") == 6
    assert "http://" not in page
    assert "https://" not in page
    for word in (
        "accuracy",
        "MACs",
        "latency p50",
        "Kept widths",
        "Gates over the epochs",
        "Time of a training step",
        "processor",
    ):
        assert word in page


def test_the_report_says_where_the_compact_network_is_slower(run):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    invoke("bench", run, "--samples", 5, "--min-seconds", 0, "--warmup", 0, "--processes", 1)
    bench = json.loads((run / "bench.json").read_text())
    bench["speedup"]["compact"] = {"ratio": 0.7, "low": 0.6, "high": 0.8}
    (run / "bench.json").write_text(json.dumps(bench))

    page = Path(json_of("report", run)["report"]).read_text()

    assert "of the parameters of dense and is slower: 0.70 times its speed" in page


def test_a_report_without_its_packages_says_what_to_install(run, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    result = CliRunner().invoke(cli, ["report", str(run)])

    assert result.exit_code == 1
    assert "pip install 'l0prune[report]'" in result.stderr


def test_inspect_says_what_each_layer_costs_and_what_is_pinned():
    result = json_of("inspect", "tiny_task:network", "--model-arg", "width=6")

    convolution = next(layer for layer in result["layers"] if layer["name"] == "3")
    assert (convolution["inputs"], convolution["gated_inputs"], convolution["outputs"]) == (6, 6, 6)
    assert convolution["macs"] == 6 * 6 * 9 * 16
    assert sum(layer["params"] for layer in result["layers"]) == result["params"]
    assert sum(layer["macs"] for layer in result["layers"]) == result["macs"]
    assert result["pinned"]
    assert result["n_gates"] == 12


def test_inspect_prints_tables_for_people():
    text = invoke("inspect", "tiny_task:network").stdout

    for word in ("inputs gated", "MACs", "Pinned", "units in", "smallest budget"):
        assert word in text


def test_verify_compares_all_three():
    result = json_of("verify", "tiny_task:network", "--closed", 0.5, "--seed", 3)

    assert result["exact"]
    assert result["max_rel_diff"] < 1e-4
    assert result["onnx_max_rel_diff"] < 1e-4
    contract = {"model", "exact", "max_abs_diff", "max_rel_diff", "onnx_max_rel_diff", "n_gates", "params_before"}
    assert contract | {"params_after", "prunable_fraction", "form", "pinned", "seconds"} <= set(result)


def test_verify_in_double_precision_is_exact_to_nine_digits():
    result = json_of("verify", "tiny_task:network", "--double", "--no-onnx")

    assert result["max_rel_diff"] < 1e-9
    assert result["onnx_max_rel_diff"] is None


def test_a_network_that_cannot_be_cut_exactly_is_an_error(monkeypatch):
    from l0prune.verification import VerifyReport

    report = VerifyReport.__dataclass_fields__
    values = dict.fromkeys(report) | {"exact": False, "max_rel_diff": 0.5, "pinned": {}}
    monkeypatch.setattr("l0prune.cli.verify.verify_model", lambda *_, **__: {"model": "m", **values})

    result = CliRunner().invoke(cli, ["verify", "m", "--json"])

    assert result.exit_code == 1
    assert json.loads(result.stdout)["exact"] is False
    assert result.stderr.startswith("error: m: the cut network differs")


def test_a_missed_budget_has_its_own_exit_code(monkeypatch, tmp_path):
    figures = {"budget_met": False, "hard_costs": {"macs": 0.7}}
    monkeypatch.setattr("l0prune.cli.finetune.begin", lambda *_, **__: figures)

    result = CliRunner().invoke(cli, [*FINETUNE, "--out", str(tmp_path / "run"), "--json"])

    assert result.exit_code == 3
    assert "the compact network costs macs=0.7000 of the dense one" in result.stderr
    assert json.loads(result.stdout) == figures


def test_a_dense_network_at_chance_is_called_that_before_and_after(tmp_path):
    """The weights of the tiny network are random."""
    out = tmp_path / "run"
    result = invoke(*FINETUNE, "--epochs", "2", "--batch-size", "16", "--align", "1", "--out", out)
    before, _, _ = result.stderr.partition("learning gates")

    assert "CAREFUL: the dense network is right on" in before
    assert "order of the labels" in before
    assert "CAREFUL" in result.stdout
    scores = json_of("eval", out)
    assert "no better than chance" in scores["doubts"]
    assert json.loads((out / "run.json").read_text())["result"]["doubts"] is not None
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    invoke("report", out)
    assert "CAREFUL: the dense network is right on" in (out / "report.html").read_text()


def test_a_network_that_has_learned_is_not_doubted():
    result = json_of("eval", "digits_resnet", "--weights", "bundled", "--data", "digits")

    assert result["doubts"] is None


def test_the_files_of_a_run_have_the_modes_of_the_users_other_files(run, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    usual = {"file": (tmp_path / "file").stat().st_mode, "folder": (tmp_path / "folder").stat().st_mode}

    for path in run.rglob("*"):
        assert path.stat().st_mode == usual["folder" if path.is_dir() else "file"], path
