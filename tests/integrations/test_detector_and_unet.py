"""A detector and a U-Net with losses of their own, of the examples: their class is kept, their outputs have names."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch.utils.data import DataLoader

import l0prune
from l0prune.cli.main import cli
from l0prune.onnx.onnx_model import OnnxModel
from l0prune.surgery.record import surgery_of

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIG = l0prune.FinetuneConfig(epochs=1, optimizer="adamw", align=4, checkpoint_minutes=0)
QUICK = ["--epochs", "1", "--optimizer", "adamw"]
NAMES = {"detector": "objectness,boxes,classes", "unet": "mask"}
LOADERS = {"detector": ["detector:loaders", "n=48"], "unet": ["unet:folders", "n=32"]}


@pytest.fixture(autouse=True)
def folder_of_examples(tmp_path, monkeypatch):
    monkeypatch.setenv("L0PRUNE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_detector_learns_from_boxes_in_lists_and_keeps_its_class():
    detector = importlib.import_module("detector")
    torch.manual_seed(0)
    model, _ = detector.network(width=16)
    train, test = detector.loaders(n=64, batch_size=16)

    budget, evaluated = l0prune.Budget("macs", 0.5), {"task": detector.task(), "evaluate": test}
    result = l0prune.finetune(model, train, budget=budget, config=CONFIG, **evaluated)

    assert type(result.compact) is detector.Detector
    assert result.budget_met
    assert 0 <= result.evaluation["found"] <= 100
    image = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        assert [tuple(part.shape) for part in result.compact(image)] == [(2, n, 12, 16) for n in (1, 4, 2)]
    widths = [module.out_channels for module in result.compact.modules() if isinstance(module, torch.nn.Conv2d)]
    assert sum(widths) < sum(
        m.out_channels for m in detector.network(width=16)[0].modules() if hasattr(m, "out_channels")
    )


def test_the_score_of_the_detector_counts_what_is_found_with_its_class():
    detector = importlib.import_module("detector")
    target = {"boxes": torch.tensor([[16.0, 24.0, 24.0, 12.0]]), "labels": torch.tensor([1])}
    objectness, boxes, classes = torch.zeros(1, 1, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 2, 8, 8)
    row, column = int((24 + 6) / 8), int((16 + 12) / 8)
    objectness[0, 0, row, column] = 5.0
    centre = torch.tensor([28 / 8 - column - 0.5, 30 / 8 - row - 0.5]).atanh()
    boxes[0, :, row, column] = torch.cat((centre, torch.tensor([24 / 64, 12 / 64]).logit()))

    def found() -> float:
        answer = l0prune.tasks.task.Answer((objectness, boxes, classes), [target], None, 1.0)
        return detector.task().score([answer])

    assert found() == 0.0  # a class is missing
    classes[0, 1] = 1.0
    assert found() == 100.0
    objectness[0, 0, 0, 0] = 9.0
    assert found() == 0.0


def test_a_unet_learns_from_a_loss_alone_and_keeps_its_class():
    unet = importlib.import_module("unet")
    torch.manual_seed(0)
    model, example = unet.network(width=8)
    loaders = unet.folders(n=32)
    images, masks = next(iter(loaders["train"]))
    assert (images.shape, masks.shape) == ((16, 3, 64, 64), (16, 64, 64))
    assert set(masks.unique().tolist()) == {0, 1, 2}

    budget, data = l0prune.Budget("macs", 0.5), DataLoader(loaders["train"].dataset, 8)
    config = replace(CONFIG, method="magnitude")  # gates close whole levels of an untrained network
    result = l0prune.finetune(model, data, loss=unet.dice_loss, budget=budget, config=config)

    assert type(result.compact) is unet.UNet
    assert surgery_of(result.compact).form == "in-place"
    with torch.no_grad():
        assert result.compact(F.pad(example, (0, 32))).shape == (2, 3, 64, 96)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_by_the_command_line_it_is_trained_cut_measured_and_its_outputs_are_named(name):
    def told(*args: object) -> dict:
        done = CliRunner().invoke(cli, [*map(str, args), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    module, (data, argument) = importlib.import_module(name), LOADERS[name]
    torch.manual_seed(0)
    torch.save(module.network()[0].state_dict(), "dense.pt")
    given = [
        f"{name}:network",
        "--weights",
        "dense.pt",
        "--data",
        data,
        "--data-arg",
        argument,
        "--task",
        f"{name}:task",
    ]
    trained = told("finetune", *given, "--budget", "macs=0.5", "--method", "magnitude", *QUICK, "--out", "run")
    shrunk = told("shrink", "run", "--output-names", NAMES[name])

    assert shrunk["form"] == "in-place"
    assert shrunk["max_rel_diff"] < 1e-5
    names = [node.name for node in OnnxModel("run/onnx/compact.onnx").session.get_outputs()]
    assert ",".join(names) == NAMES[name]
    scores = told("eval", "run")[trained["metric"]]
    assert scores["onnx"] == pytest.approx(trained["final"], abs=0.5)
    measured = told("bench", "run", "--processes", "1", "--samples", "30", "--min-seconds", "0.1")
    assert measured["speedup"]["compact"]["ratio"] > 1.1
