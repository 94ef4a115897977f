"""Time a training step of the gated network against the same step of the plain one.

Usage: python benchmarks/step_overhead.py [--model resnet20] [--batch-size 128]

Both steps are forward, cross-entropy, backward and Nesterov SGD on the same batch; the gated one also samples and applies its
gates, adds the penalty and moves gates and multiplier. The steps are interleaved. Ends with exit code 1 where the gated step
takes more than --at-most times as long.
"""

import sys
from collections.abc import Callable
from typing import Any

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import l0prune
from l0prune.measuring.timing import interleave, median_ratio
from l0prune.sources.model_spec import load_model


@click.command()
@click.option("--model", default="resnet20", show_default=True, help="Model specification.")
@click.option("--batch-size", default=128, show_default=True, help="Images a step.")
@click.option("--threads", default=1, show_default=True, help="torch's threads.")
@click.option("--steps", default=30, show_default=True, help="Timed steps of each kind, at least.")
@click.option("--channels-last/--contiguous", default=True, show_default=True, help="Memory order.")
@click.option("--bf16/--float32", default=False, show_default=True, help="Precision of the forward pass.")
@click.option("--at-most", default=1.10, show_default=True, help="Ratio the gated step must not exceed.")
def main(
    model: str, batch_size: int, threads: int, steps: int, channels_last: bool, bf16: bool, at_most: float
) -> None:
    """Time a gated training step against the same plain step."""
    torch.set_num_threads(threads)
    loaded = load_model(model)
    example = loaded.example_inputs
    image = next(leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor))
    shape = image.shape[1:]
    order = torch.channels_last if channels_last and len(shape) == 3 else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch_size, *shape, generator=generator).to(memory_format=order)
    with torch.no_grad():
        n_classes = loaded.model(inputs[:2]).shape[1]
    targets = torch.randint(0, n_classes, (batch_size,), generator=generator)

    flow = l0prune.trace(loaded.model, example)
    gated = l0prune.inject(loaded.model, flow, budget=l0prune.Budget("macs", 0.5), steps=10_000)
    plain = load_model(model).model.to(memory_format=order).train()  # type: ignore[call-overload]
    gated.to(memory_format=order).train()  # type: ignore[call-overload]
    calls = [training_step(network, inputs, targets, bf16=bf16) for network in (plain, gated)]
    times = interleave(
        calls,
        one_thread=threads == 1,
        warmup_s=1.0,
        min_samples=steps,
        min_seconds=0.0,
        max_seconds=300.0,
        block_s=0.0,
        seed=0,
    )
    plain_ms, gated_ms = (1e3 * float(block.mean()) for block in times.block_medians)
    ratio, low, high = median_ratio(times.block_medians[1], times.block_medians[0], seed=0)
    table = Table(title=f"{model}, batch {batch_size}, {threads} thread(s), {'bf16' if bf16 else 'float32'}")
    for column in ("step", "ms", "ratio", "95 % interval"):
        table.add_column(column, justify="right")
    table.add_row("plain", f"{plain_ms:.1f}", "1", "")
    table.add_row(f"gated ({gated.n_gates} gates)", f"{gated_ms:.1f}", f"{ratio:.3f}", f"{low:.3f} to {high:.3f}")
    Console().print(table)
    if ratio > at_most:
        print(
            f"the gated step takes {ratio:.3f} times as long as the plain one; at most {at_most} is wanted",
            file=sys.stderr,
        )
        sys.exit(1)


def training_step(network: nn.Module, inputs: Tensor, targets: Tensor, *, bf16: bool) -> Callable[[], Any]:
    """One optimizer step on a fixed batch."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            outputs = network(inputs)
        loss = F.cross_entropy(outputs.float(), targets)
        if isinstance(network, l0prune.GatedModel):
            loss = loss + network.penalty()
        loss.backward()
        optimizer.step()
        if isinstance(network, l0prune.GatedModel):
            network.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main()
