"""Data as they are in Python: loaders of torch with and without a length, dicts and pairs, to train and to judge by."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from finetuning_case import BUDGET, QUICK, SmallBatches, assert_same_state, dense_net, gated_net, run, state
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import l0prune
from l0prune.errors import DataError, L0PruneWarning

SHORT = replace(QUICK, epochs=2, warmup_epochs=0, gate_epochs=1, settle_epochs=0)


class AsDicts(Dataset):
    """Entries as collators of transformers want them."""

    def __init__(self) -> None:
        batches = list(SmallBatches(3))
        self.x, self.y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int):
        return {"x": self.x[i], "labels": self.y[i]}


class Stream(IterableDataset):
    """Entries that come one after another; nobody says how many, or there is no end to them."""

    def __init__(self, n: int | None = 40) -> None:
        self.n, self.data = n, AsDicts()

    def __iter__(self):
        count = 0
        while self.n is None or count < self.n:
            entry = self.data[count % len(self.data)]
            yield entry["x"], entry["labels"]
            count += 1


def test_a_loader_of_dicts_trains_and_another_one_judges_by_the_score_of_the_task():
    loader, test = DataLoader(AsDicts(), batch_size=12, shuffle=True), DataLoader(AsDicts(), batch_size=7)

    result = run(batches=loader, config=SHORT, loss=None, task="classification", evaluate=test)

    entries = AsDicts()
    with torch.no_grad():
        right = result.compact(entries.x).argmax(1) == entries.y
    assert result.evaluation["accuracy"] == pytest.approx(100 * right.float().mean().item())
    assert result.steps == 2 * 4


def test_judging_by_what_the_dense_network_returns_compares_with_it_as_it_was():
    entries = AsDicts()
    rows = [entries.x[:16], entries.x[16:32]]
    result = run(batches=rows, config=SHORT, loss=None, task="match", evaluate=rows)

    with torch.no_grad():
        found, wanted = (torch.cat([model(x) for x in rows]).double() for model in (result.compact, dense_net()))
    assert result.evaluation["relative_error"] == pytest.approx(float((found - wanted).norm() / wanted.norm()))


def test_a_model_without_gates_gets_them():
    torch.manual_seed(0)
    batches = SmallBatches(6)
    found = l0prune.finetune(dense_net(), batches, loss=F.cross_entropy, budget=BUDGET, config=SHORT)
    known = run(gated_net(), batches, config=SHORT)

    assert isinstance(found.gated.model, nn.Module)
    assert found.budget_met
    assert_same_state(state(found.compact), state(known.compact))


def test_a_stream_without_a_length_is_counted_and_one_without_an_end_has_as_many_as_is_said():
    with pytest.warns(L0PruneWarning, match="have no length, so the batches of a pass are counted"):
        counted = run(batches=DataLoader(Stream(40), batch_size=8), config=SHORT)
    endless = run(batches=DataLoader(Stream(None), batch_size=8), config=replace(SHORT, batches_per_epoch=5))

    assert counted.steps == endless.steps == 2 * 5
    assert_same_state(state(counted.compact), state(endless.compact))
    assert run(batches=SmallBatches(6), config=replace(SHORT, batches_per_epoch=3)).steps == 2 * 3


@pytest.mark.parametrize(
    ("batches", "changes", "word"),
    [
        ((batch for batch in SmallBatches()), {}, "is a generator, which cannot be iterated again and again"),
        (SmallBatches(3), {"batches_per_epoch": 4}, "batches_per_epoch=4, and train_batches has 3"),
        ([], {}, "train_batches is empty"),
        (5, {}, "train_batches is a int"),
    ],
    ids=["generator", "too many", "empty", "number"],
)
def test_data_that_cannot_be_trained_on_are_refused(batches, changes, word):
    with pytest.raises(DataError, match=word):
        run(batches=batches, config=replace(SHORT, **changes))
    with pytest.raises(DataError, match="evaluate is a generator"):
        run(config=SHORT, evaluate=(batch for batch in SmallBatches()))
