"""A training loop of the user's own, and `shrink` at its end: the budget filled, the widths, and `gated` afterwards."""

import copy

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, difference, n_parameters, ready
from torch import nn

import l0prune
from l0prune.errors import BudgetInfeasibleError, ConfigError, EquivalenceError, L0PruneWarning
from l0prune.gated.decision import REOPENED
from l0prune.surgery.shrink import absorb_, surgery_of

STEPS = 20
LAYERS = ("0.0", "1.0", "2.0")  # conv layers whose widths are free


def conv_net() -> nn.Module:
    """Three convolutions with batch norm, every tensor random."""
    return ready(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
            nn.Sequential(nn.Conv2d(24, 40, 3, padding=1), nn.BatchNorm2d(40), nn.ReLU()),
            nn.Sequential(nn.Conv2d(40, 32, 1), nn.BatchNorm2d(32), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 4),
        )
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 6, 6, generator=generator).double(), torch.randint(0, 4, (8,), generator=generator)


def train(gated: l0prune.GatedModel, steps: int = STEPS) -> l0prune.GatedModel:
    """The loop of the README."""
    x, y = data()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    gated.train()
    for _ in range(steps):
        loss = F.cross_entropy(gated(x), y) + gated.penalty()
        loss.backward()
        optimizer.step()
        gated.step()
        optimizer.zero_grad()
    return gated


def injected(model: nn.Module | None = None, **options) -> l0prune.GatedModel:
    model = conv_net() if model is None else model
    goal = options or {"budget": l0prune.Budget("macs", 0.5)}
    return l0prune.inject(model, l0prune.trace(model, data()[0][:2]), steps=STEPS, **goal)


def half_trained() -> l0prune.GatedModel:
    """A gated net whose gates are far apart: training left all but a few of them open."""
    gated = injected()
    generator = torch.Generator().manual_seed(3)
    locations = 2 + 2 * torch.randn(gated.n_gates, generator=generator)
    gated.gates.log_alpha.data.copy_(locations.clamp(-8, 8))
    return gated.eval()


def widths(compact: nn.Module) -> list[int]:
    return [compact.get_submodule(name).out_channels for name in LAYERS]


@pytest.mark.parametrize(("metric", "keep"), [("macs", 0.5), ("macs", 0.2), ("params", 0.5), ("params", 0.3)])
def test_the_four_lines_end_with_a_gated_model_that_computes_what_the_compact_one_does(metric, keep):
    gated = train(injected(budget=l0prune.Budget(metric, keep)))

    compact = l0prune.shrink(gated)

    x = data()[0]
    assert difference(compact(x), gated(x)) < EXACT
    assert difference(compact(x), compact(x.flip(0))) > 1e4 * EXACT
    assert keep - 0.01 < gated.hard_cost() <= keep
    cost = n_parameters(compact) if metric == "params" else l0prune.trace(compact, x[:2]).dense_cost("macs")
    assert cost == pytest.approx(gated.hard_cost() * gated.flow.dense_cost(metric), rel=1e-9)
    assert gated.frozen
    assert not gated.training
    assert not compact.training


@pytest.mark.parametrize("closed", [0.1, 0.9])
def test_the_whole_budget_is_filled_whether_training_closed_too_few_gates_or_too_many(closed):
    gated = half_trained()
    scores = gated.gates.log_alpha
    scores.data += 0.01 - scores.quantile(closed)
    before = gated.hard_cost()

    l0prune.shrink(gated, align=None)

    assert not 0.49 < before <= 0.5
    assert 0.49 < gated.hard_cost() <= 0.5
    kept = gated.gate_values()
    gated.unfreeze()
    trained = gated.gate_values()
    both = (kept != 0) & (trained != 0)
    assert torch.equal(kept[both], trained[both])
    assert torch.equal(kept[(kept != 0) & ~both], torch.full_like(kept, REOPENED)[(kept != 0) & ~both])


def test_widths_are_what_the_machine_likes_unless_told_otherwise(monkeypatch):
    asked = []

    def resolve(align):
        asked.append(align)
        return 8 if align == "auto" else int(align or 1)

    monkeypatch.setattr("l0prune.gated.decision.resolve_alignment", resolve)

    aligned = widths(l0prune.shrink(half_trained()))
    free = widths(l0prune.shrink(half_trained(), align=None))

    assert asked == ["auto", None]
    assert sum(width % 8 != 0 for width in aligned) <= 1  # one may be odd, to fill the budget
    assert sum(width % 8 != 0 for width in free) > 1
    assert free == widths(l0prune.shrink(half_trained(), align=1))


def test_what_the_user_froze_is_cut_as_it_is_with_a_warning_where_it_costs_too_much():
    gated = half_trained()
    values = torch.full((gated.n_gates,), 0.5)
    values[::7] = 0
    gated.freeze(values)

    with pytest.warns(
        L0PruneWarning, match=r"cost 0\.\d+ of the dense MACs, over the budget macs=0.5: unfreeze\(\) lets"
    ):
        compact = l0prune.shrink(gated)

    assert torch.equal(gated.gate_values(), values)
    assert gated.hard_cost() > 0.5
    assert difference(compact(data()[0]), gated(data()[0])) < EXACT


def test_frozen_gates_are_rounded_where_a_number_is_given():
    gated = half_trained()
    gated.set_budget(None, None)
    values = torch.full((gated.n_gates,), 0.5)
    values[::7] = 0
    gated.freeze(values)

    compact = l0prune.shrink(gated, align=8)

    assert all(width % 8 == 0 for width in widths(compact))
    assert torch.equal(gated.gate_values()[values != 0], values[values != 0])
    assert int((gated.gate_values() == REOPENED).sum()) == sum(widths(compact)) - int((values != 0).sum()) > 0
    assert difference(compact(data()[0]), gated(data()[0])) < EXACT


@pytest.mark.parametrize("goal", ["penalty", "nothing"])
def test_without_a_budget_exactly_what_training_closed_is_cut(goal):
    gated = half_trained()
    gated.set_budget(None, None)
    if goal == "penalty":
        gated.set_penalty(l0prune.Penalty(0.1, n_samples=8), STEPS)
    trained = gated.gate_values()

    compact = l0prune.shrink(gated)

    assert torch.equal(gated.gate_values(), trained)
    assert 0 < int((trained == 0).sum()) < gated.n_gates
    assert difference(compact(data()[0]), gated(data()[0])) < EXACT


def test_a_number_rounds_widths_without_a_budget_too():
    gated = half_trained()
    gated.set_budget(None, None)
    n_open = int((gated.gate_values() != 0).sum())

    compact = l0prune.shrink(gated, align=8)

    assert all(width % 8 == 0 for width in widths(compact))
    assert int((gated.gate_values() != 0).sum()) > n_open
    assert difference(compact(data()[0]), gated(data()[0])) < EXACT


def test_shrinking_again_makes_the_same_cut():
    gated = train(injected())
    once = l0prune.shrink(gated, align=4)

    again = l0prune.shrink(gated)

    assert torch.equal(once(data()[0]), again(data()[0]))


def test_training_goes_on_where_it_was_after_a_look_in_the_middle_of_it():
    looked, undisturbed = injected(), injected()
    for gated in (looked, undisturbed):
        train(gated, STEPS // 2)

    l0prune.shrink(looked, align=4)
    looked.unfreeze()
    for gated in (looked, undisturbed):
        train(gated, STEPS // 2)

    assert torch.equal(looked.gates.log_alpha, undisturbed.gates.log_alpha)
    assert looked.constraints["macs"].multiplier == undisturbed.constraints["macs"].multiplier
    x = data()[0]
    assert difference(l0prune.shrink(looked, align=4)(x), l0prune.shrink(undisturbed, align=4)(x)) == 0


def test_a_look_at_a_copy_leaves_the_gated_model_alone():
    gated = train(injected(), STEPS // 2)
    cost = gated.hard_cost()
    twin = copy.deepcopy(gated)

    compact = l0prune.shrink(twin, align=None)

    assert (gated.frozen, gated.training, gated.hard_cost()) == (False, True, cost)
    assert twin.hard_cost() <= 0.5 < cost
    assert difference(compact(data()[0]), twin(data()[0])) < EXACT


def test_the_frozen_network_can_be_trained_further_on_either_side():
    gated = train(injected())
    compact = l0prune.shrink(gated, align=4)
    x, y = data()
    optimizer = torch.optim.SGD(compact.parameters(), lr=0.05)
    F.cross_entropy(compact.train()(x), y).backward()
    optimizer.step()
    before = gated(x)

    absorb_(gated, compact.eval())

    assert difference(gated(x), before) > 1e-3
    assert difference(gated(x), compact(x)) < EXACT
    train(gated, 3)  # gates that are frozen stay: there is no penalty, and nothing to step
    assert difference(l0prune.shrink(gated)(x), gated(x)) < EXACT


def test_a_compact_network_is_pruned_again_and_carries_its_own_record():
    first = l0prune.shrink(train(injected()), align=None)
    gated = train(injected(first))

    second = l0prune.shrink(gated, align=None)

    assert difference(second(data()[0]), gated(data()[0])) < EXACT
    assert n_parameters(second) < n_parameters(first)
    assert second.surgery is surgery_of(second)
    assert second.surgery is not first.surgery


def test_where_the_cut_fails_the_gated_model_is_as_it_was(monkeypatch):
    gated = train(injected())
    state = copy.deepcopy(gated.state_dict())
    monkeypatch.setattr("l0prune.surgery.plan.SurgeryPlan.fold", lambda self, name, tensor: tensor)

    with pytest.raises(EquivalenceError):
        l0prune.shrink(gated)
    with pytest.raises(ConfigError, match="align='wide': expected"):
        l0prune.shrink(gated, align="wide")

    assert gated.training
    assert not gated.frozen
    assert all(torch.equal(gated.state_dict()[name], tensor) for name, tensor in state.items())


def test_costs_may_be_looked_at_in_inference_mode_before_training():
    gated = injected()
    with torch.inference_mode():
        looked = float(gated.expected_cost())

    train(gated)

    assert float(gated.expected_cost().detach()) < looked


def test_the_record_of_the_surgery_is_at_hand():
    gated = half_trained()

    record = l0prune.shrink(gated).surgery

    assert torch.equal(torch.from_numpy(record.values).float(), gated.gate_values())
    assert record.difference.max_rel < EXACT
    assert record.example_args[0].shape == (2, 3, 6, 6)
    assert record.plan.tensors


class Operated(nn.Module):
    """Has a layer of the name under which compact models show their record."""

    def __init__(self) -> None:
        super().__init__()
        self.surgery, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.surgery(x).relu())


def test_a_layer_called_surgery_stays():
    net = ready(Operated())
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gated = l0prune.inject(net, l0prune.trace(net, x))
    gated.freeze(torch.tensor([0.5] * 5 + [0.0] * 3))

    compact = l0prune.shrink(gated)

    assert compact.surgery.out_features == 5
    assert surgery_of(compact).values.sum() == 2.5
    assert difference(compact(x), gated(x)) < EXACT


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_a_budget_that_nothing_meets_is_refused_before_the_first_step(metric):
    model = conv_net()
    flow = l0prune.trace(model, data()[0][:2], ignore=["0.0"])
    gated = l0prune.inject(model, flow, budget=l0prune.Budget(metric, 0.5), steps=STEPS)

    with pytest.raises(
        BudgetInfeasibleError, match=rf"{metric}=0.001 cannot be met.*is left \(.*Ask for {metric}="
    ) as said:
        gated.set_budget(l0prune.Budget(metric, 0.001), STEPS)

    assert str(gated.goal) == f"{metric}=0.5"
    least = float(str(said.value).rsplit(f"Ask for {metric}=", 1)[1].split(" ")[0])
    with pytest.raises(BudgetInfeasibleError):
        l0prune.inject(model, flow, budget=l0prune.Budget(metric, least * 0.99), steps=STEPS)
    met = l0prune.inject(model, flow, budget=l0prune.Budget(metric, least), steps=STEPS)
    l0prune.shrink(met, align=None)
    assert met.hard_cost() <= least


def test_a_budget_for_a_network_without_gates_is_refused_at_once_unless_it_asks_for_nothing():
    model = nn.Linear(3, 2).double()
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flow = l0prune.trace(model, x)

    with pytest.raises(BudgetInfeasibleError, match="1 of the dense MACs is left"):
        l0prune.inject(model, flow, budget=l0prune.Budget("macs", 0.9), steps=STEPS)
    gated = l0prune.inject(model, flow, budget=l0prune.Budget("macs", 1.0), steps=STEPS)

    assert torch.equal(l0prune.shrink(gated)(x), model(x))
