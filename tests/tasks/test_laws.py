"""What holds for every task: parts weigh as the batch, padding counts nothing, equal outputs lose nothing, direction."""

import pytest
import torch
from task_case import CLASSES, MASK, ROWS, Bound, Example, Linear, examples, random, whole
from torch import Tensor

from l0prune.errors import ConfigError, DataError
from l0prune.finetuning.passes import share
from l0prune.tasks.provided.classification import Classification
from l0prune.tasks.provided.embeddings import Embeddings
from l0prune.tasks.provided.match import Match
from l0prune.tasks.provided.pixels import PixelClassification
from l0prune.tasks.provided.tokens import TokenClassification
from l0prune.tasks.registry import load_task

EXAMPLES = examples()
PADDED = [name for name in EXAMPLES if name in ("pixels", "tokens", "language", "match", "embeddings")]


def gradients(example: Example, *args: object) -> list[Tensor]:
    """Of each of the losses by the network's weights."""
    model_weight = random(3, CLASSES, seed=3)
    task, teacher = example.task, Linear(random(3, CLASSES, seed=7))
    inputs, targets = args if args else (example.inputs, example.targets)
    found = []
    for kind in ("loss", "teach"):
        model = Linear(model_weight)
        outputs = task.call(model, inputs, targets)
        with torch.no_grad():
            taught = task.call(teacher, inputs, targets)
        value = task.loss(outputs, targets) if kind == "loss" else task.teach(outputs, taught, targets, temperature=2.0)
        if value is not None:
            found += [value.detach(), torch.autograd.grad(value, model.weight)[0]]
    return found


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("n_processes", [2, 3])
def test_the_parts_of_a_batch_weigh_as_the_batch(name, n_processes):
    example = EXAMPLES[name]
    expected = gradients(example)

    parts = [
        share(example.inputs, example.targets, example.task, rank=rank, n_processes=n_processes)
        for rank in range(n_processes)
    ]
    shares = [gradients(example, inputs, targets) for inputs, targets, _ in parts]

    assert expected
    for index, value in enumerate(expected):
        mean = sum(weight * found[index] for found, (*_, weight) in zip(shares, parts)) / n_processes
        torch.testing.assert_close(mean, value, atol=1e-12, rtol=1e-10)
    counted = [weight for *_, weight in parts]
    assert name not in PADDED or name == "embeddings" or max(counted) > min(counted)


def test_a_batch_that_leaves_a_process_nothing_is_given_to_all():
    labels = torch.tensor([[1, 2], [-100, -100]])

    parts = [share(random(2, 2, 3), labels, TokenClassification(), rank=rank, n_processes=2) for rank in (0, 1)]

    assert [(len(inputs), weight) for inputs, _, weight in parts] == [(2, 1.0), (2, 1.0)]


@pytest.mark.parametrize("name", PADDED)
def test_what_stands_in_padding_changes_nothing(name):
    example = EXAMPLES[name]
    x = example.inputs["x"] if isinstance(example.inputs, dict) else example.inputs
    if example.targets is None:
        padded = MASK == 0
    else:
        padded = example.targets == example.task.ignore
        padded = torch.cat([padded[:, 1:], torch.ones(ROWS, 1, dtype=torch.bool)], 1) if name == "language" else padded
    shape = padded.unsqueeze(1) if x.dim() == 4 else padded.unsqueeze(-1)
    spoiled = torch.where(shape, 50 * random(*x.shape, seed=9), x)
    inputs = {**example.inputs, "x": spoiled} if isinstance(example.inputs, dict) else spoiled

    changed = gradients(example, inputs, example.targets)

    assert not torch.equal(spoiled, x)
    for found, expected in zip(changed, gradients(example), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "own-loss"])
def test_equal_outputs_lose_nothing_to_the_teacher_and_others_are_drawn_to_it(name):
    example, weight = EXAMPLES[name], random(3, CLASSES, seed=3)
    task, teacher = example.task, Linear(weight.clone())
    with torch.no_grad():
        taught = task.call(teacher, example.inputs, example.targets)

    def lesson(values: Tensor) -> Tensor:
        student = Bound(values)
        return task.teach(task.call(student, example.inputs, example.targets), taught, example.targets, temperature=2.0)

    assert float(lesson(weight)) == pytest.approx(0, abs=1e-12)
    elsewhere = (weight + 0.3 * random(3, CLASSES, seed=4)).requires_grad_()
    assert lesson(elsewhere).item() > 1e-4
    assert torch.autograd.gradcheck(lesson, elsewhere)
    slope = torch.autograd.grad(lesson(elsewhere), elsewhere)[0]
    assert lesson(elsewhere.detach() - 1e-3 * slope).item() < lesson(elsewhere).item()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_score_follows_its_direction(name):
    """A network fitted to the task, or the dense one itself, scores better than one with the opposite weights."""
    example = EXAMPLES[name]
    task, batches = example.task, [(example.inputs, example.targets)]
    good = random(3, CLASSES, seed=3)
    if example.targets is not None:
        good.requires_grad_()
        optimizer = torch.optim.Adam([good], lr=0.1)
        for _ in range(60):
            loss = task.loss(task.call(Bound(good), example.inputs, example.targets), example.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        good = good.detach()
    bad = random(3, CLASSES, seed=11) if "pairs" in name else -good

    better, worse = (task.evaluate(Bound(weight), batches, dense=Bound(good)) for weight in (good, bad))

    assert better > worse if task.metric.higher_is_better else better < worse
    assert task.metric.name


def test_batches_are_split_as_loaders_and_collators_make_them():
    x, y, task = random(4, 3), whole(4), Classification()

    assert task.split([x, y]) == (x, y)
    inputs, targets = task.split({"input_ids": x, "attention_mask": y, "labels": y})
    assert list(inputs) == ["input_ids", "attention_mask"]
    assert targets is y
    for batch, found in ((x, "a Tensor"), ([x], "a sequence of 1"), ({"x": x}, "a dict with x")):
        with pytest.raises(DataError, match=f"a batch is {found}: expected a pair"):
            task.split(batch)
    assert Match().split([x]) == (x, None)
    assert Embeddings().split({"x": x})[1] is None


@pytest.mark.parametrize(
    ("spec", "arguments", "said"),
    [
        ("pixel", {}, "unknown task 'pixel'; use one of: classification, embeddings, language"),
        ("pixels", {"ignored": 0}, "task 'pixels' has no argument ignored; it has ignore, output"),
        ("collections:Counter", {}, "'collections:Counter' returned a Counter, expected an l0prune.Task"),
        ("no_such_module:task", {}, "no module 'no_such_module'"),
    ],
)
def test_what_is_no_task_is_said(spec, arguments, said):
    with pytest.raises(ConfigError, match=said):
        load_task(spec, **arguments)


def test_arguments_reach_the_task():
    assert load_task("pixels", ignore=0, output="mask") == PixelClassification(ignore=0, output="mask")
