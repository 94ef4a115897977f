"""A metric of one's own, whose cost is a table over widths: priced, trained under, met, shown and recorded like the others."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import l0prune
from l0prune.cli.main import cli
from l0prune.cost import kinds
from l0prune.cost.cost import Cost, SidesOn
from l0prune.cost.kinds import CostMetric, Costs, metric_named, metric_names, register
from l0prune.cost.widths import Floor
from l0prune.errors import BudgetInfeasibleError, ConfigError

BLOCK = 4
MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class StaircaseCost(Cost):
    """Milliseconds of layers with one or two widths: a table over both, in whole blocks of the first, linear in the second.

    Gates at either side of a layer are independent of each other here.
    """

    def __init__(self, flow):
        terms = flow.terms("macs")
        self._coefficient = np.array([term.coefficient for term in terms]) / 1000
        super().__init__([(term.name, term.sides) for term in terms], flow.n_gates)

    def layer_costs(self, counts):
        first, second = counts[self.layer_sides[:, 0]], counts[self.layer_sides[:, 1]]
        shape = (-1, *([1] * (counts.ndim - 1)))
        return self._coefficient.reshape(shape) * np.ceil(first / BLOCK) * BLOCK * second

    def expected(self, open_probability):
        sides = SidesOn(self.sides, open_probability)
        second = sides.counts(open_probability)[torch.as_tensor(self.layer_sides[:, 1])]
        blocks = torch.stack([self._blocks(int(side), open_probability) for side in self.layer_sides[:, 0]])
        coefficient = torch.as_tensor(self._coefficient, dtype=open_probability.dtype)
        return (coefficient * blocks * second).sum() / self.dense

    def _blocks(self, side, p):
        """Mean of the staircase over the number of open gates, whose distribution is that of a sum of coins."""
        of_gate = self.sides.per_class[side][self.sides.gate_class]
        chances = p.new_ones(1)
        for gate in np.repeat(np.arange(len(of_gate)), of_gate.astype(int)):
            nothing = chances.new_zeros(1)
            chances = torch.cat([chances, nothing]) * (1 - p[gate]) + torch.cat([nothing, chances]) * p[gate]
        counts = self.sides.ungated[side] + torch.arange(len(chances))
        return (chances * torch.ceil(counts / BLOCK) * BLOCK).sum()


@pytest.fixture
def toy(monkeypatch):
    """The metric, registered for one test."""
    monkeypatch.setattr(kinds, "_METRICS", dict(kinds._METRICS))
    register(CostMetric("toy", "toy milliseconds", StaircaseCost, MS))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def gated_network(**options):
    model = network()
    return l0prune.inject(model, l0prune.trace(model, torch.randn(2, 6)), seed=1, **options)


@pytest.mark.usefixtures("toy")
def test_the_expected_cost_of_a_table_is_the_mean_of_its_hard_costs():
    """Fixed seed; for a fresh seed this would fail with probability below 1e-5 (4.5 standard errors)."""
    cost = Costs(gated_network().flow)("toy")
    rng = np.random.default_rng(0)
    p = rng.uniform(size=cost.n_gates)
    draws = np.array([cost.hard(rng.uniform(size=cost.n_gates) < p) for _ in range(4000)])

    expected = float(cost.expected(torch.tensor(p)))

    assert abs(draws.mean() - expected) < 4.5 * draws.std() / np.sqrt(len(draws))
    assert cost.hard(np.ones(cost.n_gates, bool)) == 1.0
    assert torch.autograd.gradcheck(cost.expected, torch.tensor(p, requires_grad=True))


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("keep", ["toy=0.5", "toy=0.1ms", "toy=0.6,params=0.4", "macs=0.3,toy=0.6,params=0.9"])
def test_a_table_is_trained_under_and_met_alone_and_with_others(keep):
    budgets = [l0prune.Budget.parse(part) for part in keep.split(",")]
    x, y = torch.randn(64, 6), torch.randint(0, 4, (64,))
    gated = gated_network()
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]
    config = l0prune.FinetuneConfig(epochs=8, gate_epochs=7, align=1, recalibration_batches=0, log_every=10)

    result = l0prune.finetune(gated, batches, loss=nn.functional.cross_entropy, budget=budgets, config=config)

    assert result.budget_met
    assert list(result.hard_costs) == [budget.metric for budget in budgets]
    shares = {bound.budget.metric: bound.keep for bound in result.goal.bounds(gated.costs)}
    short = {metric: share - result.hard_costs[metric] for metric, share in shares.items()}
    assert 0 <= min(short.values()) < 0.25  # a block of four of eight units is a quarter of what most layers cost
    assert sum(parameter.numel() for parameter in result.compact.parameters()) < sum(
        p.numel() for p in network().parameters()
    )


@pytest.mark.usefixtures("toy")
def test_an_unreachable_amount_names_what_is_left_in_its_unit():
    floor = Floor.of(gated_network().costs("toy"), gated_network().flow.dimensions)
    with pytest.raises(
        BudgetInfeasibleError, match=r"toy=1us cannot be met: .* is left .*Ask for toy=[\d.]+us or more"
    ):
        gated_network(budget=l0prune.Budget("toy", "1us"), steps=10)
    assert 0 < floor.fraction < 1


@pytest.mark.usefixtures("toy")
def test_what_is_registered_has_its_column_in_inspect_metrics_plots_and_results(tmp_path):
    run = ["finetune", "tiny_task:network", "--from-scratch", "--data", "tiny_task:data"]
    quick = ["--epochs", "2", "--batch-size", "16", "--align", "1", "--out", str(tmp_path / "run"), "--json"]

    inspected = CliRunner().invoke(cli, ["inspect", "tiny_task:network", "--json"])
    table = CliRunner().invoke(cli, ["inspect", "tiny_task:network"])
    trained = CliRunner().invoke(cli, [*run, *quick, "--budget", "toy=0.6", "--budget", "params=0.9"])
    drawn = CliRunner().invoke(cli, ["plot", "cost", str(tmp_path / "run"), "--out", str(tmp_path / "a.svg"), "--json"])

    assert json.loads(inspected.stdout)["toy"] > 0
    assert "toy milliseconds" in table.stdout
    assert "toy=" in table.stdout
    result = json.loads(trained.stdout)
    assert result["hard_costs"]["toy"] <= 0.6
    assert result["toy_after"] <= 0.6 * result["toy_before"]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    for column in ("expected", "hard", "target", "multiplier"):
        assert isinstance(last[f"{column}_toy"], float)
        assert isinstance(last[f"{column}_params"], float)
    assert last["target"] == last["target_toy"]
    assert json.loads(drawn.stdout)["missing"] == {str(tmp_path / "run"): []}


# --- amounts and names


@pytest.mark.parametrize(
    ("text", "amount"),
    [("20M", 20e6), ("300k", 300e3), ("1.234567M", 1234567.0), ("1234567", 1234567.0), ("2.5 G", 2.5e9), ("17", 17.0)],
)
def test_amounts_are_read_and_written_exactly(text, amount):
    metric = metric_named("macs")
    assert metric.amount(text) == amount
    assert metric.amount(metric.text(amount)) == amount


@pytest.mark.parametrize("text", ["", "M", "20X", "nanM", "infk", "2Mk", "k2"])
def test_text_that_is_no_amount_is_none(text):
    assert metric_named("macs").amount(text) is None


@pytest.mark.parametrize(("text", "amount"), [("12ms", 12.0), ("0.5 ms", 0.5), ("3us", 0.003), ("1.5s", 1500.0)])
def test_units_that_end_alike_are_told_apart(text, amount):
    metric = CostMetric("t", "milliseconds", StaircaseCost, MS)
    assert metric.amount(text) == amount
    assert metric.amount(metric.text(amount)) == amount
    assert metric.amount("12") is None


def test_every_metric_prices_a_network_in_all_its_ways():
    """Whatever is registered: fractions between the floor and one, exact at zero and one, a name for every layer."""
    flow = gated_network().flow
    assert set(metric_names()) - set(Costs(flow).names) == {"latency"}  # which has to be measured
    for name in Costs(flow).names:
        cost, metric = Costs(flow)(name), metric_named(name)
        everything, nothing = np.ones(flow.n_gates, bool), np.zeros(flow.n_gates, bool)
        assert metric.name == name
        assert metric.title
        assert cost.hard(everything) == 1.0
        assert float(cost.expected(torch.ones(flow.n_gates, dtype=torch.float64))) == pytest.approx(1.0)
        assert 0 <= cost.hard(nothing) <= Floor.of(cost, flow.dimensions).fraction < 1
        assert len(cost.layers) == len(cost.dense_layers) == len(cost.hard_layers(nothing))
        assert cost.dense_layers.sum() == pytest.approx(cost.dense)
        assert metric.amount(metric.text(cost.dense)) == cost.dense


def test_an_unknown_metric_is_refused_wherever_it_is_named():
    gated = gated_network()
    for call in (lambda: gated.hard_cost("flops"), lambda: gated.expected_cost("flops"), lambda: gated.costs("flops")):
        with pytest.raises(ConfigError, match="metric 'flops' is not available; use one of: macs, params"):
            call()
