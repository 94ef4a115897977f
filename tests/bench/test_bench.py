import io
import itertools
import json
import time
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

import l0prune
from l0prune.bench.benchmark import BenchReport, bench_table, benchmark
from l0prune.bench.torch_models import benchmark_modules
from l0prune.errors import ConfigError, FileFormatError
from l0prune.measuring import timing
from l0prune.measuring.timing import interleave, median_ratio
from l0prune.onnx.onnx_model import OnnxModel

QUICK = {"warmup_s": 0.0, "min_samples": 20, "min_seconds": 0.0, "processes": 1}


def write_mlp(path, width, *, batch="batch", depth=1, input_type=TensorProto.FLOAT):
    """64 -> width -> ... -> 64, matrix products only."""
    rng = np.random.default_rng(0)
    sizes = [64, *[width] * depth, 64]
    weights = [
        numpy_helper.from_array(rng.normal(size=(n_in, n_out)).astype(np.float32), f"w{i}")
        for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes))
    ]
    nodes = [helper.make_node("Cast", ["x"], ["v0"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("MatMul", [f"v{i}", f"w{i}"], [f"v{i + 1}"]) for i in range(len(weights))]
    ends = [
        helper.make_tensor_value_info("x", input_type, [batch, 64]),
        helper.make_tensor_value_info(f"v{len(weights)}", TensorProto.FLOAT, [batch, 64]),
    ]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    return {
        "wide": write_mlp(folder / "wide.onnx", 1024, depth=3),
        "narrow": write_mlp(folder / "narrow.onnx", 64, depth=1),
        "static": write_mlp(folder / "static.onnx", 64, batch=4),
        "ids": write_mlp(folder / "ids.onnx", 64, input_type=TensorProto.INT64),
    }


def test_a_smaller_model_is_faster_and_the_interval_says_so(files):
    report = benchmark({"dense": files["wide"], "compact": files["narrow"]}, batch_size=8, **QUICK)

    speedup = report.speedup["compact"]
    assert report.baseline == "dense"
    assert 2 < speedup.low <= speedup.ratio <= speedup.high
    assert report["compact"].n_parameters == 64 * 64 * 2
    assert report["compact"].file_bytes == files["narrow"].stat().st_size
    for model in report.models:
        assert model.samples >= 20
        assert 0 < model.latency_ms.p50 <= model.latency_ms.p90
        assert model.throughput_per_s == pytest.approx(8e3 / model.latency_ms.p50)
    assert (report.environment.threads, report.environment.batch_size) == (1, 8)


def test_one_model_alone_has_no_speedup(files):
    report = l0prune.benchmark({"only": files["narrow"]}, **QUICK)
    assert report.speedup == {}
    assert [model.name for model in report.models] == ["only"]


def test_a_report_survives_json_and_refuses_what_it_does_not_know(files):
    report = benchmark({"a": files["narrow"], "b": files["narrow"]}, **QUICK)
    value = json.loads(json.dumps(report.to_json()))
    assert value["models"]["b"]["latency_ms"].keys() == {"p50", "p90", "mean", "quantiles"}
    assert BenchReport.from_json(value) == report
    with pytest.raises(FileFormatError, match="version 2"):
        BenchReport.from_json({**value, "version": 2})
    with pytest.raises(FileFormatError, match="bench report has missing or unknown keys: colour"):
        BenchReport.from_json({**value, "colour": "red"})
    value["models"]["a"].pop("samples")
    with pytest.raises(FileFormatError, match=r"timing of 'a' has missing or unknown keys: samples"):
        BenchReport.from_json(value)


def test_the_table_shows_every_model_and_the_machine(files):
    report = benchmark({"dense": files["narrow"], "compact": files["narrow"]}, **QUICK)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(bench_table(report))
    text = console.export_text()
    assert "dense" in text
    assert f"{report.speedup['compact'].ratio:.2f}x" in text
    assert report.environment.onnxruntime in text


def test_inputs_may_be_given_by_order_or_by_name(files):
    rows = np.ones((4, 64), dtype=np.float32)
    for inputs in (rows, (rows,), {"x": rows}):
        assert benchmark({"m": files["static"]}, inputs, **QUICK).environment.batch_size == 4


def test_integer_inputs_are_small_ids(files):
    assert benchmark({"ids": files["ids"]}, batch_size=2, **QUICK)["ids"].samples >= 20


def test_a_fixed_batch_is_respected(files):
    assert benchmark({"m": files["static"]}, batch_size=4, **QUICK).environment.batch_size == 4
    with pytest.raises(ConfigError, match=r"fixed batch of 4, found batch_size=1\. Benchmark with batch_size=4"):
        benchmark({"m": files["static"]}, **QUICK)


def test_what_cannot_be_measured_is_named(files, tmp_path):
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    rows = np.ones((4, 64), dtype=np.float32)
    with pytest.raises(ConfigError, match=r"missing\.onnx: no such file"):
        benchmark({"m": tmp_path / "missing.onnx"})
    with pytest.raises(FileFormatError, match=r"text\.onnx: not an ONNX model"):
        benchmark({"m": text})
    with pytest.raises(ConfigError, match="no models given"):
        benchmark({})
    for threads in (0, 100_000):
        with pytest.raises(ConfigError, match=f"threads={threads}: expected 1 to "):
            OnnxModel(files["narrow"], threads=threads)
        for measure in (benchmark, lambda models, **options: benchmark_modules(models, torch.zeros(1), **options)):
            with pytest.raises(ConfigError, match=f"threads={threads}: expected 1 "):
                measure({"m": files["narrow"]}, threads=threads)
    with pytest.raises(ConfigError, match=r"input 'x' of shape \[\d+, 64\] takes .* Choose a smaller batch_size"):
        benchmark({"m": files["narrow"]}, batch_size=10**12)
    with pytest.raises(ConfigError, match=r"batch_size=2: the inputs given have 4 rows"):
        benchmark({"m": files["narrow"]}, rows, batch_size=2)
    with pytest.raises(ConfigError, match="expected the inputs x, found y"):
        benchmark({"m": files["narrow"]}, {"y": rows})
    with pytest.raises(ConfigError, match="'m': does not run on these inputs"):
        benchmark({"m": files["narrow"]}, rows[:, :5])


def test_blocks_hold_runs_of_every_call_and_noise_of_whole_blocks_cancels():
    def sleeps(seconds):
        return lambda: time.sleep(seconds)

    times = interleave(
        [sleeps(0.001), sleeps(0.002)],
        one_thread=False,
        warmup_s=0.0,
        min_samples=8,
        min_seconds=0.0,
        max_seconds=5.0,
        block_s=0.004,
        seed=0,
    )
    assert len({runs.shape[0] for runs in times.seconds}) == 1
    assert all(runs.size >= 8 for runs in times.seconds)
    disturbance = np.linspace(1, 10, 40)  # the machine gets ten times slower while it measures
    noise = np.random.default_rng(0).normal(1, 0.01, size=(2, 40))
    ratio, low, high = median_ratio(3.0 * disturbance * noise[0], 2.0 * disturbance * noise[1], seed=0)
    assert low < 1.5 < high
    assert high - low < 0.05
    assert ratio == pytest.approx(1.5, rel=0.01)


def test_one_thread_is_timed_by_its_own_processor_time():
    def work_and_wait():
        sum(range(20_000))
        time.sleep(0.005)

    options = {"warmup_s": 0.0, "min_samples": 5, "min_seconds": 0.0, "max_seconds": 5.0, "block_s": 0.0, "seed": 0}
    alone = interleave([work_and_wait], one_thread=True, **options)
    wall = interleave([work_and_wait], one_thread=False, **options)

    assert (alone.clock, wall.clock) == ("thread", "wall")
    assert np.median(alone.seconds[0]) < 0.005 <= np.median(wall.seconds[0])
    assert alone.busy > 0.3
    assert wall.busy == 0.0


class Clock:
    """Seconds that pass when the calls under test say so."""

    def __init__(self, monkeypatch):
        self.seconds = 0.0
        fake = SimpleNamespace(
            perf_counter=lambda: self.seconds, thread_time=lambda: self.seconds, get_clock_info=time.get_clock_info
        )
        monkeypatch.setattr(timing, "time", fake)

    def call(self, seconds):
        def run():
            self.seconds += seconds()

        return run


def test_a_call_is_as_fast_as_itself_on_a_machine_that_slows_down(monkeypatch):
    clock, noise = Clock(monkeypatch), np.random.default_rng(0)

    def slower_and_slower():
        return 0.001 * (1 + clock.seconds) * noise.normal(1, 0.02)

    options = {"warmup_s": 0.0, "min_samples": 400, "min_seconds": 0.0, "max_seconds": 60.0, "block_s": 0.01, "seed": 0}
    times = interleave([clock.call(slower_and_slower)] * 2, one_thread=True, **options)

    first, second = times.block_medians
    assert first[-1] > 1.5 * first[0]
    ratio, low, high = median_ratio(first, second, seed=0)
    assert low < 1 < high
    assert ratio == pytest.approx(1.0, abs=0.02)


def test_measuring_ends_at_its_time_limit(monkeypatch):
    clock = Clock(monkeypatch)
    options = {
        "warmup_s": 0.0,
        "min_samples": 10_000,
        "min_seconds": 0.0,
        "max_seconds": 1 / 8,
        "block_s": 0.0,
        "seed": 0,
    }
    times = interleave([clock.call(lambda: 1 / 64)], one_thread=False, **options)

    assert times.seconds[0].shape == (8, 1)
    assert clock.seconds == 11 / 64  # three runs to warm up
