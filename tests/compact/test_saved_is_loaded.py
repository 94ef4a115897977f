"""What `save` writes, `load` reads; what cannot be read is said when it is saved."""

import math
import warnings
from collections import OrderedDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, Net, difference, gated_at, inputs, random_gates, traced
from torch import nn

import l0prune
from l0prune.errors import L0PruneWarning, PlanMismatchError
from l0prune.surgery.shrink import shrink


def compact_of(function, **parts):
    net = Net(function, **(parts or {"a": nn.Linear(5, 8), "b": nn.Linear(8, 4)}))
    flow = traced(net, inputs(2, 7, 5))
    return net, shrink(gated_at(net, flow, random_gates(flow)))


def plain(net, x):
    return net.b(net.a(x).relu())


FORWARDS = {
    "resampled by a fraction": lambda net, x: F.interpolate(plain(net, x).transpose(1, 2), scale_factor=0.5),
    "steps of a float": lambda net, x: plain(net, x) + torch.arange(x.shape[1] - 1, -1, -1.0).cos()[None, :, None],
    "rounded": lambda net, x: plain(net, x)[:, : round(x.shape[1] * 0.7)],
    "rounded up": lambda net, x: plain(net, x)[:, : math.ceil(x.shape[1] / 2)],
    "a power": lambda net, x: plain(net, x) * x.shape[1] ** -0.5,
    "numbers as keys": lambda net, x: {0: plain(net, x), 1.5: plain(net, x).mean(1)},
    "texts as keys": lambda net, x: {"left eye": plain(net, x), 'right "eye"': plain(net, x).mean(1)},
    "ordered": lambda net, x: OrderedDict([("feature 0", plain(net, x)), ("1", plain(net, x).mean(1))]),
    "nothing": lambda net, x: (plain(net, x), None),
}


@pytest.mark.parametrize("kind", FORWARDS)
def test_it_is_loaded_without_its_class(kind, tmp_path):
    _, compact = compact_of(FORWARDS[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error", L0PruneWarning)
        loaded = l0prune.load(l0prune.save(compact, tmp_path / "compact"))

    x = inputs(2, 7, 5)
    found, expected = loaded(x), compact(x)
    assert type(found) is type(expected)
    assert not isinstance(expected, dict) or list(found) == list(expected)
    assert difference(found, expected) < EXACT


Scores = namedtuple("Scores", ["logits", "features"])


def test_named_tuples_come_back_as_tuples_in_their_order(tmp_path):
    net = Net(
        lambda net, x: {"all": Scores(plain(net, x), [Scores(net.a(x).mean(-1), None)])},
        a=nn.Linear(5, 8),
        b=nn.Linear(8, 4),
    )
    flow = traced(net, inputs(2, 7, 5))
    compact = shrink(gated_at(net, flow, random_gates(flow)), form="in-place")
    with warnings.catch_warnings():
        warnings.simplefilter("error", L0PruneWarning)
        loaded = l0prune.load(l0prune.save(compact, tmp_path / "compact"))

    x = inputs(3, 7, 5)
    logits, [(features, nothing)] = loaded(x)["all"]
    expected = compact(x)["all"]
    assert type(expected) is Scores
    assert nothing is None
    assert difference((logits, features), (expected.logits, expected.features[0].logits)) < EXACT


@pytest.mark.parametrize("name", ["left eye", "it's", "3x3 (b), [c]", "größe", "+", "a-b"])
def test_modules_may_be_called_anything(name, tmp_path):
    def forward(net, x):
        return net.b(net.parts_by_name[name](x).relu())

    parts = nn.ModuleDict({name: nn.Linear(5, 8)})
    _, compact = compact_of(forward, parts_by_name=parts, b=nn.Linear(8, 4))

    loaded = l0prune.load(l0prune.save(compact, tmp_path / "compact"))

    assert loaded.state_dict().keys() == compact.state_dict().keys()
    assert difference(loaded(inputs(3, 7, 5)), compact(inputs(3, 7, 5))) < EXACT


def test_what_cannot_be_read_is_said_when_it_is_saved_and_the_class_still_loads(tmp_path):
    name = 'a"b'

    def forward(net, x):
        return net.b(net.parts_by_name[name](x).relu())

    net, compact = compact_of(forward, parts_by_name=nn.ModuleDict({name: nn.Linear(5, 8)}), b=nn.Linear(8, 4))

    with pytest.warns(L0PruneWarning, match=r"saved without model\.pt2, because .*base=model") as caught:
        folder = l0prune.save(compact, tmp_path / "compact")

    assert "\n" not in str(caught[0].message)
    with pytest.raises(PlanMismatchError, match="because"):
        l0prune.load(folder)
    loaded = l0prune.load(folder, base=net)
    assert difference(loaded(inputs(2, 7, 5)), compact(inputs(2, 7, 5))) < EXACT
    with pytest.warns(L0PruneWarning):
        again = l0prune.save(loaded, tmp_path / "again")  # no inputs are known, so there is still no graph
    assert difference(l0prune.load(again, base=net)(inputs(2, 7, 5)), compact(inputs(2, 7, 5))) < EXACT


class Counting(nn.Linear):
    """Keeps what is no tensor in its state."""

    def get_extra_state(self):
        return {"n": 3}

    def set_extra_state(self, state):
        self.n = state["n"]


def test_state_that_is_no_tensor_is_named(tmp_path):
    _, compact = compact_of(plain, a=Counting(5, 8), b=nn.Linear(8, 4))

    with pytest.warns(L0PruneWarning, match=r"a\._extra_state, which is not a tensor"):
        l0prune.save(compact, tmp_path / "compact")
