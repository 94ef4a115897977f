"""The README's four-line loop to its end: do gated and compact agree, is the budget met and filled, is compact faster?

Usage: python benchmarks/own_loop.py [--model mobile --model detector ...] [--keep 0.5] [--steps 30] [--threads 1]

Random images and a few steps: what is measured depends on the widths alone. Dense, compact with its widths left alone, and
compact as `shrink` makes it are timed in turn in onnxruntime. Ends with exit code 1 where gated and compact differ, the
budget is not met or not filled, or compact is not faster than dense.
"""

import copy
import itertools
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from rich.console import Console
from torch import Tensor, nn

import l0prune
from l0prune.bench.benchmark import bench_table
from l0prune.errors import L0PruneWarning
from l0prune.measuring.alignment import resolve_alignment
from l0prune.model_call import output_tensors
from l0prune.sources.model_spec import load_model

TOLERANCE, FILLED = 1e-4, 0.01


def layer(n_in: int, n_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    conv = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.ReLU6())


def mobile_block(n_in: int, n_out: int, *, stride: int = 1) -> nn.Sequential:
    """Pointwise, depthwise, pointwise, as in MobileNetV2."""
    hidden = 4 * n_in
    expand = layer(n_in, hidden, 1)
    depthwise = layer(hidden, hidden, 3, stride=stride, groups=hidden)
    return nn.Sequential(expand, depthwise, nn.Conv2d(hidden, n_out, 1, bias=False), nn.BatchNorm2d(n_out))


def mobile() -> nn.Module:
    """A small MobileNetV2."""
    blocks = [(32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
    body = [mobile_block(n_in, n_out, stride=stride) for n_in, n_out, stride in blocks]
    return nn.Sequential(layer(3, 32, 3, stride=2), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class Bottleneck(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.spread = layer(width, width // 2, 1), layer(width // 2, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + self.spread(self.reduce(x))


class Detector(nn.Module):
    """Three levels of a backbone, joined from the coarsest to the finest, and a head for each: classes and boxes of 3 anchors."""

    def __init__(self, n_classes: int = 20) -> None:
        super().__init__()
        widths = (48, 96, 192)
        self.stem = nn.Sequential(layer(3, 24, 3, stride=2), layer(24, widths[0], 3, stride=2))
        steps = [nn.Identity(), *(layer(a, b, 3, stride=2) for a, b in itertools.pairwise(widths))]
        self.stages = nn.ModuleList(
            nn.Sequential(step, Bottleneck(width), Bottleneck(width)) for step, width in zip(steps, widths, strict=True)
        )
        self.lateral = nn.ModuleList(layer(width, 64, 1) for width in widths)
        self.smooth = nn.ModuleList(layer(64, 64, 3) for _ in widths)
        self.heads = nn.ModuleList(
            nn.Sequential(layer(64, 96, 3), nn.Conv2d(96, 3 * (5 + n_classes), 1)) for _ in widths
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """One tensor a level, the coarsest first."""
        x, levels = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        joined, found = None, []
        for level in reversed(range(len(levels))):
            y = self.lateral[level](levels[level])
            joined = y if joined is None else y + nn.functional.interpolate(joined, scale_factor=2.0)
            found.append(self.heads[level](self.smooth[level](joined)))
        return found


OWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobile": (mobile, (3, 96, 96)),
    "detector": (Detector, (3, 128, 128)),
}


@dataclass(frozen=True)
class Ending:
    """What the loop left.

    Args:
        difference: Largest difference of gated and compact outputs, relative to the largest output.
        cost: Of the gated model after `shrink`, fraction of dense.
        trained_cost: Before it.
        compact: As `shrink` makes it.
        unaligned: The same with widths left alone.
    """

    difference: float
    cost: float
    trained_cost: float
    compact: nn.Module
    unaligned: nn.Module


def run_loop(model: nn.Module, x: Tensor, *, keep: float, steps: int) -> Ending:
    """The loop as the README has it, on random images."""
    generator = torch.Generator().manual_seed(0)
    gated = l0prune.inject(model, l0prune.trace(model, x), budget=l0prune.Budget("macs", keep), steps=steps)
    optimizer = torch.optim.SGD(gated.parameters(), lr=1e-3)
    gated.train()
    for _ in range(steps):
        images = torch.randn(x.shape, generator=generator)
        loss = sum(y.square().mean() for y in output_tensors(gated(images))) + gated.penalty()
        loss.backward()
        optimizer.step()
        gated.step()
        optimizer.zero_grad()
    twin, trained_cost = copy.deepcopy(gated), gated.hard_cost()
    compact = l0prune.shrink(gated)
    with torch.no_grad():
        pairs = list(zip(output_tensors(gated(x)), output_tensors(compact(x)), strict=True))
    difference = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    return Ending(difference, gated.hard_cost(), trained_cost, compact, l0prune.shrink(twin, align=None))


def network(name: str, batch_size: int) -> tuple[nn.Module, Tensor]:
    """A network with random weights, and images for it."""
    generator = torch.Generator().manual_seed(1)
    if name in OWN:
        factory, shape = OWN[name]
        torch.manual_seed(0)
        model = factory()
    else:
        loaded = load_model(name, seed=0)
        (example,) = loaded.example_inputs if isinstance(loaded.example_inputs, tuple) else (loaded.example_inputs,)
        model, shape = loaded.model, tuple(example.shape[1:])
    return model.eval(), torch.randn(batch_size, *shape, generator=generator)


@click.command(help=__doc__)
@click.option(
    "--model",
    "names",
    multiple=True,
    default=("mobile", "detector", "mobilenetv2_cifar", "timm:mobilenetv2_100"),
    show_default=True,
    help=f"{', '.join(OWN)}, or a model specification; may be repeated.",
)
@click.option("--keep", default=0.5, show_default=True, help="Budget: share of the MACs.")
@click.option("--steps", default=30, show_default=True, help="Training steps.")
@click.option("--batch-size", default=8, show_default=True, help="Images a training step.")
@click.option("--threads", default=1, show_default=True, help="onnxruntime's and torch's threads.")
@click.option("--seconds", default=4.0, show_default=True, help="Of timing, for each network.")
def main(names: tuple[str, ...], keep: float, steps: int, batch_size: int, threads: int, seconds: float) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", L0PruneWarning)
    console, wrong = Console(width=140), []
    console.print(
        f"torch {torch.__version__}, l0prune {l0prune.__version__}, align auto is {resolve_alignment('auto')}"
    )
    for name in names:
        model, x = network(name, batch_size)
        dense = copy.deepcopy(model)
        ending = run_loop(model, x, keep=keep, steps=steps)
        with tempfile.TemporaryDirectory() as folder:
            forms = {"dense": dense, "unaligned": ending.unaligned, "compact": ending.compact}
            files = {form: Path(folder) / f"{form}.onnx" for form in forms}
            for form, file in files.items():
                l0prune.export_onnx(forms[form], x[:1], file)
            report = l0prune.benchmark(files, threads=threads, min_seconds=seconds)
        speedup = report.speedup["compact"]
        console.print(
            f"\n[bold]{name}[/bold]: gated against compact {ending.difference:.1e} of the largest output; MACs "
            f"{ending.cost:.4f} of dense, budget {keep:g}, before shrink {ending.trained_cost:.4f}; "
            f"{speedup.ratio:.2f} times faster, unaligned {report.speedup['unaligned'].ratio:.2f}"
        )
        console.print(bench_table(report))
        kept = ending.difference <= TOLERANCE and keep - FILLED < ending.cost <= keep
        if not (kept and speedup.low > 1):
            wrong.append(name)
    if wrong:
        console.print(f"not as the README says: {', '.join(wrong)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
