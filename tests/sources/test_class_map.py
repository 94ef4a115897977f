"""The classes of a folder are the outputs that the network calls by their names, or that somebody says."""

import json

import numpy as np
import pytest

from l0prune.errors import DataError
from l0prune.sources.class_map import in_order_of_outputs, read_class_map
from l0prune.sources.datasets import DataSource


def data(*names):
    x = np.zeros((len(names), 4))
    y = np.arange(len(names))
    return DataSource(x, y, x, y, class_names=names, n_classes=len(names), name="mine")


def numbered(source, names=(), n=None, given=None):
    return in_order_of_outputs(source, names, lambda: n or len(names), given)


def test_names_that_the_network_knows_take_its_numbers():
    found = numbered(data("Great_Dane", "tench"), ("tench, Tinca tinca", "goldfish", "Great Dane"))
    assert found.y_train.tolist() == [2, 0]
    assert (found.n_classes, found.class_names) == (3, ("tench, Tinca tinca", "goldfish", "Great Dane"))


def test_numbers_of_imagenet_take_its_order():
    pytest.importorskip("timm")
    found = numbered(data("n01443537", "n15075141", "n01440764"), n=1000)
    assert found.y_test.tolist() == [1, 999, 0]
    assert found.n_classes == 1000
    assert numbered(data("n01443537", "n01440764"), n=10).y_test.tolist() == [0, 1]


def test_what_somebody_says_comes_first(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"a": 3, "b": 1}))
    found = numbered(data("a", "b"), ("b", "a"), 5, read_class_map(tmp_path / "map.json"))
    assert found.y_train.tolist() == [3, 1]
    assert found.class_names == ("", "b", "", "a", "")


def test_names_that_are_not_all_known_stay_as_they_are():
    source = data("a", "b")
    assert numbered(source, ("a", "c", "d")) is source


def test_what_is_wrong_with_a_map_is_one_line(tmp_path):
    with pytest.raises(DataError, match="has no b; it needs all 2"):
        numbered(data("a", "b"), n=4, given={"a": 1})
    with pytest.raises(DataError, match="outputs 1 to 4, and the network has 4"):
        numbered(data("a", "b"), n=4, given={"a": 1, "b": 4})
    with pytest.raises(DataError, match="each of one class"):
        numbered(data("a", "b"), n=4, given={"a": 1, "b": 1})
    (tmp_path / "map.json").write_text("[1]")
    with pytest.raises(DataError, match="is no class map"):
        read_class_map(tmp_path / "map.json")
    x, y = np.zeros((2, 4)), np.arange(2)
    with pytest.raises(DataError, match="have no names"):
        numbered(DataSource(x, y, x, y, name="mine"), n=4, given={"a": 1})
