import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from l0prune import models
from l0prune.errors import CheckpointError, ConfigError, ModelSpecError, TraceError
from l0prune.sources.model_spec import bundled_weights, load_model
from l0prune.sources.weights import save_weights
from l0prune.verification import verify

FACTORIES = """
import torch
from torch import nn

def dense(n_in=3, n_out=2):
    return nn.Linear(n_in, n_out)

def with_tensor():
    return nn.Conv2d(3, 4, 3), torch.ones(2, 3, 9, 8)

def with_tuple():
    return nn.Bilinear(3, 4, 2), (torch.ones(2, 3), torch.ones(2, 4))

def with_dict():
    return nn.Linear(3, 2), {"input": torch.ones(2, 3)}

def number():
    return 3

def odd_inputs():
    return nn.Linear(3, 2), "inputs"

def fails():
    raise RuntimeError("first line\\nsecond line")

def lazy(n_out=2):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(n_out))

class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

constant = 5
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module in the current directory; its name."""
    name = f"factories_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def message(spec, error=ModelSpecError, **options):
    with pytest.raises(error) as caught:
        load_model(spec, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", models.names())
def test_registered_networks_know_their_inputs(name):
    entry = models.entry(name)

    loaded = load_model(name)

    assert not loaded.model.training
    assert loaded.example_inputs[0].shape == (2, *entry.input_shape)
    assert loaded.input_shape == loaded.preprocessing.input_shape == entry.input_shape
    assert loaded.preprocessing.mean == entry.mean
    assert loaded.weights is None


def test_random_weights_and_inputs_repeat_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()

    first, again, other = load_model("lenet5"), load_model("lenet5"), load_model("lenet5", seed=1)

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.model.fc1.weight, again.model.fc1.weight)
    assert torch.equal(first.example_inputs[0], again.example_inputs[0])
    assert not torch.equal(first.model.fc1.weight, other.model.fc1.weight)
    assert not torch.equal(first.example_inputs[0], other.example_inputs[0])


def test_weights_are_loaded(tmp_path):
    path = save_weights(load_model("lenet5", seed=5).model, tmp_path / "w.safetensors")

    loaded = load_model("lenet5", weights=path)

    assert torch.equal(loaded.model.fc1.weight, load_model("lenet5", seed=5).model.fc1.weight)
    assert loaded.weights == path


@pytest.mark.parametrize("options", [{"weights": "bundled"}, {"weights": Path("bundled")}, {"pretrained": True}])
def test_bundled_weights_are_loaded_by_name(options):
    assert load_model("digits_resnet", **options).weights == bundled_weights("digits_resnet")


def test_weights_of_another_network_are_an_error():
    assert "left over" in message("lenet5", CheckpointError, weights=bundled_weights("digits_resnet"))


def test_model_arguments_reach_the_factory_and_the_preprocessing():
    loaded = load_model("lenet5", model_args={"num_classes": 3, "in_channels": 3, "image_size": 32})

    assert loaded.model(*loaded.example_inputs).shape == (2, 3)
    assert loaded.preprocessing.input_shape == (3, 32, 32)
    assert loaded.preprocessing.mean == pytest.approx((0.1307,) * 3)


def test_preprocessing_can_be_overridden():
    loaded = load_model("resnet20", mean=(0.5,), std=(0.1, 0.2, 0.3), image_size=16)

    assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)
    assert loaded.preprocessing.std == (0.1, 0.2, 0.3)
    assert loaded.example_inputs[0].shape == (2, 3, 16, 16)
    assert load_model("resnet20", input_shape=(3, 24, 40)).preprocessing.image_size == (24, 40)


def test_options_that_cannot_be_are_named():
    assert "2 values" in message("resnet20", ConfigError, mean=(0.5, 0.5))
    assert "above 0" in message("resnet20", ConfigError, std=(0.0,))
    assert "'nope'" in message("resnet20", model_args={"nope": 1})
    assert "exclude" in message("resnet20", ConfigError, weights="x.pt", pretrained=True)
    assert "digits_resnet" in message("resnet20", weights="bundled")


def test_an_unknown_name_is_answered_with_close_ones():
    assert "did you mean resnet20" in message("resnet_20")
    text = message("zzz")
    assert "lenet5" in text
    assert "package.module:factory" in text


def test_a_mistyped_prefix_is_answered_with_the_right_one():
    assert "did you mean timm:resnet18?" in message("tim:resnet18")


@pytest.mark.parametrize(("library", "extra"), [("timm", "timm"), ("torchvision", "timm"), ("transformers", "hf")])
def test_a_missing_library_is_answered_with_how_to_install_it(library, extra, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    prefix = {"transformers": "hf"}.get(library, library)

    text = message(f"{prefix}:{tmp_path}")

    assert f"{library} is not installed" in text
    assert f"pip install 'l0prune[{extra}]'" in text


@pytest.mark.parametrize(
    ("name", "shape", "is_image"),
    [("with_tensor", (3, 9, 8), True), ("with_tuple", (3,), False), ("with_dict", (3,), False)],
)
def test_a_factory_brings_its_example_inputs(factories, name, shape, is_image):
    loaded = load_model(f"{factories}:{name}")

    assert loaded.input_shape == shape
    assert (loaded.preprocessing is not None) == is_image
    assert isinstance(loaded.example_inputs, dict if name == "with_dict" else tuple)
    values = loaded.example_inputs.values() if name == "with_dict" else loaded.example_inputs
    assert all(bool((value == 1).all()) for value in values)


def test_a_factory_without_inputs_takes_a_shape(factories):
    loaded = load_model(f"{factories}:dense", input_shape=(6,), model_args={"n_in": 6})

    assert loaded.model(*loaded.example_inputs).shape == (2, 2)
    assert "--input-shape" in message(f"{factories}:dense")
    assert load_model(f"{factories}:Net", input_shape=(3,)).input_shape == (3,)


def test_a_given_shape_replaces_that_of_the_factory(factories):
    loaded = load_model(f"{factories}:with_tensor", input_shape=(3, 5, 5))

    assert loaded.example_inputs[0].shape == (2, 3, 5, 5)
    assert "2 example inputs" in message(f"{factories}:with_tuple", ConfigError, input_shape=(3,))


def test_lazy_layers_get_their_sizes_from_the_example_and_take_weights(factories, tmp_path):
    loaded = load_model(f"{factories}:lazy", input_shape=(3, 6, 6), seed=3)
    again = load_model(f"{factories}:lazy", input_shape=(3, 6, 6), seed=3)
    assert [tuple(p.shape) for p in loaded.model.parameters()] == [(4, 3, 3, 3), (4,), (4,), (4,), (2, 64), (2,)]
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(again.model(x), loaded.model(x))

    save_weights(loaded.model, tmp_path / "lazy.safetensors")
    other = load_model(f"{factories}:lazy", input_shape=(3, 6, 6), weights=tmp_path / "lazy.safetensors", seed=4)
    torch.testing.assert_close(other.model(x), loaded.model(x))

    assert "does not say what its input looks like" in message(f"{factories}:lazy")
    assert "lazy layers" in message(f"{factories}:lazy", input_shape=(6,))
    with pytest.raises(TraceError, match=r"'0' \(LazyLinear\) has no weights yet"):
        verify(nn.Sequential(nn.LazyLinear(2)), torch.randn(2, 3))


def test_what_is_wrong_with_a_factory_is_said(factories):
    assert "returned a int" in message(f"{factories}:number")
    assert "example inputs are a str" in message(f"{factories}:odd_inputs")
    assert "RuntimeError: first line" in message(f"{factories}:fails")
    assert "n_in=1, nope=2" in message(f"{factories}:dense", model_args={"n_in": 1, "nope": 2})
    assert "is a int" in message(f"{factories}:constant")
    assert "it has" in message(f"{factories}:missing")
    assert "no module 'no_such_module'" in message("no_such_module:net")
    assert "not of the form" in message("no-such module:net")
    assert "image inputs" in message(f"{factories}:with_dict", ConfigError, mean=(1.0,))


def test_the_search_path_is_left_as_it_was(factories):
    before = list(sys.path)

    load_model(f"{factories}:with_dict")

    assert sys.path == before


def test_an_exported_program_is_a_model(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, 6, 6),)), tmp_path / "m.pt2")
    other = save_weights(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), tmp_path / "w.safetensors")

    loaded = load_model(str(tmp_path / "m.pt2"))
    with_weights = load_model(str(tmp_path / "m.pt2"), weights=other)

    torch.testing.assert_close(loaded.model(*loaded.example_inputs), model(*loaded.example_inputs))
    assert loaded.preprocessing.input_shape == (3, 6, 6)
    assert not torch.equal(with_weights.model(*loaded.example_inputs), model(*loaded.example_inputs))
    assert "no model arguments" in message(str(tmp_path / "m.pt2"), model_args={"width": 2})


@pytest.mark.models
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_timm_says_how_its_inputs_look(name):
    timm = pytest.importorskip("timm")

    loaded = load_model(f"timm:{name}", model_args={"num_classes": 5})

    config = timm.data.resolve_model_data_config(loaded.model)
    assert loaded.preprocessing.mean == config["mean"]
    assert loaded.model(*loaded.example_inputs).shape == (2, 5)
    assert "timm:resnet18" in message("timm:resnet81")
    assert load_model("timm:resnet18", model_args={"in_chans": 1}).preprocessing.channels == 1


@pytest.mark.models
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_torchvision_networks_lose_their_auxiliary_heads(name):
    pytest.importorskip("torchvision")

    loaded = load_model(f"torchvision:{name}")

    assert loaded.model(*loaded.example_inputs).shape == (2, 1000)
    assert not any("aux" in parameter.lower() for parameter, _ in loaded.model.named_parameters())


@pytest.mark.models
def test_a_local_transformers_folder_is_a_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, num_labels=3, **sizes))
    bert.save_pretrained(tmp_path / "bert")
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=16, patch_size=8, **sizes))
    vit.save_pretrained(tmp_path / "vit")

    text, image = load_model(f"hf:{tmp_path}/bert"), load_model(f"hf:{tmp_path}/vit")

    assert set(text.example_inputs) == {"input_ids", "attention_mask"}
    torch.testing.assert_close(text.model(**text.example_inputs).logits, bert.eval()(**text.example_inputs).logits)
    assert image.preprocessing.input_shape == (3, 16, 16)
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"junk")
    assert "is damaged" in message(f"hf:{tmp_path}/bert", CheckpointError)
    (tmp_path / "bert" / "model.safetensors").unlink()
    assert "no *.safetensors" in message(f"hf:{tmp_path}/bert", CheckpointError)
    assert "config.json" in message(f"hf:{tmp_path}/none")


HF_CHANGES = {
    "code for the configuration": {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}},
    "code for the model": {"auto_map": {"AutoModel": "evil.Model"}, "architectures": ["Evil"]},
    "code for a model of an unknown kind": {"auto_map": {"AutoModel": "evil.Model"}, "model_type": "evil"},
    "a class that is no model": {
        "architectures": ["AutoTokenizer"],
        "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]},
    },
    "a kernel of the hub": {"attn_implementation": "someone/kernel"},
    "a kernel of the hub in a part": {"text_config": {"attn_implementation": {"": "someone/kernel:f"}}},
}


@pytest.mark.models
@pytest.mark.parametrize("change", HF_CHANGES)
def test_code_in_a_transformers_folder_is_never_run(tmp_path, monkeypatch, change):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | HF_CHANGES[change]))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("looks for an address"))

    with suppress(ModelSpecError, CheckpointError):
        load_model(f"hf:{tmp_path}")
    if "kernel" in change:
        assert "code of the hub" in message(f"hf:{tmp_path}")

    assert not (tmp_path / "ran").exists()


@pytest.mark.models
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_labels": 2**40}, "num_labels=1099511627776, which is more than its 50 rows"),
        ({"text_config": {"num_labels": 2**40}}, "num_labels=1099511627776, which is more than its 50 rows"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers=1099511627776, which is more than its 25 tensors"),
    ],
)
def test_a_configuration_asks_for_no_more_than_its_weights_can_be_of(tmp_path, change, words):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=20, num_labels=7, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    assert load_model(f"hf:{tmp_path}").model.num_labels == 7
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))

    assert words in message(f"hf:{tmp_path}", CheckpointError)


@pytest.mark.models
def test_a_configuration_may_ask_for_as_many_labels_as_its_weights_have(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=50, num_labels=1200, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_labels": 1200}))

    assert load_model(f"hf:{tmp_path}").model.num_labels == 1200
