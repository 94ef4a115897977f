"""Models that take one dict, and write into it; numbers, flags and nested values among the inputs: the whole way."""

import collections
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from flow_case import EXACT, difference, gated_at, n_parameters, random_gates, traced
from torch import Tensor, nn

import l0prune
from l0prune.errors import ConfigError, NoOnnxError
from l0prune.finetuning.config import FinetuneConfig
from l0prune.model_call import ModelCall, call, split_inputs
from l0prune.onnx.export import export_onnx
from l0prune.onnx.onnx_model import OnnxModel
from l0prune.sources.model_spec import load_model
from l0prune.surgery.shrink import shrink
from l0prune.tensor_names import named_tensors, unique


class Tokens(nn.Module):
    """Adds embeddings to the features, as a sentence encoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.embed(features["input_ids"])
        features.update(token_embeddings=x + self.down(self.up(x).relu()))
        return features


class Pooling(nn.Module):
    """The mean over the tokens that count, written into the same dict; then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = features["attention_mask"].unsqueeze(-1).to(features["token_embeddings"].dtype)
        x = features.pop("token_embeddings")
        features["sentence_embedding"] = self.head((x * weights).sum(1) / weights.sum(1))
        features["modality"] = "text"  # which no graph holds
        return features


class SentenceEncoder(nn.Sequential):
    """A chain of modules that hand on one dict."""

    def __init__(self) -> None:
        super().__init__(Tokens(), Pooling())

    def forward(self, features: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:  # type: ignore[override]
        for module in self:
            features = module(features)
        return features


def sentences(rows: int = 2, length: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + length)
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[::2, length - 1 :] = 0
    return {"input_ids": torch.randint(11, (rows, length), generator=generator), "attention_mask": mask}


def with_classes() -> tuple[nn.Module, dict[str, Tensor]]:
    """A factory for the command line."""
    return SentenceEncoder(), sentences()


def with_a_number() -> tuple[nn.Module, dict[str, Any]]:
    return Scaled(), {"x": torch.ones(2, 4), "scale": 3}


def embedding(output: dict[str, Tensor]) -> Tensor:
    return output["sentence_embedding"]


@pytest.mark.parametrize("form", ["in-place", "graph"])
def test_a_model_of_one_dict_is_cut_saved_and_loaded(form, tmp_path):
    net, given = SentenceEncoder(), sentences()
    flow = traced(net, given)
    gated = gated_at(net, flow, random_gates(flow))
    compact = shrink(gated, form=form)
    loaded = l0prune.load(l0prune.save(compact, tmp_path / "compact"))

    assert n_parameters(compact) < n_parameters(net)
    assert given.keys() == {"input_ids", "attention_mask"}
    for sizes in ((2, 5), (3, 7)):
        expected = embedding(call(gated, sentences(*sizes)))
        assert difference(embedding(call(compact, sentences(*sizes))), expected) < EXACT
        assert difference(embedding(call(loaded, sentences(*sizes))), expected) < EXACT


def test_a_model_of_one_dict_becomes_a_file_with_its_keys_as_inputs(tmp_path):
    torch.manual_seed(0)
    net, given = SentenceEncoder().eval(), sentences(1)
    model = OnnxModel(export_onnx(net, given, tmp_path / "net.onnx"))

    found = model(**sentences(3, 8))

    assert model.input_names == ("input_ids", "attention_mask")
    assert found._fields == ("output_input_ids", "output_attention_mask", "sentence_embedding")
    torch.testing.assert_close(found.sentence_embedding, embedding(call(net, sentences(3, 8))))
    assert given.keys() == {"input_ids", "attention_mask"}


def test_a_model_of_one_dict_is_verified():
    report = l0prune.verify(SentenceEncoder(), sentences())

    assert report.exact
    assert report.params_after < report.params_before


def test_a_model_of_one_dict_is_trained_and_its_batches_stay_as_they_are():
    torch.manual_seed(0)
    net = SentenceEncoder()
    batches = [(sentences(4, 5), torch.tensor([0, 1, 2, 0])) for _ in range(4)]

    result = l0prune.finetune(
        l0prune.inject(net, l0prune.trace(net, sentences())),
        batches,
        loss=lambda output, y: nn.functional.cross_entropy(embedding(output), y),
        budget=l0prune.Budget("params", 0.8),
        config=FinetuneConfig(epochs=2, distillation=0, feature_distillation=0),
    )

    assert result.budget_met
    assert all(inputs.keys() == {"input_ids", "attention_mask"} for inputs, _ in batches)


def test_a_factory_may_give_a_dict_or_a_number_among_the_inputs():
    for factory in ("with_classes", "with_a_number"):
        loaded = load_model(f"test_dict_inputs:{factory}")

        assert l0prune.trace(loaded.model, loaded.example_inputs).n_gates > 0


class Scaled(nn.Module):
    """Takes a number, a mode and a nested pair beside its tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(4, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor, scale: float = 1, *, mode: str = "plain", pair: Any = None) -> Tensor:
        x = x if pair is None else x + pair["a"] - pair["b"][0]
        return self.head(self.up(x * scale if mode == "plain" else x.abs()).relu())


def drawn(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "others", [{"scale": 3}, {"scale": 2.5, "pair": None}, {"mode": "size", "pair": {"a": 0, "b": [1]}}], ids=str
)
def test_numbers_flags_and_nested_values_among_keywords_become_a_file(others, tmp_path):
    torch.manual_seed(0)
    net = Scaled().eval()
    if others.get("pair"):
        others = others | {"pair": {"a": drawn(2, 1), "b": [drawn(2, 2)]}}
    path = export_onnx(net, {"x": drawn(2), **others}, tmp_path / "scaled.onnx")

    model, wider = OnnxModel(path), ModelCall.of({"x": drawn(2), **others}).with_batch(4)
    torch.testing.assert_close(call(model, {**wider.kwargs}), wider(net), rtol=1e-5, atol=1e-5)
    assert model.input_names[:1] == ("x",)


def test_a_file_refuses_another_number_than_it_was_exported_with(tmp_path):
    path = export_onnx(Scaled().eval(), {"x": drawn(2), "scale": 3}, tmp_path / "scaled.onnx")

    with pytest.raises(ConfigError, match=r"scale=2, but the file was exported with scale=3"):
        OnnxModel(path)(x=drawn(2), scale=2)


@dataclasses.dataclass
class Point:
    x: Tensor


def test_a_type_that_torch_does_not_look_into_is_named(tmp_path):
    net = Scaled()
    net.forward = lambda point: nn.Sequential(net.up, net.head)(point.x)  # type: ignore[method-assign]

    with pytest.raises(NoOnnxError, match=r"Scaled is called with a Point.*register_dataclass"):
        export_onnx(net, (Point(drawn(2)),), tmp_path / "point.onnx")
    assert not list(tmp_path.iterdir())


class Reads(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names


class Keywords(Reads):
    def forward(self, x: Any, y: Any = None) -> Any: ...


class AnyKeywords(Reads):
    def forward(self, **given: Any) -> Any: ...


class OneDict(Reads):
    def forward(self, batch: Any, **options: Any) -> Any: ...


@pytest.mark.parametrize(
    ("model", "keys", "is_one_argument"),
    [
        (Keywords(), ("x", "y"), False),
        (Keywords(), ("x", "z"), False),
        (AnyKeywords(), ("a", "b"), False),
        (OneDict(), ("a", "b"), True),
        (OneDict(), ("batch",), False),
        (Keywords(), ("a", "b"), True),
        (nn.Sequential(nn.Linear(2, 2)), ("a",), True),
        (torch.optim.swa_utils.AveragedModel(nn.Sequential(nn.Linear(2, 2))), ("a",), True),
        (None, ("a",), False),
    ],
)
def test_the_signature_says_whether_a_dict_holds_keywords(model, keys, is_one_argument):
    given = collections.UserDict({key: torch.zeros(1) for key in keys})
    plain = dict(given)

    assert split_inputs(given, model) == (((plain,), {}) if is_one_argument else ((), plain))


def test_tensors_are_named_by_keys_fields_and_numbers():
    a, b = torch.zeros(1), torch.ones(1)

    assert [name for name, _ in named_tensors({"a": a, "none": None, "c": (b, {"d": a})}, "output")] == [
        "a",
        "c_0",
        "c_1_d",
    ]
    assert [name for name, _ in named_tensors((a, 3, "s"), "output")] == ["output"]
    assert [name for name, _ in named_tensors([a, Point(b)], "output")] == ["output_0", "output_1_x"]
    assert unique(["x", "y", "x"], taken=["x"], prefix="output_") == ["output_x", "y", "output_x_2"]
    assert np.array_equal([tensor for _, tensor in named_tensors([a, [b]], "x")], [a, b])
