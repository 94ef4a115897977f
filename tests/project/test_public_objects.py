"""What the library hands out can be looked at in a notebook and used without repeating what it knows."""

import copy
import inspect
import typing

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import l0prune
from l0prune.errors import ConfigError
from l0prune.surgery.record import call_of


@pytest.fixture(scope="module")
def pruned():
    """A fine-tuning result of a small network, and its dense model with inputs."""
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    budget = l0prune.Budget("macs", 0.5)
    gated = l0prune.inject(dense, l0prune.trace(dense, x), budget=budget, steps=2)
    batches = [(torch.randn(8, 3, 8, 8), torch.randint(0, 10, (8,))) for _ in range(2)]
    config = l0prune.FinetuneConfig(epochs=2, align=1)
    return l0prune.finetune(gated, batches, loss=F.cross_entropy, budget=budget, config=config), dense, x


def test_what_is_handed_out_is_shown_in_one_short_line(pruned):
    result = pruned[0]
    flow, surgery = result.gated.flow, result.compact.surgery

    for value in (result, flow, flow.captured, flow.units, flow.units[0], surgery, surgery.plan):
        shown = repr(value)
        assert len(shown) < 130, shown
        assert "\n" not in shown
    assert repr(flow.units[0]) == "<Unit 0: 0.weight[0], 0.bias[0], 4.weight[1]>"
    assert f"{result.n_open} of 16 gates open" in repr(result)


def test_a_compact_model_is_exported_with_the_inputs_it_was_verified_with(pruned, tmp_path):
    result, dense, x = pruned

    written = l0prune.export_onnx(result.compact, tmp_path / "compact.onnx")

    assert written.stat().st_size > 0
    with pytest.raises(ConfigError, match=r"not a compact model.*export_onnx\(model, example_inputs, path\)"):
        l0prune.export_onnx(dense, tmp_path / "dense.onnx")
    with pytest.raises(ConfigError, match="no path for the ONNX file"):
        l0prune.export_onnx(dense, x)
    assert not (tmp_path / "dense.onnx").exists()
    converted = copy.deepcopy(result.compact).double()
    assert {tensor.dtype for tensor in call_of(converted).tensors} == {torch.float64}


@pytest.mark.parametrize("name", ["trace", "inject", "finetune", "shrink", "save", "load", "benchmark", "verify"])
def test_the_types_of_public_parameters_are_public(name):
    public = {own: getattr(l0prune, own) for own in l0prune.__all__}
    own = set()
    for hint in typing.get_type_hints(
        getattr(l0prune, name), localns=public
    ).values():  # a name it cannot see is not public
        for kind in (hint, *typing.get_args(hint)):
            if inspect.isclass(kind) and kind.__module__.startswith("l0prune"):
                own.add(kind.__name__)

    assert own <= set(l0prune.__all__)
