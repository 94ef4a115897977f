"""A network that knew more than chance, and knows no more than that, is told so, and what to do."""

from types import SimpleNamespace

import pytest

from l0prune.cli.finetune_run import fall
from l0prune.cli.request import FinetuneRequest


def case_of(*, dense_doubts=None, optimizer="adamw", **options):
    """A run of a network of attention whose accuracies up to 50 are doubted."""
    case = SimpleNamespace(
        task=SimpleNamespace(metric=SimpleNamespace(name="accuracy")),
        doubts=lambda score: "no better" if score <= 50 else None,
    )
    request = FinetuneRequest.asked(options)
    plan = SimpleNamespace(settings=SimpleNamespace(optimizer=optimizer, lr=0.01), suited=SimpleNamespace(name="adamw"))
    return SimpleNamespace(case=case, request=request, plan=plan, doubts=dense_doubts, dense_score=90.0)


def result_of(before, final):
    """What a run came to: its accuracy before the cut, and in the end."""
    milestones = [SimpleNamespace(when="gate", step=40, figures={"accuracy": before})]
    return SimpleNamespace(history=milestones, evaluation={"accuracy": final})


@pytest.mark.parametrize(
    ("before", "final", "told"),
    [
        (80.0, 85.0, None),
        (30.0, 85.0, "CAREFUL: before the cut, at step 40, accuracy was 30, no better than chance"),
        (80.0, 45.0, "CAREFUL: in the end accuracy is 45, no better than chance, and was 90"),
        (30.0, 45.0, "CAREFUL: in the end"),
    ],
)
def test_a_fall_to_chance_is_told_with_what_to_do(before, final, told):
    found = fall(case_of(), result_of(before, final))

    if told is None:
        assert found is None
    else:
        assert found.startswith(told)
        assert "--lr, now 0.01" in found
        assert "optimizer" not in found


def test_a_fall_under_another_optimizer_than_suits_the_network_names_that_one():
    found = fall(case_of(optimizer="sgd"), result_of(30.0, 45.0))

    assert "leave the optimizer to the network (adamw)" in found


def test_what_was_doubted_before_is_not_doubted_again():
    assert fall(case_of(dense_doubts="no better"), result_of(30.0, 45.0)) is None


@pytest.mark.parametrize("options", [{"from_scratch": True}, {"num_labels": 3}])
def test_a_network_that_never_knew_more_has_not_fallen(options):
    assert fall(case_of(**options), result_of(30.0, 85.0)) is None
    assert fall(case_of(**options), result_of(30.0, 45.0)).startswith(
        "CAREFUL: in the end accuracy is 45, no better than chance: train longer (--epochs), lower the learning rate"
    )
