"""Language: perplexity by hand, texts as their own targets, and an example for the laws."""

import math

import pytest
import torch
from task_case import ROWS, TOKENS, WORDS, Example, Texts, random, whole, with_gaps
from torch import Tensor

from l0prune.errors import DataError
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
