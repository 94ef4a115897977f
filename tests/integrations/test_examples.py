"""The examples run, and need no more than four lines of l0prune."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from hf_models import tiny_bert

import l0prune

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = ["a", "an", "the", "film", "story", "plot", "is", "was", "good", "bad", "dull", "fine", "and"]


def folder_and_rows(path):
    """A folder of transformers with a tokenizer, and a table of texts."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(path / "dense")
    tiny_bert().save_pretrained(path / "dense")
    lines = [f"the film is {WORDS[i % 13]} and {WORDS[(i * 5) % 13]}\t{i % 3}" for i in range(24)]
    (path / "rows.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    return path / "dense", path / "rows.tsv"


def run(name, path, *options, monkeypatch, capsys):
    """Run an example; its last printed line."""
    dense, rows = folder_and_rows(path)
    told = [
        str(dense),
        "--train",
        str(rows),
        "--dev",
        str(rows),
        "--classes",
        "3",
        "--out",
        str(path / "out"),
        *options,
    ]
    monkeypatch.setattr(sys, "argv", [name, *told])
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    return json.loads([line for line in capsys.readouterr().out.splitlines() if line.startswith('{"')][-1])


@pytest.mark.parametrize("name", ["transformers_trainer", "lightning_trainer"])
def test_four_lines_of_an_example_are_new(name):
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert sum(line.endswith("# new") for line in lines) == 4


@pytest.mark.slow
def test_the_example_of_transformers_runs(tmp_path, monkeypatch, capsys):
    options = ("--budget", "macs=0.8", "--max_steps", "4", "--use_cpu", "--save_strategy", "no")
    figures = run("transformers_trainer", tmp_path, *options, monkeypatch=monkeypatch, capsys=capsys)
    assert 0 <= figures["eval_accuracy"] <= 1
    assert (tmp_path / "out" / "onnx" / "model.onnx").exists()
    assert l0prune.hf.from_pretrained(tmp_path / "out").config.num_labels == 3


@pytest.mark.slow
def test_the_example_of_lightning_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lightning")
    options = ("--budget", "macs=0.8", "--max-steps", "4")
    figures = run("lightning_trainer", tmp_path, *options, monkeypatch=monkeypatch, capsys=capsys)
    assert 0 <= figures["accuracy"] <= 1
    assert l0prune.hf.from_pretrained(tmp_path / "out").config.num_labels == 3
