"""A network for inputs of several lengths: its cost is the mean, in budgets, in `inspect`, and the cut is compared at each."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import l0prune
from l0prune.cli.main import cli
from l0prune.errors import TraceError
from l0prune.flow.mixture import with_mean_costs
from l0prune.look.free_sizes import at_length
from l0prune.model_call import ModelCall

MODULE = """
import numpy as np
import torch
from test_mixture import Attention


def data():
    ids = np.random.default_rng(0).integers(1, 20, (40, 8))
    x, y = {"ids": ids, "mask": np.ones_like(ids)}, np.zeros((40, 8), np.int64)
    return x, y, x, y


def network():
    ids = torch.arange(16).view(2, 8) % 20
    return Attention(), {"ids": ids, "mask": torch.ones_like(ids)}
"""


class Attention(nn.Module):
    """One head of attention over embedded tokens, and a layer behind it; positions end at 40."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.position = nn.Embedding(20, 12), nn.Parameter(torch.randn(40, 12))
        self.qk, self.value = nn.Linear(12, 16), nn.Linear(12, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.position[: ids.shape[1]]
        q, k = self.qk(x).chunk(2, -1)
        scores = (q @ k.transpose(1, 2)).masked_fill(mask[:, None] == 0, -1e9).softmax(-1)
        return self.out(scores @ self.value(x))


def tokens(length: int) -> dict[str, torch.Tensor]:
    ids = torch.arange(2 * length).view(2, length) % 20
    return {"ids": ids, "mask": torch.ones_like(ids)}


def by_hand(length: int) -> float:
    """MACs: projections are linear in the length, attention is quadratic."""
    return length * (12 * 16 + 12 * 8 + 8 * 3) + length**2 * (8 + 8)


def test_costs_are_the_mean_over_all_lengths_dense_and_cut():
    model = Attention()
    flow = l0prune.trace(model, tokens(8), also=[tokens(4), tokens(32)])

    assert flow.dense_cost("macs") == pytest.approx(np.mean([by_hand(length) for length in (8, 4, 32)]))
    assert flow.dense_cost("params") == l0prune.trace(model, tokens(8)).dense_cost("params")
    values = (torch.rand(flow.n_gates, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    singles = [l0prune.trace(model, tokens(length)) for length in (8, 4, 32)]
    costs = []
    for one in (flow, *singles):
        gated = l0prune.inject(model, one)
        gated.freeze(values)
        costs.append(gated.hard_cost("macs") * one.dense_cost("macs"))
    assert flow.n_gates > 0
    assert costs[0] == pytest.approx(np.mean(costs[1:]))
    assert len({round(cost / one.dense_cost("macs"), 6) for cost, one in zip(costs[1:], singles, strict=True)}) == 3


def test_another_network_has_no_mean_with_it():
    one = l0prune.trace(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), torch.zeros(2, 4))
    other = l0prune.trace(nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 2)), torch.zeros(2, 4))
    with pytest.raises(TraceError, match=r"with inputs of shape \(2, 4\) the model has other units"):
        with_mean_costs(one, [other])


def test_tokens_and_what_is_as_long_take_a_length_and_images_none():
    call = ModelCall((torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, 7), torch.zeros(2, 3)), {})
    assert [tuple(tensor.shape) for tensor in at_length(call, 9).tensors] == [(2, 9), (2, 9, 7), (2, 3)]
    assert at_length(ModelCall((torch.zeros(2, 3, 8, 8),), {}), 9) is None


@pytest.fixture
def module(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("L0PRUNE_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "mixed_lengths.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "mixed_lengths", raising=False)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.chdir(tmp_path)


def told(*args: object) -> dict:
    done = CliRunner().invoke(cli, [*map(str, args), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.usefixtures("module")
def test_inspect_and_verify_take_lengths():
    inspected = told("inspect", "mixed_lengths:network", "--length", "4,8,32")
    verified = told("verify", "mixed_lengths:network", "--length", "4,32", "--no-onnx")

    assert {n: at["macs"] for n, at in inspected["at_lengths"].items()} == {str(n): by_hand(n) for n in (4, 8, 32)}
    assert inspected["macs"] == round(np.mean([by_hand(n) for n in (4, 8, 32)]))
    assert "32 tokens" in CliRunner().invoke(cli, ["inspect", "mixed_lengths:network", "--length", "4,32"]).stdout
    assert verified["exact"]
    assert list(verified["at_lengths"]) == ["4", "32"]
    assert all(0 < at["max_rel_diff"] < 1e-4 for at in verified["at_lengths"].values())
    assert [at["shapes"] for at in verified["elsewhere"]] == [[[2, 4], [2, 4]], [[2, 32], [2, 32]]]
    for args, word in (
        (
            ("verify", "mixed_lengths:network", "--length", "50", "--no-onnx"),
            "the model itself gives no numbers for inputs of",
        ),
        (("inspect", "lenet5", "--length", "50"), "--length is for models that take tokens, and lenet5 takes none"),
    ):
        failed = CliRunner().invoke(cli, list(args))
        assert failed.exit_code == 1
        assert word in failed.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("module")
def test_the_file_of_the_cut_network_is_compared_at_each_length():
    verified = told("verify", "mixed_lengths:network", "--length", "4,12,40")

    assert verified["exact"]
    assert list(verified["at_lengths"]) == ["4", "12", "40"]
    assert all(0 < at["onnx_max_rel_diff"] < 1e-4 for at in verified["at_lengths"].values())


@pytest.mark.usefixtures("module")
def test_a_budget_holds_for_the_mean_over_the_lengths_that_are_asked_for():
    options = ["--task", "tokens", "--epochs", "1", "--batch-size", "8", "--align", "1", "--length", "8,32"]
    told(
        "finetune",
        "mixed_lengths:network",
        "--data",
        "mixed_lengths:data",
        *options,
        "--budget",
        "macs=0.7",
        "--out",
        "run",
    )
    result = json.loads(Path("run/run.json").read_text())["result"]

    assert result["macs_before"] == round(np.mean([by_hand(n) for n in (8, 32)]))
    assert result["macs_after"] <= 0.7 * result["macs_before"]
    assert told("eval", "run")["accuracy"]["gated"] == result["final"]
