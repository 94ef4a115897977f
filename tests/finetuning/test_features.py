"""Teaching the blocks of the cut network by the features they kept."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from finetuning_case import BUDGET, N_CLASSES, QUICK, SmallBatches
from torch import nn

import l0prune
from l0prune.finetuning.features import FeatureReader, FeatureSite, block_names, feature_loss, feature_sites
from l0prune.finetuning.metrics import read_metrics
from l0prune.model_call import ModelCall


class Block(nn.Module):
    """A residual block of two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(width, 6, 3, padding=1), nn.Conv2d(6, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.down(F.relu(self.up(x))))


class Pair(nn.Module):
    """Returns more than its stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.inner(x)
        return y, y.mean((2, 3))


class BlockNet(nn.Module):
    """A stem, a sequence of blocks with a plain layer among them, one block used twice, one that returns a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8), nn.ReLU(), nn.Sequential(Block(8), Block(8)))
        self.others = nn.ModuleList([Block(8), Pair(8)])
        self.linear = nn.Linear(8, N_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(x))
        x = self.others[0](self.others[0](x))
        return self.linear(self.others[1](x)[1])


def halved(model: nn.Module, seed: int = 0):
    """Gated with half the gates of each width closed, fractional values, and what is cut from it; float64."""
    model = model.double().eval()
    flow = l0prune.trace(model, (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
    gated = l0prune.inject(model, flow)
    values = torch.rand(flow.n_gates, generator=torch.Generator().manual_seed(seed)) * 0.7 + 0.3
    values[torch.arange(flow.n_gates) % 2 == 0] = 0
    gated.freeze(values)
    return gated.eval(), l0prune.shrink(gated)


def test_blocks_are_the_innermost_modules_that_sequences_hold():
    assert block_names(BlockNet()) == ["blocks.0", "blocks.2.0", "blocks.2.1", "others.0", "others.1"]
    assert block_names(nn.Sequential(BlockNet())) == [f"0.{name}" for name in block_names(BlockNet())]
    assert block_names(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == []


@pytest.mark.parametrize("form", ["in-place", "graph"])
def test_the_cut_network_starts_with_the_features_of_the_gated_one_at_the_kept_channels(form):
    gated, _ = halved(BlockNet())
    compact = l0prune.shrink(gated, form=form)

    sites = feature_sites(gated, compact)

    # a block that runs twice, or returns a pair, cannot be compared
    assert [site.module for site in sites] == ["blocks.0", "blocks.2.0", "blocks.2.1"]
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        expected, dense = FeatureReader(gated, sites, within=gated.model)(ModelCall.of(x))
        actual, small = FeatureReader(compact, sites)(ModelCall.of(x))
    assert (actual - expected).abs().max() < 1e-10
    assert all(small[site.module].shape[1] < dense[site.module].shape[1] for site in sites)
    assert float(feature_loss(sites, small, dense)) < 1e-24
    apart = {name: 1.1 * value for name, value in small.items()}
    assert float(feature_loss(sites, apart, dense)) == pytest.approx(0.01)


def test_a_block_that_is_gone_is_no_site_and_the_others_still_learn():
    model = BlockNet().double().eval()
    gated = l0prune.inject(model, l0prune.trace(model, (torch.randn(2, 3, 6, 6, dtype=torch.float64),)))
    inner = next(d for d in gated.flow.dimensions if d.name.startswith("blocks.2.0.up"))
    values = torch.full((gated.n_gates,), 0.5)
    values[inner.gates] = 0
    gated.freeze(values)
    compact = l0prune.shrink(gated)

    sites = feature_sites(gated.eval(), compact)
    compact.train()
    _, small = FeatureReader(compact, sites)(ModelCall.of(torch.randn(4, 3, 6, 6, dtype=torch.float64)))
    sum(value.square().sum() for value in small.values()).backward()

    assert {"blocks.0", "blocks.2.1"} <= {site.module for site in sites}
    assert compact.blocks.get_submodule("2.1").up.weight.grad.abs().sum() > 0


def test_networks_without_blocks_have_no_sites():
    gated, compact = halved(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()))
    assert feature_sites(gated, compact) == ()


def test_the_loss_is_the_mean_relative_squared_error_over_the_sites():
    sites = [FeatureSite("a", "", (None, torch.tensor([0, 2]))), FeatureSite("b", "", (None, None))]
    teacher = {"a": torch.tensor([[1.0, 9.0, 2.0]]), "b": torch.tensor([[2.0, 0.0]])}
    student = {"a": torch.tensor([[1.0, 4.0]], requires_grad=True), "b": torch.tensor([[2.0, 1.0]])}

    loss = feature_loss(sites, student, teacher)
    loss.backward()

    assert loss.item() == pytest.approx((4 / 5 + 1 / 4) / 2)
    assert torch.allclose(student["a"].grad, torch.tensor([[0.0, 2 * 2 / 5 / 2]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_of_the_loss_is_that_of_the_formula_in_each_precision(dtype):
    torch.manual_seed(0)
    kept = torch.tensor([0, 2, 3, 5])
    dense = (torch.randn(3, 6, 4, 5) + 1).to(dtype).to(memory_format=torch.channels_last)
    small = (torch.randn(3, 4, 4, 5) + 1).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    sites = (FeatureSite("a", "", (None, kept, None, None)), FeatureSite("b", "", (None, None, None, None)))
    same = small.detach().clone().requires_grad_()

    loss = feature_loss(sites, {"a": small, "b": 2 * small}, {"a": dense, "b": dense[:, :4]})
    loss.backward()

    pairs = [(same.double(), dense.double()[:, kept]), (2 * same.double(), dense.double()[:, :4])]
    wanted = torch.stack([(a - b).square().sum() / b.square().sum() for a, b in pairs]).mean()
    wanted.backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 1e-2)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert small.grad.dtype == dtype
    assert abs(float(loss.detach() / wanted.detach()) - 1) < tolerance
    assert float((small.grad - same.grad).norm() / same.grad.norm()) < tolerance


def test_features_that_are_selected_stay_in_their_memory_order():
    x = torch.arange(2 * 6 * 3 * 4.0).view(2, 6, 3, 4)
    site = FeatureSite("a", "", (None, torch.tensor([1, 4]), torch.tensor([0, 2]), None))
    for order in (torch.contiguous_format, torch.channels_last):
        found = site.select(x.to(memory_format=order))

        assert torch.equal(found, x[:, [1, 4]][:, :, [0, 2]])
        assert found.is_contiguous(memory_format=order)


def test_hooks_are_gone_after_the_call_even_where_it_fails():
    model = BlockNet()
    with pytest.raises(RuntimeError):
        FeatureReader(model, [FeatureSite("blocks.0", "", (None,) * 4)])(ModelCall.of(torch.zeros(1)))
    assert not any(module._forward_hooks for module in model.modules())


def learned(tmp_path, **changes):
    """Metrics of a short run on the small network of blocks."""
    torch.manual_seed(0)
    model = BlockNet()
    flow = l0prune.trace(model, (torch.randn(2, 3, 6, 6),))
    teacher = changes.pop("teacher", None)
    l0prune.finetune(
        l0prune.inject(model, flow),
        SmallBatches(),
        loss=F.cross_entropy,
        budget=BUDGET,
        config=replace(QUICK, **changes),
        teacher=copy.deepcopy(model) if teacher == "another" else teacher,
        out=tmp_path,
    )
    return read_metrics(tmp_path / "metrics.jsonl")


def test_the_recovery_is_taught_by_features_and_pulls_them_towards_the_dense_network(tmp_path):
    lines = learned(tmp_path / "taught", feature_distillation=10.0)
    untaught = learned(tmp_path / "untaught", feature_distillation=0.0)

    assert {line["phase"] for line in lines if "feature_loss" in line} == {"recovery"}
    assert all("feature_loss" in line for line in lines if line["phase"] == "recovery" and line["step"] > 22)
    assert not any("feature_loss" in line for line in untaught)
    last = lines[-1]
    share = QUICK.distillation
    expected = (1 - share) * last["task_loss"] + share * last["distillation_loss"] + 10.0 * last["feature_loss"]
    assert last["loss"] == pytest.approx(expected, rel=1e-5)
    hints = [line["feature_loss"] for line in lines if "feature_loss" in line]
    assert hints[-1] < hints[0]


@pytest.mark.parametrize("changes", [{"teacher": "another"}, {"distillation": 0.0}])
def test_only_the_dense_network_itself_teaches_features(tmp_path, changes):
    assert not any("feature_loss" in line for line in learned(tmp_path, **changes))
