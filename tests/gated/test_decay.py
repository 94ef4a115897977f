"""Weight decay by the probability that gates are open: against sums by hand, and that nothing decays twice or not at all."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from finetuning_case import QUICK, SmallBatches, dense_net, gated_net, run, traced
from torch import nn

import l0prune
from l0prune.finetuning.metrics import read_metrics
from l0prune.finetuning.optimization import GatedDecay
from l0prune.finetuning.runtime import Runtime
from l0prune.finetuning.stage import Stage
from l0prune.tasks.of_loss import LossTask

DECAY = 0.3
CONFIG = replace(QUICK, optimizer="sgd", momentum=0.0, weight_decay=DECAY, grad_clip=0.0, distillation=0.0)


class Tied(nn.Module):
    """One matrix that contracts its second dimension, then, transposed, its first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.shared = nn.Parameter(torch.randn(5, 6))
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        hidden = torch.relu(F.linear(torch.relu(self.first(x)), self.shared))
        return self.last(F.linear(hidden, self.shared.t()))


def spread(gated: l0prune.GatedModel) -> list[float]:
    """Gates at different probabilities of being open, which are returned."""
    with torch.no_grad():
        gated.gates.log_alpha.copy_(torch.linspace(-5, 3, gated.n_gates))
    return gated.open_probability().tolist()


def by_hand(gated: l0prune.GatedModel, is_open: list[float]) -> float:
    """Every weight alone, with the gates that multiply it."""
    total = 0.0
    parameters = dict(gated.model.named_parameters())
    for name in {consumer.parameter for consumer in gated.flow.consumers}:
        for place in torch.cartesian_prod(*(torch.arange(n) for n in parameters[name].shape)).tolist():
            weight = float(parameters[name].detach()[tuple(place)])
            for consumer in gated.flow.consumers:
                if consumer.parameter == name and consumer.gates[place[consumer.dim]] >= 0:
                    weight *= is_open[consumer.gates[place[consumer.dim]]] ** 0.5
            total += weight**2
    return 0.5 * DECAY * total


def tied_net() -> l0prune.GatedModel:
    torch.manual_seed(0)
    net = Tied().eval()
    return l0prune.inject(net, l0prune.trace(net, (torch.randn(2, 4),)))


@pytest.mark.parametrize("make", [gated_net, tied_net])
def test_the_term_is_the_sum_over_every_weight(make):
    gated = make()
    is_open = spread(gated)

    assert GatedDecay(gated, DECAY)().item() == pytest.approx(by_hand(gated, is_open), rel=1e-5)


def test_a_matrix_with_gates_at_both_ends_counts_both():
    gated = tied_net()

    assert sorted(c.dim for c in gated.flow.consumers if c.parameter == "shared") == [0, 1]


def step_of(gated: l0prune.GatedModel, *, by_gates: bool) -> dict[str, torch.Tensor]:
    """Weights after a step on a loss without slope: what decay alone does."""
    stage = Stage(
        gated.train(),
        task=LossTask(lambda outputs, _targets: 0 * outputs.sum()),
        teacher=None,
        config=replace(CONFIG, gated_weight_decay=by_gates),
        runtime=Runtime("no"),
    )
    stage.step(torch.randn(4, 3, 6, 6), torch.zeros(4), lr=0.1)
    return {name: parameter.detach().clone() for name, parameter in gated.model.named_parameters()}


def frozen_net(values: torch.Tensor) -> l0prune.GatedModel:
    gated = gated_net()
    gated.set_penalty(l0prune.Penalty(0.0, n_samples=1), 1)
    gated.freeze(values)
    return gated


def test_with_open_gates_it_is_the_plain_decay():
    plain = step_of(frozen_net(torch.ones(20)), by_gates=False)
    by_gates = step_of(frozen_net(torch.ones(20)), by_gates=True)

    before = dict(dense_net().named_parameters())
    for name, found in by_gates.items():
        torch.testing.assert_close(found, plain[name], atol=0, rtol=1e-6)
        decaying = found.dim() > 1
        torch.testing.assert_close(
            found, before[name].detach() * (1 - 0.1 * DECAY if decaying else 1), atol=0, rtol=1e-6
        )


def test_weights_of_closed_gates_do_not_decay():
    values = torch.ones(20)
    values[::2] = 0
    gated = frozen_net(values)
    consumer = next(consumer for consumer in gated.flow.consumers if consumer.parameter == "linear.weight")

    after = step_of(gated, by_gates=True)["linear.weight"]

    before = dense_net().linear.weight.detach()
    for index, gate in enumerate(consumer.gates):
        factor = 1 - 0.1 * DECAY * float(values[gate])
        torch.testing.assert_close(after[:, index], before[:, index] * factor, atol=0, rtol=1e-6)
    assert 0 < int(values[consumer.gates].sum()) < len(consumer.gates)


def test_it_closes_the_gate_of_large_weights_first():
    gated = gated_net()
    spread(gated)
    with torch.no_grad():
        gated.gates.log_alpha.fill_(0.0)

    GatedDecay(gated, DECAY)().backward()

    weight = gated.model.linear.weight.detach()
    consumer = next(consumer for consumer in gated.flow.consumers if consumer.parameter == "linear.weight")
    slopes = gated.gates.log_alpha.grad[torch.from_numpy(consumer.gates)]
    assert torch.equal(slopes.argsort(), weight.square().sum(0).argsort())
    assert bool((slopes > 0).all())


def test_a_parameter_that_gates_multiply_but_does_not_train_is_left_out():
    net = dense_net()
    net.linear.weight.requires_grad_(False)
    gated = l0prune.inject(net, traced()[1])

    assert [parameter is net.conv2.weight for parameter in GatedDecay(gated, DECAY).parameters] == [True]


def test_a_whole_run_counts_it_in_the_loss(tmp_path):
    config = replace(QUICK, weight_decay=DECAY, gated_weight_decay=True)
    plain = run(config=replace(config, gated_weight_decay=False), out=tmp_path / "plain")
    by_gates = run(config=config, out=tmp_path / "gates")

    first = [read_metrics(tmp_path / name / "metrics.jsonl")[0]["loss"] for name in ("plain", "gates")]
    decays = [parameter.detach().square().sum() for parameter in (dense_net().conv2.weight, dense_net().linear.weight)]
    assert first[1] - first[0] == pytest.approx(0.5 * DECAY * float(sum(decays)), rel=1e-4)
    assert plain.budget_met
    assert by_gates.budget_met
    assert by_gates.steps == 5 * len(SmallBatches())
