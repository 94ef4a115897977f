"""Every task trains gates, cuts, and lets the rest recover, on a network of its kind; a loss alone makes a task."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from finetuning_case import run
from task_case import dense, examples, numbers
from torch import Tensor, nn

import l0prune
from l0prune.errors import ConfigError
from l0prune.tasks.of_loss import Lesson, LossTask

CONFIG = l0prune.FinetuneConfig(
    epochs=6, gate_epochs=3, optimizer="adam", lr=0.01, recovery_lr=0.01, align=1, log_every=50
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CASES = examples()


@pytest.mark.parametrize("name", CASES)
def test_gates_are_trained_for_the_task_and_the_network_that_is_cut_recovers(name):
    case = CASES[name]
    task, make, batches = case.task, case.network, [case.batch(seed) for seed in range(8)]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make().eval()
    inputs, _ = task.split(batches[0])
    example = inputs.flatten(0, 1) if task.pairs else inputs
    teacher = make() if task.compares else None
    if teacher is not None:
        teacher.load_state_dict(model.state_dict())
    gated = l0prune.inject(model, l0prune.trace(model, example))
    # Classes that are drawn at random are learned from the labels alone: the untrained network would teach others.
    config = replace(CONFIG, distillation=0.0) if name in ("classification", "pixels") else CONFIG

    def evaluate(network: nn.Module) -> float:
        return task.evaluate(network, batches, dense=None if teacher is None else teacher.eval())

    result = l0prune.finetune(
        gated, batches, task=task, budget=l0prune.Budget("macs", 0.4), config=config, evaluate=evaluate
    )

    assert result.budget_met
    assert 0 < result.n_open < gated.n_gates
    scores = {milestone.when: milestone.figures["score"] for milestone in result.history}
    gain = scores["end"] - scores["freeze"]
    assert (gain if task.metric.higher_is_better else -gain) > 0


def lessons(loss, outputs, targets) -> tuple[Lesson, ...]:
    return LossTask(loss).calibrated(outputs, targets).lessons


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def labels(*shape: int) -> Tensor:
    return torch.randint(0, 3, shape, generator=seeded(5))


LOSSES = {
    "classes": (F.cross_entropy, drawn(2, 3), labels(2), [("output", 1)]),
    "smoothed classes": (nn.CrossEntropyLoss(label_smoothing=0.1), drawn(2, 3), labels(2), [("output", 1)]),
    "classes that are beyond doubt": (F.cross_entropy, 1e4 * torch.eye(3)[:2], torch.arange(2), [("output", 1)]),
    "classes of pixels": (F.cross_entropy, drawn(2, 3, 4, 4), labels(2, 4, 4), [("output", 1)]),
    "classes of tokens": (
        lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()),
        drawn(2, 4, 3),
        labels(2, 4),
        [("output", 2)],
    ),
    "maps with channels last": (
        lambda out, y: F.cross_entropy(out.movedim(-1, 1), y),
        drawn(2, 4, 4, 3),
        labels(2, 4, 4),
        [("output", 3)],
    ),
    "log-probabilities": (F.nll_loss, drawn(2, 3).log_softmax(1), labels(2), [("output", 1)]),
    "an object with logits": (
        lambda out, y: F.cross_entropy(out.logits, y),
        SimpleNamespace(logits=drawn(2, 3)),
        labels(2),
        [("logits", 1)],
    ),
    "two heads": (
        lambda out, y: F.cross_entropy(out[0], y) + F.cross_entropy(out[1], y),
        (drawn(2, 3), drawn(2, 5, seed=1)),
        labels(2),
        [("output_0", 1), ("output_1", 1)],
    ),
    "the second of two outputs": (
        lambda out, y: F.cross_entropy(out["scores"], y),
        {"states": drawn(2, 7), "scores": drawn(2, 3)},
        labels(2),
        [("scores", 1)],
    ),
    "classes and boxes": (
        lambda out, y: F.cross_entropy(out["classes"], y) + F.smooth_l1_loss(out["boxes"], out["boxes"].new_ones(2, 4)),
        {"boxes": drawn(2, 4), "classes": drawn(2, 3)},
        labels(2),
        [("boxes", None), ("classes", 1)],
    ),
    "numbers": (F.mse_loss, drawn(2, 3), drawn(2, 3, seed=1), [("output", None)]),
    "one number": (F.mse_loss, drawn(2, 1), drawn(2, 1, seed=1), [("output", None)]),
    "a map of numbers": (F.l1_loss, drawn(2, 3, 4, 4), drawn(2, 3, 4, 4, seed=1), [("output", None)]),
    "several labels": (F.binary_cross_entropy_with_logits, drawn(2, 3), torch.ones(2, 3), [("output", None)]),
    "a constant": (lambda out, _y: 0 * out.sum(), drawn(2, 3), None, [("output", None)]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_loss_takes_the_softmax_of_is_found_by_trying(name):
    loss, outputs, targets, expected = LOSSES[name]

    assert [(lesson.name, lesson.axis) for lesson in lessons(loss, outputs, targets)] == expected


def test_trying_leaves_the_outputs_as_they_were():
    outputs = drawn(2, 3, 4)
    before = outputs.clone()

    lessons(lambda out, y: F.cross_entropy(out, y), outputs, labels(2, 4))

    assert torch.equal(outputs, before)


def test_numbers_are_taught_in_the_unit_that_they_have():
    task = LossTask(F.mse_loss).calibrated(1e4 * drawn(4, 3), drawn(4, 3))

    lesson = task.teach(1.1e4 * drawn(4, 3), 1e4 * drawn(4, 3), None, temperature=4.0)

    assert lesson.item() == pytest.approx(0.01, rel=1e-4)


def test_more_outputs_in_training_mode_do_not_confuse_the_teacher():
    task = LossTask(F.cross_entropy).calibrated(drawn(2, 3), labels(2))

    assert task.teach((drawn(2, 3), drawn(2, 5)), drawn(2, 3), None, temperature=2.0) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match="there is no output output to teach by"):
        task.teach({}, {"other": drawn(2, 3)}, None, temperature=2.0)


def test_the_users_own_teaching_takes_the_place_of_what_is_found():
    task = LossTask(F.cross_entropy, teaching=lambda outputs, taught: (outputs - taught).abs().mean())

    assert task.calibrated(drawn(2, 3), labels(2)).teach(drawn(2, 3) + 1, drawn(2, 3), None, temperature=2.0) == 1


def test_the_task_of_the_documents_is_one():
    code = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    exec(code, names)
    task, batches = names["MultiLabel"](), [(x, (y > 0).float()) for x, y in map(numbers, range(8))]
    torch.manual_seed(0)
    gated = l0prune.inject(model := dense(5, 2).eval(), l0prune.trace(model, batches[0][0]))
    before = task.evaluate(model, batches)

    l0prune.finetune(gated, batches, task=task, budget=l0prune.Budget("macs", 0.5), config=CONFIG)

    assert task.evaluate(gated, batches) > before


def test_either_a_loss_or_a_task_says_what_the_network_is_for():
    with pytest.raises(ConfigError, match="both a loss and a task are given: give a loss such as"):
        run(task="classification")
    with pytest.raises(ConfigError, match="nothing says what the network is for"):
        run(loss=None)
    assert run(loss=None, task="classification").budget_met


def test_a_task_by_name_is_the_run_that_its_loss_gives():
    by_loss, by_name = run(), run(loss=None, task="classification")

    for name, value in by_loss.compact.state_dict().items():
        assert torch.equal(value, by_name.compact.state_dict()[name]), name


def test_a_task_without_a_loss_needs_a_teacher(tmp_path):
    with pytest.raises(ConfigError, match="Match has no loss of its own and there is no teacher: give a teacher"):
        run(loss=None, task="match", teacher=False, out=tmp_path / "run")

    assert not (tmp_path / "run").exists()
