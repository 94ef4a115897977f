"""Classes of tokens: an example for the laws."""

import pytest
import torch
from task_case import CLASSES, ROWS, TOKENS, Example, Texts, labelled_texts, random, whole, with_gaps
from torch import nn

from l0prune.tasks.provided.tokens import TokenClassification

EXAMPLES = {
    "tokens": Example(
        TokenClassification(),
        random(ROWS, TOKENS, 3),
        with_gaps(whole(ROWS, TOKENS), -100),
        network=lambda: Texts(CLASSES),
        batch=labelled_texts,
    )
}


def test_only_tokens_that_have_a_label_are_right_or_wrong():
    logits = nn.functional.one_hot(torch.tensor([[0, 1, 2], [2, 2, 2]]), 3).double()

    found = TokenClassification().evaluate(nn.Identity(), [(logits, torch.tensor([[0, 2, -100], [2, -100, -100]]))])

    assert found == pytest.approx(200 / 3)
