"""Embeddings: Spearman's correlation as scipy has it, averages under a mask, and examples for the laws."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from task_case import CLASSES, MASK, ROWS, TOKENS, Example, States, dense, random, texts
from torch import Tensor

from l0prune.tasks.provided.embeddings import Embeddings, spearman


def pairs(seed: int) -> tuple[Tensor, Tensor]:
    x = random(16, 2, 5, seed=seed).float()
    return x, F.cosine_similarity(x[:, 0, :3], x[:, 1, :3], dim=-1)


EXAMPLES = {
    "embeddings": Example(
        Embeddings(),
        {"x": random(ROWS, TOKENS, 3), "attention_mask": MASK},
        None,
        network=lambda: States(CLASSES),
        batch=texts,
    ),
    "embeddings of pairs": Example(
        Embeddings(pairs=True, largest=5.0),
        random(ROWS, 2, 3),
        5 * random(ROWS).sigmoid(),
        network=lambda: dense(5, 6),
        batch=pairs,
    ),
    "embeddings of pairs without scores": Example(
        Embeddings(pairs=True, scored=False),
        random(ROWS, 2, 3),
        None,
        network=lambda: dense(5, 6),
        batch=lambda seed: (pairs(seed)[0], None),
    ),
}


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


def test_pairs_without_scores_are_taught_by_the_dense_network_alone():
    task = Embeddings(pairs=True, scored=False)

    assert task.compares
    assert task.metric.name == "cosine"
    assert task.loss(random(4, 2, 3), torch.zeros(4)) is None
