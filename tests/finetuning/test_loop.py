"""A whole fine-tuning run on a small network: phases, budget, teacher, inputs, what it leaves alone."""

import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from finetuning_case import BUDGET, QUICK, SmallBatches, SmallNet, accuracy, dense_net, gated_net, run, state
from torch import nn

import l0prune
from l0prune.finetuning.freezing import decided_values, recalibrate_
from l0prune.finetuning.metrics import read_metrics
from l0prune.finetuning.passes import share, steps
from l0prune.finetuning.results import FinetuneResult
from l0prune.gated.decision import choose_open
from l0prune.goals.budget import Budgets
from l0prune.model_call import ModelCall
from l0prune.tasks.provided.classification import Classification


class Recorder:
    """A progress that remembers."""

    def __init__(self):
        self.phases, self.done, self.messages = [], {}, []

    def start(self, phase, total):
        self.phases.append((phase, total))
        self.done[phase] = 0

    def advance(self, steps, figures):
        self.done[self.phases[-1][0]] += steps

    def finish(self):
        pass

    def message(self, text):
        self.messages.append(text)


def test_a_run_meets_its_budget_and_keeps_what_the_network_can():
    result = run(evaluate=accuracy)

    assert result.budget_met
    assert BUDGET.keep - 0.06 < result.hard_cost <= BUDGET.keep
    assert 0 < result.n_open < result.gated.n_gates
    assert result.evaluation["accuracy"] > 0.9
    assert [milestone.when for milestone in result.history] == [
        *("gate", "gate", "settle", "freeze", "recovery", "end"),
    ]


def test_the_gated_model_computes_what_the_compact_one_does():
    result = run()
    x = torch.randn(8, 3, 6, 6)

    torch.testing.assert_close(result.gated.eval()(x), result.compact(x), atol=1e-5, rtol=1e-5)
    assert result.gated.frozen
    assert sum(p.numel() for p in result.compact.parameters()) < sum(p.numel() for p in result.gated.parameters())
    assert not result.compact.training


def test_shrinking_the_result_gives_the_recovered_network_again():
    result = run()

    again = l0prune.shrink(result.gated)

    x = torch.randn(8, 3, 6, 6)
    torch.testing.assert_close(again(x), result.compact(x), atol=1e-5, rtol=1e-5)


def test_progress_counts_every_step_of_every_phase(tmp_path):
    progress = Recorder()

    run(progress=progress, out=tmp_path)

    assert progress.phases == [("warmup", 3), ("gate", 12), ("settle", 6), ("recovery", 9)]
    assert progress.done == dict(progress.phases)
    assert any("gates stay open" in text for text in progress.messages)


class ShortWayInside(SmallNet):
    """With two convolutions that a way leads around, and that add nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = x + self.down(F.relu(self.up(x)))
        return self.linear(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


@pytest.mark.parametrize("depth", [False, True])
def test_a_branch_that_is_gone_is_named_whether_it_could_close_as_a_whole_or_not(depth):
    torch.manual_seed(0)
    model, progress = ShortWayInside(), Recorder()
    flow = l0prune.trace(model, torch.randn(2, 3, 6, 6))
    (branch,) = flow.branches
    gated = l0prune.inject(model, flow, depth=depth)
    config = replace(QUICK, epochs=1, warmup_epochs=0, settle_epochs=0, gate_epochs=0.5, depth=depth)

    result = l0prune.finetune(
        gated,
        SmallBatches(),
        task="classification",
        budget=l0prune.Budget("macs", 0.2),
        config=config,
        progress=progress,
    )

    gone = not bool((result.gated.gate_values()[torch.from_numpy(branch.gates)] != 0).any())
    (said,) = [text for text in progress.messages if "stay open" in text]
    assert gone == (f"1 branch gone: {branch.name}" in said)
    assert gone


def test_gates_are_open_in_the_warm_up_and_fixed_in_the_recovery(tmp_path):
    run(out=tmp_path)

    lines = read_metrics(tmp_path / "metrics.jsonl")
    by_phase = {phase: [line for line in lines if line["phase"] == phase] for phase in ("warmup", "gate", "recovery")}
    assert [line["expected_cost"] for line in by_phase["warmup"]] == pytest.approx([1.0, 1.0])
    assert len({line["expected_cost"] for line in by_phase["gate"]}) == len(by_phase["gate"])
    assert len({(line["expected_cost"], line["hard_cost"]) for line in by_phase["recovery"]}) == 1
    assert [line["step"] for line in lines] == [1, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert lines[-1]["epoch"] == 5
    for line in lines:
        assert ("open_histogram" in line) == ("layer_histograms" in line) == (line["phase"] in ("warmup", "gate"))
    assert len(lines[0]["open_histogram"]) == len(lines[0]["sample_histogram"]) == 20
    assert sum(map(sum, lines[0]["layer_sample_histograms"].values())) == sum(lines[0]["sample_histogram"])
    assert sum(map(sum, lines[0]["layer_histograms"].values())) == sum(lines[0]["open_histogram"])
    assert lines[2]["multiplier"] >= 0


def test_every_line_has_both_costs(tmp_path):
    result = run(out=tmp_path)

    lines = read_metrics(tmp_path / "metrics.jsonl")
    for line in lines:
        assert line["expected_macs"] == line["expected_cost"]  # the budget's metric
        assert line["hard_macs"] == line["hard_cost"]
        assert 0 < line["expected_params"] <= 1
    assert lines[-1]["expected_macs"] == pytest.approx(result.gated.hard_cost("macs"))
    assert lines[-1]["expected_params"] == pytest.approx(result.gated.hard_cost("params"))
    assert lines[-1]["hard_params"] == result.gated.hard_cost("params")


def test_the_time_of_a_step_leaves_out_evaluations(tmp_path):
    pauses = []

    def slow(_model):
        pauses.append(0.1)
        time.sleep(pauses[-1])
        return 0.0

    start = time.perf_counter()
    run(evaluate=slow, out=tmp_path)
    seconds = time.perf_counter() - start

    lines = read_metrics(tmp_path / "metrics.jsonl")
    done = [0, *(line["step"] for line in lines)]
    timed = sum(line["seconds_per_step"] * (b - a) for line, a, b in zip(lines, done, done[1:], strict=False))
    assert 0 < timed < seconds - sum(pauses)
    assert min(line["seconds_per_step"] for line in lines) > 0


def test_recovery_trains_the_small_network_itself():
    seen = []

    def look(model):
        seen.append((type(model), model.conv1.out_channels if isinstance(model, SmallNet) else None))
        return 0.0

    run(evaluate=look)

    gated, cut = seen[0], seen[-2]
    assert gated[0] is l0prune.GatedModel
    assert cut[0] is SmallNet
    assert cut[1] < 8


def test_without_recovery_the_cut_network_is_the_result():
    result = run(
        config=replace(QUICK, epochs=2, warmup_epochs=0, gate_epochs=2, settle_epochs=0, recalibration_batches=4)
    )

    assert result.steps == 12
    assert result.budget_met


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adamw", "lr": 1e-3, "recovery_lr": 1e-3},
        {"mixed_precision": "bf16"},
        {"gate_decision": "binary", "distillation": 0.0},
        {"ema_decay": 0.9, "grad_clip": 1.0},
        {"channels_last": False, "gate_lr": 0.1, "recalibration_batches": 2},
    ],
)
def test_each_option_runs_and_learns(change):
    result = run(config=replace(QUICK, **change), evaluate=accuracy)

    assert result.budget_met
    assert result.evaluation["accuracy"] > 0.8


AS_BEFORE = {"gate_lr": 0.3, "lr": 0.02, "recovery_lr": 0.03}
"""Gates that follow their gradient, and a warm restart after the freeze."""


def sharp_net() -> nn.Module:
    """Trained, without norms, and so sure of itself that the first gradients are hundreds of times the usual."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 24), nn.ReLU(), nn.Linear(24, 4)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batches = SmallBatches(20)
    for epoch in range(6):
        batches.set_epoch(epoch)
        for inputs, targets in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    with torch.no_grad():
        for parameter in model[3].parameters():
            parameter *= 300
    return model


@pytest.mark.parametrize(
    ("changes", "learns"),
    [({}, True), (AS_BEFORE, True), ({**AS_BEFORE, "grad_clip": 0.0, "grad_spike": 0.0}, False)],
)
def test_the_defaults_do_not_ruin_a_network_without_norms(changes, learns):
    model = sharp_net()
    gated = l0prune.inject(model, l0prune.trace(model, (torch.randn(2, 3, 6, 6),)))
    config = l0prune.FinetuneConfig(epochs=4, align=1, **changes)

    result = l0prune.finetune(gated, SmallBatches(20), loss=F.cross_entropy, budget=BUDGET, config=config)

    assert (accuracy(result.compact)["accuracy"] > 0.9) is learns


def test_the_same_seed_gives_the_same_network_and_another_one_another():
    first, second, third = (run(gated_net(seed), config=replace(QUICK, seed=seed)) for seed in (0, 0, 1))

    assert all(
        torch.equal(a, b) for a, b in zip(first.compact.state_dict().values(), second.compact.state_dict().values())
    )
    assert not torch.equal(first.gated.gates.log_alpha, third.gated.gates.log_alpha)


def test_gradients_that_earlier_training_left_are_none_of_the_runs():
    clean, left = gated_net(), gated_net()
    for parameter in left.parameters():
        parameter.grad = torch.ones_like(parameter)
    first, second = run(clean), run(left)

    assert all(
        torch.equal(a, b) for a, b in zip(first.compact.state_dict().values(), second.compact.state_dict().values())
    )


def test_the_callers_random_numbers_are_left_alone():
    gated = gated_net()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    run(gated, config=replace(QUICK, epochs=1, warmup_epochs=0, gate_epochs=0.5, settle_epochs=0))

    assert torch.equal(torch.rand(3), expected)


def test_the_dense_network_teaches_unless_told_otherwise(tmp_path):
    run(out=tmp_path / "taught")
    run(out=tmp_path / "untaught", teacher=False)

    taught, untaught = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("taught", "untaught"))
    assert all(line["distillation_loss"] > 0 for line in taught)
    assert all(line["distillation_loss"] is None for line in untaught)


def test_another_teacher_may_be_given_and_is_not_changed():
    teacher = dense_net().train()
    before = state(teacher)

    result = run(teacher=teacher)

    assert result.budget_met
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


class TwoInputs(nn.Module):
    """Takes a picture and a scale."""

    def __init__(self):
        super().__init__()
        self.net = dense_net()

    def forward(self, x, scale):
        return {"logits": self.net(x * scale)}


@pytest.mark.parametrize("kind", [tuple, dict])
def test_inputs_may_be_a_tuple_or_a_dict(kind):
    def packed(x):
        values = (x, torch.ones(len(x), 1, 1, 1))
        return values if kind is tuple else dict(zip(("x", "scale"), values))

    model = TwoInputs().eval()
    gated = l0prune.inject(model, l0prune.trace(model, packed(torch.randn(2, 3, 6, 6))))
    batches = [(packed(x), y) for x, y in SmallBatches()]

    result = run(gated, batches, loss=lambda outputs, targets: F.cross_entropy(outputs["logits"], targets))

    assert result.budget_met


class Viewing(nn.Module):
    """Works only on contiguous activations."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8 * 36, 4)

    def forward(self, x):
        y = F.relu(self.conv(x))
        return self.linear(y.view(y.shape[0], -1))


def test_a_model_that_needs_contiguous_memory_gets_it():
    model = Viewing().eval()
    gated = l0prune.inject(model, l0prune.trace(model, torch.randn(2, 3, 6, 6)))

    result = run(gated, config=replace(QUICK, channels_last=True))

    assert result.budget_met
    assert all(p.is_contiguous() for p in result.gated.model.parameters())


def test_a_network_of_volumes_is_trained_beside_one_of_pictures():
    """Its filters have five dimensions, which no channels-last order is for."""
    volumes = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(2))
    model = nn.Sequential(nn.Unflatten(1, (1, 3)), volumes, nn.Unflatten(2, (3, 36)), nn.Conv2d(8, 6, 3), nn.Flatten())
    model.append(nn.Linear(6 * 34, 4))
    gated = l0prune.inject(model.eval(), l0prune.trace(model, torch.randn(2, 3, 6, 6)))

    result = run(gated, config=replace(QUICK, channels_last=True))

    assert result.budget_met
    assert result.compact is not None
    assert sum(p.numel() for p in result.compact.parameters()) < sum(p.numel() for p in model.parameters())


def test_the_score_of_a_run_over_budget_says_so():
    result = FinetuneResult(nn.Identity(), gated_net(), Budgets.of(BUDGET), {"macs": 0.51}, 0.5, 3, 10, ())

    assert not result.budget_met
    assert result.to_json()["budget_met"] is False
    assert result.evaluation == {}


def test_the_freeze_keeps_trained_values_or_makes_them_one():
    gated = gated_net()
    gated.gates.log_alpha.data.uniform_(-4, 4)
    is_open = choose_open(gated, Budgets.of(BUDGET), align=1)

    soft = decided_values(gated, is_open, replace(QUICK, gate_floor=0.25))
    binary = decided_values(gated, is_open, replace(QUICK, gate_decision="binary"))

    assert torch.equal(soft != 0, is_open)
    assert torch.equal(binary, is_open.float())
    assert soft[is_open].min() >= 0.25
    torch.testing.assert_close(soft[soft > 0.25], gated.gate_values()[soft > 0.25])


def test_recalibration_takes_the_plain_mean_of_the_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    batches = [torch.randn(8, 3, 4, 4) * (index + 1) for index in range(5)]

    recalibrate_(model, map(ModelCall.of, batches))

    means = torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0)
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in batches]).mean(0)
    torch.testing.assert_close(model[0].running_mean, means)
    torch.testing.assert_close(model[0].running_var, variances)
    assert model[0].momentum == 0.1
    assert not model.training


@pytest.mark.parametrize(("rows", "n_processes"), [(8, 2), (7, 3), (5, 5), (2, 3)])
def test_the_shares_of_a_batch_weigh_as_much_as_the_batch(rows, n_processes):
    x, y = torch.arange(rows).double(), {"y": torch.arange(rows) * 10, "name": "whole"}

    parts = [share(x, y, Classification(), rank=rank, n_processes=n_processes) for rank in range(n_processes)]

    total = sum(weight * part.mean() for part, _, weight in parts) / n_processes
    assert total == pytest.approx(float(x.mean()))
    if rows >= n_processes:
        assert torch.equal(torch.cat([part for part, _, _ in parts]), x)
        assert all(torch.equal(targets["y"], part.long() * 10) for part, targets, _ in parts)


def test_a_pass_begins_with_its_epoch_and_a_seed_of_its_own():
    class Shuffling(SmallBatches):
        def __iter__(self):
            yield from ((torch.rand(2), self.epoch) for _ in range(self.n_batches))

    whole = list(steps(Shuffling(4), 0, 10, seed=3))
    rest = list(steps(Shuffling(4), 4, 10, seed=3))

    assert [step for step, _ in whole] == list(range(10))
    assert [epoch for _, (_, epoch) in whole] == [0] * 4 + [1] * 4 + [2] * 2
    assert all(torch.equal(a, b) for (_, (a, _)), (_, (b, _)) in zip(whole[4:], rest))
    assert not torch.equal(whole[0][1][0], whole[4][1][0])
