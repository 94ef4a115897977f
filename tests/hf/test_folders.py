"""Folders of cut models: what lies in them, what reads them, and what is refused."""

import copy
import json
import shutil
import warnings

import pytest
import torch
from hf_models import cut, tiny_bert, token_inputs
from safetensors.torch import load_file, save_file
from torch import nn

import l0prune
from l0prune.errors import CheckpointError, ConfigError, FileFormatError, L0PruneError, L0PruneWarning, ModelSpecError
from l0prune.onnx.onnx_model import OnnxModel
from l0prune.sources import hf_folder
from l0prune.sources.hf_folder import ExampleTensor, is_cut
from l0prune.sources.model_spec import load_model

EXACT = 1e-6


@pytest.fixture(scope="module")
def compact() -> nn.Module:
    return cut(tiny_bert(), token_inputs())[1]


@pytest.fixture(scope="module")
def folder(compact, tmp_path_factory):
    scores = {"accuracy": {"dense": 91.5, "cut": 90.25}}
    return l0prune.hf.save_pretrained(compact, tmp_path_factory.mktemp("hf") / "small-bert", scores=scores)


@pytest.fixture
def changed(folder, tmp_path):
    """A copy of the folder with entries of its configuration changed, those of the section on the cut under "section"."""

    def change(section=None, **entries):
        other = shutil.copytree(folder, tmp_path / "other")
        config = json.loads((other / "config.json").read_text()) | entries
        config["quantization_config"] |= section or {}
        (other / "config.json").write_text(json.dumps(config))
        return other

    return change


def logits(model):
    with torch.no_grad():
        return model(**token_inputs()).logits


def test_it_is_read_as_its_class_and_has_a_loss(compact, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = l0prune.hf.from_pretrained(folder)

    assert type(loaded) is type(compact)
    assert not loaded.training
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in tiny_bert().parameters())
    assert (logits(loaded) - logits(compact)).abs().max() < EXACT
    loss = loaded(**token_inputs(), labels=torch.tensor([0, 2])).loss
    loss.backward()
    assert all(p.grad is not None for p in loaded.bert.encoder.parameters())


def test_it_is_pruned_and_saved_again(folder, tmp_path):
    loaded = l0prune.hf.from_pretrained(folder)
    _, twice = cut(loaded, token_inputs(), seed=2)

    again = l0prune.hf.from_pretrained(l0prune.hf.save_pretrained(twice, tmp_path / "twice", onnx=False))

    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in loaded.parameters())
    assert (logits(again) - logits(twice)).abs().max() < EXACT
    assert again.surgery.plan.fingerprint == loaded.surgery.plan.fingerprint
    assert again.surgery.costs["macs"][0] == loaded.surgery.costs["macs"][0]
    assert again.surgery.costs["macs"][1] < loaded.surgery.costs["macs"][1]
    assert again.surgery.budget == "a cut, then a cut"


def test_the_users_changes_of_the_configuration_stay(folder, tmp_path):
    loaded = l0prune.hf.from_pretrained(folder, output_attentions=True)
    assert loaded.config.output_attentions
    loaded.config.id2label = {0: "bad/poor", 1: "fair", 2: "good"}
    loaded.to(torch.bfloat16)

    again = l0prune.hf.from_pretrained(l0prune.hf.save_pretrained(loaded, tmp_path / "labelled", onnx=False))

    assert again.config.id2label == {0: "bad/poor", 1: "fair", 2: "good"}
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("change", [{"dtype": torch.bfloat16}, {"device_map": "auto"}, {"model_type": "gpt2"}])
def test_what_is_no_entry_that_can_change_is_refused(folder, change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))!r} is no entry .* that can be changed"):
        l0prune.hf.from_pretrained(folder, **change)


def test_the_onnx_file_has_the_names_of_optimum_and_takes_token_types(compact, folder):
    file = OnnxModel(folder / "onnx" / "model.onnx")
    inputs = token_inputs() | {"token_type_ids": torch.ones(2, 10, dtype=torch.long)}
    with torch.no_grad():
        expected = compact(**inputs).logits

    assert [value.name for value in file.session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [value.name for value in file.session.get_outputs()] == ["logits"]
    found = file.session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    assert (torch.from_numpy(found) - expected).abs().max() < 1e-5


def test_the_card_tells_costs_scores_and_how_to_load(compact, folder):
    text = (folder / "README.md").read_text()
    before, after = (sum(p.numel() for p in model.parameters()) for model in (tiny_bert(), compact))

    assert "| accuracy | 91.5 | 90.25 |" in text
    assert f"| parameters | {before:,} | {after:,} | {after / before:.3f} |" in text
    assert 'l0prune.hf.from_pretrained("small-bert")' in text


def test_saving_a_cut_model_by_its_own_method_warns_and_a_copy_saves_itself(compact, tmp_path):
    other = copy.deepcopy(compact)
    with torch.no_grad():
        other.classifier.bias += 1

    with pytest.warns(
        L0PruneWarning, match=r"BertForSequenceClassification.from_pretrained refuses it.*l0prune.hf.save_pretrained"
    ):
        other.save_pretrained(tmp_path / "own")

    stored = load_file(tmp_path / "own" / "model.safetensors")["classifier.bias"]
    assert torch.equal(stored, other.classifier.bias)
    assert not torch.equal(stored, compact.classifier.bias)


def test_transformers_alone_refuses_the_folder_and_loads_it_once_told_how(compact, folder):
    if "l0prune" not in _registered():
        with pytest.raises(Exception, match=r"mismatch|l0prune"):
            type(compact).from_pretrained(folder)

    l0prune.hf.register()
    l0prune.hf.register()

    loaded = type(compact).from_pretrained(folder)
    assert (logits(loaded) - logits(compact)).abs().max() < EXACT
    loaded(**token_inputs(), labels=torch.tensor([0, 2])).loss.backward()


def _registered():
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    return AUTO_QUANTIZER_MAPPING


def test_a_model_specification_says_what_loads_it(folder):
    assert is_cut(folder)
    with pytest.raises(ModelSpecError, match=r"l0prune\.hf\.from_pretrained"):
        load_model(f"hf:{folder}")


def test_only_folders_of_its_kind_are_replaced(compact, folder, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("text")
    with pytest.raises(FileFormatError, match="exists and is not a folder of a cut model"):
        l0prune.hf.save_pretrained(compact, mine)
    assert [file.name for file in mine.iterdir()] == ["thesis.tex"]

    old = shutil.copytree(folder, tmp_path / "old")
    (old / ".git").mkdir()
    with pytest.raises(FileFormatError, match="a clone of a repository"):
        l0prune.hf.save_pretrained(compact, old)
    (old / ".git").rmdir()
    l0prune.hf.save_pretrained(compact, old, onnx=False)
    assert not (old / "onnx").exists()


def test_what_is_no_cut_model_of_transformers_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="carries no surgery record"):
        l0prune.hf.save_pretrained(tiny_bert(), tmp_path / "dense")
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    _, plain = cut(net, torch.randn(3, 6, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ConfigError, match=r"no class that transformers exports.*l0prune\.save"):
        l0prune.hf.save_pretrained(plain, tmp_path / "plain")
    with pytest.raises(ConfigError, match="tokenizer is a int"):
        l0prune.hf.save_pretrained(cut(tiny_bert(), token_inputs())[1], tmp_path / "token", 5, onnx=False)
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "another version": ({"section": {"version": 2}}, "version 2"),
    "another format": ({"section": {"format": "l0prune.surgery"}}, "expected format"),
    "an unknown key": ({"section": {"code": "mine.py"}}, "unknown keys"),
    "a cost that is a text": ({"section": {"costs": {"macs": ["1", "2"]}}}, "costs"),
    "another plan": ({"section": {"plan": "0" * 64}}, "SHA-256"),
    "a class of nobody": ({"section": {"model_class": "os"}}, "no model class"),
    "a class by its place": ({"section": {"model_class": "../mine.Model"}}, "path or an address"),
    "a function": ({"section": {"model_class": "pipeline"}}, "no model class"),
    "code of its own": ({"auto_map": {"AutoModel": "mine.Model"}}, "auto_map"),
    "kernels of the hub": ({"attn_implementation": "me/kernels"}, "code of the hub"),
    "a place": ({"vocab_file": "/etc/passwd"}, "path or an address"),
    "too many layers": ({"num_hidden_layers": 10**6}, "far more parts|more than"),
    "huge layers": ({"intermediate_size": 1 << 23}, "other tensors"),
    "another width": ({"hidden_size": 28}, "other tensors"),
    "an input without end": (
        {"section": {"inputs": {"input_ids": {"dtype": "float32", "shape": [1 << 20, 1 << 20]}}}},
        "describes no tensor",
    ),
    "an input with too few values": (
        {"section": {"inputs": {"input_ids": {"dtype": "int64", "shape": [2, 3], "values": "1"}}}},
        "describes no tensor",
    ),
    "an input with words": (
        {"section": {"inputs": {"input_ids": {"dtype": "int64", "shape": [2], "values": "1 two"}}}},
        "no number of its type",
    ),
    "an input with a number beyond its type": (
        {"section": {"inputs": {"input_ids": {"dtype": "int64", "shape": [1], "values": "9" * 40}}}},
        "no number of its type",
    ),
    "an input of no type": ({"section": {"inputs": {"x": {"dtype": "object", "shape": [1]}}}}, "describes no tensor"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_asks_for_code_files_or_no_end_is_refused(kind, changed):
    entries, word = REFUSED[kind]
    other = changed(**entries)

    with pytest.raises(L0PruneError, match=word) as caught:
        l0prune.hf.from_pretrained(other)

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(other))


@pytest.mark.parametrize("name", ["config.json", "surgery.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": ', b"\xff\xfe\x00"])
def test_damaged_files_are_one_line(folder, tmp_path, name, content):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / name).write_bytes(content)

    with pytest.raises(L0PruneError) as caught:
        l0prune.hf.from_pretrained(other)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_shards_are_named(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../elsewhere.safetensors"}}')
    with pytest.raises(FileFormatError, match="in several files"):
        l0prune.hf.from_pretrained(other)
    (other / "model.safetensors.index.json").unlink()
    (other / "model.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"model\.safetensors is missing"):
        l0prune.hf.from_pretrained(other)
    with pytest.raises(FileFormatError, match="no such folder"):
        l0prune.hf.from_pretrained(tmp_path / "nowhere")


def test_weights_of_other_sizes_are_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["classifier.weight"] = torch.zeros(3, 7)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        l0prune.hf.from_pretrained(other)


def test_python_beside_the_weights_is_never_run(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    ran = tmp_path / "ran"
    for name in ("mine.py", "modeling_bert.py", "__init__.py", "configuration_bert.py"):
        (other / name).write_text(f"open({str(ran)!r}, 'w')")

    l0prune.hf.from_pretrained(other)

    assert not ran.exists()


def test_a_plan_of_a_graph_is_refused(changed):
    other = changed()
    plan = json.loads((other / "surgery.json").read_text()) | {"form": "graph"}
    (other / "surgery.json").write_text(json.dumps(plan))
    config = json.loads((other / "config.json").read_text())
    config["quantization_config"]["plan"] = hf_folder.digest(other / "surgery.json")
    (other / "config.json").write_text(json.dumps(config))

    with pytest.raises(FileFormatError, match="made for a graph"):
        l0prune.hf.from_pretrained(other)


def test_another_version_of_transformers_is_told(changed):
    with pytest.warns(L0PruneWarning, match=r"transformers 4\.0\.0"):
        l0prune.hf.from_pretrained(changed(section={"transformers": "4.0.0"}))


def test_inputs_are_kept_as_they_were_or_as_noise():
    ids = torch.tensor([[1, 2], [3, 4]])
    noise = ExampleTensor.of(torch.randn(2, 3, 4)).tensor("here")

    assert torch.equal(ExampleTensor.of(ids).tensor("here"), ids)
    assert torch.equal(ExampleTensor.of(ids == 2).tensor("here"), ids == 2)
    assert noise.shape == (2, 3, 4)
    assert noise.std() > 0.3
