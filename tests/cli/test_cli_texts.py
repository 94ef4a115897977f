"""Texts on the command line: a table, the tokenizer of the model's folder, and what goes wrong with them."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from text_case import text_folder, text_table

from l0prune.cli.main import cli
from l0prune.onnx.onnx_model import OnnxModel

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    text_folder(path / "model")
    text_table(path / "train.tsv")
    text_table(path / "dev.tsv", 12)
    transformers.AutoModel.from_pretrained(path / "model").save_pretrained(path / "body")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(path / "model" / name, path / "body" / name)
    return path


def told(*arguments, code=0):
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


def test_a_model_is_scored_on_a_folder_of_tables(model):
    found = json.loads(told("eval", f"hf:{model}/model", "--data", f"tsv:{model}", "--json").stdout)
    assert found["n"] == 12
    assert 0 <= found["accuracy"]["dense"] <= 100


def test_onnx_files_of_a_folder_score_as_it_does_at_free_lengths_and_at_one(model):
    transformers = pytest.importorskip("transformers")
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model / "model", use_cache=False)
    with torch.no_grad():
        network.classifier.weight.mul_(100)
        network.bert.pooler.dense.weight.mul_(10)
    network.save_pretrained(model / "scored")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / "model" / name, model / "scored")
    (model / "scored" / "onnx").mkdir()
    ids = torch.randint(1, 18, (2, 12))
    files = {name: model / "scored" / "onnx" / f"{name}.onnx" for name in ("model", "static")}
    names = ["input_ids", "attention_mask"]
    for name, axes in (("model", {key: {0: "n", 1: "length"} for key in names}), ("static", None)):
        how = {"input_names": names, "dynamic_axes": axes, "dynamo": False}
        torch.onnx.export(network.eval(), (ids, torch.ones_like(ids)), str(files[name]), **how)
    data = ("--data", f"tsv:{model}/train.tsv,{model}/train.tsv", "--batch-size", "5", "--json")

    expected = json.loads(told("eval", f"hf:{model}/scored", *data).stdout)["accuracy"]["dense"]

    assert OnnxModel(files["static"]).session.get_inputs()[0].shape == [2, 12]
    for name in ("model", "static"):
        assert json.loads(told("eval", files[name], *data).stdout)["accuracy"]["onnx"] == pytest.approx(expected)


def test_without_labels_the_dense_network_is_matched(model):
    arguments = ("eval", f"hf:{model}/model", "--data", f"tsv:{model}", "--labels", "none", "--json")
    assert json.loads(told(*arguments).stdout)["relative_error"] == {"dense": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits_resnet", "--weights", "bundled", "--data", "digits", "--text", "a"), "--text is for texts"),
        (("digits_resnet", "--weights", "bundled", "--data", "tsv:{model}"), "has no tokenizer of its own"),
        (("digits_resnet", "--num-labels", "3", "--data", "digits"), "--num-labels puts a head"),
        (("hf:{model}/body", "--data", "tsv:{model}"), "has no head that gives classes: --num-labels 3 puts one on it"),
        (
            ("hf:{model}/model", "--num-labels", "2", "--data", "tsv:{model}"),
            "build it with a new head (--num-labels 3)",
        ),
        (("hf:{model}/model", "--data", "tsv:{model}", "--label", "grade"), "no column 'grade'"),
        (("hf:{model}/model", "--data", "tsv:{model}", "--data-arg", "a=1"), "takes no arguments"),
    ],
)
def test_what_does_not_go_together_is_one_line(model, arguments, message):
    found = told("eval", *(argument.replace("{model}", str(model)) for argument in arguments), code=1)
    assert message in found.stderr
    assert found.stderr.startswith("error: ")


@pytest.mark.slow
def test_a_new_head_is_trained_before_the_cut_and_not_taught(model, tmp_path):
    options = ("--budget", "macs=0.8", "--epochs", "2", "--warmup-epochs", "1", "--batch-size", "8", "--align", "1")
    arguments = ("finetune", f"hf:{model}/model", "--num-labels", "4", "--data", f"tsv:{model}", *options)
    done = told(*arguments, "--out", tmp_path / "run")
    assert "the dense network is right on" not in done.output
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["distillation_loss"] is None for line in lines)
    told("shrink", tmp_path / "run")


@pytest.mark.slow
def test_a_classifier_of_texts_is_cut_and_scored_in_every_form(model, tmp_path):
    options = ("--budget", "macs=0.8", "--epochs", "2", "--batch-size", "8", "--align", "1")
    said = told("finetune", f"hf:{model}/model", "--data", f"tsv:{model}", *options, "--out", tmp_path / "run").stderr
    assert "adamw moves the weights, at a peak rate of 0.0005: it has attention" in said
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["optimizer"], config["lr"]) == ("adamw", 0.0005)
    told("shrink", tmp_path / "run")
    found = json.loads(told("eval", tmp_path / "run", "--json").stdout)
    assert found["accuracy"]["gated"] == found["accuracy"]["compact"] == found["accuracy"]["onnx"]
    other = json.loads(
        told("eval", tmp_path / "run", "--data", f"tsv:{model}/train.tsv,{model}/train.tsv", "--json").stdout
    )
    assert other["n"] == 24

    data = ("--data", f"tsv:{model}", "--json")  # the run around them says which tokenizer
    for path in (tmp_path / "run" / "compact", tmp_path / "run" / "onnx" / "compact.onnx"):
        (score,) = json.loads(told("eval", path, *data).stdout)["accuracy"].values()
        assert score == found["accuracy"]["compact"]
    (tmp_path / "run" / "run.json").write_text("{}")
    assert "has no tokenizer of its own" in told("eval", tmp_path / "run" / "compact", *data, code=1).stderr
