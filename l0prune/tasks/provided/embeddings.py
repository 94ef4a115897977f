"""Vectors whose directions mean something."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from l0prune.errors import DataError
from l0prune.model_call import call
from l0prune.tasks.outputs import chosen_output
from l0prune.tasks.task import Answer, Metric, Model, Task, only
from l0prune.tasks.teaching import cosine_distance

if TYPE_CHECKING:
    from l0prune.sources.datasets import Array, DataSource
    from l0prune.sources.model_spec import LoadedModel

__all__ = ["Embeddings", "spearman"]

USUAL = ("sentence_embedding", "last_hidden_state")


@dataclass(frozen=True)
class Embeddings(Task):
    """An embedding (N, D), or the mean of the states (N, T, D) of the tokens that an `attention_mask` leaves in.

    Without scores the dense network alone teaches, by the directions of its embeddings, and the score is the mean cosine to
    them. Where each entry is a pair of inputs (arrays (N, 2, ...)) with a score (N,), the cosine of its embeddings is trained to
    be score / `largest`, and the metric is Spearman's correlation of the two. Pairs without scores are two inputs each.

    Args:
        output: Name of the output, where the network has several and none is called "sentence_embedding" or
            "last_hidden_state".
        pairs: Whether entries are pairs; data tells by itself.
        largest: Score of what is equal, > 0.
        scored: Whether pairs have scores; data tells by itself.
    """

    output: str | None = None
    pairs: bool = False
    largest: float = 1.0
    scored: bool = True

    @property
    def _by_scores(self) -> bool:
        return self.pairs and self.scored

    @property
    def metric(self) -> Metric:
        """Spearman's correlation of scored pairs, else the mean cosine to the dense network's embeddings."""
        return Metric("spearman" if self._by_scores else "cosine", higher_is_better=True)

    @property
    def compares(self) -> bool:
        """With the dense network, where there are no scores."""
        return not self._by_scores

    def unlabelled(self, batch: Any) -> tuple[Any, Any]:
        """All of it is inputs, where the dense network alone teaches."""
        return super().unlabelled(batch) if self._by_scores else (only(batch), None)

    def for_data(self, loaded: LoadedModel, data: DataSource) -> Embeddings:
        """For pairs, where inputs have a dimension more than the model takes.

        Raises:
            DataError: scores of pairs are no numbers within `largest`.
        """
        example = next(leaf for leaf in pytree.tree_leaves(loaded.example_inputs) if isinstance(leaf, Tensor))
        x: Any = next(iter(data.x_train.values())) if isinstance(data.x_train, dict) else data.x_train
        pairs = x.dtype != np.uint8 and x.ndim == example.ndim + 1 and x.shape[1] == 2
        most = max(float(np.abs(y).max()) for y in (data.y_train, data.y_test))
        if pairs and data.labelled and (data.y_train.ndim != 1 or most > self.largest):
            raise DataError(
                f"{data.name}: scores of pairs have shape {data.y_train.shape} and go up to {most:g}, expected one for each"
                f" and at most {self.largest:g}: give the score of an equal pair, as in largest={most:g}"
            )
        return replace(self, pairs=pairs, scored=data.labelled)

    def call(self, model: Model, inputs: Any, targets: Any = None) -> Tensor:
        """Embeddings (N, D); of pairs (N, 2, D)."""
        del targets
        flat = pytree.tree_map(_flattened, inputs) if self.pairs else inputs
        states = chosen_output(call(model, flat), self.output, usual=USUAL)
        if states.dim() not in (2, 3):
            raise DataError(
                "task 'embeddings' takes outputs (N, D), or states of tokens (N, T, D), and the network gives"
                f" {tuple(states.shape)}: name another of its outputs (--task-arg output=NAME), or choose another task"
            )
        if states.dim() == 3:
            mask = flat.get("attention_mask") if isinstance(flat, Mapping) else None
            counted = states.new_ones(states.shape[:2]) if mask is None else (mask != 0).to(states)
            states = states.masked_fill(counted.unsqueeze(-1) == 0, 0).sum(1) / counted.sum(1, keepdim=True).clamp_min(
                1
            )
        return states.unflatten(0, (-1, 2)) if self.pairs else states

    def loss(self, outputs: Tensor, targets: Any) -> Tensor | None:
        """Mean squared error of the cosines of pairs; None without scores."""
        if not self._by_scores:
            return None
        return F.mse_loss(_cosines(outputs), targets.to(outputs.dtype) / self.largest)

    def teach(self, outputs: Tensor, taught: Tensor, targets: Any, *, temperature: float) -> Tensor:
        """Mean of 1 - cos to the dense network's embeddings."""
        del targets, temperature
        return cosine_distance(outputs, taught)

    def chance(self, data: DataSource) -> tuple[float, str] | None:
        """Two standard deviations of the correlation with what has nothing to do with the scores."""
        n = len(data.y_test)
        return (2 / max(n - 1, 1) ** 0.5, f"noise among {n} pairs") if self._by_scores else None

    def score(self, answers: Iterable[Answer]) -> float:
        """Spearman's correlation over all pairs, or the mean cosine."""
        if self._by_scores:
            found = [(_cosines(answer.outputs).double().cpu(), answer.targets.cpu()) for answer in answers]
            cosines, scores = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
            return spearman(cosines, scores)
        total = n = 0.0
        for answer in answers:
            cosine = F.cosine_similarity(answer.outputs.double(), answer.taught.double(), dim=-1)
            total, n = total + float(cosine.sum()), n + cosine.numel()
        return total / n


def spearman(x: Array, y: Array) -> float:
    """Correlation of the ranks of two rows of numbers, equal ones having the mean of their ranks; 0 where a row is constant."""
    a, b = (_ranks(values) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else 0.0


def _ranks(values: Array) -> Array:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last: Array = np.cumsum(counts)
    ranks: Array = (last - (counts - 1) / 2)[place]
    return ranks


def _cosines(pairs: Tensor) -> Tensor:
    return F.cosine_similarity(pairs[:, 0], pairs[:, 1], dim=-1)


def _flattened(leaf: Any) -> Any:
    return leaf.flatten(0, 1) if isinstance(leaf, Tensor) else leaf
