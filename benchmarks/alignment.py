"""Cut a network at random, half of its units or to a budget, with and without alignment, and time the three in onnxruntime.

Usage: python benchmarks/alignment.py [--model timm:mobilenetv2_100] [--align auto] [--also 4 --also 8]
    [--closed 0.5 | --budget macs=0.5]

No training and no data: latency does not depend on the weights. Ends with exit code 1 where the aligned network
is less than --at-least times faster than the dense one.
"""

import sys
import tempfile
from pathlib import Path

import click
import torch
from rich.console import Console

import l0prune
from l0prune.bench.benchmark import bench_table
from l0prune.cost.kinds import Costs
from l0prune.measuring.alignment import resolve_alignment
from l0prune.sources.model_spec import load_model
from l0prune.verification import random_decision, vary_constants_


@click.command()
@click.option("--model", default="timm:mobilenetv2_100", show_default=True, help="Model specification.")
@click.option("--align", default="auto", show_default=True, help="Alignment: auto or a number.")
@click.option("--also", type=int, multiple=True, help="Further alignments to time; may be repeated.")
@click.option("--closed", default=0.5, show_default=True, help="Share of the units to close.")
@click.option("--budget", help="Close what this leaves no room for instead, by ranks at random: such as macs=0.5.")
@click.option("--seed", default=0, show_default=True, help="Seed of the units that close.")
@click.option("--threads", default=1, show_default=True, help="onnxruntime's threads.")
@click.option("--batch-size", default=1, show_default=True, help="Images a run.")
@click.option("--at-least", default=2.0, show_default=True, help="Speedup the aligned network has to reach.")
def main(
    model: str,
    align: str,
    also: tuple[int, ...],
    closed: float,
    budget: str | None,
    seed: int,
    threads: int,
    batch_size: int,
    at_least: float,
) -> None:
    """Time a network against its random halves, unaligned and aligned."""
    torch.set_num_threads(threads)
    loaded = load_model(model, seed=seed)
    vary_constants_(loaded.model, seed=seed)
    flow = l0prune.trace(loaded.model, loaded.example_inputs)
    values = torch.from_numpy(random_decision(flow, closed=closed, seed=seed))
    aligned = f"aligned to {resolve_alignment(align, threads=threads)}"
    steps = {"unaligned": 1} | {f"aligned to {step}": step for step in sorted({*also, resolve_alignment(align)})}
    console, kept, dense = Console(width=140), {}, Costs(flow)("macs").dense
    with tempfile.TemporaryDirectory() as folder:
        files = {"dense": l0prune.export_onnx(loaded.model, loaded.example_inputs, Path(folder) / "dense.onnx")}
        for name, step in steps.items():
            gated = l0prune.inject(loaded.model, flow, seed=seed).eval()
            if budget is None:
                gated.freeze(values)
            else:
                gated.set_budget(l0prune.Budget.parse(budget), steps=1)
                gated.place_gates_(torch.randn(flow.n_gates, generator=torch.Generator().manual_seed(seed)))
            compact = l0prune.shrink(gated, align=step)
            kept[name] = Costs(l0prune.trace(compact, loaded.example_inputs))("macs").dense / dense
            files[name] = l0prune.export_onnx(compact, loaded.example_inputs, Path(folder) / f"{step}.onnx")
            share = sum(p.numel() for p in compact.parameters()) / sum(p.numel() for p in loaded.model.parameters())
            console.print(f"{name}: {share:.3f} of the parameters, {kept[name]:.3f} of the MACs")
        report = l0prune.benchmark(files, threads=threads, batch_size=batch_size, min_seconds=10.0)
    console.print(f"{model}, {budget or f'{closed:.0%} of the units closed'}, at random, seed {seed}")
    console.print(bench_table(report))
    reached = report.speedup[aligned].ratio
    for name in steps:
        ratio = report.speedup[name].ratio
        console.print(f"{name}: {ratio:.2f}x dense; speedup x share of the MACs {ratio * kept[name]:.2f}")
    if reached < at_least:
        sys.exit(1)


if __name__ == "__main__":
    main()
