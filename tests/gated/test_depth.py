"""Branches that close as a whole while gates are placed by evidence, and at the cut."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flow_case import EXACT, difference, ready
from staircase import Staircase
from torch import Tensor, nn

import l0prune
from l0prune.cost import kinds
from l0prune.cost.kinds import CostMetric
from l0prune.criteria.sensitivity import measure_salience
from l0prune.flow.branches import Branch
from l0prune.flow.channel_flow import ChannelFlow


def steps_cost(flow: ChannelFlow) -> Staircase:
    dense = flow.dense_cost("macs")
    return Staircase(flow.terms("macs"), flow.n_gates, block=4, fixed=dense / 10)


@pytest.fixture(autouse=True)
def _steps_of_4(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = CostMetric("steps-of-4", "steps", steps_cost, {"": 1.0}, in_steps=True)
    monkeypatch.setitem(kinds._METRICS, metric.name, metric)


class Blocks(nn.Module):
    """A stem, residual blocks with batch norms, and a classifier."""

    def __init__(self, n_blocks: int = 3, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.a = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(n_blocks))
        self.b = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(n_blocks))
        self.norms_a = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(n_blocks))
        self.norms_b = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(n_blocks))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for a, norm_a, b, norm_b in zip(self.a, self.norms_a, self.b, self.norms_b, strict=True):
            x = torch.relu(x + norm_b(b(torch.relu(norm_a(a(x))))))
        return self.head(x.mean((2, 3)))


def batches(n: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(16, 3, 6, 6, generator=generator, dtype=torch.float64),
            torch.randint(4, (16,), generator=generator),
        )
        for _ in range(n)
    ]


def network(idle: int | None = None) -> nn.Module:
    """Ready, in float64; what the block `idle` adds hardly counts."""
    net = ready(Blocks())
    if idle is not None:
        with torch.no_grad():
            net.norms_b[idle].weight.mul_(0.02)
    return net


def train(gated, steps: int) -> None:
    gated.train()
    optimizer = torch.optim.SGD(gated.parameters(), lr=1e-4)
    for x, y in batches(steps):
        loss = F.cross_entropy(gated(x), y) + gated.penalty()
        loss.backward()
        optimizer.step()
        gated.step()
        optimizer.zero_grad()


def gated_network(net: nn.Module, steps: int = 30, **options):
    flow = l0prune.trace(net, batches(1)[0][0])
    return l0prune.inject(net, flow, budget=l0prune.Budget("steps-of-4", 0.6), steps=steps, **options)


@pytest.mark.parametrize("idle", [0, 2])
def test_the_block_that_adds_nothing_closes_as_a_whole_and_is_dropped(idle):
    net = network(idle)
    gated = gated_network(net)

    train(gated, 30)
    open_probability = gated.open_probability().detach()
    compact = l0prune.shrink(gated)

    by_branch = [float(open_probability[torch.from_numpy(b.gates)].max()) for b in gated.flow.branches]
    names = [b.name for b in gated.flow.branches]
    assert names[min(range(3), key=by_branch.__getitem__)] == f"a.{idle}.weight"
    assert not gated.gate_values()[torch.from_numpy(gated.flow.branches[names.index(f"a.{idle}.weight")].gates)].any()
    assert gated.hard_cost() <= 0.6
    x = batches(1, seed=5)[0][0]
    assert difference(compact(x), gated(x)) < EXACT


def test_without_depth_every_branch_keeps_a_unit_where_macs_are_bounded():
    net = network()
    flow = l0prune.trace(net, batches(1)[0][0])
    for depth, expected in [(None, ()), (False, ()), (True, flow.branches)]:
        gated = l0prune.inject(net, flow, budget=l0prune.Budget("macs", 0.5), steps=4, depth=depth)
        assert gated.goal.branches(gated.costs) == expected


def test_branches_rank_by_what_their_units_are_worth_as_by_what_the_loss_grows_by_without_them():
    net = network()
    with torch.no_grad():
        for weight, factor in zip((norm.weight for norm in net.norms_b), (0.03, 1.0, 0.2), strict=True):
            weight.mul_(factor)
    gated = gated_network(net).eval()
    teacher = {i: net(x).softmax(-1).detach() for i, (x, _) in enumerate(batches(8))}

    def loss(x, y):  # from its own outputs, a minimum
        return F.cross_entropy(gated(x), teacher[y])

    def without(gates):
        gated.freeze(torch.ones(gated.n_gates).index_fill(0, gates, 0.0))
        with torch.no_grad():
            return float(torch.stack([loss(x, i) for i, (x, _) in enumerate(batches(8))]).mean())

    squares = measure_salience(gated, [(x, y) for x, y in batches(8)], lambda x, y: F.cross_entropy(gated(x), y))
    worths = [branch.worth(squares) for branch in gated.flow.branches]
    grown = [without(torch.from_numpy(branch.gates)) for branch in gated.flow.branches]

    assert sorted(range(3), key=worths.__getitem__) == sorted(range(3), key=grown.__getitem__)


def test_a_branch_is_worth_no_more_than_the_least_of_what_cuts_it_off():
    branch = Branch("b", np.arange(5), exits=(np.array([0, 1, 2]), np.array([3, 4])))

    assert branch.worth(np.array([1.0, 1.0, 1.0, 2.0, 2.5])) == 3.0
    assert branch.worth(torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5])) == 1.0


def test_training_resumes_to_the_same_gates():
    whole = gated_network(network(), seed=1)
    train(whole, 12)
    first = gated_network(network(), seed=1)
    stream = batches(12)

    def go(gated, some):
        gated.train()
        optimizer = torch.optim.SGD(gated.parameters(), lr=1e-4)
        for x, y in some:
            (F.cross_entropy(gated(x), y) + gated.penalty()).backward()
            optimizer.step()
            gated.step()
            optimizer.zero_grad()

    go(first, stream[:6])
    second = gated_network(network(), seed=2)
    second.load_state_dict(first.state_dict())
    second.load_training_state(first.training_state())
    go(second, stream[6:])

    torch.testing.assert_close(second.gates.locations, whole.gates.locations, atol=0, rtol=0)
