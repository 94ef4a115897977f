"""What lies beside the weights: the tokenizer, and the parts that sentence-transformers looks for."""

import json

import pytest
from hf_models import cut, tiny_bert, token_inputs

import l0prune
from l0prune.errors import ConfigError, FileFormatError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    file = tmp_path_factory.mktemp("words") / "vocab.txt"
    file.write_text("\n".join(WORDS))
    return transformers.BertTokenizerFast(str(file))


@pytest.fixture(scope="module")
def compact():
    return cut(tiny_bert().bert, token_inputs())[1]


def test_the_pipeline_runs_and_onnx_takes_what_the_tokenizer_returns(compact, tokenizer, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    transformers = pytest.importorskip("transformers")
    folder = l0prune.hf.save_pretrained(compact, tmp_path / "cut", tokenizer)

    read = transformers.AutoTokenizer.from_pretrained(folder)
    pipeline = transformers.pipeline("feature-extraction", model=l0prune.hf.from_pretrained(folder), tokenizer=read)
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    (found,) = session.run(["last_hidden_state"], dict(read(["a b c", "h"], padding=True, return_tensors="np")))

    assert found.shape == (2, 5, 24)
    assert abs(found[0] - pipeline("a b c")[0]).max() < 1e-5


def test_the_folder_of_the_dense_model_lends_its_tokenizer_and_modules_and_no_code(compact, tokenizer, tmp_path):
    source = tmp_path / "dense"
    tokenizer.save_pretrained(source)
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 24, "pooling_mode": "mean"}')
    for name in ("modeling.py", "1_Pooling/pooling.py", "pytorch_model.bin"):
        (source / name).write_text("raise SystemExit")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (source / "modules.json").write_text(json.dumps(modules))

    folder = l0prune.hf.save_pretrained(compact, tmp_path / "cut", source, onnx=False)

    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json"}
    assert not any(name.endswith((".py", ".bin")) for name in names)
    assert json.loads((folder / "modules.json").read_text()) == modules
    assert "sentence-transformers" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "module",
    [
        {"path": "../outside", "type": "sentence_transformers.models.Pooling"},
        {"path": "/etc", "type": "sentence_transformers.models.Pooling"},
        {"path": "..\\outside", "type": "sentence_transformers.models.Pooling"},
        {"path": "1_Mine", "type": "mine.Pooling"},
    ],
)
def test_modules_elsewhere_or_of_others_are_refused_and_nothing_is_written(compact, tmp_path, module):
    source = tmp_path / "dense"
    source.mkdir()
    (source / "modules.json").write_text(json.dumps([module]))

    with pytest.raises(FileFormatError, match="none of sentence-transformers"):
        l0prune.hf.save_pretrained(compact, tmp_path / "cut", source, onnx=False)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_pooling_writes_the_modules_and_an_unknown_one_is_an_error(compact, tmp_path):
    folder = l0prune.hf.save_pretrained(compact, tmp_path / "cut", pooling="mean", onnx=False)

    assert [module["path"] for module in json.loads((folder / "modules.json").read_text())] == ["", "1_Pooling"]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling == {"word_embedding_dimension": 24, "pooling_mode": "mean"}
    with pytest.raises(ConfigError, match="pooling is 'median'"):
        l0prune.hf.save_pretrained(compact, tmp_path / "other", pooling="median", onnx=False)
