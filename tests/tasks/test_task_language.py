"""Language: perplexity by hand, texts as their own targets, and an example for the laws."""

import math

import numpy as np
import pytest
import torch
from task_case import ROWS, TOKENS, WORDS, Example, Texts, random, whole, with_gaps
from torch import Tensor

from l0prune.errors import DataError
from l0prune.sources.datasets import DataSource
from l0prune.tasks.provided.language import LanguageModelling


def counting(seed: int) -> Tensor:
    return (whole(16, 1, below=WORDS, seed=seed) + torch.arange(TOKENS)) % WORDS


EXAMPLES = {
    "language": Example(
        LanguageModelling(),
        random(ROWS, TOKENS, 3),
        with_gaps(whole(ROWS, TOKENS), -100),
        network=lambda: Texts(WORDS),
        batch=counting,
    )
}


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


def test_a_perplexity_that_the_frequencies_of_tokens_give_is_doubted():
    ids = np.array([[1, 1, 1, 2], [1, 1, 1, 2]])
    data = DataSource(ids, ids, ids, ids, name="mine")
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))

    assert LanguageModelling().chance(data)[0] == pytest.approx(math.exp(entropy))
    line = LanguageModelling().doubts(1.8, data)
    assert line.startswith("CAREFUL: perplexity of the dense network is 1.8 on mine, no better than chance")
    assert "how frequent each token is gives 1.755" in line
    assert LanguageModelling().doubts(1.7, data) is None
    assert "is inf" in LanguageModelling().doubts(math.inf, data)
