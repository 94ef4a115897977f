"""Measured in several processes: the interval holds what a second bench shows, and files are started cold."""

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from test_bench import write_mlp

import l0prune
from l0prune.bench import processes
from l0prune.bench.report import BenchReport
from l0prune.cli.main import cli
from l0prune.errors import ConfigError, L0PruneError
from l0prune.measuring.denormals import denormals_are_flushed, flushed_denormals
from l0prune.measuring.session import open_session
from l0prune.measuring.timing import ratio_between_sessions
from l0prune.onnx.feeds import random_feeds

QUICK = {"warmup_s": 0.0, "min_samples": 6, "min_seconds": 0.0, "processes": 2}
TYPED = ["--warmup", "0", "--samples", "6", "--min-seconds", "0"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return {"wide": write_mlp(folder / "wide.onnx", 2048, depth=2), "narrow": write_mlp(folder / "narrow.onnx", 64)}


@pytest.mark.parametrize("n", [2, 5, 10])
def test_another_process_lies_in_the_interval_19_times_of_20_however_much_processes_differ(n):
    rng, n_trials = np.random.default_rng(0), 2000

    def measured(processes):
        by_process = np.exp(rng.normal(0.3, 0.05, size=(processes, 1)))
        return by_process * np.exp(rng.normal(0, 0.001, size=(processes, 9)))

    intervals = [ratio_between_sessions(measured(n), np.ones((n, 9))) for _ in range(n_trials)]
    held = sum(low <= np.median(measured(1)) <= high for _, low, high in intervals)

    assert abs(held / n_trials - 0.95) < 4 * np.sqrt(0.95 * 0.05 / n_trials)


def test_processes_are_counted_and_each_model_is_started_cold_and_has_a_peak_of_its_own(files):
    report = l0prune.benchmark({"dense": files["wide"], "compact": files["narrow"]}, batch_size=8, **QUICK)

    assert report.processes == 2
    assert all(model.samples >= 6 for model in report.models)
    dense, compact = (report[name].start for name in ("dense", "compact"))
    assert min(dense.load_ms, dense.first_run_ms, compact.load_ms, compact.first_run_ms) > 0
    assert dense.peak_bytes - compact.peak_bytes > 0.9 * files["wide"].stat().st_size
    assert BenchReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_a_process_that_fails_says_why_in_one_line(files, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(processes.sys, "executable", "/no/such/python")
    with pytest.raises(L0PruneError, match=r"no process can be started .* processes=1"):
        l0prune.benchmark({"a": files["narrow"]}, **QUICK)


def test_what_a_process_says_last_is_the_error(files):
    how = {"warmup_s": 0.0, "min_samples": 1, "min_seconds": 0.0, "max_seconds": 1.0, "block_s": 0.01, "seed": 0}
    wrong = {"x": np.ones((1, 5), np.float32)}

    with pytest.raises(
        L0PruneError, match=r"a process that measured failed: .* does not run on these inputs"
    ) as caught:
        processes.measure_in_processes([files["narrow"]], [wrong], threads=1, processes=2, **how)

    assert "\n" not in str(caught.value)


def test_numbers_below_the_normal_range_count_as_zero_while_models_run_and_not_after(files):
    session = open_session(files["narrow"], flush_denormals=True)

    assert session.get_session_options().get_session_config_entry("session.set_denormal_as_zero") == "1"
    with flushed_denormals():
        assert denormals_are_flushed()
        with flushed_denormals():
            pass
        assert denormals_are_flushed()
    assert not denormals_are_flushed()
    l0prune.benchmark({"a": files["narrow"]}, warmup_s=0.0, min_samples=1, min_seconds=0.0, processes=1)
    assert not denormals_are_flushed()


def test_several_settings_are_one_table_and_one_a_report_as_ever(files):
    paths = [str(files["wide"]), str(files["narrow"])]
    one, several, shown = (
        CliRunner().invoke(cli, ["bench", *paths, *TYPED, "--processes", "1", *more])
        for more in (["--json"], ["--threads", "1,2", "--batch-size", "1,4", "--json"], ["--batch-size", "1,4"])
    )

    assert json.loads(one.stdout)["speedup"].keys() == {"narrow"}
    table = json.loads(several.stdout)
    found = [BenchReport.from_json(report).environment for report in table["settings"]]
    assert [(env.threads, env.batch_size) for env in found] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    rows = [line.split() for line in shown.stdout.splitlines() if line.strip()]
    assert [row[:2] for row in rows[2:6]] == [["1", "wide"], ["1", "narrow"], ["4", "wide"], ["4", "narrow"]]
    assert all(len(line.rstrip()) <= 80 for line in shown.stdout.splitlines()[:7])


def test_sizes_are_of_free_dimensions_that_the_file_has(files):
    with pytest.raises(ConfigError, match="'a' has no free dimension 'length'; free dimensions: none but the batch"):
        l0prune.benchmark({"a": files["narrow"]}, sizes={"length": 3}, **QUICK)
    with pytest.raises(ConfigError, match=r"length=0: expected 1 or more"):
        l0prune.benchmark({"a": files["narrow"]}, sizes={"length": 0}, **QUICK)
    with pytest.raises(ConfigError, match=r"the inputs given have their own"):
        l0prune.benchmark({"a": files["narrow"]}, np.ones((1, 64), np.float32), sizes={"length": 3}, **QUICK)


@pytest.mark.parametrize("name", ["length", "sequence_length"])
def test_a_length_is_that_of_the_only_free_dimension_whatever_its_name(name, tmp_path):
    ends = [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", name, 3]) for value in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", ends[:1], ends[1:])
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)

    feeds = random_feeds("net", open_session(path), 2, {"length": 5}, seed=0)

    assert feeds["x"].shape == (2, 5, 3)
    with pytest.raises(ConfigError, match=rf"free dimension '{name}'\. Pass inputs, or give its size"):
        random_feeds("net", open_session(path), 2, {}, seed=0)
