"""The layers of an ONNX file: what they are called, and that their times are shared out by what the profiler says."""

import numpy as np
import onnx
import pytest
import torch
from branch_nets import Block
from onnx import TensorProto, helper, numpy_helper
from profile_example import branching_net
from torch import nn

import l0prune
from l0prune.measuring.session import open_session
from l0prune.onnx.feeds import random_feeds
from l0prune.profiling import runner
from l0prune.profiling.layers import shares_by_layer
from l0prune.profiling.names import BEFORE, layer_names


def names_in(path):
    graph = onnx.load(str(path)).graph
    return list(layer_names(list(graph.node), {tensor.name for tensor in graph.initializer}).values())


def feeds_of(path):
    return random_feeds("net", open_session(path), 1, {}, seed=0)


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory):
    model, x = branching_net()
    return l0prune.export_onnx(model.eval(), x, tmp_path_factory.mktemp("layers") / "net.onnx")


class Unbiased(nn.Module):
    """Two products without a bias, one of them with the weights of the embedding; the first layer runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.mix, self.head = nn.Embedding(9, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 9, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(torch.relu(self.mix(self.tokens(ids))))))


def test_layers_are_called_after_the_modules_whose_weights_they_have(convolutions):
    assert names_in(convolutions) == [BEFORE, "stem", "first", "second", "head"]


def test_products_of_activations_are_called_after_what_they_are_made_of(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(Block(), Block()).eval()

    names = names_in(l0prune.export_onnx(net, torch.randn(2, 5, 8), tmp_path / "net.onnx"))

    of_a_block = ["qkv", "qkv, product 1", "qkv, product 2", "out", "up", "down"]
    assert names == [BEFORE, *(f"{block}.{name}" for block in (0, 1) for name in of_a_block)]


def test_a_product_without_a_bias_is_called_after_its_weight_and_a_layer_that_runs_twice_is_numbered(tmp_path):
    torch.manual_seed(0)

    path = l0prune.export_onnx(Unbiased().eval(), torch.randint(0, 9, (2, 5)), tmp_path / "net.onnx")

    assert names_in(path) == [BEFORE, "mix 1", "mix 2", "head"]
    assert "mix.weight_transposed" in {tensor.name for tensor in onnx.load(str(path)).graph.initializer}


def test_matrices_that_are_equal_keep_the_name_of_the_exporter(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net[2].weight = nn.Parameter(net[0].weight.detach().clone())

    path = l0prune.export_onnx(net.eval(), torch.randn(2, 5, 4), tmp_path / "net.onnx")

    assert not any("transposed" in tensor.name for tensor in onnx.load(str(path)).graph.initializer)


def test_an_anonymous_file_has_layers_as_well(tmp_path):
    weights = [numpy_helper.from_array(np.eye(4, dtype=np.float32), name) for name in ("a", "b")]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["y"]), helper.make_node("MatMul", ["y", "b"], ["z"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "z")]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))

    shares = shares_by_layer({"net": path}, {"net": feeds_of(path)}, seconds=0.001)["net"]

    assert list(shares) == ["y", "z"]
    assert sum(shares.values()) == pytest.approx(1)


def test_each_layer_has_the_time_of_its_kernels_the_median_of_the_rounds(convolutions, monkeypatch):
    feeds, rounds = {"net": feeds_of(convolutions)}, iter([1.0, 3.0, 2.0, 90.0, 2.0])
    real, n_kernels = runner.measure, []

    def told(path, *terms):
        """The kernel of the layer `first` takes so many times what the others take."""
        measured, factor = real(path, *terms), next(rounds)
        nodes = {name: factor if "relu_1" in name else 1.0 for name in measured["nodes"]}
        n_kernels.append(len(nodes))
        return {**measured, "nodes": nodes, "total_us": sum(nodes.values())}

    monkeypatch.setattr(runner, "measure", told)
    shares = shares_by_layer({"net": convolutions}, feeds, seconds=0.001)["net"]

    assert {"stem", "first", "second", "head"} <= shares.keys()
    assert shares["first"] == pytest.approx(2 / (n_kernels[0] + 1))
    assert sum(shares.values()) == pytest.approx(1)
