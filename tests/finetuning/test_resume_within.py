"""Checkpoints within an epoch: a run that goes on from one ends bit by bit as the uninterrupted one, whatever loads its data."""

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from finetuning_case import (
    N_CLASSES,
    QUICK,
    SmallBatches,
    Stopping,
    accuracy,
    assert_same_state,
    gated_net,
    run,
    state,
    untimed,
)
from torch.utils.data import DataLoader, Dataset, IterableDataset

import l0prune
from l0prune.errors import ConfigError
from l0prune.finetuning.checkpoints import load_checkpoint
from l0prune.finetuning.passes import FirstBatches
from l0prune.sources.batches import ArrayBatches

AT_EVERY_STEP = 1e-9
# 6 steps an epoch: warm-up ends after 3, the gate phase after 9, the freeze comes after 12, the run ends after 18. Decision and
# cut look at two batches, so that a pass is broken off where the run is.
CONFIG = replace(
    QUICK,
    epochs=3,
    gate_epochs=1,
    settle_epochs=0.5,
    ema_decay=0.9,
    log_every=4,
    salience_batches=2,
    recalibration_batches=2,
)
N_BATCHES = 6


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """All of them, in one order."""
    found = list(SmallBatches(N_BATCHES))
    return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


class Pictures(Dataset):
    """Moved at random when they are read, by draws of torch, numpy and Python."""

    def __init__(self) -> None:
        self.x, self.y = pictures()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int):
        noise = torch.rand(()) + np.random.uniform() + random.random()
        return self.x[i] + 0.2 * float(noise), self.y[i]


class Stream(IterableDataset):
    """The same, in an order that is drawn when a pass begins, and no length but its loader's."""

    def __len__(self) -> int:
        return N_BATCHES * 16

    def __iter__(self):
        data = Pictures()
        order = list(range(len(data)))
        random.shuffle(order)
        return (data[i] for i in order)


LOADERS = {
    "own": lambda: SmallBatches(N_BATCHES),
    "arrays": lambda: ArrayBatches(*(part.numpy() for part in pictures()), batch_size=16, shuffle=True, seed=3),
    "loader": lambda: DataLoader(Pictures(), batch_size=16, shuffle=True),
    "generator": lambda: DataLoader(Pictures(), batch_size=16, shuffle=True, generator=torch.Generator()),
    "stream": lambda: DataLoader(Stream(), batch_size=16),
}


class Until:
    """Batches that break off before a given step, as Ctrl-C would."""

    def __init__(self, batches, before_step: int) -> None:
        self.batches, self.before_step, self.epoch = batches, before_step, 0

    def __getattr__(self, name: str):  # sampler, data set, generator of a loader
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(epoch)

    def __iter__(self):
        return self.from_batch(0)

    def from_batch(self, first: int):
        within = iter(self.batches)
        for _ in range(first):
            next(within)
        for index, batch in enumerate(within, start=first):
            if self.epoch * len(self.batches) + index == self.before_step:
                raise KeyboardInterrupt
            yield batch


@cache
def whole(kind: str):
    """A run in one piece, without a checkpoint within an epoch."""
    return run(batches=LOADERS[kind](), config=replace(CONFIG, checkpoint_minutes=0), evaluate=accuracy)


@pytest.mark.parametrize(
    ("kind", "before_step"),
    [*((kind, 8) for kind in LOADERS), *(("loader", step) for step in (2, 10, 14, 17))],
)
def test_a_run_resumed_within_an_epoch_ends_as_the_uninterrupted_one(tmp_path, kind, before_step):
    config = replace(CONFIG, checkpoint_minutes=AT_EVERY_STEP)
    with pytest.raises(KeyboardInterrupt):
        run(batches=Until(LOADERS[kind](), before_step), config=config, evaluate=accuracy, out=tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint").trainer["step"] == before_step
    random.seed(1), np.random.seed(1), torch.manual_seed(1)

    result = run(batches=LOADERS[kind](), config=CONFIG, evaluate=accuracy, out=tmp_path, resume=True)

    assert_same_state(state(result.compact), state(whole(kind).compact))
    assert_same_state(state(result.gated), state(whole(kind).gated))
    assert result.to_json() == whole(kind).to_json()


def test_the_log_of_a_run_resumed_within_an_epoch_is_that_of_the_uninterrupted_one(tmp_path):
    run(config=CONFIG, out=tmp_path / "whole")
    config = replace(CONFIG, checkpoint_minutes=AT_EVERY_STEP)
    for before_step in (5, 7, 14):
        with pytest.raises(KeyboardInterrupt):
            run(batches=Stopping(before_step), config=config, out=tmp_path / "stopped", resume=True)
    run(config=config, out=tmp_path / "stopped", resume=True)

    assert untimed(tmp_path / "stopped" / "metrics.jsonl") == untimed(tmp_path / "whole" / "metrics.jsonl")


def test_checkpoints_come_as_often_as_asked_and_the_users_generators_are_left_alone(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("l0prune.finetuning.checkpoints.Store.save", lambda _, one: saved.append(one.trainer["step"]))
    gated = gated_net()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = (random.random(), np.random.uniform(), torch.rand(()).item())
    random.seed(5), np.random.seed(5), torch.manual_seed(5)

    run(gated, config=CONFIG, out=tmp_path / "seldom")

    assert (random.random(), np.random.uniform(), torch.rand(()).item()) == expected
    assert saved == [6, 12, 18]
    saved.clear()
    run(config=replace(CONFIG, checkpoint_minutes=AT_EVERY_STEP), out=tmp_path / "often")
    assert saved == list(range(1, 19))
    with pytest.raises(ConfigError, match="checkpoint_minutes"):
        l0prune.FinetuneConfig(checkpoint_minutes=-1)


def test_a_loader_is_shuffled_anew_in_each_epoch_and_alike_in_each_run():
    seen = []

    class Noting(DataLoader):
        def __iter__(self):
            for batch in super().__iter__():
                seen.append(batch[1].tolist())
                yield batch

    for _ in range(2):
        loader = Noting(list(zip(*pictures(), strict=True)), batch_size=16, shuffle=True, generator=torch.Generator())
        run(batches=loader, config=replace(QUICK, epochs=2, warmup_epochs=0, gate_epochs=1, settle_epochs=0))
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert seen[-N_BATCHES:] != seen[-2 * N_BATCHES : -N_BATCHES]
    assert len({label for labels in seen for label in labels}) == N_CLASSES


def test_the_first_batches_of_a_source_that_can_jump_are_not_made_again():
    class Jumping:
        def __iter__(self):
            return self.from_batch(0)

        def from_batch(self, first):
            made.append(first)
            return iter(range(first, 9))

    made: list[int] = []
    five = FirstBatches(Jumping(), 5)

    assert list(five) == [0, 1, 2, 3, 4]
    assert list(five.from_batch(3)) == [3, 4]
    assert made == [0, 3]
    assert list(FirstBatches(range(9), 5).from_batch(3)) == [3, 4]
