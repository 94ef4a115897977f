"""Outputs and targets of other shapes than a task is about are an error that names both."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import refused
from torch import nn

import l0prune
from l0prune.errors import DataError
from l0prune.finetuning.config import FinetuneConfig
from l0prune.tasks.registry import load_task

QUICK = FinetuneConfig(epochs=1, align=1)


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        ("classification", (4, 3), (4,)),
        ("pixels", (4, 3, 6, 6), (4, 6, 6)),
        ("pixels", (4, 3, 2, 2), (4, 6, 6)),
        ("tokens", (4, 5, 3), (4, 5)),
        ("language", (4, 5, 3), (4, 5)),
        ("regression", (4, 3), (4, 3)),
        ("regression", (4, 1), (4,)),
        ("regression", (4, 6), (4, 2, 3)),
    ],
)
def test_what_fits_has_a_loss(task, outputs, targets):
    wanted = torch.zeros(targets) if task == "regression" else torch.zeros(targets, dtype=torch.long)

    assert torch.isfinite(load_task(task).loss(torch.randn(outputs), wanted))


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        ("classification", (4, 3, 6, 6), (4, 6, 6)),
        ("classification", (4,), (4,)),
        ("classification", (4, 5, 3), (4,)),
        ("classification", (3, 3), (4,)),
        ("pixels", (4, 3), (4,)),
        ("pixels", (4, 3, 6), (4, 6)),
        ("pixels", (4, 3, 6, 6), (4,)),
        ("pixels", (2, 3, 6, 6), (4, 6, 6)),
        ("tokens", (4, 3), (4,)),
        ("tokens", (4, 3, 5), (4, 5)),
        ("tokens", (4, 3, 6, 6), (4, 6, 6)),
        ("language", (4, 3), (4,)),
        ("language", (4, 6, 3), (4, 5)),
        ("regression", (4, 3), (4,)),
        ("regression", (4, 3, 2), (4, 2, 3)),
        ("regression", (3, 4), (4, 3)),
        ("regression", (4, 3), (3, 4)),
    ],
)
def test_what_does_not_fit_is_named(task, outputs, targets):
    wanted = torch.zeros(targets) if task == "regression" else torch.zeros(targets, dtype=torch.long)

    with pytest.raises(DataError) as raised:
        load_task(task).loss(torch.randn(outputs), wanted)

    message = str(raised.value)
    each = slice(1 if task == "regression" else 0, None)
    assert str(outputs[each]) in message
    assert str(targets[each]) in message


def test_embeddings_are_no_maps():
    with pytest.raises(DataError, match=r"\(N, T, D\), and the network gives \(2, 4, 6, 6\)"):
        load_task("embeddings").call(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8))


def test_a_run_in_python_is_refused_before_it_trains():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x, y = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    gated = l0prune.inject(net, l0prune.trace(net, x))

    with pytest.raises(DataError, match=r"task 'pixels' takes logits \(N, C, H, W\) and targets \(N, H, W\)"):
        l0prune.finetune(gated, [(x, y)] * 2, task="pixels", budget=l0prune.Budget("macs", 0.7), config=QUICK)
    assert F.cross_entropy(gated(x), y).isfinite()


def test_a_classifier_is_no_network_of_pixels(tmp_path):
    images = np.zeros((8, 8, 8), np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, x_test=images, y_train=np.arange(8), y_test=np.arange(8))

    message = refused(
        *("finetune", "digits_resnet", "--weights", "bundled", "--data", f"npz:{tmp_path}/d.npz", "--task", "pixels"),
        *("--budget", "macs=0.5", "--out", tmp_path / "run"),
    )

    assert "takes logits (N, C, H, W) and targets (N, H, W)" in message
    assert not (tmp_path / "run").exists()
