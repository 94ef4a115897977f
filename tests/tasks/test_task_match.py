"""Matching whatever the dense network returns: units by hand, and an example for the laws."""

import pytest
from task_case import CLASSES, MASK, ROWS, TOKENS, Example, States, random, texts, whole

from l0prune.errors import ConfigError
from l0prune.tasks.provided.match import Match

EXAMPLES = {
    "match": Example(
        Match(),
        {"x": random(ROWS, TOKENS, 3), "attention_mask": MASK},
        None,
        network=lambda: States(CLASSES),
        batch=texts,
    )
}


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
