"""One exported graph written at other widths: what an export at these widths would be, with branches gone."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from profile_example import branching_net

import l0prune
from l0prune.model_call import ModelCall
from l0prune.profiling import runner
from l0prune.profiling.graphs import WidthGraph
from l0prune.profiling.outline import CONTRACTIONS, Moment, Sample
from l0prune.profiling.parts import parts_of, times_of_parts
from l0prune.verification import random_decision

THREADS = 1


@pytest.fixture(scope="module")
def traced():
    model, x = branching_net()
    flow = l0prune.trace(model, x)
    return model, flow, WidthGraph(flow, model, ModelCall.of(x, model))


def run(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(0).normal(size=(3, 3, 6, 6)).astype(np.float32)})[0]


def weights_of(path):
    """Shapes of the weights of contractions, in order."""
    graph = onnx.load(path, load_external_data=False).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return [shapes[node.input[1]] for node in graph.node if node.op_type in CONTRACTIONS]


def test_the_whole_graph_computes_what_the_model_does(traced, tmp_path):
    model, flow, graph = traced
    graph.write_weights(tmp_path)
    graph.write(np.ones(flow.n_gates, bool), tmp_path / "whole.onnx")

    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3, 6, 6)).astype(np.float32))

    np.testing.assert_allclose(
        run(tmp_path / "whole.onnx"), model.eval()(x).detach().numpy(), atol=1e-2
    )  # noise of 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_a_graph_at_other_widths_has_the_weights_of_the_network_that_is_cut(traced, tmp_path, seed):
    model, flow, graph = traced
    is_open = random_decision(flow, closed=0.6, seed=seed) != 0
    graph.write_weights(tmp_path)
    graph.write(is_open, tmp_path / "cut.onnx")

    gated = l0prune.inject(model, flow)
    gated.freeze(torch.from_numpy(is_open.astype(np.float64)))
    compact = l0prune.shrink(gated)
    expected = [list(p.shape) for name, p in compact.named_parameters() if name.endswith("weight")]

    assert weights_of(tmp_path / "cut.onnx") == expected
    assert run(tmp_path / "cut.onnx").shape == (3, 5)


def test_a_closed_branch_leaves_a_constant(traced, tmp_path):
    _, flow, graph = traced
    is_open = np.ones(flow.n_gates, bool)
    is_open[flow.tensors["first.weight"][0]] = False
    graph.write_weights(tmp_path)
    left = graph.write(is_open, tmp_path / "closed.onnx")

    assert len(left) == 2
    assert weights_of(tmp_path / "closed.onnx") == [[16, 3, 3, 3], [5, 16]]
    assert np.isfinite(run(tmp_path / "closed.onnx")).all()
    assert [n.op_type for n in onnx.load(tmp_path / "closed.onnx", load_external_data=False).graph.node].count(
        "BatchNormalization"
    ) == 1


@pytest.mark.parametrize("inner", [0, 5])
def test_it_has_the_operators_and_the_shapes_between_them_of_the_file_that_surgery_gives(traced, tmp_path, inner):
    """onnxruntime fuses some operators only where it knows the shapes."""
    model, flow, graph = traced
    is_open = np.ones(flow.n_gates, bool)
    is_open[flow.tensors["first.weight"][0][inner:]] = False
    graph.write_weights(tmp_path)
    graph.write(is_open, tmp_path / "cut.onnx")
    gated = l0prune.inject(model, flow)
    gated.freeze(torch.from_numpy(is_open.astype(np.float64)))
    path = l0prune.export_onnx(l0prune.shrink(gated), torch.randn(2, 3, 6, 6), tmp_path / "real.onnx")

    written, real = (onnx.load(file, load_external_data=False).graph for file in (tmp_path / "cut.onnx", path))

    assert [node.op_type for node in written.node] == [node.op_type for node in real.node]
    ours, theirs = (
        {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:2]] for value in one.value_info}
        for one in (written, real)
    )
    assert ours.keys() == {name for node in written.node for name in node.output} - {"output"}
    assert all(theirs.get(name, shape) == shape for name, shape in ours.items())
    assert len(ours.keys() & theirs.keys()) >= 3


def test_times_of_the_parts_add_up_to_those_of_the_network(traced, tmp_path):
    _, flow, graph = traced
    graph.write_weights(tmp_path)
    moments = []
    for inner in (16, 8, 3):
        is_open = np.ones(flow.n_gates, bool)
        is_open[flow.tensors["first.weight"][0][inner:]] = False
        graph.write(is_open, tmp_path / "cut.onnx")
        feeds = {"x": np.zeros((1, 3, 6, 6), np.float32)}
        measured = runner.measure(tmp_path / "cut.onnx", feeds, THREADS, seconds=0.005)
        measured["shapes"] = {name: tuple(shapes) for name, shapes in measured["shapes"].items()}
        moments.append(Moment(graph.sizes(is_open), inner == 16, Sample(**measured)))
    outline = graph.outline
    timed = [times_of_parts(outline.nodes, outline.weights, moment.sample) for moment in moments]

    for one, moment in zip(timed, moments, strict=True):
        assert sum(one.us.values()) == pytest.approx(moment.sample.total_us)
    parts = parts_of(outline, timed, np.array([moment.sizes for moment in moments]))
    named = [
        (part.kind[0], [outline.dimensions[side].name if side >= 0 else -side for side in part.sides]) for part in parts
    ]
    assert named[1:] == [
        ("Conv", [3, "stem.weight"]),
        ("Conv", ["stem.weight", "first.weight"]),
        ("Conv", ["first.weight", "stem.weight"]),
        ("Gemm", ["stem.weight", 5]),
    ]
