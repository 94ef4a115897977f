"""The configuration of a fine-tuning run and the schedule that follows from it."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l0prune.errors import ConfigError
from l0prune.finetuning.config import OPTIMIZERS, FinetuneConfig
from l0prune.finetuning.schedule import GATE, RECOVERY, SETTLE, WARMUP, learning_rate, plan_phases
from l0prune.finetuning.settings import Settings, resolve


def resolved(**options: object) -> Settings:
    """What these options come to under a budget, widths left alone."""
    return resolve(FinetuneConfig(**{"align": 1, **options}), penalised=False)


def test_a_configuration_survives_json():
    config = FinetuneConfig(epochs=2.5, optimizer="adamw", grad_clip=1.0, gate_epochs=1.5, lr_drops=(1.0, 2.0))

    assert FinetuneConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_an_unknown_key_is_an_error_that_names_it_and_the_options():
    with pytest.raises(ConfigError, match=r"no option 'epoch'; options: epochs, "):
        FinetuneConfig.from_json({"epoch": 3})


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("epochs", -1, r"epochs=-1 is out of range: give a value in \[0, inf\)"),
        ("epochs", "six", r"epochs='six': expected float"),
        ("epochs", math.nan, "epochs=nan is out of range"),
        ("warmup_fraction", 1.0, r"in \[0, 1\)"),
        ("gate_fraction", 0.0, r"in \(0, 1\]"),
        ("gate_epochs", -1, "gate_epochs=-1 is out of range"),
        ("optimizer", "lion", "optimizer='lion' is unknown: choose one of sgd, adam, adamw"),
        ("lr", 0.0, r"lr=0.0 is out of range"),
        ("lr", math.inf, "lr=inf is out of range"),
        ("lr_drops", (2.0, 1.0), r"lr_drops=\(2.0, 1.0\): expected epochs after 0 in ascending order"),
        ("lr_drops", (0.0,), "expected epochs after 0"),
        ("lr_drops", (math.nan,), "expected epochs after 0"),
        ("lr_drops", 3.0, r"lr_drops=3.0: expected tuple\[float, ...\]"),
        ("lr_drop_factor", 1.0, r"lr_drop_factor=1.0 is out of range: give a value in \(0, 1\)"),
        ("weight_decay", -1e-4, "weight_decay"),
        ("momentum", 1.0, r"momentum=1.0 is out of range: give a value in \[0, 1\)"),
        ("grad_clip", -1, "grad_clip"),
        ("grad_spike", 0.5, "grad_spike"),
        ("distillation", 1.5, r"distillation=1.5 is out of range: give a value in \[0, 1\]"),
        ("distillation_temperature", 0, "distillation_temperature"),
        ("ema_decay", 1.0, "ema_decay"),
        ("gate_decision", "mean", "choose one of soft, binary"),
        ("gate_floor", 0, "gate_floor"),
        ("align", 0, "align"),
        ("align", "wide", r"align='wide' is out of range: give a value in auto or \[1, inf\)"),
        ("align", 4.0, "align=4.0: expected int"),
        ("seed", -1, "seed"),
        ("mixed_precision", "fp8", "choose one of no, bf16, fp16"),
        ("channels_last", 1, "channels_last=1: expected bool"),
        ("log_every", 0, "log_every"),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_field_value_and_range(field, value, named):
    with pytest.raises(ConfigError, match=named):
        FinetuneConfig(**{field: value})


def test_phases_longer_than_the_run_are_an_error():
    with pytest.raises(ConfigError, match=r"warm-up \(1 epochs\) and gate phase \(3\) are longer than the whole run"):
        FinetuneConfig(epochs=3, warmup_epochs=1, gate_epochs=3)


def test_the_optimizer_brings_its_own_numbers_unless_given():
    config = FinetuneConfig(optimizer="adamw", recovery_lr=0.5, align=1)

    settings = resolve(config, penalised=False)

    assert config.lr is None
    assert settings.lr == OPTIMIZERS["adamw"]["lr"]
    assert settings.recovery_lr == 0.5
    assert settings.weight_decay == OPTIMIZERS["adamw"]["weight_decay"]


@pytest.mark.parametrize("penalised", [False, True])
@given(
    options=st.fixed_dictionaries(
        {"align": st.just(4)},
        optional={
            "epochs": st.floats(3, 50),
            "warmup_fraction": st.floats(0, 0.3),
            "gate_fraction": st.floats(0.1, 0.6),
            "settle_fraction": st.floats(0, 0.9),
            "warmup_epochs": st.floats(0, 1),
            "optimizer": st.sampled_from(sorted(OPTIMIZERS)),
            "lr": st.floats(1e-5, 1),
            "gate_decision": st.sampled_from(["soft", "binary"]),
        },
    )
)
def test_what_options_come_to_is_written_out_and_comes_to_itself(penalised, options):
    settings = resolve(FinetuneConfig(**options), penalised=penalised)

    left_open = {name for name, value in vars(settings).items() if value is None}
    one_schedule = set() if penalised else {"recovery_lr", "gate_lr_end"}
    assert left_open == {"gate_fraction", "gate_lr", "ema_decay", "batches_per_epoch"} | one_schedule
    assert sum(settings.phase_epochs) == pytest.approx(settings.epochs)
    assert resolve(settings, penalised=penalised) == settings
    assert (
        resolve(FinetuneConfig.from_json(json.loads(json.dumps(settings.to_json()))), penalised=penalised) == settings
    )


def test_open_gates_become_1_under_a_budget_and_keep_their_values_under_a_penalty():
    assert resolve(FinetuneConfig(), penalised=False).gate_decision == "binary"
    assert resolve(FinetuneConfig(), penalised=True).gate_decision == "soft"
    assert resolve(FinetuneConfig(gate_decision="soft"), penalised=False).gate_decision == "soft"


def test_explicit_epochs_override_fractions():
    config = FinetuneConfig(
        epochs=10, warmup_fraction=0.5, gate_fraction=0.5, warmup_epochs=1, gate_epochs=2.5, settle_epochs=0.8
    )

    assert resolve(config, penalised=False).phase_epochs == pytest.approx((1, 2.5, 0.8, 5.7))


@given(
    epochs=st.floats(1, 50),
    warmup=st.floats(0, 0.4),
    gate=st.floats(0.1, 0.6),
    settle=st.floats(0, 0.9),
    steps_per_epoch=st.integers(20, 500),
)
def test_phases_follow_each_other_and_fill_the_run(epochs, warmup, gate, settle, steps_per_epoch):
    config = resolved(epochs=epochs, warmup_fraction=warmup, gate_fraction=gate, settle_fraction=settle)

    phases = plan_phases(config, steps_per_epoch)

    assert phases.total == round(epochs * steps_per_epoch)
    assert phases.gate >= 1
    assert phases.recovery >= phases.settle
    names = [phases.name_at(step) for step in range(phases.total)]
    expected = [WARMUP] * phases.warmup + [GATE] * phases.gate
    expected += [SETTLE] * phases.settle + [RECOVERY] * phases.recovery
    assert names == expected
    for name in set(names):
        first, length = phases.extent(name)
        assert names[first : first + length] == [name] * length


def test_a_gate_phase_without_a_step_is_an_error():
    with pytest.raises(ConfigError, match=r"gate phase .* has no step: raise epochs"):
        plan_phases(resolved(epochs=0.1), 2)


@given(steps=st.integers(1, 400), ramp=st.floats(0, 0.9), end=st.floats(0, 1), peak=st.floats(1e-5, 10))
def test_the_learning_rate_rises_to_its_peak_once_and_falls_to_its_end(steps, ramp, end, peak):
    rates = [learning_rate(step, steps, peak=peak, ramp=ramp, end=end) for step in range(steps)]

    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(peak)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in zip(rates[top:], rates[top + 1 :]))
    assert all(rate >= end * peak * (1 - 1e-9) for rate in rates[top:])
    assert all(rate > 0 for rate in rates)


def test_each_side_of_the_freeze_has_its_own_peak():
    config = resolved(epochs=4, gate_fraction=0.5, lr=0.1, recovery_lr=0.3, lr_ramp=0.1)
    phases = plan_phases(config, 100)

    rates = [phases.learning_rate(step, config) for step in range(phases.total)]

    assert max(rates[: phases.freeze_at]) == pytest.approx(0.1)
    assert max(rates[phases.freeze_at :]) == pytest.approx(0.3)
    assert rates[phases.freeze_at - 1] < 1e-4
    assert rates[-1] < 1e-4


def test_the_learning_rate_falls_in_steps_to_the_freeze_and_then_as_ever():
    config = resolved(epochs=6, gate_epochs=4, lr=1.0, recovery_lr=0.5, lr_drops=(1.0, 2.5), lr_drop_factor=0.1)
    phases = plan_phases(config, 10)

    rates = [phases.learning_rate(step, config) for step in range(phases.total)]

    assert rates[:40] == pytest.approx([1.0] * 10 + [0.1] * 15 + [0.01] * 15)
    as_ever = resolved(epochs=6, gate_epochs=4, lr=1.0, recovery_lr=0.5)
    assert rates[40:] == [phases.learning_rate(step, as_ever) for step in range(40, 60)]


@pytest.mark.parametrize(("n_steps", "gate_steps"), [(10, 1), (100, 5), (400, 20), (800, 28), (40000, 200)])
def test_placing_gates_by_evidence_takes_a_share_of_a_run_that_falls_with_its_length(n_steps, gate_steps):
    config = FinetuneConfig(epochs=n_steps / 50, align=1)

    settings = resolve(config, penalised=False, steps_per_epoch=50)

    assert plan_phases(settings, 50).gate == gate_steps
    assert resolve(
        replace(config, gate_fraction=0.3), penalised=False, steps_per_epoch=50
    ).gate_epochs == pytest.approx(0.3 * config.epochs)


@pytest.mark.parametrize(("n_steps", "rate"), [(7000, 0.03), (700, 0.03), (100, 0.03 * 7**-0.2), (1, 0.03 * 700**-0.2)])
def test_short_runs_have_a_lower_rate_of_sgd(n_steps, rate):
    config = FinetuneConfig(epochs=n_steps / 50, align=1)

    assert resolve(config, penalised=False, steps_per_epoch=50).lr == pytest.approx(rate)
    assert resolve(replace(config, lr=0.5), penalised=False, steps_per_epoch=50).lr == 0.5
    adamw = replace(config, optimizer="adamw")
    assert resolve(adamw, penalised=False, steps_per_epoch=50).lr == OPTIMIZERS["adamw"]["lr"]
    assert resolve(config, penalised=True, steps_per_epoch=50).lr == OPTIMIZERS["sgd"]["lr"]
