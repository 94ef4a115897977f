import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from task_case import CLASSES, ROWS, Example, dense, numbers, random, whole
from torch import nn

from l0prune.errors import DataError, L0PruneWarning
from l0prune.sources.datasets import DataSource
from l0prune.sources.model_spec import LoadedModel, load_model
from l0prune.tasks.class_logits import is_chance
from l0prune.tasks.provided.classification import Classification
from l0prune.tasks.registry import default_task

X = torch.eye(4)


def classes(seed: int):
    x, y = numbers(seed)
    return x, y.argmax(1) + 2 * (x[:, 4] > 0)


EXAMPLES = {
    "classification": Example(
        Classification(), random(ROWS, 3), whole(ROWS), network=lambda: dense(5, CLASSES), batch=classes
    )
}
accuracy, check_classes = Classification().evaluate, Classification().for_data
BATCHES = [(X[:3], torch.tensor([0, 1, 0])), (X[3:], torch.tensor([3]))]  # three of four on the diagonal


def test_accuracy_is_the_share_of_right_answers_in_per_cent():
    assert accuracy(nn.Identity(), BATCHES) == 75.0
    assert accuracy(lambda x: x.numpy(), BATCHES) == 75.0
    assert accuracy(lambda x: -x, BATCHES[1:]) == 0.0


@pytest.mark.parametrize("wrap", [lambda x: {"logits": x, "a": -x}, lambda x: {"y": x}, lambda x: (x, None)])
def test_logits_are_found_in_what_models_return(wrap):
    assert accuracy(wrap, BATCHES) == 75.0


def test_logits_among_several_outputs_are_named():
    assert Classification(output="output_1").evaluate(lambda x: (0 * x, x), BATCHES) == 75.0


def test_inputs_may_be_positional_or_named():
    def model(x, scale):
        return x * scale

    for inputs in ((X, torch.tensor(1.0)), {"x": X, "scale": torch.tensor(1.0)}):
        assert accuracy(model, [(inputs, torch.arange(4))]) == 100.0


def test_a_module_is_evaluated_in_eval_mode_and_left_as_it_was():
    model = nn.Sequential(nn.Dropout(0.99), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    first, second = accuracy(model, BATCHES), accuracy(model, BATCHES)

    assert first == second
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_failing_model_is_left_in_its_mode():
    model = nn.Linear(3, 2)

    with pytest.raises(RuntimeError):
        accuracy(model, BATCHES)

    assert model.training


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(DataError, match="empty"):
        accuracy(nn.Identity(), [])


def test_more_classes_than_outputs_is_an_error():
    x, y = np.zeros((3, 28, 28), np.uint8), np.array([0, 1, 12])
    data = DataSource(x, y, x, y, name="mine")

    with pytest.raises(DataError, match=r"mine has 13 classes, 'lenet5' has 10 outputs; .*num_classes=13"):
        check_classes(load_model("lenet5"), data)

    check_classes(load_model("lenet5", model_args={"num_classes": 13}), data)
    features = DataSource(np.zeros((3, 4)), np.zeros(3), np.zeros((3, 4)), np.zeros(3))
    with pytest.raises(DataError, match="targets have type float32, expected class numbers"):
        check_classes(LoadedModel(nn.Linear(4, 1), (torch.zeros(2, 4),), None, "dense"), features)


@pytest.mark.parametrize(
    ("y_test", "described", "reason"),
    [
        ([0, 1, -1], {}, "labels range from -1 to 2, expected 0 to 2"),
        ([0, 1, 2], {"n_classes": 2}, "from 0 to 2, expected 0 to 1"),
    ],
)
def test_labels_out_of_range_are_an_error(y_test, described, reason):
    x = np.zeros((3, 28, 28), np.uint8)

    with pytest.raises(DataError, match=reason):
        check_classes(load_model("lenet5"), DataSource(x, np.arange(3), x, np.array(y_test), **described))


def test_whole_numbers_are_classes_unless_somebody_says_otherwise():
    x, images = np.zeros((4, 3)), np.zeros((4, 8, 8), np.uint8)

    assert default_task(DataSource(images, np.arange(4), images, np.arange(4))) == "classification"
    assert default_task(DataSource(x, np.zeros((4, 2), int), x, np.zeros((4, 2), int))) == "regression"
    assert default_task(DataSource(images, np.zeros(4), images, np.zeros(4))) == "regression"
    with pytest.raises(DataError, match=r"targets of its images have shape \(4, 8, 8\): say what they are"):
        default_task(DataSource(images, np.zeros((4, 8, 8), int), images, np.zeros((4, 8, 8), int)))


def images(labels, **described) -> DataSource:
    x = np.zeros((len(labels), 28, 28), np.uint8)
    return DataSource(x, np.array(labels), x, np.array(labels), name="mine", **described)


def said(loaded: LoadedModel, data: DataSource) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_classes(loaded, data)
    return [str(warning.message) for warning in caught if warning.category is L0PruneWarning]


def test_fewer_classes_than_outputs_are_said_and_refused_where_their_names_say_nothing():
    (text,) = said(load_model("lenet5"), images([0, 1, 2, 1], n_classes=4))

    assert "mine has 4 classes, 'lenet5' has 10 outputs: label 0 is taken for output 0" in text
    with pytest.raises(
        DataError, match=r"4 classes \(ant, bee, cat \.\.\.\), 'lenet5' has 10 outputs, and nothing says"
    ):
        check_classes(load_model("lenet5"), images([0, 1, 2, 1], class_names=("ant", "bee", "cat", "dog"), n_classes=4))
    assert said(load_model("lenet5"), images(range(10))) == []


def test_classes_in_another_order_than_the_networks_are_said():
    class Named(nn.Linear):
        config = SimpleNamespace(id2label={1: "bee", 0: "ant", 2: "cat"})

    loaded = LoadedModel(Named(4, 3), (torch.zeros(2, 4),), None, "net")
    x, y = np.zeros((3, 4)), np.arange(3)

    (text,) = said(loaded, DataSource(x, y, x, y, class_names=("ant", "cat", "bee"), name="mine"))
    assert "label 1 of mine is 'cat', output 1 of 'net' is 'bee'" in text
    assert said(loaded, DataSource(x, y, x, y, class_names=("ant", "bee", "cat"))) == []
    assert said(loaded, DataSource(x, y, x, y)) == []


BALANCED, RARE = np.arange(1000) % 20, np.arange(1000) % 20 == 0


@pytest.mark.parametrize(
    ("labels", "score", "expected"),
    [
        (BALANCED, 0.0, True),
        (BALANCED, 5.0, True),
        (BALANCED, 6.3, True),
        (BALANCED, 8.0, False),
        (BALANCED, 99.0, False),
        (BALANCED % 2, 51.0, True),
        (BALANCED % 2, 60.0, False),
        (RARE.astype(int), 95.0, True),
        (RARE.astype(int), 95.5, False),
        (BALANCED * 0, 100.0, False),
    ],
)
def test_an_accuracy_that_chance_would_give_is_told_from_one_that_was_learned(labels, score, expected):
    assert is_chance(score, np.array(labels), int(max(labels)) + 1) is expected
