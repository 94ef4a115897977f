"""The examples run, and need no more than four lines of l0prune."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from text_case import text_folder, text_table

import l0prune

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, path, *options, monkeypatch, capsys):
    """Run an example; its last printed line."""
    dense, rows = text_folder(path / "dense"), text_table(path / "rows.tsv")
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
