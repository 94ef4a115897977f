"""A quality to keep: what is read, what does not fit a metric, what is kept."""

import math

import pytest

from l0prune.errors import ConfigError
from l0prune.quality.bound import Quality
from l0prune.tasks.task import Metric

ACCURACY = Metric("accuracy", higher_is_better=True, unit="%")
LOSS = Metric("loss", higher_is_better=False)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("accuracy>=91", Quality("accuracy", True, 91.0)),
        (" accuracy >= 91.5 % ", Quality("accuracy", True, 91.5)),
        ("loss<=0.3", Quality("loss", False, 0.3)),
        ("cosine>=-0.5", Quality("cosine", True, -0.5)),
        ("mse≤1e-3", Quality("mse", False, 1e-3)),
    ],
)
def test_a_bound_is_read_and_written(text, read):
    assert Quality.parse(text) == read
    assert Quality.parse(str(read)) == read


@pytest.mark.parametrize("text", ["accuracy", "accuracy=91", "accuracy>91", ">=91", "accuracy>=high", "loss<=nan", ""])
def test_what_is_no_bound_is_an_error_that_shows_one(text):
    with pytest.raises(ConfigError, match=r"such as accuracy>=91 or loss<=0\.3"):
        Quality.parse(text)


@pytest.mark.parametrize(
    ("text", "metric", "message"),
    [
        ("loss<=0.3", ACCURACY, "the score of this task is accuracy; ask for accuracy>=NUMBER"),
        ("accuracy<=91", ACCURACY, "a higher accuracy is better; ask for accuracy>=91"),
        ("loss>=0.3", LOSS, "a lower loss is better; ask for loss<=0.3"),
        ("accuracy>=0.91", ACCURACY, "accuracy is in per cent; ask for accuracy>=91"),
    ],
)
def test_a_bound_that_does_not_fit_the_metric_says_what_would(text, metric, message):
    with pytest.raises(ConfigError, match=message):
        Quality.parse(text).require_fits(metric)


def test_the_target_itself_is_kept_and_what_is_no_number_is_not():
    for quality, better in ((Quality("accuracy", True, 91.0), 91.1), (Quality("loss", False, 0.3), 0.2)):
        assert quality.kept_by(quality.target)
        assert quality.kept_by(better)
        assert not quality.kept_by(2 * quality.target - better)
        assert not quality.kept_by(math.nan)
