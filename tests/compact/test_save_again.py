"""A loaded compact model is a model like any other: it is trained on, saved, pruned again, and the plans add up."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, difference, gated_at, inputs, n_parameters, random_gates, ready
from torch import Tensor, nn

import l0prune
from l0prune.errors import ConfigError, PlanMismatchError
from l0prune.surgery.plan import fingerprint
from l0prune.surgery.shrink import absorb_, shrink, surgery_of


class Attention(nn.Module):
    """Heads are an integer of the module; the width of all of them is only in its code."""

    def __init__(self):
        super().__init__()
        self.heads, self.head_width = 6, 4
        self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (
            layer(x).reshape(b, n, self.heads, self.head_width).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.attention = nn.Linear(5, 24), Attention()
        self.up, self.down, self.head = nn.Linear(24, 16), nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        x = x + self.attention(x)
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=8, padding=1),
        nn.GroupNorm(4, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip


class Tied(nn.Module):
    """Two layers with one weight; the graph may name it by either."""

    def __init__(self):
        super().__init__()
        self.z, self.a = nn.Linear(8, 8), nn.Linear(8, 8)
        self.a.weight = self.z.weight
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x.relu()) + self.z(x.abs()))


class TiedInside(Tied):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.first(x))


KINDS = {
    "convolutions": (convolutions, (4, 3, 8, 8)),
    "attention": (Encoder, (2, 7, 5)),
    "tied": (TiedInside, (4, 5)),
}


def cut(model: nn.Module, x: Tensor, *, seed: int, form: str | None = None) -> nn.Module:
    flow = l0prune.trace(model, x)
    assert flow.n_gates > 0
    return shrink(gated_at(model, flow, random_gates(flow, closed=0.4, seed=seed)), form=form)


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    """A step further, so that its weights are no longer those in the folder."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model(x).square().mean().backward()
    optimizer.step()
    return model.eval()


@pytest.mark.parametrize("with_base", [False, True])
def test_a_loaded_model_is_trained_on_and_saved(with_base, tmp_path):
    build, shape = KINDS["tied"]
    dense, x = ready(build()), inputs(*shape)
    first = l0prune.save(cut(dense, x, seed=1), tmp_path / "first")

    loaded = trained(l0prune.load(first, base=dense if with_base else None), x)
    second = l0prune.save(loaded, tmp_path / "second")

    assert json.loads((second / "surgery.json").read_text()) == json.loads((first / "surgery.json").read_text())
    for base in (None, dense):
        assert difference(l0prune.load(second, base=base)(x), loaded(x)) < EXACT
    assert difference(l0prune.load(first)(x), loaded(x)) > 1e-6


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_is_pruned_again_and_its_plan_is_that_of_the_dense_model(kind, with_base, tmp_path):
    build, shape = KINDS[kind]
    dense, x = ready(build()), inputs(*shape)
    once = l0prune.save(cut(dense, x, seed=1), tmp_path / "once")
    loaded = trained(l0prune.load(once, base=dense if with_base else None), x)

    twice = cut(loaded, x, seed=2)
    folder = l0prune.save(twice, tmp_path / "twice")

    assert n_parameters(twice) < n_parameters(loaded) < n_parameters(dense)
    plan = json.loads((folder / "surgery.json").read_text())
    assert plan["fingerprint"] == fingerprint(dense)
    shapes = {name: list(tensor.shape) for name, tensor in dense.state_dict().items()}
    assert all(shapes[name] == cut["dense_shape"] for name, cut in plan["tensors"].items() if name in shapes)
    for base in (None, build().double()):
        assert difference(l0prune.load(folder, base=base)(x), twice(x)) < EXACT


def test_the_indices_of_a_second_cut_are_those_of_the_dense_model():
    dense, x = ready(nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))), inputs(3, 4)
    once = cut(dense, x, seed=1)
    twice = cut(once, x, seed=2)

    runs = surgery_of(twice).plan.tensors["0.weight"].kept[0]
    kept = [i for start, stop in runs for i in range(start, stop)]

    assert 0 < len(kept) < once[0].out_features < 10
    torch.testing.assert_close(twice[0].weight, dense[0].weight[kept])


@pytest.mark.parametrize("forms", [("graph", None), (None, "graph"), ("graph", "graph")])
def test_cuts_in_the_graph_add_up_too(forms, tmp_path):
    dense, x = ready(Encoder()), inputs(2, 7, 5)
    first, second = forms
    loaded = l0prune.load(l0prune.save(cut(dense, x, seed=1, form=first), tmp_path / "once"))

    twice = cut(loaded, x, seed=2, form=second)
    folder = l0prune.save(twice, tmp_path / "twice")

    assert difference(l0prune.load(folder)(x), twice(x)) < EXACT
    if first == "graph":
        with pytest.raises(PlanMismatchError, match="in its graph"):
            l0prune.load(folder, base=dense)


def test_three_cuts_and_the_folder_it_was_loaded_from(tmp_path):
    dense, x = ready(convolutions()), inputs(4, 3, 8, 8)
    model = cut(dense, x, seed=1)
    for seed in (2, 3):
        l0prune.save(model, tmp_path / "compact")
        model = cut(l0prune.load(tmp_path / "compact"), x, seed=seed)
    l0prune.save(model, tmp_path / "compact")

    assert difference(l0prune.load(tmp_path / "compact", base=dense)(x), model(x)) < EXACT
    assert difference(l0prune.load(tmp_path / "compact")(x), model(x)) < EXACT


def test_a_copy_of_a_loaded_model_is_saved_like_the_model(tmp_path):
    dense, x = ready(convolutions()), inputs(4, 3, 8, 8)
    loaded = l0prune.load(l0prune.save(cut(dense, x, seed=1), tmp_path / "compact"))

    again = l0prune.load(l0prune.save(copy.deepcopy(loaded), tmp_path / "copy"))

    assert difference(again(x), loaded(x)) < EXACT
    assert again.state_dict().keys() == loaded.state_dict().keys()


def test_gates_are_not_known_of_a_loaded_model(tmp_path):
    dense, x = ready(nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))), inputs(3, 4)
    flow = l0prune.trace(dense, x)
    gated = gated_at(dense, flow, random_gates(flow))
    loaded = l0prune.load(l0prune.save(shrink(gated), tmp_path / "compact"))

    with pytest.raises(ConfigError, match="was loaded"):
        absorb_(gated, loaded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("with_base", [False, True])
def test_a_model_is_saved_in_the_precision_it_has_been_converted_to(dtype, with_base, tmp_path):
    dense, x = ready(convolutions()), inputs(4, 3, 8, 8)
    compact = cut(dense, x, seed=1).to(dtype)

    loaded = l0prune.load(l0prune.save(compact, tmp_path / "compact"), base=dense if with_base else None)

    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert difference(loaded(x.to(dtype)), compact(x.to(dtype))) == 0
