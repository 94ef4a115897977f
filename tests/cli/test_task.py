"""`--task`: what a run is trained for is typed once, kept in run.json, and scored afterwards; others' code is not run for it."""

import json
import sys
from pathlib import Path

import pytest
from command_line import invoke, json_of, refused

MODULE = '''
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import l0prune
from l0prune.tasks.task import Metric


class MultiLabel(l0prune.Task):
    """Any number of labels for each input."""

    metric = Metric("exact", higher_is_better=True, unit="%")

    def __init__(self, threshold):
        self.threshold = threshold

    def loss(self, outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs, targets)

    def teach(self, outputs, taught, targets, *, temperature):
        return F.mse_loss(outputs.sigmoid(), taught.sigmoid())

    def score(self, answers):
        right = [((answer.outputs.sigmoid() > self.threshold) == answer.targets).all(1) for answer in answers]
        return 100 * torch.cat(right).float().mean().item()


def task(threshold=0.5):
    Path("called").touch()
    return MultiLabel(threshold)


def labels():
    x = np.random.default_rng(0).normal(size=(240, 6)).astype(np.float32)
    y = (x[:, :3] > 0).astype(np.float32)
    return x[:160], y[:160], x[160:], y[160:]


def network():
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3)), torch.zeros(2, 6)


def maps():
    x = np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)
    y = np.where(x > 127, 1, 0)
    y[:, 0] = 255
    return x[:60], y[:60], x[60:], y[60:]


def mapper():
    return nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 2, 1)), torch.zeros(2, 1, 8, 8)
'''
NAME = "labels_of_a_user"
LABELS = [
    "finetune",
    f"{NAME}:network",
    "--data",
    f"{NAME}:labels",
    "--from-scratch",
    "--budget",
    "macs=0.7",
    "--align",
    "1",
]
MAPS = [
    "finetune",
    f"{NAME}:mapper",
    "--data",
    f"{NAME}:maps",
    "--from-scratch",
    "--budget",
    "macs=0.7",
    "--align",
    "1",
]
QUICK = ["--epochs", "8", "--batch-size", "16", "--optimizer", "adam", "--lr", "0.01", "--recovery-lr", "0.01"]


@pytest.fixture(autouse=True)
def users_folder(tmp_path, monkeypatch) -> None:
    """A user who has typed nothing so far, in a folder with a module of tasks."""
    monkeypatch.setenv("L0PRUNE_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, NAME, raising=False)


def test_a_task_of_ones_own_is_trained_kept_and_scored(tmp_path):
    task = ["--task", f"{NAME}:task", "--task-arg", "threshold=0.4"]
    trained = json_of(*LABELS, *QUICK, *task, "--out", "run")

    assert (trained["metric"], trained["unit"], trained["higher_is_better"]) == ("exact", "%", True)
    assert trained["final"] > trained["dense"] + 30
    config = json.loads(Path("run/run.json").read_text())["config"]
    assert (config["task"], config["task_args"]) == (f"{NAME}:task", {"threshold": 0.4})
    scores = json_of("eval", "run")
    assert scores["exact"]["gated"] == pytest.approx(trained["final"])
    assert json_of("eval", "run", "--task", "regression")["metric"] == "mse"
    assert "exact" in invoke("eval", "run").stdout


def test_a_task_that_only_run_json_names_is_not_run(tmp_path, monkeypatch):
    json_of(*LABELS, *QUICK, "--task", f"{NAME}:task", "--out", "run")
    monkeypatch.setenv("L0PRUNE_STATE_DIR", str(tmp_path / "another"))
    for args in (["inspect", f"{NAME}:network"], ["eval", f"{NAME}:network", "--data", f"{NAME}:labels"]):
        assert invoke(*args).exit_code == 0
    Path("called").unlink()

    said = refused("eval", "run")

    assert f"'{NAME}:task'" in said
    assert f"`l0prune eval MODEL --data SPEC --task {NAME}:task`" in said
    assert not Path("called").exists()
    assert invoke("eval", "run", "--trust").exit_code == 0


def test_the_task_follows_from_the_data_and_is_written_down():
    trained = json_of(*LABELS, *QUICK, "--out", "run")

    assert (trained["metric"], trained["higher_is_better"]) == ("mse", False)
    assert json.loads(Path("run/run.json").read_text())["config"]["task"] == "regression"
    assert "mse (lower is better)" in invoke("eval", "run").stdout
    assert "is 'pixels' and was 'regression'" in refused("finetune", "--out", "run", "--resume", "--task", "pixels")


def test_maps_are_trained_as_pixels_and_do_not_move_with_their_images():
    assert "say what they are, as in --task pixels" in refused(*MAPS, "--out", "run")
    assert "would not move with their images" in refused(*MAPS, "--task", "pixels", "--augment", "--out", "run")

    trained = json_of(*MAPS, *QUICK, "--epochs", "30", "--lr", "0.03", "--task", "pixels", "--out", "run")

    assert trained["metric"] == "miou"
    assert trained["final"] > 90
    assert json_of("shrink", "run")["max_rel_diff"] < 1e-5
    assert json_of("eval", "run")["miou"]["onnx"] == pytest.approx(trained["final"], abs=0.1)


@pytest.mark.parametrize(
    ("task", "word"),
    [
        (["--task", "pixel"], "unknown task 'pixel'; use one of: classification"),
        (
            ["--task", "pixels", "--task-arg", "classes=3"],
            "task 'pixels' has no argument classes; it has ignore, output",
        ),
        (
            ["--task", "pixels", "--task-arg", "output=mask"],
            "there is no output 'mask': the network returns output (2, 2, 8, 8)",
        ),
        (["--task", "classification"], "takes logits (N, C) and targets (N,), and the network gives (2, 2, 8, 8) for"),
        (["--task", f"{NAME}:maps"], f"'{NAME}:maps' returned a tuple, expected an l0prune.Task"),
        (["--task", f"{NAME}:nothing"], "has no 'nothing'"),
    ],
)
def test_a_task_that_cannot_be_is_refused_before_anything_is_written(task, word):
    assert word in refused(*MAPS, *task, "--out", "run")
    assert not Path("run").exists()
