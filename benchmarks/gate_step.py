"""What one sampled step of a million gates costs on one core: sample, penalty, backward.

The yardstick is an elementwise sigmoid of the same size, forward and backward. Steps of all families take turns, so that
a busy moment of the machine hits them alike; processor time is measured, medians are printed. "noise" is the part that
draws the random numbers.

    python benchmarks/gate_step.py [--gates 1000000] [--rounds 15] [NAME ...]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from l0prune.gates.numerics import random_words
from l0prune.gates.registry import gate_distribution, gate_names


def steps(names: list[str], n_gates: int) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    log_alpha = (torch.randn(n_gates, generator=generator) * 2).requires_grad_()

    def plain() -> None:
        log_alpha.grad = None
        torch.sigmoid(log_alpha).sum().backward()

    def sampled(name: str) -> Callable[[], None]:
        gate = gate_distribution(name).at(0.5, lambda: n_gates // 2)

        def step() -> None:
            log_alpha.grad = None
            (gate.rsample(log_alpha, generator=generator).sum() + gate.prob_open(log_alpha).sum()).backward()

        return step

    return {
        "sigmoid": plain,
        "noise": lambda: random_words(log_alpha, generator),
        **{name: sampled(name) for name in names},
    }


def milliseconds(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians of the processor time, the functions taking turns; a first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            begin = time.process_time()
            function()
            times[name].append((time.process_time() - begin) * 1e3)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(gate_names()), metavar="NAME")
    parser.add_argument("--gates", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = milliseconds(steps(options.names, options.gates), options.rounds)
    print(f"{options.gates} gates, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread")
    print(f"{'step':36} {'ms':>8} {'times a sigmoid':>16}")
    for name, ms in found.items():
        print(f"{name:36} {ms:8.2f} {ms / found['sigmoid']:16.1f}")


if __name__ == "__main__":
    main()
