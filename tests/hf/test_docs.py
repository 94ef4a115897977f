"""The code of docs/huggingface.md runs as printed."""

import re
from pathlib import Path

import pytest
from hf_models import cut, tiny_bert, token_inputs
from test_companions import WORDS

import l0prune

CODE = re.findall(
    r"^```python\n(.*?)^```", (Path(__file__).parents[2] / "docs" / "huggingface.md").read_text(), re.M | re.S
)


@pytest.mark.models
def test_the_code_runs_as_printed(tmp_path, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    compact = cut(tiny_bert(), token_inputs())[1]
    at_hand = {"l0prune": l0prune, "compact": compact, "tokenizer": transformers.BertTokenizerFast("vocab.txt")}

    assert len(CODE) == 5
    for block in CODE:
        exec(compile(block, "huggingface.md", "exec"), at_hand)

    assert type(at_hand["model"]) is type(compact)
    printed = capsys.readouterr().out
    assert "LABEL_" in printed
    assert "(2, 3)" in printed
