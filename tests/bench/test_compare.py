"""The comparison of methods: which rows there are, what counts as done, how a rate is chosen, and the page."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import compare
import compare_run
from compare_case import (
    NETWORKS,
    Case,
    Inputs,
    choose_rate,
    key_of,
    newest,
    of_rows,
    row_key,
    tuning_cases,
    tuning_epochs,
)
from compare_plan import STUDIES, Block, best_baselines, rows
from compare_run import Files, finetune_arguments, split_data, typed
from compare_table import render
from results_file import read

CASE = Case("resnet20", "gates", 0.5, 6.0, 0, 0.03)
INPUTS = Inputs("dense", "data", ("--precision", "bf16"), 16, "code")


def record_of(case: Case, final: float = 90.0, inputs: Inputs = INPUTS, **others) -> dict:
    """What a row leaves, as `run_row` returns it."""
    return {
        "case": asdict(case),
        "inputs": {**asdict(inputs), "options": list(inputs.options)},
        "commit": "abc",
        "versions": {"l0prune": "1"},
        "machine": "a machine",
        "metric": "accuracy",
        "higher_is_better": True,
        "dense": 91.73,
        "final": final,
        "budget_met": True,
        "hard_cost": 0.49,
        "macs_before": 4e7,
        "params_before": 200,
        "params_after": 100,
        "history": [["freeze", 10, 50.25, 0.49], ["end", 20, final, 0.49]],
        "wall_seconds": 120.0,
        "cpu_seconds": 60.0,
        "compact_ms": 0.4,
        "dense_ms": 0.6,
        "speedup": {"ratio": 1.5, "low": 1.4, "high": 1.6},
        "widths": {"conv1.weight": 8},
        **others,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("network", "resnet56"), ("method", "magnitude"), ("macs", 0.35), ("epochs", 8.0), ("seed", 1)),
        *(("lr", 0.01), ("held_out", True)),
    ],
)
def test_rows_that_differ_in_anything_asked_have_different_keys(field, value):
    assert row_key(replace(CASE, **{field: value}), INPUTS) != row_key(CASE, INPUTS)


@pytest.mark.parametrize("field", ["weights", "data", "options", "align", "code"])
def test_rows_that_differ_in_what_they_depend_on_have_different_keys(field):
    other = replace(INPUTS, **{field: {"options": ("--no-distillation",), "align": 8}.get(field, "other")})

    assert row_key(CASE, other) != row_key(CASE, INPUTS)


def test_the_key_of_a_record_read_back_is_that_of_its_row():
    record = json.loads(json.dumps(record_of(CASE)))

    assert key_of(record) == row_key(CASE, INPUTS)


def test_the_last_record_of_a_row_counts_and_the_code_only_if_it_is_asked_for():
    records = [record_of(CASE, 1.0), record_of(CASE, 2.0), record_of(CASE, 3.0, replace(INPUTS, code="later"))]

    assert [r["final"] for r in newest(records).values()] == [2.0, 3.0]
    assert [r["final"] for r in newest(records, any_code=True).values()] == [3.0]


def test_the_page_shows_a_row_once_at_its_last_rate_and_trials_at_each():
    stale = record_of(CASE, inputs=replace(INPUTS, options=("--no-distillation",)))
    trials = [record_of(replace(CASE, lr=lr, held_out=True)) for lr in (0.01, 0.1)]
    rows_ = [record_of(replace(CASE, lr=lr), final) for lr, final in ((0.01, 1.0), (0.1, 2.0))]

    assert of_rows([*rows_, *trials, stale]) == [rows_[1], *trials]


def test_rates_are_tried_once_for_all_budgets_and_seeds_on_held_out_data():
    cases = [Case("resnet20", "taylor", macs, 6.0, seed) for macs in (0.5, 0.2) for seed in (0, 1)]

    trials = {trial for case in cases for trial in tuning_cases(case, (0.01, 0.1))}

    at = NETWORKS["resnet20"].tuned_at
    assert trials == {Case("resnet20", "taylor", at, 2.0, 0, rate, held_out=True) for rate in (0.01, 0.1)}


def test_nothing_is_chosen_from_one_rate_or_without_training():
    assert not tuning_cases(CASE, (0.1,))
    assert not tuning_cases(replace(CASE, epochs=0.0), (0.1, 0.2))


@pytest.mark.parametrize(("epochs", "tried"), [(0.1, 0.1), (0.2565, 0.2565), (0.6, 0.3), (3.0, 1.0), (12.0, 2.0)])
def test_trials_take_a_third_of_the_run_short_runs_whole_and_two_epochs_at_most(epochs, tried):
    assert tuning_epochs(epochs) == tried


def test_the_best_rate_wins_the_smaller_of_equals_and_errors_none():
    tried = [record_of(replace(CASE, lr=lr), final) for lr, final in ((0.1, 80.0), (0.03, 90.0), (0.01, 90.0))]
    failed = {"case": asdict(replace(CASE, lr=0.3)), "error": "it diverged"}

    assert choose_rate([*tried, failed]) == 0.01
    assert choose_rate([{**r, "higher_is_better": False} for r in tried]) == 0.1
    assert choose_rate([failed]) is None


def test_every_study_is_of_networks_that_are_known():
    assert {block.network for study in STUDIES.values() for block in study} <= set(NETWORKS)


def test_rows_can_be_selected_and_all_and_best_stand_for_methods():
    found = rows(
        ["seeds"],
        networks=["resnet20"],
        macs=[0.5, 0.2],
        seeds=[0, 1],
        best={("resnet20", 0.2, 6.0): "fisher"},
    )
    every = rows(["criteria"], macs=[0.5], every=["gates", "random"])

    assert [(c.method, c.macs, c.seed) for c in found] == [
        *(("gates", 0.5, 0), ("gates", 0.5, 1), ("gates", 0.2, 0), ("gates", 0.2, 1)),
        *(("fisher", 0.2, 0), ("fisher", 0.2, 1)),
    ]
    assert [c.method for c in every] == ["gates", "random"]
    assert rows(["criteria"], networks=["lenet5"]) == []
    assert [c.method for c in rows(["criteria"], macs=[0.5], epochs=[0.0], methods=["gates", "fisher"])] == ["fisher"]


def test_a_row_of_two_studies_stands_once(monkeypatch):
    monkeypatch.setitem(STUDIES, "criteria", (Block("resnet20", ("gates",)), Block("resnet20", ("gates", "taylor"))))

    assert [c.method for c in rows(["criteria"])] == ["gates", "taylor"]


def test_the_best_baseline_is_the_best_criterion_of_the_first_seed():
    finals = {("gates", 0): 99.0, ("taylor", 0): 90.0, ("fisher", 0): 91.0, ("magnitude", 1): 95.0}
    records = [record_of(replace(CASE, method=method, seed=seed), final) for (method, seed), final in finals.items()]

    assert best_baselines(records) == {("resnet20", 0.5, 6.0): "fisher"}


def test_a_row_is_typed_as_a_user_would():
    files = Files((Path("dense"),), {}, Path("work"), align=8)

    arguments = finetune_arguments(replace(CASE, network="digits"), files, Path("digits.npz"))

    assert arguments[:4] == ["digits_resnet", "--weights", "bundled", "--data"]
    assert arguments[4] == f"npz:{Path.cwd() / 'digits.npz'}"
    flags = dict(zip(arguments[5::2], arguments[6::2], strict=False))
    assert flags["--budget"] == "macs=0.5"
    assert flags["--method"] == "gates"
    assert flags["--lr"] == "0.03"
    assert flags["--align"] == "8"
    assert str(Path.cwd()) not in typed(arguments)
    assert "--data npz:digits.npz" in typed(arguments)


def test_held_out_data_is_a_tenth_of_the_training_data_and_none_of_the_test_data(tmp_path):
    numbers, whole, split = np.arange(50), tmp_path / "whole.npz", tmp_path / "deep" / "split.npz"
    np.savez(whole, x_train=numbers[:, None], y_train=numbers, x_test=-numbers[:, None] - 1, y_test=-numbers - 1)

    split_data(whole, split)

    parts = np.load(split)
    assert len(parts["y_test"]) == 5
    assert sorted([*parts["y_train"], *parts["y_test"]]) == list(numbers)
    assert (parts["x_test"][:, 0] == parts["y_test"]).all()
    assert (parts["x_train"][:, 0] == parts["y_train"]).all()


@pytest.fixture
def comparison(tmp_path, monkeypatch) -> compare.Comparison:
    """A comparison whose rows take no time: a score that depends on method and rate."""
    monkeypatch.setattr(compare, "inputs_of", lambda case, files: INPUTS)
    monkeypatch.setattr(compare, "run_row", scored)
    return compare.Comparison(Files((), {}, tmp_path, align=8), tmp_path / "out.jsonl")


def scored(case: Case, files: Files, *, n_jobs: int) -> dict:
    """A row's record."""
    return record_of(case, 90 - 100 * abs((case.lr or 0) - (0.02 if case.method == "gates" else 0.04)))


def test_rates_are_chosen_first_and_a_second_call_runs_nothing(comparison, capsys):
    asked = [Case("resnet20", method, macs, 6.0, 0) for method in ("gates", "taylor") for macs in (0.5, 0.2)]

    comparison.run(asked)
    first = read(comparison.out)
    comparison.run(asked)

    assert len(first) == 2 * 3 + 4
    assert {(r["case"]["method"], r["case"]["lr"]) for r in first if not r["case"]["held_out"]} == {
        ("gates", 0.02),
        ("taylor", 0.04),
    }
    assert read(comparison.out) == first
    assert capsys.readouterr().out.count("0 of") == 2


def test_what_was_stopped_goes_on_where_it_was(comparison, monkeypatch):
    asked, done = [Case("resnet20", "gates", macs, 6.0, 0) for macs in (0.5, 0.35, 0.2)], []

    def stopped_at_the_fifth(case: Case, files: Files, *, n_jobs: int) -> dict:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(case)
        return scored(case, files, n_jobs=n_jobs)

    monkeypatch.setattr(compare, "run_row", stopped_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        comparison.run(asked)
    before = len(read(comparison.out))
    monkeypatch.setattr(compare, "run_row", scored)
    with comparison.out.open("a") as file:
        file.write('{"case": {"netw')  # a line that was being written
    assert before == 4
    assert len(comparison.missing(comparison.with_rates(asked))) == 2


def test_a_row_of_other_code_is_run_again_unless_any_will_do(comparison):
    asked = [replace(CASE, lr=None, epochs=0.0)]
    comparison.out.write_text(json.dumps(record_of(asked[0], inputs=replace(INPUTS, code="earlier"))) + "\n")

    assert comparison.missing(asked) == asked
    assert replace(comparison, any_code=True).missing(asked) == []


def test_an_error_is_a_result_until_it_is_asked_for_again(comparison):
    asked = [replace(CASE, lr=None, epochs=0.0)]
    failed = {key: value for key, value in record_of(asked[0]).items() if key in {"case", "inputs", "machine"}}
    comparison.out.write_text(json.dumps({**failed, "error": "it does not fit"}) + "\n")

    assert comparison.missing(asked) == []
    assert replace(comparison, again=True).missing(asked) == asked


def test_a_list_says_what_is_missing_and_how_long_it_takes_by_rows_that_were_measured(comparison, capsys):
    asked = [Case("resnet20", "gates", 0.5, 6.0, seed) for seed in (0, 1)]
    comparison = replace(comparison, rates=(0.03,), jobs=2)
    comparison.run(asked[:1])
    capsys.readouterr()

    comparison.show(asked)

    said = capsys.readouterr().out
    assert "1 of 2 rows and 0 trials" in said
    assert f"{(compare.FIXED_SECONDS + 60) / 60:.1f} min" in said  # a row of six epochs took 60 seconds


class Commands:
    """In place of `l0prune`: notes what is typed, and leaves a finished run."""

    def __init__(self) -> None:
        self.typed: list[list[str]] = []

    def __call__(self, arguments, environment):
        self.typed.append(list(arguments))
        out = Path(arguments[arguments.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        result = dict.fromkeys(("dense", "final", "n_open", "n_gates", "expected_cost", "hard_cost", "steps"), 1)
        result |= {f"{metric}_{when}": 1 for metric in ("macs", "params") for when in ("before", "after")}
        history = [{"when": "end", "step": 1, "hard_cost": 0.5, "figures": {"accuracy": 90.0}}]
        result |= {"metric": "accuracy", "higher_is_better": True, "budget_met": True, "history": history}
        (out / "run.json").write_text(json.dumps({"status": "finished", "result": result}))
        return {}, 12.0, 10.0


def test_a_run_that_was_stopped_is_resumed_and_its_time_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_run, "command", commands := Commands())
    run = tmp_path / "run"

    whole = compare_run.train(run, ["resnet20"], {})
    again = compare_run.train(run, ["resnet20"], {})
    (run / "checkpoint").mkdir()
    (run / "run.json").write_text(json.dumps({"status": "running"}))
    resumed = compare_run.train(run, ["resnet20"], {})

    assert [call[:2] for call in commands.typed] == [["finetune", "resnet20"], ["finetune", "--resume"]]
    assert whole["cpu_seconds"] == 10.0
    assert again["cpu_seconds"] is None
    assert resumed["cpu_seconds"] is None
    assert resumed["history"] == [["end", 1, 90.0, 0.5]]


def test_the_page_sets_methods_side_by_side_and_says_by_how_much_gates_are_ahead():
    finals = {("gates", 0): 91.25, ("gates", 1): 91.75, ("magnitude", 0): 90.5, ("random", 0): 80.0}
    records = [record_of(replace(CASE, method=method, seed=seed), final) for (method, seed), final in finals.items()]
    records += [record_of(replace(CASE, held_out=True), 88.0), record_of(replace(CASE, epochs=1.0), 85.0)]
    failed = {**record_of(replace(CASE, method="tp-hessian")), "error": "torch-pruning is not installed"}

    page = render([*records, failed])

    assert "| ResNet-20, CIFAR-10 | 0.5 | 6 epochs | 91.50 (91.25 - 91.75) | 90.50 | magnitude | +1.00 |" in page
    assert (
        "| gates | 2 | 0.03 | 50.25 | 91.50 (91.25 - 91.75) | 0.4900 | 0.500 | 0.400 | 1.50 (1.40 - 1.60) | 1.0 |"
        in page
    )
    assert page.index("| gates | 2") < page.index("| magnitude | 1") < page.index("| random | 1")
    assert "| ResNet-20, CIFAR-10 | gates | 85.00 | 91.50 (91.25 - 91.75) |" in page  # over the length
    assert "0.03: 88.00" in page
    assert "torch-pruning is not installed" in page
    assert "88.00 |" not in page.split("## Every row")[1]  # held-out scores are no results


def test_a_page_says_which_rows_are_planned_and_not_run():
    deeper = Case("resnet56", "gates", 0.5, 8.0, 0, 0.03)

    without, with_one = render([]), render([record_of(deeper)])

    assert "No rows yet." in without
    assert "No rows yet." not in with_one
    assert "- ResNet-56, CIFAR-10, `macs=0.5`, 8 epochs: gates, magnitude\n" in without
    assert "- ResNet-56, CIFAR-10, `macs=0.5`, 8 epochs: magnitude\n" in with_one


def test_networks_whose_files_are_missing_are_left_out(tmp_path):
    arguments = [
        "--only",
        "lenet5",
        "--list",
        "--align",
        "16",
        "--work",
        str(tmp_path),
        "--out",
        str(tmp_path / "out.jsonl"),
    ]

    result = CliRunner().invoke(compare.main, arguments, catch_exceptions=False)

    assert "lenet5: left out, because there is no lenet5.safetensors and no mnist.npz" in result.output
    assert "0 of 0 rows" in result.output
