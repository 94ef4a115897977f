"""Models of libraries come back as themselves; a file can name nothing but entries of the libraries' own registries."""

import json
import shutil
import sys
import warnings

import pytest
import torch
from flow_case import EXACT, difference, gated_at, inputs, n_parameters, random_gates, ready
from safetensors.torch import save_file
from torch import nn
from torch.fx import GraphModule

import l0prune
from l0prune import models
from l0prune.errors import CaptureError, FileFormatError, L0PruneWarning, ModelSpecError, PlanMismatchError
from l0prune.sources.library_models import LibraryModel, origins_of
from l0prune.sources.model_spec import load_model
from l0prune.surgery.into_class import dense_model
from l0prune.surgery.plan import SurgeryPlan, fingerprint
from l0prune.surgery.shrink import shrink, surgery_of


def cut(model, x, seed=1):
    flow = l0prune.trace(model, x)
    return shrink(gated_at(model, flow, random_gates(flow, closed=0.4, seed=seed)))


def network(**args) -> nn.Module:
    return ready(models.entry("lenet300").factory(**args))


X = inputs(3, 1, 28, 28)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A compact model of seven classes, and its folder."""
    compact = cut(network(num_classes=7), X)
    return compact, l0prune.save(compact, tmp_path_factory.mktemp("library") / "compact")


@pytest.fixture
def changed(saved, tmp_path):
    """A copy of the folder, its manifest naming another dense model."""

    def change(**entries):
        folder = tmp_path / "compact"
        shutil.copytree(saved[1], folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["library"] = {**manifest["library"], **entries}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return change


def test_it_is_loaded_as_its_class_and_draws_no_random_numbers(saved):
    compact, folder = saved
    torch.manual_seed(0)
    expected = torch.rand(3)

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", L0PruneWarning)
        loaded = l0prune.load(folder)

    assert torch.equal(torch.rand(3), expected)
    assert type(loaded) is type(compact) is type(network())
    assert n_parameters(loaded) == n_parameters(compact) < n_parameters(network(num_classes=7))
    assert difference(loaded(X), compact(X)) < EXACT


def test_it_is_pruned_and_saved_again_as_its_class(saved, tmp_path):
    twice = cut(l0prune.load(saved[1]), X, seed=2)
    again = l0prune.load(l0prune.save(twice, tmp_path / "twice"))

    assert type(again) is type(network())
    assert n_parameters(again) < n_parameters(saved[0])
    assert surgery_of(again).plan.fingerprint == fingerprint(network(num_classes=7))
    assert difference(again(X), twice(X)) < EXACT


def test_a_folder_that_names_no_library_gives_its_graph(saved, tmp_path):
    folder = shutil.copytree(saved[1], tmp_path / "compact")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["library"]
    (folder / "manifest.json").write_text(json.dumps(manifest))

    loaded = l0prune.load(folder)

    assert isinstance(loaded, GraphModule)
    assert difference(loaded(X), saved[0](X)) < EXACT


def test_without_a_graph_it_is_still_loaded_as_its_class(saved, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise CaptureError("there is no graph; do without")

    monkeypatch.setattr("l0prune.look.capture.capture", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error", L0PruneWarning)
        folder = l0prune.save(saved[0], tmp_path / "compact")
        loaded = l0prune.load(folder)
        loaded = l0prune.load(l0prune.save(loaded, tmp_path / "again"))

    assert not (folder / "model.pt2").exists()
    assert difference(loaded(X), saved[0](X)) < EXACT
    monkeypatch.setattr(l0prune, "__version__", "9.9")
    with pytest.warns(L0PruneWarning, match="another version is installed"):
        l0prune.load(folder)
    monkeypatch.setattr(LibraryModel, "build", lambda *_, **__: nn.Linear(2, 2))
    with pytest.raises(PlanMismatchError, match="base="):
        l0prune.load(folder)


def test_a_model_that_was_changed_by_its_user_is_not_said_to_be_the_library_s(tmp_path):
    dense = network()
    dense.relu1 = nn.GELU()
    assert origins_of(dense)
    assert fingerprint(dense) == fingerprint(network())

    folder = l0prune.save(cut(dense, X), tmp_path / "compact")

    assert "library" not in json.loads((folder / "manifest.json").read_text())


def test_another_version_that_computes_something_else_is_noticed(saved, monkeypatch):
    build = LibraryModel.build

    def other(self, *, n_tensors):
        model = build(self, n_tensors=n_tensors)
        model.forward = lambda x: type(model).forward(model, x) * 1.001
        return model

    monkeypatch.setattr(LibraryModel, "build", other)
    with pytest.warns(L0PruneWarning, match=r"cannot be loaded as l0prune:lenet300.*graph"):
        loaded = l0prune.load(saved[1])

    assert isinstance(loaded, GraphModule)
    assert difference(loaded(X), saved[0](X)) < EXACT


GONE = {
    "a name of no registry": {"name": "lenet301"},
    "a module": {"name": "os.system"},
    "other sizes": {"args": {"num_classes": 8}},
    "text for a number": {"args": {"num_classes": "many"}},
    "an unknown argument": {"args": {"num_classes": 7, "depth": 3}},
    "a list for a number": {"args": {"num_classes": [7]}},
    "more than the memory": {"args": {"num_classes": 2**24}},
    "timm that knows no such name": {"kind": "timm"},
    "torchvision that knows no such name": {"kind": "torchvision"},
    "a module of transformers": {"kind": "hf", "name": "models", "args": {}},
    "a function of transformers": {"kind": "hf", "name": "pipeline", "args": {}},
    "a class that picks another": {"kind": "hf", "name": "AutoModel", "args": {}},
    "the class of all": {"kind": "hf", "name": "PreTrainedModel", "args": {}},
    "what every module has": {"kind": "hf", "name": "__dict__", "args": {}},
    "another model": {"kind": "hf", "name": "BertModel", "args": {"num_hidden_layers": 1, "hidden_size": 12}},
    "a layer for every second of a year": {"kind": "hf", "name": "BertModel", "args": {"num_hidden_layers": 2**24}},
    "half a layer": {"kind": "hf", "name": "BertModel", "args": {"num_hidden_layers": 0.5}},
}


@pytest.mark.parametrize("kind", GONE)
def test_what_the_library_does_not_build_is_said_and_the_graph_is_loaded(kind, saved, changed):
    folder = changed(**GONE[kind])

    with pytest.warns(
        L0PruneWarning, match=r"cannot be loaded as \w+:.*it is loaded as the module of its graph"
    ) as caught:
        loaded = l0prune.load(folder)

    assert "\n" not in str(caught[0].message)
    assert caught[0].filename == __file__
    assert isinstance(loaded, GraphModule)
    assert difference(loaded(X), saved[0](X)) < EXACT


def test_a_library_that_is_not_installed_is_named(changed, monkeypatch):
    folder = changed(kind="timm", name="resnet18")
    monkeypatch.setitem(sys.modules, "timm", None)

    with pytest.warns(L0PruneWarning, match="timm is not installed"):
        assert isinstance(l0prune.load(folder), GraphModule)


REFUSED = {
    "an unknown kind": ({"kind": "mine"}, "kind"),
    "an unknown key": ({"module": "os"}, "unknown keys"),
    "a number for a name": ({"name": 3}, "name"),
    "a list of arguments": ({"args": ["num_classes"]}, "args"),
    "a number without end": ({"args": {"num_classes": 2**60}}, "more than"),
    "one inside": ({"args": {"sizes": [[2, {"depth": -(2**40)}]]}}, "more than"),
    "a name for every label": ({"kind": "hf", "args": {"text_config": {"num_labels": 2**23}}}, "more than 1000"),
    "a file of weights": ({"kind": "timm", "args": {"checkpoint_path": "weights"}}, "checkpoint_path"),
    "weights of the hub": ({"kind": "timm", "args": {"pretrained_cfg": {"hf_hub_id": "me"}}}, "pretrained_cfg"),
    "published weights": ({"kind": "torchvision", "args": {"weights_backbone": "DEFAULT"}}, "weights_backbone"),
    "a page of the hub": ({"kind": "timm", "name": "hf-hub:me/mine"}, "may be a path or an address"),
    "a place among the arguments": ({"args": {"kind": "../elsewhere"}}, "may be a path or an address"),
    "code of its own": ({"kind": "hf", "args": {"auto_map": {"AutoModel": "mine.Model"}}}, "auto_map"),
    "code inside": ({"kind": "hf", "args": {"text_config": {"auto_map": {"AutoModel": "a.B"}}}}, "auto_map"),
    "kernels": ({"kind": "hf", "args": {"a": [{"attn_implementation": "me/kernels"}]}}, "code of the hub"),
    "a backbone of the hub": ({"kind": "hf", "args": {"use_pretrained_backbone": True}}, "use_pretrained_backbone"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_asks_for_code_files_or_no_end_is_refused(kind, changed):
    entries, word = REFUSED[kind]
    folder = changed(**entries)

    with pytest.raises(FileFormatError, match=word) as caught:
        l0prune.load(folder)

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(folder))


def test_no_more_is_built_than_the_weights_can_be_of(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    origin = LibraryModel("l0prune", "lenet300", {"num_classes": 2**24}, "")
    with torch.device("meta"):
        sketch = origin.build(n_tensors=1)

    with pytest.raises(FileFormatError, match="claims"):
        dense_model(origin, SurgeryPlan(fingerprint(sketch), {}), tmp_path / "model.safetensors")

    class Endless(nn.Module):
        def __init__(self, **_):
            super().__init__()
            while True:
                self.layer = nn.ReLU()

    models.register(input_shape=(1, 2, 2), mean=(0.0,), std=(1.0,))(Endless)
    try:
        with pytest.raises(ModelSpecError, match="far more parts than 1 tensors"):
            LibraryModel("l0prune", "Endless", {}, "").build(n_tensors=1)
    finally:
        del models.registry._ENTRIES["Endless"]


def of_timm():
    timm = pytest.importorskip("timm")
    return ready(timm.create_model("resnet10t", num_classes=5, in_chans=1)), inputs(2, 1, 32, 32)


def of_torchvision():
    library = pytest.importorskip("torchvision.models")
    return ready(library.squeezenet1_1(num_classes=4)), inputs(2, 3, 48, 48)


def of_torchvision_by_name():
    pytest.importorskip("torchvision")
    return ready(load_model("torchvision:shufflenet_v2_x0_5", model_args={"num_classes": 4}).model), inputs(
        2, 3, 48, 48
    )


def of_transformers():
    library = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 32, "num_hidden_layers": 1}
    model = library.BertForSequenceClassification(library.BertConfig(vocab_size=40, num_labels=3, **sizes))
    return ready(model), {"input_ids": torch.arange(24).view(2, 12)}


@pytest.mark.models
@pytest.mark.parametrize("source", [of_timm, of_torchvision, of_torchvision_by_name, of_transformers])
def test_models_of_other_libraries_come_back_as_themselves(source, tmp_path):
    dense, x = source()
    compact = cut(dense, x)

    loaded = l0prune.load(l0prune.save(compact, tmp_path / "compact"))

    assert type(loaded) is type(dense)
    assert n_parameters(loaded) == n_parameters(compact) < n_parameters(dense)
    found, expected = l0prune.model_call.call(loaded, x), l0prune.model_call.call(compact, x)
    assert type(found) is type(expected)
    assert difference(found, expected) < EXACT
