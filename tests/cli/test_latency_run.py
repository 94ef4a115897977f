"""A run with a budget of latency: its prediction by layer, the time of its layers in bench, and both on the page."""

import json
import shutil

import numpy as np
import pytest
from command_line import invoke, json_of, refused
from profile_example import branching_net, hand_made_profile, times_of

import l0prune
from l0prune.bench.report import BenchReport
from l0prune.latency.predicted import PredictedLayers
from l0prune.latency.profile import Profile
from l0prune.report.page import _layer_charts
from l0prune.run_directory import RunDirectory

SPEC = "profile_example:branching_net"
QUICK = ("--warmup", "0", "--samples", "3", "--min-seconds", "0", "--processes", "1")
NAMES = ["stem", "first", "second", "head"]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A network cut to 0.7 of its time without training; and its profile."""
    folder = tmp_path_factory.mktemp("latency-run")
    model, x = branching_net()
    profile = hand_made_profile(l0prune.trace(model, x)).save(folder / "profile.json")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (64, 6, 6, 3), dtype=np.uint8), rng.integers(0, 5, 64)
    np.savez(folder / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    budget = ("--budget", "latency=0.7", "--profile", profile)
    result = json_of("shrink", SPEC, "--data", f"npz:{folder / 'data.npz'}", *budget, "--out", folder / "run")
    return folder / "run", profile, result


def test_shrink_writes_what_the_profile_says_of_each_layer(case):
    run, _, result = case

    found = PredictedLayers.read(run / "latency.json")

    assert [layer.name for layer in found.layers] == NAMES
    assert found.dense_ms == pytest.approx(result["latency_before"])
    assert found.compact_ms == pytest.approx(result["latency_after"])
    assert found.compact_ms <= 0.7 * found.dense_ms
    widths = {name: tuple(tensor.shape) for name, tensor in l0prune.load(run / "compact").state_dict().items()}
    assert [layer.kept_width for layer in found.layers[:3]] == [
        widths.get(f"{name}.weight", (0,))[0] for name in NAMES[:3]
    ]


def test_bench_times_the_layers_of_a_run_with_a_profile(case):
    run, _, _ = case

    shown = json_of("bench", run, *QUICK)

    assert list(shown["layers"]["dense"]) == NAMES
    for form, layers in shown["layers"].items():
        assert sum(layers.values()) == pytest.approx(shown["models"][form]["latency_ms"]["p50"])
        assert min(layers.values()) >= 0
    assert shown["predicted_ms"]["dense"] == pytest.approx(PredictedLayers.read(run / "latency.json").dense_ms)
    assert BenchReport.read(run / "bench.json").layers == shown["layers"]
    said = invoke("bench", run, *QUICK).stdout
    assert "ms by layer" in said
    assert f"({times_of(3, 16) / 1000:.3f})" in said


def test_the_layers_can_be_left_out_and_a_prediction_of_another_batch_is(case):
    run, _, _ = case

    assert json_of("bench", run, *QUICK, "--no-by-layer")["layers"] == {}
    assert "predicted_ms" not in json_of("bench", run, *QUICK, "--no-by-layer", "--batch-size", 2)


def test_onnx_files_are_timed_by_layer_where_that_is_asked_for(case):
    run, _, _ = case
    files = [run / "onnx" / f"{form}.onnx" for form in ("dense", "compact")]

    assert json_of("bench", *files, *QUICK)["layers"] == {}
    assert list(json_of("bench", *files, *QUICK, "--by-layer")["layers"]["dense"]) == NAMES


def test_bench_reads_the_profile_once(case, monkeypatch, tmp_path):
    run, of_run, _ = case
    profile = shutil.copy(of_run, tmp_path / "named.json")
    read, load = [], Profile.load

    def noting(path):
        read.append(path)
        return load(path)

    monkeypatch.setattr(Profile, "load", noting)

    shown = json_of("bench", run, *QUICK, "--no-by-layer", "--profile", profile)

    assert read.count(profile) == 1
    assert shown["predicted_ms"]["compact"] == pytest.approx(PredictedLayers.read(run / "latency.json").compact_ms)


def test_the_page_draws_both_in_one_picture_if_they_are_of_the_same_batch(case):
    run, _, _ = case
    predicted = PredictedLayers.read(run / "latency.json")
    titles = {}
    for batch in (1, 2):
        json_of("bench", run, *QUICK, "--batch-size", batch)
        titles[batch] = [chart.title for chart in _layer_charts(predicted, BenchReport.read(run / "bench.json"))]

    assert titles[1] == ["Time by layer"]
    assert titles[2] == ["Measured time by layer", "Predicted time by layer"]
    assert [chart.title for chart in _layer_charts(predicted, None)] == ["Predicted time by layer"]
    assert _layer_charts(None, None) == []


def test_shrinking_again_forgets_what_was_measured(case):
    run, _, _ = case
    json_of("bench", run, *QUICK)

    json_of("shrink", run)

    assert not RunDirectory(run).bench.exists()
    assert json.loads((run / "latency.json").read_text())["layers"]


def test_a_run_does_not_go_on_under_another_profile_than_it_began_with(case, tmp_path):
    run = RunDirectory(shutil.copytree(case[0], tmp_path / "run"))
    run.set_status("interrupted", config={"profile_digest": "of another"})

    said = refused("finetune", "--out", run.path, "--resume")

    assert "has changed since the run began: put the profile back that it began with" in said


def test_the_floor_that_inspect_shows_has_no_branch(case):
    _, profile, _ = case

    found = json_of("inspect", SPEC, "--profile", profile)["smallest_reachable"]["latency"]

    dense = times_of(3, 16) + 2 * times_of(16, 16) + 4.0 + 7.0
    assert found == pytest.approx((times_of(3, 1) + 3.5 + 2.0 + 7.0) / dense, rel=1e-6)


def test_a_profile_of_another_batch_is_refused(case):
    run, profile, _ = case

    assert "measured with batch_size=1, and batch_size=4 is asked for" in refused(
        "bench", run, *QUICK, "--profile", profile, "--batch-size", 4
    )


def test_files_with_convolutions_are_calibrated_and_scored_on_data_that_is_named(case, tmp_path):
    run, _, _ = case
    files = [shutil.copy(run / "onnx" / f"{form}.onnx", tmp_path) for form in ("dense", "compact")]

    shown = json_of("bench", *files, *QUICK, "--int8", "--data", f"npz:{run.parent / 'data.npz'}")

    assert list(shown["scores"]) == ["dense", "dense int8", "compact", "compact int8"]
    assert (
        shown["scores"]["dense"]
        == json_of("eval", files[0], "--data", f"npz:{run.parent / 'data.npz'}")["accuracy"]["onnx"]
    )
    assert shown["metric"] == "accuracy"
    assert "give --data" in refused("bench", *files, *QUICK, "--int8")
    assert "a run has its own data" in invoke("bench", run, *QUICK, "--data", "npz:other.npz").stderr


def test_an_amount_beyond_the_dense_network_is_warned_of_once(case, tmp_path):
    run, profile, _ = case
    data = ("--data", f"npz:{run.parent / 'data.npz'}")

    said = invoke(
        "shrink", SPEC, *data, "--budget", "latency=9s", "--profile", profile, "--out", tmp_path / "run"
    ).stderr

    assert said.count("latency=9s bounds nothing: the dense network has") == 1


def test_a_model_that_is_cut_at_once_closes_branches_unless_that_is_denied(case, tmp_path):
    run, profile, _ = case
    terms = ("--data", f"npz:{run.parent / 'data.npz'}", "--budget", "latency=0.08", "--profile", profile)

    json_of("shrink", SPEC, *terms, "--out", tmp_path / "run")

    widths = {layer.name: layer.kept_width for layer in PredictedLayers.read(tmp_path / "run" / "latency.json").layers}
    assert widths["first"] == 0
    assert widths["stem"] > 0
    json_of("shrink", SPEC, *terms, "--no-depth", "--out", tmp_path / "other")
    assert json.loads((tmp_path / "other" / "run.json").read_text())["config"]["depth"] is False
