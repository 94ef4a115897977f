"""What the tests of tasks share: an example of each task, and the networks that the laws and the training try it with."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l0prune.tasks.registry import task_names
from l0prune.tasks.task import Task

ROWS, TOKENS, CLASSES, WORDS = 6, 5, 4, 11


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
    """A task with what it is tried on.

    Attributes:
        task: The task.
        inputs: Of a batch, in float64, for `Linear`.
        targets: Of the same batch.
        network: Makes a network that can be trained for the task.
        batch: Makes a batch for that network from a seed.
    """

    task: Task
    inputs: object
    targets: object
    network: Callable[[], nn.Module]
    batch: Callable[[int], object]


def examples() -> dict[str, Example]:
    """Those of all provided tasks, by name; each stands in the test of its task."""
    found = {}
    for name in task_names():
        found |= importlib.import_module(f"test_task_{name.replace('-', '_')}").EXAMPLES
    return found


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


class Bound(Linear):
    """The same network over a tensor that takes a gradient."""

    def __init__(self, weight: Tensor) -> None:
        nn.Module.__init__(self)
        self.weight = weight


class Texts(nn.Module):
    """Embeds tokens and mixes each with its neighbours; answers for each token, with its own loss where it is given labels."""

    def __init__(self, n_out: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 8)
        self.mix = nn.Conv1d(8, 24, 3, padding=1)
        self.head = nn.Linear(24, n_out)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None):
        x = self.embed(input_ids)
        x = x if attention_mask is None else x * attention_mask.unsqueeze(-1)
        logits = self.head(self.mix(x.transpose(1, 2)).relu().transpose(1, 2))
        return (
            {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}
        )


class States(Texts):
    """Returns what it knows of each token, and of all of them."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor):
        states = super().forward(input_ids, attention_mask)["logits"]
        return {"last_hidden_state": states, "pooled": states.mean(1)}


def dense(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, 24), nn.ReLU(), nn.Linear(24, n_out))


def numbers(seed: int) -> tuple[Tensor, Tensor]:
    x = random(16, 5, seed=seed).float()
    return x, x[:, :2] * 2 - x[:, 2:4]


def texts(seed: int) -> dict[str, Tensor]:
    ids = whole(16, TOKENS, below=WORDS - 1, seed=seed) + 1
    mask = (torch.arange(TOKENS) < 2 + torch.arange(16).unsqueeze(1) % 4).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def labelled_texts(seed: int) -> dict[str, Tensor]:
    batch = texts(seed)
    return {**batch, "labels": (batch["input_ids"] % CLASSES).masked_fill(batch["attention_mask"] == 0, -100)}
