"""Simulate the budget constraint on a made-up network whose best selection is known.

A residual network of 24 layers with lognormal gate importances is pruned by gradient descent on its gates: the task gradient
is the importance of each gate plus noise, passed through sampled hard concrete gates; the cost is the product of the
widths. No weights are trained, so thousands of steps take seconds, and the selection can be compared with the best one.

    python benchmarks/constraint_simulation.py [--steps 300 1000 5000] [--keep 0.7 0.5 0.25] [--scale 0.1 1 10 100]
"""

import argparse
import itertools
from dataclasses import dataclass

import numpy as np
import torch

from l0prune.cost.products import ProductCost
from l0prune.flow.costs import CostTerm, Dimension, Side
from l0prune.gates.bank import GateBank
from l0prune.gates.optimizer import GateOptimizerConfig
from l0prune.goals.budget import Bound, Budget
from l0prune.goals.lagrangian import Constraint, ConstraintConfig
from l0prune.goals.selection import select_open

TASK_LOSS = 5.0  # nats lost when every gate is closed, before scaling


@dataclass(frozen=True)
class Outcome:
    """What one simulated run did; costs are fractions of dense.

    Attributes:
        end: expected cost after the last step minus the budget.
        hard: cost after thresholding minus the budget.
        above: largest excess of the expected cost over the target.
        below: most negative excess.
        ambiguous: share of gates with P(z != 0) between 0.1 and 0.9 at the end.
        lost: importance removed by the exact selection, relative to the best selection.
        multiplier: largest multiplier, divided by the scale of the task loss.
    """

    end: float
    hard: float
    above: float
    below: float
    ambiguous: float
    lost: float
    multiplier: float


class MadeUpNetwork:
    """ResNet-like: three stages of four blocks, streams of 16, 32, 64 units, inner widths alike; 512 gates."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        starts = np.cumsum([0, 16, 16, 32, *[16] * 4, *[32] * 4, *[64] * 4])
        widths = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
        streams = [widths[0], np.concatenate(widths[:2]), np.concatenate(widths[:3])]
        terms = []
        for block, inner in enumerate(widths[3:]):
            stage, first = block // 4, block % 4 == 0
            positions = 9.0 * (32 // 2**stage) ** 2
            source = streams[max(stage - 1, 0)] if first else streams[stage]
            terms.append(CostTerm(f"block{block}.conv1", positions, (Side(0, source), Side(0, inner))))
            terms.append(CostTerm(f"block{block}.conv2", positions, (Side(0, inner), Side(0, streams[stage]))))
        self.n_gates = int(starts[-1])
        self.costs = ProductCost(terms, self.n_gates)
        self.groups = np.repeat(np.arange(len(widths)), np.diff(starts))
        self.dimensions = [Dimension(f"width{i}", 0, width, removable=False) for i, width in enumerate(widths)]
        level = np.exp(rng.normal(0, 0.3, len(widths)))[self.groups] * np.sqrt(
            self.marginal_cost(np.ones(self.n_gates))
        )
        importance = np.exp(rng.normal(0, 1, self.n_gates)) * level
        self.importance = importance / importance.sum()

    def marginal_cost(self, p: np.ndarray) -> np.ndarray:
        """Derivative of the expected cost in each open probability."""
        at = torch.tensor(p, requires_grad=True)
        (gradient,) = torch.autograd.grad(self.costs.expected(at), at)
        return gradient.numpy()

    def best_loss(self, keep: float) -> float:
        """Importance removed by the best selection: a fixed point of ranking by importance per marginal cost."""
        best = np.inf
        for start in (1.0, 0.7, 0.4):
            p = np.full(self.n_gates, start)
            for _ in range(40):
                order = np.argsort(-self.importance / self.marginal_cost(p))
                low, high = 0, self.n_gates
                while low < high:
                    middle = (low + high + 1) // 2
                    fits = self.costs.hard(np.isin(np.arange(self.n_gates), order[:middle])) <= keep
                    low, high = (middle, high) if fits else (low, middle - 1)
                best = min(best, self.importance[order[low:]].sum())
                p = 0.7 * p + 0.3 * np.isin(np.arange(self.n_gates), order[:low])
        return float(best)


def simulate(
    network: MadeUpNetwork,
    *,
    keep: float,
    steps: int,
    scale: float = 1.0,
    noise: float = 4.0,
    seed: int = 0,
    best_loss: float = 1.0,
    gate_lr: float | None = None,
    config: ConstraintConfig | None = None,
) -> Outcome:
    """One run of `steps` steps.

    Args:
        network: what to prune.
        keep: budget, fraction of dense.
        steps: length of the gate phase.
        scale: factor on the task loss.
        noise: standard deviation of the task gradient over its mean; ResNet-20 on CIFAR-10 has 3 to 4.5 at batch 128.
        seed: of the gates and the gradient noise.
        best_loss: what `lost` is relative to.
        gate_lr: learning rate of the gates; None is the library's rule.
        config: of the constraint.
    """
    bank = GateBank(network.n_gates, seed=seed)
    optimizer = GateOptimizerConfig(lr=gate_lr).build([bank.log_alpha], steps)
    constraint = Constraint(keep, steps, config)
    generator = torch.Generator().manual_seed(seed + 1)
    weight = torch.tensor(network.importance * TASK_LOSS, dtype=torch.float32)
    deviation = noise * torch.sqrt(weight * weight.mean())
    excess, multipliers = [], []
    for _ in range(steps):
        z = bank.sample()
        gradient = scale * (deviation * torch.randn(network.n_gates, generator=generator) - weight)
        expected = network.costs.expected(bank.open_probability())
        excess.append(float(expected.detach()) - constraint.target)
        ((z * gradient).sum() + constraint.penalty(expected)).backward()
        optimizer.step()
        optimizer.zero_grad()
        bank.clamp_()
        constraint.step(float(expected.detach()), network.costs.hard(bank.values() != 0))
        multipliers.append(constraint.multiplier)
    with torch.no_grad():
        p = bank.open_probability()
        is_open = select_open(
            bank.log_alpha.numpy(), [Bound(Budget("macs", keep), network.costs)], network.dimensions, network.groups
        )
        return Outcome(
            end=float(network.costs.expected(p)) - keep,
            hard=constraint.hard_cost - keep,
            above=max(excess[1:]),
            below=min(excess[1:]),
            ambiguous=float(((p > 0.1) & (p < 0.9)).float().mean()),
            lost=float(network.importance[~is_open].sum()) / best_loss,
            multiplier=max(multipliers) / scale,
        )


def main() -> None:
    """Print a table over steps, budgets, scales of the task loss, and noise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1000, 5000])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.7, 0.5, 0.25])
    parser.add_argument("--scale", type=float, nargs="+", default=[0.1, 1.0, 10.0, 100.0])
    parser.add_argument("--noise", type=float, nargs="+", default=[1.0, 4.0, 10.0])
    parser.add_argument("--gate-lr", type=float, default=None, help="Learning rate of the gates. [library's rule]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = MadeUpNetwork(options.seed)
    print("expected cost minus the budget at the end, hard cost minus the budget, excess over the moving target,")
    print("share of undecided gates, importance removed relative to the best selection, largest multiplier / scale\n")
    print("steps  keep  noise  scale |    end   hard   below  above | undecided   lost  multiplier")
    for steps, keep, noise, scale in itertools.product(options.steps, options.keep, options.noise, options.scale):
        best = network.best_loss(keep)
        run = simulate(
            network,
            keep=keep,
            steps=steps,
            scale=scale,
            noise=noise,
            seed=options.seed,
            best_loss=best,
            gate_lr=options.gate_lr,
        )
        print(
            f"{steps:5d}  {keep:.2f}  {noise:5.1f}  {scale:5g} | {run.end:+.3f} {run.hard:+.3f}  {run.below:+.3f} "
            f"{run.above:+.3f} |     {run.ambiguous:.3f}  {run.lost:.3f}  {run.multiplier:10.3g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
