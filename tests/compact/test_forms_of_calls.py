"""Models of several inputs and of outputs in any form, the whole way: trace, cut, files, ONNX; and from a `.pt2` file alone."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from flow_case import EXACT, difference, gated_at, inputs, n_parameters, random_gates, traced
from torch import Tensor, nn

import l0prune
from l0prune.cli.loading import trainable
from l0prune.cli.main import cli
from l0prune.model_call import call
from l0prune.onnx.export import export_onnx
from l0prune.onnx.onnx_model import OnnxModel
from l0prune.sources.model_spec import load_model
from l0prune.surgery.shrink import shrink


@dataclasses.dataclass
class Output:
    logits: Tensor
    energy: Tensor
    loss: Tensor | None = None


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda energy, logits: logits,
    "tuple": lambda energy, logits: (energy, logits),
    "nested": lambda energy, logits: [(energy, logits.exp()), {"logits": logits}],
    "dict": lambda energy, logits: {"energy": energy, "logits": logits, "loss": None},
    "dataclass": lambda energy, logits: Output(logits, energy),
    "dataclass in a tuple": lambda energy, logits: (Output(logits, energy), energy.sum(-1)),
}


class Pair(nn.Module):
    """Two inputs that meet, and outputs in some form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.left, self.right = nn.Linear(4, 10), nn.Linear(6, 10)
        self.norm, self.mix, self.head = nn.LayerNorm(10), nn.Linear(10, 7), nn.Linear(7, 3)

    def forward(self, left: Tensor, right: Tensor, scale: Tensor | None = None) -> Any:
        x = self.mix(self.norm(self.left(left) + self.right(right)).relu()).tanh()
        x = x if scale is None else x * scale
        logits = self.head(x)
        return FORMS[self.form](logits.square(), logits)


class Listed(Pair):
    """The same, with its inputs in a list."""

    def forward(self, both: list[Tensor]) -> Any:  # type: ignore[override]
        return super().forward(*both)


def pair(rows: int = 2) -> tuple[Tensor, Tensor]:
    return inputs(rows, 4), inputs(rows, 6, seed=1)


def named(rows: int = 2) -> dict[str, Tensor]:
    left, right = pair(rows)
    return {"right": right, "left": left, "scale": inputs(rows, 1, seed=2)}  # not in the order of the signature


CALLS = [(Pair, pair), (Pair, named), (Listed, lambda rows=2: (list(pair(rows)),))]


@pytest.mark.parametrize(("kind", "make"), CALLS, ids=["positional", "keywords", "list"])
@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_call_is_cut_saved_and_loaded(kind, make, form, tmp_path):
    net = kind(form)
    flow = traced(net, make())
    gated = gated_at(net, flow, random_gates(flow))
    other = make(5)

    for place in ("in-place", "graph"):
        compact = shrink(gated, form=place)
        assert n_parameters(compact) < n_parameters(net)
        assert difference(call(compact, other), call(gated, other)) < EXACT
        loaded = l0prune.load(l0prune.save(compact, tmp_path / place))
        assert difference(call(loaded, other), call(gated, other)) < EXACT


@pytest.mark.parametrize(
    ("kind", "make", "form"),
    [(Pair, pair, "nested"), (Pair, named, "dataclass"), (Pair, named, "dict"), (CALLS[2][0], CALLS[2][1], "tuple")],
    ids=["positional", "dataclass", "dict", "list"],
)
def test_any_form_of_call_becomes_a_file(kind, make, form, tmp_path):
    net = kind(form)
    flow = traced(net, make())
    compact = shrink(gated_at(net, flow, random_gates(flow)))

    model = OnnxModel(export_onnx(compact, make(1), tmp_path / "net.onnx"))
    found = model(*make(3)) if isinstance(make(3), tuple) else model(make(3))

    assert difference(found, call(compact, make(3))) < EXACT
    if form in ("dataclass", "dict"):
        assert torch.equal(found.logits, found[found._fields.index("logits")])


class Normalised(nn.Module):
    """LayerNorm, RMSNorm by hand and one-group GroupNorm over units that can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mix, self.head = nn.Linear(4, 10), nn.Linear(10, 12), nn.Linear(12, 3)
        self.first, self.second, self.last = nn.LayerNorm(10), nn.GroupNorm(1, 12), nn.RMSNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        y = self.first(y) + y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 0.1)
        y = self.second(self.mix(y).transpose(1, 2)).transpose(1, 2)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True) + 0.1)
        return self.head(self.last(y))


def test_norms_in_a_file_are_masked_as_in_the_code(tmp_path):
    net, x = Normalised(), inputs(2, 5, 4)
    flow = traced(net, x)
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "net.pt2")

    model = load_model(str(tmp_path / "net.pt2")).model
    from_file = l0prune.trace(model, x)
    gated = gated_at(model, from_file, random_gates(from_file))
    compact = shrink(gated)

    assert from_file.n_gates == flow.n_gates == 22
    assert from_file.pinned == flow.pinned
    assert n_parameters(compact) < n_parameters(net)
    assert difference(compact(x), gated(x)) < EXACT
    assert difference(gated(x), gated_at(net, flow, random_gates(flow))(x)) < EXACT


class Convolutional(nn.Module):
    """Batch norm and dropout, which a mode switches."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.fixture(params=["evaluation", "training"])
def file(request, tmp_path):
    """A `.pt2` file of a small network in either mode, and the network."""
    net = Convolutional().train(request.param == "training")
    dynamic = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(net, (torch.randn(2, 3, 6, 6),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "net.pt2")
    return tmp_path / "net.pt2", net.eval()


def test_a_file_is_a_model_for_evaluation_whatever_its_mode_was(file):
    path, net = file
    loaded, x = load_model(str(path)).model, torch.randn(3, 3, 6, 6)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}

    torch.testing.assert_close(loaded(x), net(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())


def test_a_file_trains_as_its_network_does(file):
    path, net = file
    model, x = trainable(load_model(str(path)).model), torch.randn(64, 3, 6, 6)
    model.train()

    assert not torch.equal(model(x), model(x))
    model.eval()
    net.train()
    for _ in range(2):
        net(x)
    torch.testing.assert_close(model.get_buffer("body.1.running_mean"), net.body[1].running_mean)
    torch.testing.assert_close(model.get_buffer("body.1.running_var"), net.body[1].running_var)
    torch.testing.assert_close(model(x), net.eval()(x))


def test_a_file_is_inspected_and_verified_without_source(file):
    path, net = file
    shown, verified = (
        CliRunner().invoke(cli, [command, str(path), "--json", *options])
        for command, *options in (["inspect"], ["verify", "--no-onnx"])
    )

    layers = {layer["name"]: layer["macs"] for layer in json.loads(shown.stdout)["layers"]}
    assert layers == {"body.0": 8 * 3 * 9 * 16, "body.1": 0, "head": 32}
    report = json.loads(verified.stdout)
    assert report["exact"]
    assert report["params_after"] < report["params_before"] == n_parameters(net)
