"""Averages of a gated model that other libraries take: of parameters, of buffers, of state dicts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import l0prune

BUDGET = l0prune.Budget("macs", 0.5)
DECAY = 0.8


class OfParameters:
    """An average as it is often written, of what `parameters()` yields."""

    def __init__(self, model):
        self.module = copy.deepcopy(model)

    @torch.no_grad()
    def update(self, model):
        for average, present in zip(self.module.parameters(), model.parameters(), strict=True):
            average.data.lerp_(present.data, 1 - DECAY)


class OfStateDict(OfParameters):
    @torch.no_grad()
    def update(self, model):
        for average, present in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            average.copy_(DECAY * average + (1 - DECAY) * present)


def torchs(**options):
    def average(model):
        averaged = AveragedModel(model, **options)
        averaged.update = averaged.update_parameters
        return averaged

    return average


def timms(name, **options):
    return lambda model: getattr(pytest.importorskip("timm.utils"), name)(model, DECAY, **options)


AVERAGED_GATES = {
    "torch, buffers, ema": torchs(multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True),
    "torch, buffers, one by one": torchs(avg_fn=get_ema_avg_fn(DECAY), use_buffers=True),
    "torch, buffers, swa": torchs(use_buffers=True),
    "timm v2": timms("ModelEmaV2"),
    "timm v3": timms("ModelEmaV3"),
    "state dict": OfStateDict,
}
LIVE_GATES = {
    "torch, ema": torchs(multi_avg_fn=get_ema_multi_avg_fn(DECAY)),
    "torch, swa": torchs(),
    "timm v3, no buffers": timms("ModelEmaV3", exclude_buffers=True),
}


def gated_net():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    x = torch.randn(24, 6, dtype=torch.float64, generator=generator)
    return l0prune.inject(net.eval(), l0prune.trace(net, x), budget=BUDGET, steps=40).train(), x


def trained_with(make, n_steps=40, after=lambda _step, _gated: None):
    """A gated model after a loop, its average, all locations of its gates on the way, and inputs."""
    gated, x = gated_net()
    average, locations = make(gated), []
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.05)
    for step in range(n_steps):
        (F.cross_entropy(gated(x), torch.arange(24) % 3) + gated.penalty()).backward()
        optimizer.step()
        gated.step()
        optimizer.zero_grad()
        after(step, gated)
        average.update(gated)
        locations.append(gated.gates.log_alpha.detach().clone())
    return gated, average.module, locations, x


def assert_cut_as_averaged(averaged, gated, x):
    averaged.eval()
    compact = l0prune.shrink(averaged, align=1)
    assert sum(p.numel() for p in compact.parameters()) < 0.7 * sum(p.numel() for p in gated.parameters())
    assert averaged.hard_cost() <= 0.5
    torch.testing.assert_close(compact(x), averaged(x), atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", AVERAGED_GATES)
def test_an_average_of_the_buffers_averages_the_gates(kind):
    gated, averaged, locations, x = trained_with(AVERAGED_GATES[kind])

    low = torch.stack(locations).amin(0).clamp_max(gated_net()[0].gates.log_alpha.detach())
    high = torch.stack(locations).amax(0).clamp_min(gated_net()[0].gates.log_alpha.detach())
    found = averaged.gates.log_alpha.detach()
    assert ((found >= low - 1e-4) & (found <= high + 1e-4)).all()
    assert not torch.equal(found, locations[0])
    assert not torch.equal(found, locations[-1])
    if "swa" in kind:
        torch.testing.assert_close(found, torch.stack(locations).mean(0))
    assert_cut_as_averaged(averaged, gated, x)


@pytest.mark.parametrize("kind", LIVE_GATES)
def test_an_average_that_copies_the_buffers_has_the_gates_of_the_model_in_training(kind):
    gated, averaged, _, x = trained_with(LIVE_GATES[kind])

    assert torch.equal(averaged.gates.log_alpha, gated.gates.log_alpha)
    assert not torch.equal(averaged.model[0].weight, gated.model[0].weight)
    assert_cut_as_averaged(averaged, gated, x)


def test_an_average_of_parameters_alone_is_not_cut_by_gates_it_left_behind():
    gated, averaged, _, x = trained_with(OfParameters)

    with pytest.raises(l0prune.L0PruneError, match=r"gates have not.*buffers.*load_state_dict.*freeze"):
        l0prune.shrink(averaged, align=1)

    averaged.gates.load_state_dict(gated.gates.state_dict())
    assert_cut_as_averaged(averaged, gated, x)


def test_a_copy_in_the_middle_of_training_is_cut_by_its_gates():
    gated, _, _, x = trained_with(OfParameters, n_steps=30)

    assert_cut_as_averaged(copy.deepcopy(gated), gated, x)
    assert_cut_as_averaged(copy.deepcopy(gated).to(torch.float32).double(), gated, x)


@pytest.mark.parametrize("kind", ["torch, buffers, ema", "timm v2", "state dict"])
def test_an_average_across_a_freeze_says_to_freeze_it_too(kind):
    values = (torch.arange(64) % 2).float()

    def freeze(step, gated):
        if step == 20:
            gated.freeze(values)

    gated, averaged, _, x = trained_with(AVERAGED_GATES[kind], n_steps=25, after=freeze)
    with pytest.raises(l0prune.L0PruneError, match=r"frozen.*averaged\.freeze"):
        averaged(x)

    averaged.freeze(gated.gate_values())
    assert_cut_as_averaged(averaged, gated, x)


@pytest.mark.parametrize("kind", [*AVERAGED_GATES, *LIVE_GATES])
def test_an_average_of_a_model_with_frozen_gates_has_the_same_gates(kind):
    def frozen(gated):
        gated.freeze((torch.arange(64) % 2).float())
        return (AVERAGED_GATES | LIVE_GATES)[kind](gated)

    gated, averaged, _, x = trained_with(frozen)

    torch.testing.assert_close(averaged.gate_values(), gated.gate_values())
    assert_cut_as_averaged(averaged, gated, x)


def test_no_optimizer_of_a_larger_model_holds_the_gates():
    gated, _ = gated_net()
    system = nn.ModuleDict({"net": gated})

    assert [*system.parameters()] == [*gated.parameters()] == [*gated.model.parameters()]
    assert "net.gates.log_alpha" in system.state_dict()
