"""Criteria in the place of trained gates: the same selection, surgery and recovery, at once or one unit after another."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from finetuning_case import BUDGET, QUICK, SmallBatches, Stopping, accuracy, assert_same_state, gated_net, run, untimed

import l0prune
from l0prune.criteria import registry
from l0prune.criteria.criterion import Criterion
from l0prune.criteria.registry import criterion_names
from l0prune.errors import ConfigError
from l0prune.finetuning.config import FinetuneConfig

AT_ONCE = FinetuneConfig(epochs=2, log_every=3, align=1, recovery_lr=0.05)


def by(name, **options):
    return replace(AT_ONCE, method=name, **options)


@pytest.mark.parametrize("name", criterion_names())
def test_every_criterion_meets_the_budget_by_a_cut_that_is_exact(name):
    double = gated_net().double()
    batches = [(inputs.double(), targets) for inputs, targets in SmallBatches()]

    result = run(double, batches, config=by(name, epochs=1), evaluate=accuracy_in_double)

    assert result.hard_cost <= BUDGET.keep
    assert result.hard_cost > BUDGET.keep - 0.05
    assert result.method == name
    assert [milestone.when for milestone in result.history] == ["freeze", "end"]
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(result.compact(x), result.gated(x), atol=1e-10, rtol=0)
    assert sum(p.numel() for p in result.compact.parameters()) < sum(p.numel() for p in result.gated.parameters())


def accuracy_in_double(model):
    batches = SmallBatches(2, 32)
    right = [(model(inputs.double()).argmax(1) == targets).float().mean() for inputs, targets in batches]
    return float(torch.stack(right).mean())


@pytest.mark.parametrize("gate_epochs", [None, 0.5])
@pytest.mark.parametrize("name", ["magnitude", "fisher", "random"])
def test_the_same_seed_gives_the_same_network(name, gate_epochs):
    first, again = (run(config=by(name, gate_epochs=gate_epochs)) for _ in range(2))

    assert_same_state(again.compact.state_dict(), first.compact.state_dict())


def test_other_seeds_draw_other_units():
    first, other = (run(config=by("random", epochs=0.2, seed=seed)) for seed in (0, 1))

    assert not torch.equal(first.gated.gate_values(), other.gated.gate_values())


@pytest.mark.parametrize("before_step", [9, 20])
@pytest.mark.parametrize("name", ["magnitude", "taylor", "tp-hessian"])
def test_a_gradual_cut_that_is_resumed_ends_as_it_would_have(tmp_path, name, before_step):
    config = by(name, epochs=5, warmup_epochs=0.5, gate_epochs=2)
    whole = run(config=config, out=tmp_path / "whole", evaluate=accuracy)

    with pytest.raises(KeyboardInterrupt):
        run(batches=Stopping(before_step), config=config, out=tmp_path / "run", evaluate=accuracy)
    resumed = run(config=config, out=tmp_path / "run", resume=True, evaluate=accuracy)

    assert_same_state(resumed.compact.state_dict(), whole.compact.state_dict())
    assert untimed(tmp_path / "run" / "metrics.jsonl") == untimed(tmp_path / "whole" / "metrics.jsonl")
    assert resumed.history == whole.history


def test_units_close_one_after_another_within_the_gate_epochs(tmp_path):
    run(config=by("magnitude", epochs=5, gate_epochs=3, log_every=1), out=tmp_path)

    lines = untimed(tmp_path / "metrics.jsonl")
    closing = [line["hard_cost"] for line in lines if line["phase"] == "settle"]
    assert {line["phase"] for line in lines} == {"settle", "recovery"}
    assert {line["method"] for line in lines} == {"magnitude"}
    assert {line["target"] for line in lines} == {BUDGET.keep}
    assert len(closing) == 18
    assert closing[0] == 1
    assert closing == sorted(closing, reverse=True)
    assert len(set(closing)) > 5
    assert closing[-1] <= BUDGET.keep


def test_a_network_whose_weights_are_frozen_is_cut_and_left_at_that():
    for name in ("taylor", "tp-group-taylor"):
        gated = gated_net()
        gated.model.requires_grad_(False)

        result = run(gated, config=by(name))

        assert result.steps == 0
        assert result.hard_cost <= BUDGET.keep
        assert not any(parameter.requires_grad for parameter in result.compact.parameters())


@pytest.mark.parametrize("before_step", [8, 14])
@pytest.mark.parametrize("name", ["magnitude", "fisher"])
def test_gates_that_start_from_ranks_are_placed_once_also_in_a_run_that_is_resumed(tmp_path, name, before_step):
    config = replace(QUICK, gate_start=name)
    whole = run(config=config, out=tmp_path / "whole", evaluate=accuracy)

    with pytest.raises(KeyboardInterrupt):
        run(batches=Stopping(before_step), config=config, out=tmp_path / "run", evaluate=accuracy)
    resumed = run(config=config, out=tmp_path / "run", resume=True, evaluate=accuracy)

    assert_same_state(resumed.compact.state_dict(), whole.compact.state_dict())
    assert_same_state(resumed.gated.gates.state_dict(), whole.gated.gates.state_dict())
    assert untimed(tmp_path / "run" / "metrics.jsonl") == untimed(tmp_path / "whole" / "metrics.jsonl")


class EverySecond(Criterion):
    """Units with an odd number are worth nothing."""

    name = "every-second"

    def scores(self, gated, evidence):
        return 1.0 - torch.arange(gated.n_gates) % 2


@pytest.fixture
def every_second():
    registry.register(EverySecond())
    yield
    del registry._registered["every-second"]


@pytest.mark.usefixtures("every_second")
def test_a_criterion_of_ones_own_is_known_by_its_name():
    result = run(config=by("every-second"), budget=l0prune.Budget("macs", 0.4))

    is_open, flow = result.gated.gate_values() != 0, result.gated.flow
    even = torch.arange(len(is_open)) % 2 == 0
    for width in range(flow.gate_group.max() + 1):
        members = torch.from_numpy(flow.gate_group == width)
        assert is_open[members & even].all() or not is_open[members & ~even].any()
    assert is_open.any()
    assert not is_open.all()


@pytest.mark.usefixtures("every_second")
def test_gates_can_start_where_a_criterion_of_ones_own_ranks_them():
    result = run(config=replace(QUICK, gate_start="every-second", gate_lr=1e-6))

    is_open = result.gated.gate_values() != 0
    assert is_open[::2].sum() > is_open[1::2].sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wisdom"}, r"method='wisdom' is unknown: choose one of gates, bn-scale, .*magnitude"),
        ({"gate_start": "wide"}, r"gate_start='wide' is unknown: choose one of open, bn-scale"),
        ({"method": "taylor", "gate_lr": 0.1}, "method=taylor trains no gates, so gate_lr has no effect"),
        ({"method": "taylor", "gate_start": "fisher"}, "trains no gates, so gate_start has no effect"),
        ({"method": "taylor", "settle_epochs": 1.0}, "close within gate_epochs"),
        ({"method": "taylor", "epochs": 1, "gate_epochs": 1.5}, "longer than the whole run"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig(**options)


def test_a_criterion_needs_a_budget():
    with pytest.raises(ConfigError, match="method=magnitude closes as many units as a budget asks for"):
        run(config=by("magnitude"), budget=None, penalty=l0prune.Penalty(0.1))


def test_a_criterion_that_looks_at_data_needs_some():
    with pytest.raises(ConfigError, match="'fisher' looks at examples in evaluation mode, and salience_batches=0"):
        run(config=by("fisher", salience_batches=0))


def test_gates_that_were_placed_are_not_placed_again():
    net = gated_net().model
    gated = l0prune.inject(net, l0prune.trace(net, torch.randn(2, 3, 6, 6)), droprate=0.3)

    with pytest.raises(ConfigError, match="gate_start=magnitude places the gates, which have been placed already"):
        run(gated, config=replace(QUICK, gate_start="magnitude"))


def test_what_is_registered_must_be_a_criterion_with_a_name_of_its_own():
    with pytest.raises(ConfigError, match="criterion is the class EverySecond"):
        registry.register(EverySecond)
    taken = type("Taken", (EverySecond,), {"name": "magnitude"})()
    with pytest.raises(ConfigError, match="the name 'magnitude' is taken"):
        registry.register(taken)


def test_without_a_difference_between_units_there_is_nothing_to_choose_by():
    with pytest.raises(ConfigError, match="'taylor' finds no difference between the units"):
        run(loss=lambda outputs, targets: F.mse_loss(outputs, outputs.detach()), config=by("taylor"))
