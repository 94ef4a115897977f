"""The record of a cut: runs of indices, tensors taken and put back, plain data on disk."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from flow_case import gated_at, inputs, random_gates, ready, traced
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from l0prune.errors import FileFormatError, PlanMismatchError
from l0prune.surgery.cuts import TensorCut, to_indices, to_runs
from l0prune.surgery.plan import SurgeryPlan, fingerprint, make_plan
from l0prune.surgery.shrink import shrink, surgery_of


def a_plan() -> tuple[nn.Module, SurgeryPlan]:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Flatten(), nn.Linear(24, 4))
    flow = traced(net, inputs(2, 3, 2, 2))
    return net, surgery_of(shrink(gated_at(net, flow, random_gates(flow)))).plan


@settings(deadline=None, derandomize=True)
@given(st.lists(st.booleans(), max_size=40))
def test_runs_and_indices_say_the_same(keep):
    runs = to_runs(np.array(keep, dtype=bool))

    assert to_indices(runs).tolist() == [i for i, kept in enumerate(keep) if kept]
    assert all(a < b for a, b in runs)
    assert all(b < c for (_, b), (c, _) in pairwise(runs))  # apart, or they would be one


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 2**16))
def test_what_is_taken_out_of_a_tensor_can_be_put_back(seed):
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(1, 5, size=3).tolist())
    kept = {d: to_runs(generator.random(shape[d]) < 0.6) for d in range(3) if generator.random() < 0.7}
    dense = torch.from_numpy(generator.random(shape))
    cut = TensorCut(shape, kept)

    small = cut.select(dense)
    other = dense + 1
    cut.scatter_(other, small)

    index = np.ix_(*[to_indices(kept[d]) if d in kept else np.arange(shape[d]) for d in range(3)])
    expected = dense.numpy() + 1
    expected[index] = dense.numpy()[index]
    assert tuple(small.shape) == cut.shape
    assert np.array_equal(small.numpy(), dense.numpy()[index])
    assert np.array_equal(other.numpy(), expected)


def test_indices_are_those_of_the_dense_model():
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    flow = traced(net, inputs(2, 5))
    values = np.array([0.0, 0.5, 1.0, 0.0])

    plan = make_plan(flow, net, values)

    assert plan.tensors == {
        "0.weight": TensorCut((4, 5), {0: ((1, 3),)}),
        "0.bias": TensorCut((4,), {0: ((1, 3),)}),
        "2.weight": TensorCut((2, 4), {1: ((1, 3),)}),
    }
    assert {key: factors.tolist() for key, factors in plan.folds.items()} == {("2.weight", 1): values.tolist()}
    assert torch.equal(plan.compact_tensor("2.weight", net[2].weight), net[2].weight[:, 1:3] * torch.tensor([0.5, 1.0]))


def test_a_plan_survives_the_disk():
    _, plan = a_plan()

    again = SurgeryPlan.from_json(plan.to_json())

    assert again.tensors == plan.tensors
    assert (again.fingerprint, again.form, again.attributes) == (plan.fingerprint, plan.form, plan.attributes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "is not a surgery plan"),
        (lambda d: d.update(version=99), "has version 99; this l0prune reads version 1"),
        (lambda d: d.update(extra=1), "missing or unknown keys: extra"),
        (lambda d: d.pop("tensors"), "missing or unknown keys: tensors"),
        (lambda d: d.update(form="other"), "has form 'other'"),
        (lambda d: d["tensors"]["0.weight"].pop("kept"), "0.weight has missing or unknown keys: kept"),
        (lambda d: d["tensors"]["0.weight"].update(kept={"0": [[4, 2]]}), "is damaged"),
        (lambda d: d["tensors"]["0.weight"].update(kept={"0": [[0, 99]]}), "do not lie in a dimension of 6"),
        (lambda d: d["tensors"]["0.weight"].update(kept={"0": [[-1, 2]]}), "is damaged"),
        (lambda d: d["tensors"]["0.weight"].update(kept={"7": [[0, 1]]}), "dimension 7 of a tensor"),
        (lambda d: d["tensors"]["0.weight"].update(dense_shape="big"), "dense_shape is 'big', expected a list"),
        (lambda d: d.update(attributes=[{"module": ""}]), r"attributes\[0\] has missing or unknown keys: attribute"),
        (lambda d: d.update(calls=[{"module": ""}]), r"calls\[0\] has missing or unknown keys: kind, number"),
        (lambda d: d.update(tensors=[1]), "tensors is a list, expected an object"),
    ],
)
def test_a_damaged_plan_is_one_line_that_names_the_file(change, message):
    data = copy.deepcopy(a_plan()[1].to_json())
    change(data)

    with pytest.raises(FileFormatError, match=message) as caught:
        SurgeryPlan.from_json(data, source="run/surgery.json")

    assert "run/surgery.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "run shrink again" in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "text", {}, 3])
def test_what_is_no_plan_at_all_is_refused(data):
    with pytest.raises(FileFormatError, match="is not a surgery plan"):
        SurgeryPlan.from_json(data)


def test_the_fingerprint_knows_names_shapes_and_types_and_no_values():
    net = nn.Linear(3, 4)

    assert fingerprint(net) == fingerprint(ready(nn.Linear(3, 4), seed=3).float())
    assert (
        len({fingerprint(n) for n in (net, nn.Linear(4, 3), nn.Linear(3, 4, bias=False), nn.Linear(3, 4).double())})
        == 4
    )


def test_another_dense_model_is_refused_and_the_tensor_named():
    _, plan = a_plan()
    wider = nn.Sequential(nn.Conv2d(3, 7, 1), nn.Flatten(), nn.Linear(28, 4)).double()
    other = nn.Sequential(nn.Flatten(), nn.Linear(24, 4)).double()
    single = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Flatten(), nn.Linear(24, 4))

    with pytest.raises(
        PlanMismatchError, match=r"'0\.weight': the plan was made for shape \(6, 3, 1, 1\), this model has \(7, 3"
    ):
        plan.check(wider)
    with pytest.raises(PlanMismatchError, match=r"'0\.weight': the plan cuts it, this Sequential has no such tensor"):
        plan.check(other)
    with pytest.raises(PlanMismatchError, match="other tensors or dtypes"):
        plan.check(single)


def test_a_plan_from_before_calls_had_sizes_is_read():
    data = a_plan()[1].to_json()
    del data["calls"]

    assert SurgeryPlan.from_json(data).calls == ()
