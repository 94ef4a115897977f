"""Pictures of a run: what is read from its metrics, what is drawn, what is refused."""

import json
import math
import shutil
from pathlib import Path

import pytest
from command_line import invoke

from l0prune.errors import ConfigError, FileFormatError, RunDirectoryError
from l0prune.pictures import new_figure, save_picture
from l0prune.report.cost_plot import draw_costs
from l0prune.report.gate_plot import MOST_LAYERS, draw_gates
from l0prune.report.histories import GateHistory, Histograms, cost_columns, cost_history, gate_history, run_lines

matplotlib = pytest.importorskip("matplotlib")

FINETUNE = ["finetune", "tiny_task:network", "--data", "tiny_task:data", "--budget", "params=0.6"]
QUICK = ["--epochs", "2", "--gate-epochs", "1", "--batch-size", "16", "--align", "1", "--log-every", "1"]
SIGNATURES = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF"}


def line(step: int, phase: str = "gate", **values: object) -> dict:
    return {"step": step, "epoch": step / 10, "phase": phase, **values}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("plots") / "run"
    result = invoke(*FINETUNE, *QUICK, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def older(run, tmp_path) -> Path:
    """The same run as it was written before metrics.jsonl had both metrics, times and layers."""
    out = shutil.copytree(run, tmp_path / "older")
    new = (*cost_columns(), "seconds_per_step", "layer_histograms")
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in entry.items() if key not in new} for entry in lines]
    (out / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    return out


def test_the_share_of_open_gates_is_that_of_the_upper_half():
    history = Histograms((0.0, 1.0), ((0, 0, 1, 3), (2, 1, 0, 1)))

    assert history.open_share == (1.0, 0.25)
    assert history.n_gates == 4


def test_gates_are_read_together_and_by_layer():
    lines = [
        line(1, open_histogram=[0, 4], layer_histograms={"a": [0, 3], "b": [0, 1]}),
        line(2),
        line(3, open_histogram=[2, 2], layer_histograms={"a": [1, 2], "b": [1, 0]}),
    ]

    history = gate_history("run", lines)

    assert history.total == Histograms((0.1, 0.3), ((0, 4), (2, 2)))
    assert history.layers["a"] == Histograms((0.1, 0.3), ((0, 3), (1, 2)))
    assert history.layers["b"].open_share == (1.0, 0.0)


def test_lines_of_an_older_version_have_no_layers():
    lines = [line(1, open_histogram=[0, 4]), line(3, open_histogram=[1, 3], layer_histograms={"a": [1, 3]})]

    history = gate_history("run", lines)

    assert len(history.total.epochs) == 2
    assert history.layers["a"].epochs == (0.3,)
    assert gate_history("run", lines[:1]).layers == {}


def test_without_a_histogram_there_is_nothing_to_draw():
    with pytest.raises(RunDirectoryError, match=r"run: metrics\.jsonl has no histogram"):
        gate_history("run", [line(1), line(2)])
    with pytest.raises(RunDirectoryError, match=r"no histogram of the gates' samples"):
        gate_history("run", [line(1, open_histogram=[0, 4])], of="samples")


def test_values_drawn_have_a_history_of_their_own():
    lines = [line(1, open_histogram=[0, 4], sample_histogram=[1, 3], layer_sample_histograms={"a": [1, 3]})]

    history = gate_history("run", lines, of="samples")

    assert history.total.counts == ((1, 3),)
    assert history.layers["a"].counts == ((1, 3),)
    assert draw_gates(history).axes[0].get_ylabel() == "value drawn"


def test_costs_are_read_by_their_names():
    new = {"expected_macs": 0.9, "hard_macs": 1.0, "expected_params": 0.8, "hard_params": 0.7, "seconds_per_step": 0.02}

    history = cost_history("run", [line(1, **new), line(4, "recovery", **new)], "macs")

    assert {name: values[0] for name, values in history.costs.items()} == {name: new[name] for name in cost_columns()}
    assert history.ms_per_step == (20.0, 20.0)
    assert history.missing == ()
    assert history.decided_at == 1


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_the_costs_of_an_older_version_are_those_of_its_budget(metric):
    history = cost_history("run", [line(1, expected_cost=0.9, hard_cost=1.0)], metric)

    assert history.costs == {f"expected_{metric}": (0.9,), f"hard_{metric}": (1.0,)}
    assert history.ms_per_step is None
    assert "seconds_per_step" in history.missing
    assert len(history.missing) == 3
    assert history.decided_at is None


def test_what_only_some_lines_say_is_drawn_where_they_say_it():
    lines = [line(1, expected_cost=0.9), line(2, expected_cost=0.8, expected_params=0.7, seconds_per_step=0.01)]

    history = cost_history("run", lines, "macs")
    first, second = history.costs["expected_params"]

    assert math.isnan(first)
    assert second == 0.7
    draw_costs([history])


def test_a_column_of_the_picture_is_a_histogram():
    history = GateHistory("run", Histograms((0.0, 1.0, 2.0), ((0, 8), (2, 6), (6, 2))), {})

    axes, *_ = draw_gates(history).axes

    shares = axes.collections[0].get_array().reshape(2, 3)
    assert shares.tolist() == [[0, 0.25, 0.75], [1, 0.75, 0.25]]
    assert axes.lines[0].get_ydata() == pytest.approx([1, 0.75, 0.25])
    assert axes.get_xlim() == (0, 2)


def test_of_many_layers_those_that_close_most_are_shown():
    layers = {f"layer{i}.weight[0]": Histograms((0.0,), ((i, 100 - i),)) for i in range(MOST_LAYERS + 5)}

    axes = draw_gates(GateHistory("run", Histograms((0.0,), ((1, 1),)), layers)).axes

    titles = [panel.get_title() for panel in axes if panel.get_title().startswith("layer")]
    assert titles == [f"layer{i} outputs (100)" for i in range(5, MOST_LAYERS + 5)]


def test_expected_and_hard_costs_are_drawn_over_the_steps_above_the_time():
    lines = [line(1, expected_macs=0.9, hard_macs=1.0, seconds_per_step=0.1), line(5, expected_macs=0.8, hard_macs=0.7)]

    costs, time = draw_costs([cost_history("run", lines, "params")]).axes

    expected, hard = costs.lines
    assert expected.get_xydata().tolist() == [[1, 0.9], [5, 0.8]]
    assert hard.get_xydata().tolist() == [[1, 1.0], [5, 0.7]]
    assert time.lines[0].get_ydata()[0] == pytest.approx(100)


def test_the_cost_jumps_where_the_gates_are_decided_and_the_target_is_shown():
    lines = [
        line(1, target=1.0, expected_macs=0.9),
        line(5, target=0.5, expected_macs=0.6),
        line(9, "recovery", target=0.5, expected_macs=0.5),
    ]

    costs, *_ = draw_costs([cost_history("run", lines, "macs")]).axes

    expected, target = costs.lines[:2]
    assert expected.get_xdata().tolist() == [1, 5, 5, 9]
    assert [math.isnan(value) for value in expected.get_ydata()] == [False, False, True, False]
    assert target.get_ydata().tolist() == [1.0, 0.5, 0.5]
    assert target.get_label() == "run, target"


def test_a_long_first_step_does_not_flatten_the_others():
    lines = [line(i, seconds_per_step=9.0 if i == 1 else 0.01, expected_macs=1.0) for i in range(1, 40)]

    _, time = draw_costs([cost_history("run", lines, "macs")]).axes

    assert 10 < time.get_ylim()[1] < 20


@pytest.mark.parametrize("suffix", SIGNATURES)
@pytest.mark.parametrize("kind", ["gates", "cost"])
def test_the_commands_draw_a_run(run, tmp_path, kind, suffix):
    picture = tmp_path / "new" / f"picture.{suffix}"

    result = invoke("plot", kind, run, "--out", picture)

    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{picture}\n"
    assert result.stderr == ""
    assert picture.read_bytes().startswith(SIGNATURES[suffix])
    assert list(picture.parent.iterdir()) == [picture]


def test_the_same_run_gives_the_same_picture(run, tmp_path):
    for name in ("a.png", "b.png"):
        assert invoke("plot", "gates", run, "--out", tmp_path / name).exit_code == 0

    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_gates_are_told_by_layer(run, tmp_path):
    result = json.loads(invoke("plot", "gates", run, "--out", tmp_path / "a.svg", "--json").stdout)

    assert result["n_gates"] == 16
    assert result["n_histograms"] == 6  # a line a step
    assert list(result["layers"]) == ["0.weight[0]", "3.weight[0]"]
    assert result["open_share"] == sum(result["layers"].values()) / 2


def test_runs_of_both_ages_are_drawn_together(run, older, tmp_path):
    result = invoke("plot", "cost", run, older, "--out", tmp_path / "a.svg", "--json")

    told = json.loads(result.stdout)
    assert told["missing"][str(run)] == []
    assert told["missing"][str(older)] == ["expected_macs", "hard_macs", "seconds_per_step"]
    assert f"{older}: metrics.jsonl has no expected_macs, hard_macs, seconds_per_step" in result.stderr


def test_an_older_run_is_drawn_without_its_layers(older, tmp_path):
    result = invoke("plot", "gates", older, "--out", tmp_path / "a.svg")

    assert result.exit_code == 0
    assert "not by layer" in result.stderr


def test_a_run_that_goes_on_is_drawn_as_far_as_it_is(run, tmp_path):
    early = shutil.copytree(run, tmp_path / "early")
    first = (early / "metrics.jsonl").read_text().splitlines()[0]
    (early / "metrics.jsonl").write_text(first + "\n")

    for kind in ("gates", "cost"):
        assert invoke("plot", kind, early, "--out", tmp_path / "a.svg").exit_code == 0
    assert cost_history("early", run_lines(early), "macs").decided_at is None


@pytest.mark.parametrize("kind", ["gates", "cost"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: (run / "run.json").unlink(), ("holds no run", "finetune")),
        (lambda run: (run / "metrics.jsonl").unlink(), ("metrics.jsonl has no lines",)),
        (lambda run: (run / "metrics.jsonl").write_text(""), ("metrics.jsonl has no lines",)),
        (lambda run: (run / "metrics.jsonl").write_text("{"), ("line 1 is not a JSON object",)),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\n'), ("line 1 has no 'epoch'",)),
    ],
)
def test_what_cannot_be_drawn_is_one_line(run, tmp_path, kind, change, words):
    damaged = shutil.copytree(run, tmp_path / "damaged")
    change(damaged)

    result = invoke("plot", kind, damaged, "--out", tmp_path / "a.svg")

    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "a.svg").exists()


@pytest.mark.parametrize("kind", ["gates", "cost"])
@pytest.mark.parametrize("name", ["picture.jpg", "picture"])
def test_a_name_that_says_no_format_is_refused(run, tmp_path, kind, name):
    result = invoke("plot", kind, run, "--out", tmp_path / name)

    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path / name} is not a picture: the name must end in .png, .svg or .pdf\n"
    assert not list(tmp_path.iterdir())


def test_a_line_that_is_no_object_is_named(run, tmp_path):
    damaged = shutil.copytree(run, tmp_path / "damaged")
    with (damaged / "metrics.jsonl").open("a") as file:
        file.write("[1]\n")

    with pytest.raises(FileFormatError, match="is not a JSON object"):
        run_lines(damaged)


def test_pictures_need_matplotlib(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)

    with pytest.raises(ConfigError, match=r"pip install 'l0prune\[report\]'"):
        new_figure(1, 1)


def test_saving_refuses_other_formats(tmp_path):
    with pytest.raises(ConfigError, match="is not a picture"):
        save_picture(new_figure(1, 1), tmp_path / "a.txt")
