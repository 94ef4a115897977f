"""Train each gate family for a few steps towards half of the MACs of a small network, held at the target's pace or free.

Prints the expected and the hard cost at the end of the gate phase, and the loss after the freeze at the budget and 60 steps
of recovery; means over the seeds. The network has 40 gates and a loss of 0.003 before.

    python benchmarks/short_gate_phases.py [--steps 60 200] [--seeds 4] [--gates NAME ...]
"""

import argparse
import copy
import math
import statistics
from functools import cache
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

import l0prune
from l0prune.finetuning.config import FinetuneConfig
from l0prune.finetuning.freezing import decided_values
from l0prune.finetuning.settings import resolve
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.gated.decision import choose_open
from l0prune.gates.registry import gate_distribution, gate_names

BUDGET = l0prune.Budget("macs", 0.5)
BY_GRADIENT = l0prune.GateOptimizerConfig(by_evidence=False)
RECOVERY_STEPS = 60


@cache
def learned_task() -> tuple[nn.Module, ChannelFlow, torch.Tensor, torch.Tensor]:
    """A network with a masked norm that has learned 192 made-up samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
    model = model.double()
    x = torch.randn(192, 8, dtype=torch.float64)
    y = (x[:, :3] + x[:, 3:6].abs()).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, l0prune.trace(model.eval(), x[:2]), x, y


def outcome(name: str, steps: int, seed: int, *, held: bool) -> tuple[float, float, float]:
    """Expected cost, hard cost, and the loss after freeze and recovery."""
    model, flow, x, y = learned_task()
    model = copy.deepcopy(model)
    with mock.patch.object(type(gate_distribution(name)), "held_below", math.inf if held else 0):
        gated = l0prune.inject(
            model, flow, gate=name, budget=BUDGET, steps=steps, seed=seed, gate_optimizer=BY_GRADIENT
        ).train()
        optimizer = torch.optim.Adam(gated.parameters(), lr=1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            (F.cross_entropy(gated(x), y) + gated.penalty()).backward()
            optimizer.step()
            gated.step()
    costs = float(gated.expected_cost("macs").detach()), gated.hard_cost("macs")
    gated.freeze(
        decided_values(gated, choose_open(gated, gated.goal, align=1), resolve(FinetuneConfig(), penalised=False))
    )
    optimizer = torch.optim.Adam(gated.parameters(), lr=3e-3)
    for _ in range(RECOVERY_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(gated(x), y).backward()
        optimizer.step()
    return *costs, float(F.cross_entropy(gated.eval()(x), y).detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 200])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--gates", nargs="+", default=gate_names())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| `--gate` | steps | free: expected, hard | loss | held: expected, hard | loss |")
    print("|---|---|---|---|---|---|")
    for name in arguments.gates:
        for steps in arguments.steps:
            cells = []
            for held in (False, True) if gate_distribution(name).held_below else (False,):
                runs = [outcome(name, steps, seed, held=held) for seed in range(arguments.seeds)]
                expected, hard, loss = (statistics.mean(column) for column in zip(*runs, strict=True))
                cells += [f"{expected:.2f}, {hard:.2f}", f"{loss:.3f}"]
            print(f"| `{name}` | {steps} | {' | '.join(cells + ['-'] * (4 - len(cells)))} |", flush=True)


if __name__ == "__main__":
    main()
