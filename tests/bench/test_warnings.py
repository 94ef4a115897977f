"""A model that is smaller and not faster all the same: said in the report, as a warning, and with what to do about it."""

import json
import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from l0prune.bench.benchmark import Facts, benchmark, report_of
from l0prune.bench.processes import Sessions
from l0prune.bench.report import BenchReport
from l0prune.errors import L0PruneWarning
from l0prune.measuring.hardware import Environment
from l0prune.measuring.timing import PairedTimes

QUICK = {"warmup_s": 0.0, "min_samples": 20, "min_seconds": 0.0, "processes": 1}


def measured(ratio: float, *, n_parameters: int = 40, odd_widths: tuple[int, ...] = ()) -> BenchReport:
    """A report of two models, the second `ratio` times as fast as the first, give or take 1 % a run."""
    noise = np.random.default_rng(0).uniform(0.99, 1.01, (2, 40, 5))
    times = PairedTimes((1e-3 * noise[0], 1e-3 / ratio * noise[1]), "thread", 0.0)
    facts = {"dense": Facts(400, 100, (18,)), "compact": Facts(160, n_parameters, odd_widths)}
    return report_of(Sessions((times,), ()), facts, Environment.here(threads=1, batch_size=1), seed=0)


def test_a_smaller_model_that_is_slower_is_said_with_its_ratio_and_its_odd_widths():
    with pytest.warns(L0PruneWarning, match="compact has 40% of the parameters of dense and is slower") as said:
        report = measured(0.65, odd_widths=(17, 23, 37, 41, 50, 61, 66, 70))

    (sentence,) = report.warnings
    assert [str(warning.message) for warning in said] == [sentence]
    assert "0.65 times its speed, 95 % interval 0.6" in sentence
    assert "convolutions of 17, 23, 37, 41, 50, 61 and 2 more channels" in sentence
    assert "l0prune shrink RUN --align auto" in sentence
    assert BenchReport.from_json(json.loads(json.dumps(report.to_json()))).warnings == report.warnings


def test_where_no_width_is_odd_rounding_is_not_the_advice():
    with pytest.warns(L0PruneWarning):
        (sentence,) = measured(0.9).warnings

    assert "rounding does not help" in sentence
    assert "--budget latency=0.5" in sentence


@pytest.mark.parametrize("ratio", [0.99, 1.0])
def test_a_smaller_model_that_is_as_fast_is_said_not_to_be_faster(ratio):
    with pytest.warns(L0PruneWarning, match="compact has 40% of the parameters of dense and is not faster: "):
        report = measured(ratio)

    assert len(report.warnings) == 1


@pytest.mark.parametrize(("ratio", "n_parameters"), [(1.4, 40), (1.03, 40), (0.65, 100), (0.65, 150)])
def test_nothing_is_said_of_models_that_are_faster_or_not_smaller(ratio, n_parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = measured(ratio, n_parameters=n_parameters)

    assert report.warnings == ()


def test_reports_that_knew_no_odd_widths_are_read():
    old = measured(1.4).to_json()
    for timing in old["models"].values():
        del timing["odd_widths"]

    assert BenchReport.from_json(old)["dense"].odd_widths == ()


def write_convolutions(path, *layers):
    """Convolutions one after another; each (inputs, outputs, groups, transposed)."""
    nodes, weights = [], []
    for index, (n_in, n_out, groups, transposed) in enumerate(layers):
        shape = (n_in, n_out // groups, 1, 1) if transposed else (n_out, n_in // groups, 1, 1)
        weights.append(numpy_helper.from_array(np.ones(shape, np.float32), f"w{index}"))
        kind = "ConvTranspose" if transposed else "Conv"
        nodes.append(helper.make_node(kind, [f"x{index}", f"w{index}"], [f"x{index + 1}"], group=groups))
    ends = [("x0", layers[0][0]), (f"x{len(layers)}", layers[-1][1])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, width, 2, 2)) for name, width in ends]
    graph = helper.make_graph(nodes, "convolutions", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_odd_widths_are_what_convolutions_read_in_number_of_channels(tmp_path):
    layers = [(3, 30, 1, False), (30, 30, 30, False), (30, 15, 1, False), (15, 17, 1, True), (17, 34, 17, True)]
    path = write_convolutions(tmp_path / "net.onnx", *layers, (34, 64, 2, False), (64, 61, 1, False))

    report = benchmark({"net": path}, **QUICK)

    assert report["net"].odd_widths == (17, 30, 34)
