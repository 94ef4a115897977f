"""A folder with a tokenizer is used, however little there is in it; what is wrong with one is named."""

import json
import shutil

import pytest
from text_case import text_folder

from l0prune.errors import ModelSpecError
from l0prune.sources.tokenizers import load_tokenizer

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return text_folder(tmp_path_factory.mktemp("saved"))


def folder_of(saved, path, config):
    """The file of the tokenizer, beside a configuration written by hand, or none."""
    shutil.copy(saved / "tokenizer.json", path)
    if config is not None:
        (path / "tokenizer_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize(
    "config",
    [None, {}, {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}, {"tokenizer_class": "Own"}],
)
def test_the_file_of_a_tokenizer_is_enough(saved, tmp_path, config):
    found = load_tokenizer(folder_of(saved, tmp_path, config))

    assert found("a good film")["input_ids"] == load_tokenizer(saved)("a good film")["input_ids"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "tokenizer_config.json is damaged or is not a JSON file of a tokenizer"),
        ([1], "tokenizer_config.json holds a list, expected the object of a tokenizer"),
        (
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": "512"},
            "model_max_length is '512', expected",
        ),
    ],
)
def test_a_configuration_that_says_something_else_is_named(saved, tmp_path, config, message):
    with pytest.raises(ModelSpecError) as raised:
        load_tokenizer(folder_of(saved, tmp_path, config))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[["<unk>", 0.0], ["a", -1.0]]', "tokenizer.json holds a list, expected the object of a tokenizer"),
        ('{"model": {"type": "WordPiece"}}', "tokenizer.json is damaged or is not a file of the tokenizers library"),
    ],
)
def test_a_vocabulary_that_is_no_file_of_the_tokenizers_library_is_named(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')

    with pytest.raises(ModelSpecError) as raised:
        load_tokenizer(tmp_path)
    assert message in str(raised.value)
    assert "save_pretrained" in str(raised.value)


def test_an_empty_folder_and_none_at_all_are_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelSpecError, match="folder of a tokenizer"):
            load_tokenizer(folder)
