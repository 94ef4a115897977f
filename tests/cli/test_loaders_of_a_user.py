"""Loaders of a user's by the command line: `--data module:factory --data-arg key=value`, to train and to score."""

import json
import sys
from pathlib import Path

import pytest
import torch
from command_line import invoke, json_of, refused

from l0prune.sources import loaders
from l0prune.tasks.registry import default_task

NAME = "loaders_of_a_user"
MODULE = """
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, random_split
from tiny_task import data


def entries():
    arrays = data()
    x = np.concatenate([arrays["x_train"], arrays["x_test"]])[:, None] / np.float32(255)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(np.concatenate([arrays["y_train"], arrays["y_test"]]))


def split(batch_size=16):
    train, test = random_split(TensorDataset(*entries()), [96, 40])
    return DataLoader(train, batch_size=batch_size, shuffle=True), DataLoader(test, batch_size=batch_size)


class Stream(IterableDataset):
    def __iter__(self):
        return zip(*entries())


def streams():
    return {"train": DataLoader(Stream(), batch_size=17), "test": [tuple(part[:40] for part in entries())]}


def side_by_side():
    x, y = entries()
    return [(x, x, y)], [(x, x, y)]


def once():
    return (batch for batch in ()), []


def empty():
    return [], []
"""
FINETUNE = ["finetune", "tiny_task:network", "--from-scratch", "--budget", "macs=0.6", "--align", "1", "--lr", "0.02"]
QUICK = ["--epochs", "4", "--optimizer", "adam", "--recovery-lr", "0.02"]


@pytest.fixture(autouse=True)
def users_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("L0PRUNE_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, NAME, raising=False)


def test_loaders_train_score_and_split_alike_in_every_command():
    data = ["--data", f"{NAME}:split", "--data-arg", "batch_size=12"]
    trained = json_of(*FINETUNE, *QUICK, *data, "--out", "run")

    scores = json_of("eval", "run")["accuracy"]

    assert trained["metric"] == "accuracy"
    assert trained["final"] == scores["gated"] > 50
    assert json.loads(Path("run/run.json").read_text())["config"]["data_args"] == {"batch_size": 12}
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 4 * 96 // 12


def test_a_stream_is_counted_and_a_dict_of_loaders_is_read():
    result = invoke(*FINETUNE, "--epochs", "1", "--data", f"{NAME}:streams", "--out", "run", "--json")

    assert result.exit_code == 0, result.stderr
    assert "have no length, so the batches of a pass are counted" in result.stderr
    assert json.loads(result.stdout)["steps"] == 136 // 17
    part = json_of(*FINETUNE, "--epochs", "2", "--batches-per-epoch", "3", "--data", f"{NAME}:streams", "--out", "part")
    assert part["steps"] == 2 * 3


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--data", f"{NAME}:once"], "the train batches are a generator, which can be iterated once only"),
        (["--data", f"{NAME}:empty"], "the train batches are empty"),
        (["--data", f"{NAME}:split", "--batch-size", "9"], "--batch-size is for arrays"),
        (["--data", f"{NAME}:split", "--augment"], "makes its batches itself: leave out --augment"),
        (["--data", f"{NAME}:split", "--held-out", "train"], "no rows can be held out: have it return arrays"),
        (["--data", f"{NAME}:split", "--data-arg", "size=9"], "unexpected keyword argument 'size'"),
    ],
    ids=["once", "empty", "batch size", "augment", "held out", "argument"],
)
def test_what_loaders_cannot_do_is_said_before_anything_is_written(options, word):
    assert word in refused(*FINETUNE, *options, "--out", "run")
    assert not Path("run").exists()


def test_what_several_inputs_are_for_follows_from_their_targets():
    pair = (torch.zeros(4, 3), torch.zeros(4, 5))
    for targets, task in ((torch.zeros(4), "regression"), (torch.zeros(4, dtype=torch.int64), "classification")):
        for inputs in (pair, list(pair), dict(zip("ab", pair, strict=True))):
            found = loaders.Loaders.of([(inputs, targets)], [(inputs, targets)], "pairs")
            assert found.sample is not None
            assert default_task(found.sample) == task


def test_batches_of_inputs_and_targets_side_by_side_are_to_be_pairs():
    assert "a batch is a sequence of 3" in refused(*FINETUNE, "--data", f"{NAME}:side_by_side", "--out", "run")


def test_a_batch_that_arrays_do_not_hold_needs_a_task():
    boxes = [([1, 2], [{"boxes": None}])]
    found = loaders.Loaders.of(boxes, boxes, "boxes")
    assert found.labelled
    assert found.sample is None
    assert not loaders.Loaders.of([[1]], [[1]], "inputs alone").labelled
