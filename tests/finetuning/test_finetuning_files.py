"""Checkpoints and the metrics file: written whole, read back equal, damaged ones refused by name."""

import json
import os
from dataclasses import replace

import pytest
import torch

from l0prune.errors import CheckpointError, FileFormatError
from l0prune.finetuning import checkpoints
from l0prune.finetuning.checkpoints import Checkpoint, checkpoint_exists, load_checkpoint, save_checkpoint
from l0prune.finetuning.metrics import LayerHistograms, MetricsLog, MetricsRecord, histogram, read_metrics


def checkpoint(value: float = 1.0) -> Checkpoint:
    shared = torch.full((2, 3), value)
    return Checkpoint(
        model={"a.weight": shared, "tied.weight": shared, "count": torch.tensor(3)},
        gates={"log_alpha": torch.full((4,), value)},
        trainer={"step": int(value), "history": [{"when": "gate", "figures": {"accuracy": 0.5}}]},
    )


RECORD = MetricsRecord(
    step=10,
    epoch=0.5,
    phase="gate",
    loss=1.0,
    task_loss=0.5,
    distillation_loss=None,
    expected_cost=0.9,
    hard_cost=1.0,
    target=0.8,
    multiplier=2.0,
    lr=0.1,
    by_metric={"expected_macs": 0.9, "hard_macs": 0.85, "expected_params": 0.8, "hard_params": 0.75},
    seconds_per_step=0.01,
)


def test_progress_shows_the_loss_of_the_task_alone_where_there_is_one():
    costs = {"expected_cost": 0.9, "hard_cost": 1.0, "lr": 0.1}
    assert RECORD.figures == {"task_loss": 0.5, **costs}
    assert replace(RECORD, task_loss=0.0).figures == {"loss": 1.0, **costs}


def test_a_checkpoint_reads_back_equal(tmp_path):
    written = replace(checkpoint(), compact={"w": torch.ones(1)}, average={"w": torch.zeros(1)})

    save_checkpoint(tmp_path / "run" / "checkpoint", written)
    read = load_checkpoint(tmp_path / "run" / "checkpoint")

    for part in ("model", "gates", "compact", "average"):
        ours, theirs = getattr(written, part), getattr(read, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert read.trainer == written.trainer


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_nothing_beside(tmp_path):
    save_checkpoint(tmp_path / "checkpoint", replace(checkpoint(1), compact={"w": torch.ones(1)}))
    save_checkpoint(tmp_path / "checkpoint", checkpoint(2))

    assert load_checkpoint(tmp_path / "checkpoint").trainer["step"] == 2
    assert load_checkpoint(tmp_path / "checkpoint").compact is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("part", ["checkpoint", "checkpoint.previous", "checkpoint.partial"])
def test_a_link_in_the_place_of_a_checkpoint_is_replaced_and_its_target_stays(tmp_path, part):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / part).symlink_to(tmp_path / "thesis")

    for step in (1, 2, 3):
        save_checkpoint(tmp_path / "run" / "checkpoint", checkpoint(step))

    assert load_checkpoint(tmp_path / "run" / "checkpoint").trainer["step"] == 3
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint"]
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter"]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_the_files_of_a_checkpoint_have_the_modes_of_the_users_mask(tmp_path, mask):
    before = os.umask(mask)
    try:
        save_checkpoint(tmp_path / "checkpoint", replace(checkpoint(1), compact={"w": torch.ones(1)}))
    finally:
        os.umask(before)

    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "checkpoint").iterdir()}
    assert modes == {0o666 & ~mask}
    assert (tmp_path / "checkpoint").stat().st_mode & 0o777 == 0o777 & ~mask


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("dies_at", range(14))
def test_wherever_writing_is_killed_one_complete_checkpoint_remains(tmp_path, monkeypatch, dies_at):
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, checkpoint(1))
    calls = 0

    def dying(original):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > dies_at:
                raise Killed
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in (
            (checkpoints, "save_file"),
            (torch, "save"),
            (checkpoints.Path, "mkdir"),
            (checkpoints.Path, "rename"),
            (checkpoints, "remove"),
            (checkpoints.os, "fsync"),
        ):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        with pytest.raises(Killed):
            save_checkpoint(folder, checkpoint(2))

    assert checkpoint_exists(folder)
    found = load_checkpoint(folder)
    step = found.trainer["step"]
    assert step in (1, 2)
    assert torch.equal(found.gates["log_alpha"], torch.full((4,), float(step)))
    save_checkpoint(folder, checkpoint(3))
    assert load_checkpoint(folder).trainer["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_no_checkpoint_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint: the run stopped before its first one"):
        load_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("file", ["model.safetensors", "gates.safetensors", "trainer.pt"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, file):
    save_checkpoint(tmp_path / "checkpoint", checkpoint())
    path = tmp_path / "checkpoint" / file
    path.write_bytes(path.read_bytes()[:40])

    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(tmp_path / "checkpoint")


def test_trainer_state_with_code_in_it_is_refused_and_not_run(tmp_path):
    save_checkpoint(tmp_path / "checkpoint", checkpoint())
    witness = tmp_path / "witness"

    class Malicious:
        def __reduce__(self):
            return (type(witness).touch, (witness,))

    torch.save(
        {"format": checkpoints.FORMAT, "version": checkpoints.VERSION, "evil": Malicious()},
        tmp_path / "checkpoint" / "trainer.pt",
    )

    with pytest.raises(CheckpointError, match=r"trainer\.pt was refused, and nothing in it was run"):
        load_checkpoint(tmp_path / "checkpoint")
    assert not witness.exists()


def test_trainer_state_of_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "VERSION", 999)
    save_checkpoint(tmp_path / "checkpoint", checkpoint())
    monkeypatch.undo()

    with pytest.raises(CheckpointError, match=f"has version 999, this l0prune reads {checkpoints.VERSION}"):
        load_checkpoint(tmp_path / "checkpoint")


def test_metrics_lines_read_back_and_omit_what_is_only_occasional(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")

    log.write(RECORD)
    log.write(replace(RECORD, step=20, open_histogram=(1,) * 20, evaluation={"accuracy": 0.9}))

    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert "open_histogram" not in first
    assert first["distillation_loss"] is None
    assert second["open_histogram"] == [1] * 20
    assert second["evaluation"] == {"accuracy": 0.9}
    assert {"step", "loss", "task_loss", "expected_cost", "hard_cost", "target", "multiplier", "lr"} <= first.keys()


def test_truncation_drops_later_lines_and_one_that_was_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (10, 20, 30):
        log.write(replace(RECORD, step=step))
    kept = path.read_text().splitlines()[:2]
    with path.open("a") as file:
        file.write('{"step": 40, "lo')

    log.truncate_after(20)

    assert path.read_text().splitlines() == kept
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


LINE = {"step": 1, "epoch": 0.1, "phase": "gate", "loss": 0.5, "target": None}


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("{oops", "is not a JSON object"),
        ("[1]", "is not a JSON object"),
        (json.dumps({"loss": 1.0}), "has no 'step'"),
        (json.dumps(LINE | {"loss": "high"}), "is wrong: loss is 'high', expected a number"),
        (json.dumps(LINE | {"target": [1]}), "is wrong: target is a list, expected a number or null"),
    ],
)
def test_a_damaged_metrics_line_is_an_error_that_names_it(tmp_path, second, words):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINE) + "\n" + second + "\n")

    with pytest.raises(FileFormatError, match=rf"metrics\.jsonl: line 2 {words}"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_log_without_a_path_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    MetricsLog(None).write(RECORD)

    assert not list(tmp_path.iterdir())


def test_the_histogram_counts_every_gate_once():
    probability = torch.tensor([0.0, 0.01, 0.049, 0.051, 0.5, 0.999, 1.0])

    counts = histogram(probability)

    assert len(counts) == 20
    assert sum(counts) == 7
    assert counts[0] == 3
    assert counts[1] == 1
    assert counts[-1] == 2


def test_histograms_of_the_layers_add_up_to_the_whole():
    probability = torch.rand(300, generator=torch.Generator().manual_seed(0))
    probability[:3] = torch.tensor([0.0, 1.0, 0.05])
    names = ["b", "a", "b"] + ["a"] * 100 + ["c"] * 197

    layers = LayerHistograms(names)(probability)

    assert list(layers) == ["b", "a", "c"]
    assert {name: sum(counts) for name, counts in layers.items()} == {"b": 2, "a": 101, "c": 197}
    assert layers["b"][0] == layers["b"][1] == 1
    assert tuple(map(sum, zip(*layers.values(), strict=True))) == histogram(probability)


def test_the_one_before_stays_where_the_disk_is_full(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, checkpoint(1))

    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        CheckpointError, match=r"checkpoint cannot be written .*: free some space or check the permissions"
    ):
        save_checkpoint(folder, checkpoint(2))

    assert load_checkpoint(folder).trainer["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
