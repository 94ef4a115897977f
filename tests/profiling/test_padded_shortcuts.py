"""Graphs of networks whose shortcuts pad channels with zeros before and after: both ends have widths of their own."""

import numpy as np
import onnxruntime
import pytest
import torch

import l0prune
from l0prune.model_call import ModelCall
from l0prune.models.resnet_cifar import CifarResNet
from l0prune.profiling import graphs
from l0prune.profiling.graphs import WidthGraph
from l0prune.verification import random_decision


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    model, x = CifarResNet((1, 1, 1), widths=(4, 8, 16)).eval(), torch.randn(2, 3, 8, 8)
    return model, x, l0prune.trace(model, x)


def ends_of(flow):
    """Gates of the zeros before and after the channels of the second and the third stage."""
    stages = [flow.tensors[f"{name}.conv2.weight"][0] for name in ("layer2.0", "layer3.0")]
    return [end for gates in stages for end in (gates[: len(gates) // 4], gates[-(len(gates) // 4) :])]


def require_that_it_runs(graph, flow, folder):
    graph.write_weights(folder)
    x = np.zeros((2, 3, 8, 8), np.float32)
    ends = set()
    for seed in range(8):
        is_open = random_decision(flow, closed=0.5, seed=seed) != 0
        graph.write(is_open, folder / "cut.onnx")
        session = onnxruntime.InferenceSession(str(folder / "cut.onnx"), providers=["CPUExecutionProvider"])
        assert session.run(None, {"x": x})[0].shape == (2, 10)
        ends.add(tuple(int(is_open[end].sum()) for end in ends_of(flow)))
    assert any(one[0] != one[1] for one in ends)
    assert any(one[2] != one[3] for one in ends)


def test_the_graph_runs_whatever_of_the_two_ends_is_cut(traced, tmp_path):
    model, x, flow = traced

    require_that_it_runs(WidthGraph(flow, model, ModelCall.of(x, model)), flow, tmp_path)


def test_two_ends_that_have_the_same_sizes_are_two(traced, tmp_path, monkeypatch):
    model, x, flow = traced
    cuts = graphs.telling_cuts(flow, graphs.flow_dimensions(flow), 0)
    for cut, n in zip(cuts, (2, 1), strict=True):
        for end in ends_of(flow):
            cut[end] = np.arange(len(end)) < n * len(end) // 2
    monkeypatch.setattr(graphs, "telling_cuts", lambda *_: cuts)

    require_that_it_runs(WidthGraph(flow, model, ModelCall.of(x, model)), flow, tmp_path)
