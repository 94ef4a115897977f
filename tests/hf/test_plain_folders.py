"""All layers end with the same widths, and transformers loads what is written without l0prune."""

import json
import subprocess
import sys

import pytest
import torch
from hf_models import cut, dense, tiny_bert, token_inputs
from safetensors.torch import load_file, save_file

import l0prune
from l0prune.errors import ConfigError
from l0prune.hf.plain import plain_model
from l0prune.model_call import call, output_tensors
from l0prune.sources.class_settings import ClassSettings

NAMES = ("bert", "roberta", "distilbert", "mpnet", "vit", "gpt2", "llama", "qwen2", "mistral", "t5")
EXACT = 1e-6

ELSEWHERE = """
import sys
import torch
import transformers
from safetensors.torch import load_file, save_file
names = dict(pair.split("=") for pair in sys.argv[1].split(","))
for name, folder in names.items():
    config = transformers.AutoModel.from_pretrained(folder).config
    model = getattr(transformers, config.architectures[0])
    model, told = model.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    inputs = load_file(folder + "/inputs.safetensors")
    options = {"use_cache": False} if model.can_generate() else {}
    with torch.no_grad():
        output = model.eval()(**inputs, **options)[0]
    found = {"output": output.contiguous()}
    if model.can_generate():
        asked = {name: inputs[name][:1] for name in ("input_ids", "attention_mask")}
        found["tokens"] = model.generate(**asked, do_sample=False, max_new_tokens=6, min_new_tokens=6, pad_token_id=0)
    save_file(found, folder + "/found.safetensors")
assert not any(name.startswith("l0prune") for name in sys.modules)
"""


def uniform(model, inputs, *, keep=0.6, seed=0):
    """The compact model within a budget of parameters; the ranks of its gates are drawn."""
    gated = l0prune.inject(
        model, l0prune.trace(model, inputs), budget=l0prune.Budget("params", keep), steps=10, uniform=True
    )
    noise = torch.randn(gated.n_gates, generator=torch.Generator().manual_seed(seed))
    gated.gates.locations.data.add_(noise)
    return gated, l0prune.shrink(gated, align=1)


@torch.no_grad()
def first(model, inputs):
    return output_tensors(call(model, inputs))[0]


@pytest.mark.models
def test_transformers_alone_loads_each_of_ten_families_with_the_same_outputs(tmp_path):
    expected = {}
    for name in NAMES:
        model, inputs = dense(name)
        gated, compact = uniform(model, inputs)
        assert 0.55 < gated.hard_cost("params") <= 0.6
        folder = l0prune.hf.save_pretrained(compact, tmp_path / name, onnx=False, plain=True)
        assert "quantization_config" not in json.loads((folder / "config.json").read_text())
        save_file({key: value.contiguous() for key, value in inputs.items()}, folder / "inputs.safetensors")
        tokens = None
        if compact.can_generate():
            asked = {key: inputs[key][:1] for key in ("input_ids", "attention_mask")}
            options = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
            tokens = compact.generate(**asked, **options, use_cache=False)
        expected[name] = first(compact, inputs), tokens

    folders = ",".join(f"{name}={tmp_path / name}" for name in NAMES)
    subprocess.run([sys.executable, "-c", ELSEWHERE, folders], check=True)

    for name, (outputs, tokens) in expected.items():
        found = load_file(tmp_path / name / "found.safetensors")
        assert (found["output"] - outputs).abs().max() <= EXACT * outputs.abs().max(), name
        assert ("tokens" in found) == (tokens is not None)
        if tokens is not None:
            assert torch.equal(found["tokens"], tokens), name


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def compact():
    return uniform(tiny_bert(), token_inputs())[1]


def test_layers_have_the_same_widths_and_heads_keep_their_size(compact):
    found = shapes(compact)
    names = [name for name in found if ".layer.0." in name]

    assert len(names) > 10
    assert all(found[name] == found[name.replace(".layer.0.", ".layer.1.")] for name in names)
    width = found["bert.embeddings.word_embeddings.weight"][1]
    heads = compact.bert.encoder.layer[0].attention.self.num_attention_heads
    assert width == 6 * heads < 24
    assert found["bert.encoder.layer.0.intermediate.dense.weight"] == (
        plain_model(compact).config["intermediate_size"],
        width,
    )


def test_a_plain_folder_is_read_back_saved_again_and_has_its_card(compact, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = l0prune.hf.save_pretrained(compact, tmp_path / "plain", onnx=False)
    config = json.loads((folder / "config.json").read_text())
    alone = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    loaded = l0prune.hf.from_pretrained(folder)

    assert (config["hidden_size"], config["num_attention_heads"]) == (18, 3)
    for model in (alone, loaded):
        assert type(model) is type(compact)
        assert (first(model, token_inputs()) - first(compact, token_inputs())).abs().max() < EXACT
    text = (folder / "README.md").read_text()
    assert "transformers loads it alone" in text
    assert "BertForSequenceClassification.from_pretrained" in text
    assert l0prune.hf.save_pretrained(compact, folder, onnx=False) == folder
    _, again = uniform(loaded, token_inputs(), keep=0.7)
    assert json.loads((l0prune.hf.save_pretrained(again, folder, onnx=False) / "config.json").read_text()) != config


def test_a_cut_that_no_configuration_says_is_told_by_two_tensors(tmp_path):
    _, uneven = cut(tiny_bert(), token_inputs())

    with pytest.raises(
        ConfigError, match=r"'bert\.encoder\.layer\.0\.\S+' has shape .* and 'bert\.encoder\.layer\.1\."
    ):
        l0prune.hf.save_pretrained(uneven, tmp_path / "plain", onnx=False, plain=True)
    assert not (tmp_path / "plain").exists()
    folder = l0prune.hf.save_pretrained(uneven, tmp_path / "cut", onnx=False)
    assert "quantization_config" in json.loads((folder / "config.json").read_text())


def test_a_residual_stream_that_is_the_output_stays_and_holds_the_heads(tmp_path):
    model = tiny_bert().bert
    _, compact = uniform(model, token_inputs(), keep=0.8)
    config = plain_model(compact, required=True).config

    assert (config["hidden_size"], config["num_attention_heads"]) == (24, 4)
    assert config["intermediate_size"] < 32


@pytest.mark.models
def test_a_class_that_refuses_a_combination_gets_another_within_the_budget():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=99, num_hidden_layers=2, **sizes)).eval()
    gated, compact = uniform(model, {"input_ids": torch.arange(20).view(2, 10)})
    config = plain_model(compact, required=True).config

    assert 0.58 < gated.hard_cost("params") <= 0.6
    assert config["hidden_size"] < 48
    assert config["hidden_size"] % config["num_attention_heads"] == 0


def test_entries_that_a_class_derives_or_asks_for_in_vain_are_written_out():
    transformers = pytest.importorskip("transformers")
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=24, n_head=4, n_layer=1, vocab_size=50))
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    qwen2 = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(vocab_size=99, num_hidden_layers=1, **sizes))

    assert ClassSettings(gpt2).stated["n_inner"] == 96
    assert "head_dim" not in qwen2.config.to_dict()
    settings = ClassSettings(qwen2)
    assert settings.stated["head_dim"] == 12
    assert {"hidden_size", "num_key_value_heads", "head_dim"} <= {setting.name for setting in settings.sizes}


def test_a_class_that_cannot_be_built_without_memory_has_no_plain_folder(monkeypatch, compact):
    made = type(compact).__init__

    def reading(self, config):
        made(self, config)
        float(next(self.parameters()).sum())  # no number without memory

    monkeypatch.setattr(type(compact), "__init__", reading)

    with pytest.raises(ConfigError, match="cannot be built from its own configuration without memory"):
        ClassSettings(compact)
    assert plain_model(compact) is None
    with pytest.raises(ConfigError, match="cannot be built from its own configuration without memory"):
        plain_model(compact, required=True)


def test_what_cannot_be_uniform_is_one_line():
    model = tiny_bert()
    flow = l0prune.trace(model, token_inputs())
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))

    with pytest.raises(ConfigError, match="uniform widths are chosen under a budget"):
        l0prune.inject(model, flow, penalty=l0prune.Penalty(0.1, n_samples=8), steps=2, uniform=True)
    with pytest.raises(ConfigError, match="Sequential is no class that it exports"):
        l0prune.inject(
            net,
            l0prune.trace(net, torch.ones(2, 4)),
            budget=l0prune.Budget("macs", 0.5),
            steps=2,
            uniform=True,
        )
    with pytest.raises(ConfigError, match="depth"):
        l0prune.FinetuneConfig(uniform=True, depth=True)


def test_a_budget_below_what_all_layers_alike_can_reach_is_refused():
    with pytest.raises(l0prune.errors.BudgetInfeasibleError, match="cannot be met"):
        uniform(tiny_bert().bert, token_inputs(), keep=0.5)
