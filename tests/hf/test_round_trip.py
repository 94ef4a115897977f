"""Cut models of transformers are written as folders, and are the same class with the same outputs in another process."""

import subprocess
import sys

import pytest
import torch
from flow_case import gated_at
from hf_models import cut, dense
from safetensors.torch import load_file, save_file

import l0prune
from l0prune.errors import L0PruneError
from l0prune.model_call import call, output_tensors

pytestmark = pytest.mark.models

NAMES = ("bert", "roberta", "distilbert", "mpnet", "vit", "gpt2", "llama", "qwen2", "mistral", "t5")
GENERATING = {"gpt2", "llama", "qwen2", "mistral", "t5"}
EXACT = 1e-6
N_NEW = 8

ELSEWHERE = """
import sys
import torch
from safetensors.torch import load_file, save_file
import l0prune
from l0prune.errors import L0PruneError
from l0prune.model_call import output_tensors
model = l0prune.hf.from_pretrained(sys.argv[1])
assert not any(parameter.is_meta for parameter in model.parameters())
inputs = load_file(sys.argv[2])
found = {"class": torch.tensor(list(type(model).__name__.encode()))}
with torch.no_grad():
    found["output"] = output_tensors(model(**inputs, **({"use_cache": False} if model.can_generate() else {})))[0]
    if model.can_generate():
        asked = {name: value[:1] for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
        asked["attention_mask"] = torch.ones_like(asked["attention_mask"])
        options = dict(do_sample=False, max_new_tokens=int(sys.argv[4]), min_new_tokens=int(sys.argv[4]), pad_token_id=0)
        found["cached"] = model.generate(**asked, **options, use_cache=True)
        found["anew"] = model.generate(**asked, **options, use_cache=False)
        assert model.config.use_cache
save_file(found, sys.argv[3])
"""


@torch.no_grad()
def first(model, inputs):
    return output_tensors(call(model, inputs))[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_process_gets_the_same_class_outputs_and_tokens(name, tmp_path):
    model, inputs = dense(name)
    gated, compact = cut(model, inputs)
    expected = first(compact, inputs)
    assert (expected - first(gated, inputs)).abs().max() < 1e-5 * expected.abs().max()
    assert sum(p.numel() for p in compact.parameters()) < 0.95 * sum(p.numel() for p in model.parameters())

    folder = l0prune.hf.save_pretrained(compact, tmp_path / "cut", onnx=False)
    save_file({key: value.contiguous() for key, value in inputs.items()}, tmp_path / "inputs.safetensors")
    paths = [str(folder), str(tmp_path / "inputs.safetensors"), str(tmp_path / "found.safetensors")]
    subprocess.run([sys.executable, "-c", ELSEWHERE, *paths, str(N_NEW)], check=True)
    found = load_file(tmp_path / "found.safetensors")

    assert bytes(found["class"].tolist()).decode() == type(compact).__name__ == type(model).__name__
    assert (found["output"] - expected).abs().max() <= EXACT * expected.abs().max()
    assert ("cached" in found) == (name in GENERATING)
    if name in GENERATING:
        asked = {"input_ids": inputs["input_ids"][:1], "attention_mask": torch.ones_like(inputs["input_ids"][:1])}
        tokens = compact.generate(
            **asked, do_sample=False, max_new_tokens=N_NEW, min_new_tokens=N_NEW, pad_token_id=0, use_cache=False
        )
        assert torch.equal(found["cached"], tokens)
        assert torch.equal(found["anew"], tokens)
        assert len(set(tokens[0].tolist())) > 2


@pytest.mark.parametrize("name", ["mpnet", "mistral", "t5"])
def test_transformers_loads_it_itself_once_it_has_been_told_how(name, tmp_path):
    model, inputs = dense(name)
    _, compact = cut(model, inputs)
    folder = l0prune.hf.save_pretrained(compact, tmp_path / "cut", onnx=False)

    l0prune.hf.register()
    loaded = type(compact).from_pretrained(folder)

    assert (first(loaded, inputs) - first(compact, inputs)).abs().max() <= EXACT * first(compact, inputs).abs().max()
    assert loaded.surgery.plan.fingerprint == compact.surgery.plan.fingerprint
    assert getattr(loaded, "hf_quantizer", None) is None
    again = l0prune.hf.from_pretrained(l0prune.hf.save_pretrained(loaded, tmp_path / "again", onnx=False))
    assert torch.equal(first(again, inputs), first(loaded, inputs))


def test_damaged_settings_of_generate_are_one_line(tmp_path):
    model, inputs = dense("gpt2")
    _, compact = cut(model, inputs)
    folder = l0prune.hf.save_pretrained(compact, tmp_path / "cut", onnx=False)

    for content in ("[]", '{"max_new_tokens": -1}', '{"cache_implementation": 5}', "{"):
        (folder / "generation_config.json").write_text(content)
        with pytest.raises(L0PruneError, match=r"generation_config\.json") as caught:
            l0prune.hf.from_pretrained(folder)
        assert "\n" not in str(caught.value)


def test_a_decoder_without_its_first_attention_is_read_back_and_generates_with_a_cache(tmp_path):
    """The cache counts tokens by what the first layer puts into it."""
    model, inputs = dense("llama")
    flow = l0prune.trace(model, inputs)
    values = torch.ones(flow.n_gates)
    for branch in (b for b in flow.branches if ".0." in b.name):
        values[torch.from_numpy(branch.gates)] = 0.0
    compact = l0prune.shrink(gated_at(model, flow, values))
    assert len(compact.surgery.plan.drops) == 4

    again = l0prune.hf.from_pretrained(l0prune.hf.save_pretrained(compact, tmp_path / "folder", onnx=False)).double()

    ids = inputs["input_ids"][:1]
    first = again(input_ids=ids[:, :-1], use_cache=True)
    second = again(input_ids=ids[:, -1:], past_key_values=first.past_key_values, use_cache=True)
    whole = compact.double()(input_ids=ids, use_cache=False)
    torch.testing.assert_close(second.logits[:, -1], whole.logits[:, -1], atol=1e-5, rtol=0)
