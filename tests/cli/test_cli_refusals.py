"""Bad input to the command line: one line that names the thing and the remedy, exit code 1, nothing left behind."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from tiny_task import data, network

from l0prune.cli.main import cli

BUDGET = ["--budget", "macs=0.6"]
DATA = ["--data", "tiny_task:data"]
QUICK = ["--epochs", "2", "--batch-size", "16", "--align", "1"]
FINETUNE = ["finetune", "tiny_task:network", *DATA, *QUICK]


def refused(args: list[str], *words: str) -> None:
    """The command fails with one line that holds the words."""
    result = CliRunner().invoke(cli, args)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 1, result.output
    assert len(lines) == 1
    assert result.stderr.splitlines()[-1] == lines[0]
    assert "Traceback" not in result.stderr
    assert not lines[0].startswith("error: unexpected")
    for word in words:
        assert word in lines[0]


def finetune_refused(folder: Path, args: list[str], *words: str) -> None:
    """A fine-tuning run is refused and leaves no trace in `folder`."""
    before = sorted(folder.rglob("*"))
    refused([*args, "--out", str(folder / "run")], *words)
    assert sorted(folder.rglob("*")) == before


def weights_of(model: torch.nn.Module, path: Path) -> Path:
    save_file(model.state_dict(), path)
    return path


def test_a_missing_weights_file(tmp_path):
    path = tmp_path / "none.safetensors"
    finetune_refused(tmp_path, [*FINETUNE, *BUDGET, "--weights", str(path)], str(path), "no such")


def test_a_checkpoint_of_another_architecture(tmp_path):
    path = weights_of(network(width=6)[0], tmp_path / "other.safetensors")
    finetune_refused(tmp_path, [*FINETUNE, *BUDGET, "--weights", str(path)], str(path), "'0.weight'", "architecture")


class Code:
    """An object whose pickle would create a file when loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_with_code_is_not_run(tmp_path, write):
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    write({"0.weight": Code(trace)}, path)

    finetune_refused(tmp_path, [*FINETUNE, *BUDGET, "--weights", str(path)], str(path), "nothing in it was run")

    assert not trace.exists()


def test_weights_that_are_not_numbers(tmp_path):
    model = network()[0]
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = torch.nan
    path = weights_of(model, tmp_path / "nan.safetensors")

    finetune_refused(tmp_path, [*FINETUNE, *BUDGET, "--weights", str(path)], "'3.weight'", "NaN")


def data_file(folder: Path, **replaced: np.ndarray) -> str:
    path = folder / "data.npz"
    np.savez(path, **(data() | replaced))
    return f"npz:{path}"


def test_images_of_another_shape(tmp_path):
    colour = {f"x_{part}": np.zeros((len(data()[f"y_{part}"]), 8, 8, 3), np.uint8) for part in ("train", "test")}
    spec = data_file(tmp_path, **colour)

    finetune_refused(tmp_path, ["finetune", "tiny_task:network", "--data", spec, *BUDGET], "3 channels", "(1, 8, 8)")


def test_an_empty_data_set(tmp_path):
    spec = data_file(tmp_path, x_train=np.zeros((0, 8, 8), np.uint8), y_train=np.zeros(0, np.int64))

    finetune_refused(tmp_path, ["finetune", "tiny_task:network", "--data", spec, *BUDGET], "x_train is empty")


def test_more_classes_than_outputs(tmp_path):
    spec = data_file(tmp_path, y_test=np.full(40, 7))

    finetune_refused(tmp_path, ["finetune", "tiny_task:network", "--data", spec, *BUDGET], "8 classes", "num_classes=8")


def test_targets_of_another_size_than_the_outputs(tmp_path):
    numbers = {f"x_{part}": np.zeros((40, 1, 8, 8), np.float32) for part in ("train", "test")}
    spec = data_file(tmp_path, **numbers, **{f"y_{part}": np.zeros(40, np.float32) for part in ("train", "test")})

    finetune_refused(
        tmp_path, ["finetune", "tiny_task:network", "--data", spec, *BUDGET], "shape () each", "gives (4,)", "same size"
    )


def test_a_missing_data_file(tmp_path):
    finetune_refused(tmp_path, ["finetune", "tiny_task:network", "--data", "npz:none.npz", *BUDGET], "none.npz")


@pytest.mark.parametrize("budget", ["macs=0", "macs=1.5", "abc", "macs=abc", "flops=0.5", "macs=-1", "macs=nan"])
def test_a_budget_that_cannot_be_meant(tmp_path, budget):
    finetune_refused(tmp_path, [*FINETUNE, "--budget", budget], "budget", "macs")


def test_a_budget_below_what_is_reachable(tmp_path):
    finetune_refused(tmp_path, [*FINETUNE, "--budget", "macs=0.001"], "macs=0.001", "cannot be met", "or more")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["finetune", "resnet21", *DATA, *BUDGET], ["resnet21", "resnet20"]),
        (["finetune", "no.such:factory", *DATA, *BUDGET], ["no.such:factory"]),
        ([*FINETUNE, *BUDGET, "--gate", "bernouli"], ["bernouli", "hard-concrete"]),
        ([*FINETUNE, *BUDGET, "--warmup-epochs", "5"], ["epochs"]),
        ([*FINETUNE, *BUDGET, "--precision", "fp16"], ["fp16", "bf16"]),
        ([*FINETUNE, *BUDGET, "--model-arg", "depth=3"], ["depth"]),
        (["finetune", "tiny_task:network", "--data", "digit", *BUDGET], ["digit", "npz:FILE"]),
    ],
)
def test_what_is_named_does_not_exist(tmp_path, args, words):
    finetune_refused(tmp_path, args, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there(tmp_path):
    finetune_refused(tmp_path, [*FINETUNE, *BUDGET, "--device", "cuda"], "cuda", "cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and shrunk run."""
    out = tmp_path_factory.mktemp("cli") / "run"
    for args in ([*FINETUNE, *BUDGET, "--out", str(out)], ["shrink", str(out)]):
        result = CliRunner().invoke(cli, args)
        assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_an_existing_run_is_kept(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    refused([*FINETUNE, *BUDGET, "--out", str(run)], str(run), "--resume", "--overwrite")

    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_overwrite_replaces_a_run(run):
    result = CliRunner().invoke(cli, [*FINETUNE, *BUDGET, "--out", str(run), "--overwrite"])

    assert result.exit_code == 0, result.stderr
    assert not (run / "compact").exists()


def test_a_refused_overwrite_keeps_the_run(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    refused([*FINETUNE, "--budget", "macs=0.001", "--out", str(run), "--overwrite"], "cannot be met")

    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_directory_with_other_things_is_not_a_place_for_a_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")

    refused([*FINETUNE, *BUDGET, "--out", str(tmp_path), "--overwrite"], str(tmp_path), "holds no run")

    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_finished_run_is_not_resumed(run):
    refused(["finetune", "--out", str(run), "--resume"], "has finished", "l0prune shrink")


def test_a_run_is_not_resumed_with_other_settings(run):
    change_json(run / "run.json", status="interrupted")

    refused([*FINETUNE, "--budget", "macs=0.3", "--out", str(run), "--resume"], "--budget", "macs=0.3", "macs=0.6")


OTHERWISE = {
    "another model": (["tiny_task:other"], ["MODEL is 'tiny_task:other' and was 'tiny_task:network'"]),
    "another argument of the model": (["--model-arg", "width=6"], ["--model-arg is width=6 and was not given"]),
    "another parameter of the gates": (
        ["--gate-arg", "temperature=0.5", "--gate-arg", "clamp=9"],
        ["--gate-arg is temperature=0.5 clamp=9 and was not given"],
    ),
    "other data": (["--data", "digits"], ["--data is 'digits' and was 'tiny_task:data'"]),
    "other layers to ignore": (["--ignore", "0", "--ignore", "3"], ["--ignore is 0,3 and was not given"]),
    "other weights": (["--weights", "w.safetensors"], ["--weights is ", "and was not given"]),
    "another size": (["--image-size", "8,8"], ["--image-size is 8,8 and was not given"]),
    "another start": (["--droprate-init", "0.5"], ["--droprate-init is '0.5' and was not given"]),
    "no teacher": (["--no-distillation"], ["--distillation-weight is 0.0 and was 0.9"]),
    "no augmentation": (["--augment"], ["--augment is True and was False"]),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_what_differs_from_the_run_is_named_as_it_is_typed(run, case):
    options, words = OTHERWISE[case]
    change_json(run / "run.json", status="interrupted")

    refused(["finetune", *options, "--out", str(run), "--resume"], *words, "leave it out to resume")


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("command", ["shrink", "bench", "eval", "report"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_text(path.read_text()[:100]), ["run.json is damaged"]),
        (lambda path: change_json(path, version=2), ["run.json has version 2"]),
        (lambda path: change_json(path, colour="red"), ["run.json", "colour"]),
        (lambda path: path.unlink(), ["holds no run"]),
    ],
)
def test_a_damaged_run_json(run, command, damage, words):
    damage(run / "run.json")

    refused([command, str(run)], *words)


@pytest.mark.parametrize("command", ["shrink", "eval", "report"])
def test_an_unfinished_run(run, command):
    change_json(run / "run.json", status="interrupted")

    refused([command, str(run)], "interrupted", "--resume")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(path.read_text()[:50]),
        lambda path: path.write_text("{}"),
        lambda path: change_json(path, version=9),
    ],
)
@pytest.mark.parametrize("command", ["eval", "report"])
def test_a_damaged_surgery_json(run, command, damage):
    damage(run / "compact" / "surgery.json")

    refused([command, str(run)], "surgery.json")


def test_a_damaged_checkpoint(run):
    (run / "checkpoint" / "model.safetensors").write_bytes(b"\0" * 20)

    refused(["shrink", str(run)], "model.safetensors", "is damaged")


def test_a_failing_shrink_leaves_the_earlier_result(run):
    (run / "checkpoint" / "gates.safetensors").unlink()
    before = sorted(run.rglob("*"))

    refused(["shrink", str(run)], "gates.safetensors")

    assert sorted(run.rglob("*")) == before


def test_dense_weights_that_changed_since(tmp_path):
    path, out = weights_of(network()[0], tmp_path / "w.safetensors"), tmp_path / "run"
    result = CliRunner().invoke(cli, [*FINETUNE, *BUDGET, "--weights", str(path), "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    torch.manual_seed(1)
    weights_of(network()[0], path)

    refused(["shrink", str(out)], str(path), "original weights")


@pytest.mark.parametrize("command", ["shrink", "bench", "eval", "report"])
def test_a_run_that_is_not_there(command):
    refused([command, "no-such-run"], "no-such-run")


def test_bench_of_a_run_that_is_not_shrunk(run):
    shutil.rmtree(run / "onnx")

    refused(["bench", str(run)], "dense.onnx", f"l0prune shrink {run}")


def test_bench_of_something_that_is_no_model(tmp_path):
    (tmp_path / "a.onnx").write_text("no model")

    refused(["bench", str(tmp_path / "a.onnx")], "a.onnx", "not an ONNX model")


def invoked(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args))


@pytest.mark.parametrize("missing", ["MODEL", "--data", "--budget"])
def test_what_finetune_cannot_do_without_is_wrong_usage(tmp_path, missing):
    given = {"MODEL": ["tiny_task:network"], "--data": DATA, "--budget": BUDGET}
    args = [arg for name, values in given.items() if name != missing for arg in values]

    result = invoked("finetune", *args, "--out", str(tmp_path / "run"))

    assert result.exit_code == 2
    assert missing in result.stderr


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    result = invoked("finetune", "--out", str(tmp_path), "--resume", "--overwrite")

    assert result.exit_code == 2


@pytest.mark.parametrize(
    "option",
    [["--weights", "other.safetensors"], ["--mean", "0.5"], ["--model-arg", "a=1"], ["--input-shape", "1,8,8"]],
)
def test_options_of_a_model_are_refused_for_a_run(run, option):
    refused(["eval", str(run), *option], option[0], "is for a model", "is a run")


POINTLESS = {
    "a teacher's weight without a teacher": (
        ["--no-distillation", "--distillation-weight", "0.5"],
        "--distillation-weight",
    ),
    "features without a teacher": (["--no-distillation", "--feature-distillation", "1"], "--feature-distillation"),
    "how far without when": (["--lr-drop-factor", "0.5"], "--lr-drops"),
    "the end of a cosine that is not there": (["--lr-drops", "1", "--gate-lr-end", "0.5"], "--gate-lr-end"),
}


@pytest.mark.parametrize("case", POINTLESS)
def test_an_option_that_another_makes_pointless_is_wrong_usage(tmp_path, case):
    options, named = POINTLESS[case]

    result = invoked(*FINETUNE, *BUDGET, *options, "--out", str(tmp_path / "run"))

    assert result.exit_code == 2
    assert named in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_settling_that_does_not_fit(tmp_path):
    finetune_refused(
        tmp_path, [*FINETUNE, *BUDGET, "--settle-epochs", "1"], "settle_epochs=1", "half of the 1.9 epochs"
    )


def test_a_parameter_that_the_gates_do_not_have(tmp_path):
    args = [*FINETUNE, *BUDGET, "--gate", "mdr-power", "--gate-arg", "warmth=2"]
    finetune_refused(tmp_path, args, "'mdr-power' has no parameter warmth", "temperature")


def test_decay_in_the_loss_does_not_go_with_adamw(tmp_path):
    args = [*FINETUNE, *BUDGET, "--gated-weight-decay", "--optimizer", "adamw"]
    finetune_refused(tmp_path, args, "gated_weight_decay", "choose adam or sgd")


def test_a_module_to_ignore_that_is_not_there(tmp_path):
    finetune_refused(tmp_path, [*FINETUNE, *BUDGET, "--ignore", "conv9"], "'conv9'", "not a module or parameter")


def test_a_convolution_in_float64_has_no_onnx_check_and_its_cut_is_exact_all_the_same():
    for options in ([], ["--no-onnx"]):
        result = CliRunner().invoke(cli, ["verify", "tiny_task:network", "--double", "--json", *options])
        verdict = json.loads(result.stdout)
        assert result.exit_code == 0, result.stderr
        assert verdict["exact"]
        assert verdict["onnx_max_rel_diff"] is None
        assert bool(verdict["onnx_error"]) == (not options)


def test_a_demo_does_not_replace_a_run(run):
    before = (run / "run.json").read_bytes()

    refused(["demo", "--out", str(run)], "holds a run that is not a demo")

    assert (run / "run.json").read_bytes() == before


NOT_TEXT = os.fsdecode(b"r\xe9sum\xe9")


@pytest.mark.parametrize(
    "args",
    [
        [*FINETUNE, *BUDGET, "--out", NOT_TEXT],
        [*FINETUNE, *BUDGET, "--out", "run", "--weights", f"{NOT_TEXT}.safetensors"],
        ["shrink", NOT_TEXT],
        ["bench", f"{NOT_TEXT}.onnx"],
        ["report", NOT_TEXT],
        ["plot", "gates", NOT_TEXT],
    ],
)
def test_a_name_that_the_libraries_cannot_open_is_wrong_usage(tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)

    result = invoked(*args)

    assert result.exit_code == 2
    assert "is not a valid UTF-8 name: give a link to it with another name" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_data_may_have_any_name(tmp_path):
    path = tmp_path / f"{NOT_TEXT}.npz"
    np.savez(path, **data())

    result = invoked("eval", "tiny_task:network", "--data", f"npz:{path}", "--json")

    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["data"] == f"npz:{path}"


# What commands that were stopped at a bad moment leave behind.


@pytest.mark.parametrize("stopped_at", [0, 1, 5, 8])
def test_a_second_ctrl_c_before_the_first_checkpoint_blocks_nothing(tmp_path, monkeypatch, stopped_at):
    from l0prune import run_directory
    from l0prune.finetuning import loop

    out, calls, removing = tmp_path / "run", 0, run_directory.remove

    def impatient(path: Path) -> None:
        nonlocal calls
        calls += path.parent == out
        if calls > stopped_at:
            raise KeyboardInterrupt
        removing(path)

    def interrupted(*_: object, out: Path, **__: object) -> None:
        (out / "metrics.jsonl").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", interrupted)
        patch.setattr(run_directory, "remove", impatient)
        assert invoked(*FINETUNE, *BUDGET, "--out", str(out)).exit_code == 130
    assert out.exists()

    again = ["--resume"] if (out / "run.json").exists() else []
    result = invoked(*FINETUNE, *BUDGET, "--out", str(out), *again)

    assert result.exit_code == 0, result.stderr
    assert not [line for line in (out / "metrics.jsonl").read_text().splitlines() if line == "{}"]


@pytest.mark.slow
def test_a_killed_shrink_leaves_nothing_that_stays(run):
    code = f"""
import os, signal
from pathlib import Path
import l0prune
from l0prune.cli.shrink_run import shrink_run
l0prune.shrink = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
shrink_run(Path({str(run)!r}), trust=True)
"""
    before = {path.name for path in run.iterdir()}
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "helpers"), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len({path.name for path in run.iterdir()} - before) == 1

    assert (
        invoked(
            "bench", str(run), "--min-seconds", "0", "--samples", "1", "--warmup", "0", "--processes", "1"
        ).exit_code
        == 0
    )

    assert {path.name for path in run.iterdir()} == before | {"bench.json"}
