"""What holds for every task: parts weigh as the batch, padding counts nothing, equal outputs lose nothing, direction."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from l0prune.errors import ConfigError, DataError
from l0prune.finetuning.passes import rows, share
from l0prune.tasks.provided.classification import Classification
from l0prune.tasks.provided.embeddings import Embeddings, spearman
from l0prune.tasks.provided.language import LanguageModelling
from l0prune.tasks.provided.match import Match
from l0prune.tasks.provided.own_loss import OwnLoss
from l0prune.tasks.provided.pixels import PixelClassification
from l0prune.tasks.provided.regression import Regression
from l0prune.tasks.provided.tokens import TokenClassification
from l0prune.tasks.registry import load_task, task_names
from l0prune.tasks.task import Task

ROWS, TOKENS, CLASSES = 6, 5, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(*shape: int, below: int = CLASSES, seed: int = 0) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def with_gaps(labels: Tensor, ignore: int) -> Tensor:
    """Labels of which the later ones of a row are padding, more of them in later rows."""
    padded = torch.arange(labels.shape[1]) >= labels.shape[1] - torch.arange(len(labels)).unsqueeze(1) % 4
    return labels.masked_fill(padded.view(*padded.shape, *[1] * (labels.dim() - 2)), ignore)


MASK = (torch.arange(TOKENS) < TOKENS - torch.arange(ROWS).unsqueeze(1) % 4).long()


@dataclass
class Example:
    """A task with a batch, and a network whose answer to an input is linear in `weight`."""

    task: Task
    inputs: object
    targets: object

    def model(self, weight: Tensor) -> nn.Module:
        return Linear(weight)


class Linear(nn.Module):
    """x @ weight, whatever the input is called; the features are in the last dimension of an input, or in the second of maps."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        del attention_mask
        y = x.movedim(1, -1) @ self.weight if x.dim() == 4 else x @ self.weight
        y = y.movedim(-1, 1) if x.dim() == 4 else y
        return y if labels is None else (y.sum(-1) - labels).square().mean()


EXAMPLES = {
    "classification": Example(Classification(), random(ROWS, 3), whole(ROWS)),
    "regression": Example(Regression(), random(ROWS, 3), random(ROWS, CLASSES, seed=1)),
    "pixels": Example(
        PixelClassification(),
        random(ROWS, 3, TOKENS, 2),
        with_gaps(whole(ROWS, TOKENS, 2), PixelClassification().ignore),
    ),
    "tokens": Example(TokenClassification(), random(ROWS, TOKENS, 3), with_gaps(whole(ROWS, TOKENS), -100)),
    "language": Example(LanguageModelling(), random(ROWS, TOKENS, 3), with_gaps(whole(ROWS, TOKENS), -100)),
    "match": Example(Match(), {"x": random(ROWS, TOKENS, 3), "attention_mask": MASK}, None),
    "embeddings": Example(Embeddings(), {"x": random(ROWS, TOKENS, 3), "attention_mask": MASK}, None),
    "embeddings of pairs": Example(Embeddings(pairs=True, largest=5.0), random(ROWS, 2, 3), 5 * random(ROWS).sigmoid()),
    "own-loss": Example(OwnLoss(), random(ROWS, 3), random(ROWS, seed=1)),
}
PADDED = [name for name in EXAMPLES if name in ("pixels", "tokens", "language", "match", "embeddings")]


def gradients(example: Example, *args: object) -> list[Tensor]:
    """Of each of the losses by the network's weights."""
    model_weight = random(3, CLASSES, seed=3)
    task, teacher = example.task, example.model(random(3, CLASSES, seed=7))
    inputs, targets = args if args else (example.inputs, example.targets)
    found = []
    for kind in ("loss", "teach"):
        model = example.model(model_weight)
        outputs = task.call(model, inputs, targets)
        with torch.no_grad():
            taught = task.call(teacher, inputs, targets)
        value = task.loss(outputs, targets) if kind == "loss" else task.teach(outputs, taught, targets, temperature=2.0)
        if value is not None:
            found += [value.detach(), torch.autograd.grad(value, model.weight)[0]]
    return found


def test_every_provided_task_is_tried_here():
    assert {name.split()[0] for name in EXAMPLES} == set(task_names())
    for name, example in EXAMPLES.items():
        assert type(load_task(name.split()[0])) is type(example.task)


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
    task, teacher = example.task, example.model(weight.clone())
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


class Bound(Linear):
    """The same network over a tensor that takes a gradient."""

    def __init__(self, weight: Tensor) -> None:
        nn.Module.__init__(self)
        self.weight = weight


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


def test_texts_are_their_own_targets_but_for_padding():
    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])

    inputs, targets = LanguageModelling().split({"input_ids": ids, "attention_mask": mask})

    assert list(inputs) == ["input_ids", "attention_mask"]
    assert targets.tolist() == [[5, 6, 7], [8, 9, -100]]
    assert LanguageModelling().weight(inputs, targets) == 3
    with pytest.raises(DataError, match="expected a pair"):
        LanguageModelling(shift=False).split({"input_ids": ids})


def test_perplexity_is_that_of_the_tokens_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]]))  # the last one predicts nothing

    found = LanguageModelling().evaluate(lambda _: logits, [(torch.zeros(1, 3), torch.tensor([[0, 1, 0]]))])

    assert found == pytest.approx(1 / math.sqrt(0.5 * 0.25))
    masked = LanguageModelling(shift=False).evaluate(lambda _: logits, [(logits, torch.tensor([[-100, 1, -100]]))])
    assert masked == pytest.approx(4 / 3)


def test_the_mean_intersection_over_union_by_hand():
    truth = torch.tensor([[[0, 0, 1], [1, 255, 2]]])
    said = torch.tensor([[[0, 1, 1], [1, 2, 2]]])  # of classes 0, 1, 2, 3: 1/2, 2/3, 1/1, and 3 is nowhere
    logits = nn.functional.one_hot(said, 4).movedim(-1, 1).double()

    batches = [(logits[..., :2], truth[..., :2]), (logits[..., 2:], truth[..., 2:])]

    assert PixelClassification().evaluate(nn.Identity(), batches) == pytest.approx(100 * (1 / 2 + 2 / 3 + 1) / 3)


def test_maps_of_another_resolution_are_resized_to_the_targets():
    small = random(1, CLASSES, 2, 2)
    large = nn.functional.interpolate(small, (6, 4), mode="bilinear")
    targets, task = whole(1, 6, 4), PixelClassification()

    assert task.loss({"out": small}, targets) == task.loss(large, targets)


@pytest.mark.parametrize("seed", range(3))
def test_spearmans_correlation_is_scipys_ties_included(seed):
    x, y = np.random.default_rng(seed).integers(0, 6, (2, 40))

    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert spearman(np.array([3.0, 1.0, 2.0]), np.array([30.0, 10.0, 20.0])) == pytest.approx(1)
    assert spearman(x, np.ones(40)) == 0


def test_tokens_are_averaged_where_the_mask_leaves_them_in():
    states, mask = random(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])

    def model(x, attention_mask):
        return {"last_hidden_state": x, "pooled": -attention_mask}

    found = Embeddings().call(model, {"x": states, "attention_mask": mask})

    torch.testing.assert_close(found, torch.stack([states[0, :2].mean(0), states[1, 0]]))


def test_outputs_of_every_kind_are_matched_in_their_own_units():
    outputs = {"small": 1e-3 * random(4, 3), "large": 1e3 * random(4, 2, seed=1), "classes": whole(4)}
    task = Match().calibrated(Match().call(lambda: outputs, ()), None)

    off = {name: 1.1 * value for name, value in outputs.items()}

    kept, moved = (task.call(lambda found=found: found, ()) for found in (outputs, off))
    assert list(kept) == ["small", "large"]
    assert task.teach(moved, kept, None, temperature=1.0).item() == pytest.approx(0.01)
    assert task.evaluate(lambda _: off, [random(4, 1)], dense=lambda _: outputs) == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="the dense network returns small, large, the one that is taught small"):
        task.teach({"small": outputs["small"]}, kept, None, temperature=1.0)


class Detector(nn.Module):
    """As those of torchvision: a list of images, and losses in training mode alone."""

    def forward(self, images, targets=None):
        if self.training:
            return {"boxes": images[0].mean() + targets[0]["shift"], "classes": images[1].mean()}
        return [{"boxes": image} for image in images]


def test_a_detector_is_given_its_targets_in_training_mode_alone():
    task = OwnLoss(argument="targets", in_training_only=True)
    images = tuple(random(3, 4 + place, 5) for place in range(4))
    inputs, targets = task.split((images, tuple({"shift": torch.tensor(float(place))} for place in range(4))))
    model = Detector()

    outputs = task.call(model.train(), inputs, targets)

    assert task.loss(outputs, targets) == pytest.approx(float(images[0].mean() + images[1].mean()))
    assert len(task.call(model.eval(), inputs, targets)) == 4
    second, shifts = rows(inputs, targets, task, 2, 4)
    assert [image.shape[1] for image in second[0]] == [6, 7]
    assert [float(target["shift"]) for target in shifts] == [2, 3]
    with pytest.raises(ConfigError, match="returned no loss, but boxes"):
        task.loss({"boxes": random(3)}, targets)


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
