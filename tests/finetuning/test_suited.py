"""Which optimizer a network is trained with where nobody says follows from what it computes."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from finetuning_case import gated_net, run
from hf_models import dense
from torch import Tensor, nn
from torch.nn import functional as F

import l0prune
from l0prune.finetuning.config import OPTIMIZERS, FinetuneConfig
from l0prune.finetuning.settings import resolve
from l0prune.finetuning.suited import suited_optimizer


class Norm(nn.Module):
    """A norm over dimension `dim`, written out; which of its usual spellings is given by name."""

    def __init__(self, spelling: str, dim: int = -1, width: int = 8) -> None:
        super().__init__()
        self.spelling, self.dim = spelling, dim
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(self.dim, keepdim=True)
        kept: dict[str, Any] = {"dim": self.dim, "keepdim": True}
        out = {
            "rms": lambda: x * torch.rsqrt(x.float().pow(2).mean(**kept) + 1e-6).to(x.dtype),
            "root": lambda: x / (x.square().mean(**kept).add(1e-6)).sqrt(),
            "power": lambda: x * (x.square().mean(**kept) + 1e-6) ** -0.5,
            "centred": lambda: centred / torch.sqrt(centred.pow(2).mean(**kept) + 1e-6),
            "std": lambda: centred / (x.std(**kept) + 1e-6),
            "var": lambda: centred * torch.rsqrt(x.var(**kept, correction=0) + 1e-6),
            "var_mean": lambda: centred * torch.rsqrt(torch.var_mean(x, **kept)[0] + 1e-6),
        }[self.spelling]()
        shape = [1] * x.dim()
        shape[self.dim] = -1
        return out * self.weight.view(shape)


class Attention(nn.Module):
    """One head, written out or by torch's function."""

    def __init__(self, *, fused: bool, width: int = 8) -> None:
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(width, 3 * width), nn.Linear(width, width), fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.fused:
            return self.out(F.scaled_dot_product_attention(q, k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = F.dropout(torch.softmax(scores.float(), -1).to(v.dtype), 0.1, self.training)
        return self.out(torch.einsum("bij,bjd->bid", weights, v))


def network_of(*layers: nn.Module, spatial: bool = False) -> tuple[nn.Module, Tensor]:
    """Layers between two of weights, and inputs: tokens, or images."""
    first, last = (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)) if spatial else (nn.Linear(6, 8), nn.Linear(8, 4))
    return nn.Sequential(first, *layers, nn.ReLU(), last), torch.randn(2, *((3, 8, 8) if spatial else (5, 6)))


def suited(net: nn.Module, x: Tensor | dict) -> str:
    return suited_optimizer(net, l0prune.trace(net.eval(), x)).name


@pytest.mark.parametrize("spelling", ["rms", "root", "power", "centred", "std", "var", "var_mean"])
@pytest.mark.parametrize("spatial", [False, True])
def test_a_norm_over_features_asks_for_adamw_however_it_is_written(spelling, spatial):
    norm = Norm(spelling, dim=1 if spatial else -1)

    assert suited(*network_of(norm, spatial=spatial)) == "adamw"


@pytest.mark.parametrize(
    ("layers", "spatial"),
    [
        ([nn.LayerNorm(8)], False),
        ([nn.RMSNorm(8)], False),
        ([nn.GroupNorm(1, 8)], True),
        ([Attention(fused=True)], False),
        ([Attention(fused=False)], False),
        ([nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)], False),
        ([nn.BatchNorm2d(8), nn.GroupNorm(1, 8)], True),
    ],
)
def test_attention_and_layer_norms_ask_for_adamw(layers, spatial):
    assert suited(*network_of(*layers, spatial=spatial)) == "adamw"


@pytest.mark.parametrize(
    ("layers", "spatial"),
    [
        ([], False),
        ([], True),
        ([nn.BatchNorm2d(8)], True),
        ([nn.GroupNorm(4, 8)], True),
        ([nn.InstanceNorm2d(8)], True),
        ([nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8), nn.GroupNorm(1, 8)], True),
        ([nn.Softmax(-1)], False),
    ],
)
def test_other_networks_ask_for_sgd(layers, spatial):
    assert suited(*network_of(*layers, spatial=spatial)) == "sgd"


class ByMoments(nn.Module):
    """Roots of moments that are no norm: features of texture, and branches that a softmax weighs."""

    def forward(self, x: Tensor) -> Tensor:
        spread = x.flatten(2).std(-1)
        x = x * torch.softmax(x.mean((2, 3), keepdim=True), 1)
        weights = x.square().mean((2, 3), keepdim=True).sqrt()
        return torch.cat([x / (weights + 1), spread[:, :, None, None].expand_as(x)], 1)[:, :8]


def test_moments_over_space_are_no_norm_over_features():
    assert suited(*network_of(ByMoments(), spatial=True)) == "sgd"


def test_a_graph_from_a_file_has_no_classes_and_is_told_by_what_it_computes(tmp_path):
    net, x = network_of(Norm("rms"), Attention(fused=False))
    torch.export.save(torch.export.export(net.eval(), (x,)).run_decompositions(), tmp_path / "net.pt2")

    from l0prune.sources.model_spec import load_model

    assert suited(load_model(str(tmp_path / "net.pt2")).model, x) == "adamw"


class Refused(nn.Module):
    """torch.export cannot follow it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), norm, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.last(x.relu() if float(x.detach().sum()) > 0 else x.sigmoid())


@pytest.mark.parametrize(("norm", "name"), [(nn.LayerNorm(8), "adamw"), (nn.BatchNorm1d(8), "sgd")])
def test_a_network_that_export_refuses_is_told_as_well(norm, name):
    net = Refused(norm).eval()
    flow = l0prune.trace(net, torch.randn(4, 6))

    assert flow.tracer != "torch.export"
    assert suited_optimizer(net, flow).name == name


def test_a_decoder_of_transformers_is_trained_by_adamw():
    assert suited(*dense("llama")) == "adamw"


def test_rates_follow_the_optimizer_that_suits_the_network_and_what_is_asked_for_stays():
    config = FinetuneConfig(align=1)

    by_network = resolve(config, penalised=False, suited="adamw")
    asked = resolve(replace(config, optimizer="sgd"), penalised=False, suited="adamw")

    assert (by_network.optimizer, by_network.weight_decay) == ("adamw", OPTIMIZERS["adamw"]["weight_decay"])
    assert by_network == resolve(replace(config, optimizer="adamw"), penalised=False)
    assert (asked.optimizer, asked.lr) == ("sgd", OPTIMIZERS["sgd"]["lr"])
    assert resolve(by_network, penalised=False, suited="sgd") == by_network


def test_decay_in_the_loss_takes_adam_where_adamw_would_suit():
    config = FinetuneConfig(align=1, gated_weight_decay=True, weight_decay=1e-4)

    assert resolve(config, penalised=True, suited="adamw").optimizer == "adam"


class Told:
    """Keeps what a run says."""

    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)

    def start(self, *_):
        pass

    def advance(self, *_):
        pass

    def finish(self):
        pass


def test_the_first_line_of_a_run_says_what_moves_the_weights_and_why():
    told = Told()

    run(gated_net(), progress=told, config=FinetuneConfig(epochs=0.2, align=1))

    assert told.lines[0].startswith("sgd moves the weights, at a peak rate of 0.0")
    assert "its norms are over batches" in told.lines[0]
