"""run.json and the rules of a run's directory."""

import json
import subprocess
import sys

import pytest

from l0prune import run_directory
from l0prune.errors import FileFormatError, RunDirectoryError
from l0prune.files import remove
from l0prune.recorded_directory import installed_versions
from l0prune.run_directory import RunDirectory, RunRecord

DESCRIPTION = {
    "argv": ["l0prune", "finetune", "resnet20"],
    "config": {"epochs": 6.0},
    "seed": 3,
    "model": {"spec": "resnet20"},
    "data": {"spec": "digits"},
}


def create(path, **kwargs):
    return RunDirectory.create(path, **{**DESCRIPTION, **kwargs})


def test_a_run_reads_back_what_it_was_created_with(tmp_path):
    create(tmp_path / "deep" / "run")

    record = RunDirectory.open(tmp_path / "deep" / "run").read()

    assert record == RunRecord(
        argv=("l0prune", "finetune", "resnet20"),
        config={"epochs": 6.0},
        seed=3,
        model={"spec": "resnet20"},
        data={"spec": "digits"},
        versions=installed_versions(),
    )
    assert record.status == "running"
    assert record.versions["l0prune"]


def test_status_and_result_are_written_and_the_rest_stays(tmp_path):
    run = create(tmp_path / "run")
    before = run.read()

    run.set_status("finished", result={"hard_cost": 0.5})
    run.set_status("interrupted")

    after = run.read()
    assert (after.status, after.result) == ("interrupted", {"hard_cost": 0.5})
    assert (after.argv, after.config, after.versions) == (before.argv, before.config, before.versions)
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


def test_an_unknown_status_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match="cannot be 'happy': choose one of running"):
        create(tmp_path / "run").set_status("happy")


def test_an_existing_run_is_refused_with_the_three_remedies(tmp_path):
    create(tmp_path / "run", seed=1)

    with pytest.raises(RunDirectoryError, match="already holds a run: continue it with --resume, replace it with --ov"):
        create(tmp_path / "run", seed=2)

    assert RunDirectory.open(tmp_path / "run").read().seed == 1


def test_overwriting_removes_the_files_of_the_run_and_no_others(tmp_path):
    run = create(tmp_path / "run", seed=1)
    run.metrics.write_text("old\n")
    run.checkpoint.mkdir()
    (run.checkpoint / "trainer.pt").write_text("old")
    (run.path / "notes.txt").write_text("mine")

    create(tmp_path / "run", seed=2, overwrite=True)

    assert sorted(path.name for path in run.path.iterdir()) == ["notes.txt", "run.json"]
    assert run.read().seed == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_that_holds_something_else_is_never_taken(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(RunDirectoryError, match="is not empty and holds no run: name another directory"):
        create(tmp_path, overwrite=overwrite)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_directory_may_be_used(tmp_path):
    assert create(tmp_path).read().seed == 3


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").write_text("")

    with pytest.raises(RunDirectoryError, match="is a file: name a directory"):
        create(tmp_path / "run")


def test_opening_what_is_no_run_is_an_error(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"holds no run \(no run\.json\)"):
        RunDirectory.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "other"}, "is not the description of a run"),
        ({"version": 99}, "has version 99"),
        ({"surprise": 1}, "unknown keys: surprise"),
        ({"status": "happy"}, "status 'happy' is none of"),
    ],
)
def test_a_record_of_another_kind_is_refused_by_name(tmp_path, change, named):
    run = create(tmp_path / "run")
    run.record_path.write_text(json.dumps({**json.loads(run.record_path.read_text()), **change}))

    with pytest.raises(FileFormatError, match=named):
        run.read()


def test_a_damaged_record_is_refused(tmp_path):
    run = create(tmp_path / "run")
    run.record_path.write_text('{"format": ')

    with pytest.raises(FileFormatError, match=r"run\.json is damaged"):
        run.read()


def test_what_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RunDirectoryError, match="not plain JSON"):
        create(tmp_path / "run", config={"loss": float("nan")})

    assert not (tmp_path / "run").exists()


def test_a_failed_start_leaves_nothing_and_a_used_run_stays(tmp_path):
    failed, used = create(tmp_path / "failed"), create(tmp_path / "used")
    failed.metrics.write_text("")
    used.checkpoint.mkdir()

    failed.discard()
    used.discard()

    assert not failed.path.exists()
    assert used.read().seed == 3


def test_two_processes_do_not_train_in_one_directory(tmp_path):
    run = create(tmp_path / "run")
    code = f"""
from pathlib import Path
from l0prune.run_directory import RunDirectory
with RunDirectory(Path({str(run.path)!r})).locked():
    print("locked")
"""

    def other() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    with run.locked():
        assert "another process is training in" in other().stderr
    assert other().stdout == "locked\n"
    assert sorted(path.name for path in run.path.iterdir()) == ["run.json"]


class Stopped(BaseException):
    """Stands for a second Ctrl-C."""


@pytest.mark.parametrize("stopped_at", range(9))
def test_a_run_that_is_stopped_while_it_is_cleared_away_is_no_obstacle(tmp_path, monkeypatch, stopped_at):
    run = create(tmp_path / "run", seed=1)
    run.metrics.write_text("{}")
    (run.path / "checkpoint.partial").mkdir()
    calls = 0

    def stopping(path):
        nonlocal calls
        calls += 1
        if calls > stopped_at:
            raise Stopped
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "remove", stopping)
        with pytest.raises(Stopped):
            run.discard()

    assert create(run.path, seed=2, overwrite=True).read().seed == 2
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "left", [["metrics.jsonl"], ["checkpoint.partial"], ["metrics.jsonl", "checkpoint.partial"], []]
)
def test_what_a_run_that_never_began_left_is_no_obstacle(tmp_path, left):
    for name in left:
        (tmp_path / name).touch()

    assert create(tmp_path).read().seed == 3
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("left", ["checkpoint", "checkpoint.previous", "compact", "onnx", "bench.json", "notes.txt"])
def test_what_could_be_of_use_is_an_obstacle(tmp_path, left):
    for name in (left, "metrics.jsonl"):
        (tmp_path / name).mkdir()

    with pytest.raises(RunDirectoryError, match="is not empty and holds no run"):
        create(tmp_path, overwrite=True)

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((left, "metrics.jsonl"))


def test_a_link_to_a_folder_is_followed_and_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")

    run = create(tmp_path / "run")
    assert (tmp_path / "disk" / "run.json").exists()
    run.discard()

    assert (tmp_path / "run").is_symlink()
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "disk")

    with pytest.raises(RunDirectoryError, match="is a broken link: name a directory"):
        create(tmp_path / "run", overwrite=True)


def test_overwriting_leaves_what_links_in_the_run_point_at(tmp_path):
    run = create(tmp_path / "run")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").touch()
    for part in (run.checkpoint, run.compact, run.onnx):
        part.symlink_to(tmp_path / "thesis")

    create(tmp_path / "run", overwrite=True)

    assert (tmp_path / "thesis" / "chapter").exists()
    assert [path.name for path in run.path.iterdir()] == ["run.json"]
