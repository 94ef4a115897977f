"""Print how well a profile predicts what onnxruntime takes, and whether budgets of latency hold (the tables of docs/latency.md).

Usage: python benchmarks/latency.py --work DIR [--only NAME ...] [--cuts 30] [--seconds 90] [--real 2] [--keep 0.5 ...]

Each network has random weights: its times do not depend on them. It is profiled, and then so many networks of random widths,
drawn by another seed, some with residual branches gone, are timed in sessions of their own. Of `--real` of them the cut is
made by surgery and exported as `l0prune shrink` does. For `--keep` (0.75, 0.5 and 0.35 of three networks, unless it is said),
random gates are selected under that budget of latency, cut by surgery, exported, and timed against the dense network.

What is measured is kept in DIR, so that the same command goes on where it was interrupted, and prints the tables of all networks
that are there. Measure on a core that nothing else uses: `taskset -c 1 nice -n -10 python benchmarks/latency.py ...`
"""

import itertools
import json
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from scipy.stats import spearmanr

import l0prune
from l0prune.cost.kinds import Costs
from l0prune.files import write_json
from l0prune.latency.profile import Profile
from l0prune.measuring.hardware import Environment, processor
from l0prune.measuring.session import onnxruntime, open_session  # type: ignore[attr-defined]
from l0prune.measuring.timing import interleave
from l0prune.model_call import ModelCall
from l0prune.profiling import runner
from l0prune.profiling.cuts import random_cuts
from l0prune.profiling.measure import ProfileOptions, Workload, profile_network
from l0prune.profiling.tables import MULTIPLE
from l0prune.sources.model_spec import load_model

TIMM = {"resnet18": 224, "mobilenetv2_100": 224, "deit_tiny_patch16_224": 224}
NETWORKS = ("resnet20", "resnet56", *TIMM, "minilm")
HELD, KEEP = ("resnet20", "mobilenetv2_100", "minilm"), (0.75, 0.5, 0.35)


def network(name: str):
    """A model with random weights, and example inputs."""
    torch.manual_seed(0)
    if name in TIMM:
        import timm

        return timm.create_model(name).eval(), torch.randn(2, 3, TIMM[name], TIMM[name])
    if name == "minilm":
        from transformers import BertConfig, BertModel

        shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        ids = torch.randint(1, 99, (2, 32))
        model = BertModel(BertConfig(vocab_size=1000, **shape), add_pooling_layer=False).eval()
        return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return load_model(name).model.eval(), torch.randn(2, 3, 32, 32)


def interleaved(paths: list[Path], feeds) -> list[float]:
    """Milliseconds of a run of each, timed in turn: medians over the blocks of two sessions."""
    rounds = []
    for seed in range(2):
        runs = []
        for path in paths:
            session = open_session(path)
            binding = session.io_binding()
            for name, value in feeds.items():
                binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
            for node in session.get_outputs():
                binding.bind_output(node.name, "cpu")
            runs.append(partial(session.run_with_iobinding, binding))
        terms: dict[str, Any] = {
            "warmup_s": 0.02,
            "min_samples": 20,
            "min_seconds": 0.3,
            "max_seconds": 3.0,
            "block_s": 0.01,
        }
        rounds.append(np.median(interleave(runs, one_thread=True, seed=seed, **terms).block_medians, axis=1))
    return (1000 * np.mean(rounds, axis=0)).tolist()


def real_cut(name: str, is_open: np.ndarray, feeds, folder: Path) -> float:
    """What a network takes that is cut by surgery and exported, beside the whole one."""
    model, inputs = network(name)
    gated = l0prune.inject(model, l0prune.trace(model, inputs))
    gated.freeze(torch.from_numpy(is_open.astype(np.float64)))
    path = l0prune.export_onnx(l0prune.shrink(gated), inputs, folder / "real.onnx")
    whole, cut = interleaved([folder / "whole.onnx", path], feeds)
    return cut / whole


def held(name: str, keep: float, profile: Profile, folder: Path) -> dict[str, float]:
    """What a budget comes to: shares of the dense time, measured with its interval."""
    model, inputs = network(name)
    budget = l0prune.Budget("latency", keep, profile=profile)
    gated = l0prune.inject(model, l0prune.trace(model, inputs), budget=budget, steps=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        gated.gates.log_alpha.copy_(torch.randn(gated.n_gates, generator=generator).to(gated.gates.log_alpha))
    dense = folder / "dense.onnx"
    if not dense.exists():
        l0prune.export_onnx(model, inputs, dense)
    compact = l0prune.export_onnx(l0prune.shrink(gated), inputs, folder / "compact.onnx")
    speedup = l0prune.benchmark({"dense": dense, "compact": compact}).speedup["compact"]
    return {
        "predicted": gated.hard_cost("latency"),
        "measured": 1 / speedup.ratio,
        "low": 1 / speedup.high,
        "high": 1 / speedup.low,
        "macs": gated.hard_cost("macs"),
    }


class Measured:
    """What is known of a network: a file that grows, so that an interrupted benchmark goes on.

    Args:
        path: Of the file.
        terms: That it was measured on; a file of others begins anew.
    """

    def __init__(self, path: Path, terms: dict[str, float]) -> None:
        self.path = path
        self.content = json.loads(path.read_text()) if path.exists() else {}
        if self.content.get("terms") != terms:
            self.content = {"terms": terms, "cuts": [], "held": {}, "real": []}
            path.with_suffix(".profile.json").unlink(missing_ok=True)

    def profile(self, make) -> Profile:
        """The profile, made once."""
        path = self.path.with_suffix(".profile.json")
        return Profile.load(path) if path.exists() else Profile.load(make().save(path))

    def keep(self) -> None:
        """Write the file."""
        write_json(self.path, self.content)


def measure(name: str, known: Measured, *, cuts: int, seconds: float, real: int, keep: tuple[float, ...]) -> None:
    """Measure what is missing of a network."""
    content = known.content
    if (
        len(content["cuts"]) >= cuts
        and len(content["real"]) >= real
        and all(str(one) in content["held"] for one in keep)
        and "noise" in content
    ):
        return
    model, inputs = network(name)
    flow, options = l0prune.trace(model, inputs), ProfileOptions(seconds=seconds)
    profile = known.profile(
        partial(profile_network, model, inputs, flow=flow, name=name, options=options, fresh=True, progress=tell)
    )
    content |= {"noise": profile.noise, "profiled_s": profile.seconds, "machine": str(profile.environment)}
    costs = Costs(flow)
    latency, macs = costs("latency", profile), costs("macs")
    work = Workload.of(model, flow, ModelCall.of(inputs, model), options)
    drawn = (cut for cut in random_cuts(flow, block=profile.block, multiple=MULTIPLE, seed=7) if not cut.all())
    chosen = list(itertools.islice(drawn, max(cuts, real)))
    with tempfile.TemporaryDirectory(dir=runner.MEMORY) as place:
        folder = Path(place)
        work.graph.write_weights(folder)
        feeds = runner.feeds_of(work.inputs)
        work.graph.write(np.ones(flow.n_gates, bool), folder / "whole.onnx")
        for is_open in chosen[len(content["cuts"]) : cuts]:
            work.graph.write(is_open, folder / "cut.onnx")
            times = interleaved([folder / "whole.onnx", folder / "cut.onnx"], feeds)
            content["cuts"].append([*times, latency.hard(is_open), macs.hard(is_open)])
            known.keep()
        for is_open in chosen[len(content["real"]) : real]:
            content["real"].append([real_cut(name, is_open, feeds, folder), latency.hard(is_open)])
            known.keep()
        for one in keep:
            if str(one) not in content["held"]:
                content["held"][str(one)] = held(name, one, profile, folder)
                known.keep()
    known.keep()


def tell(share: float, text: str) -> None:
    """A line on stderr now and then."""
    if text.endswith("0 networks timed"):
        click.echo(f"{share:4.0%}  {text}", err=True)


def share(errors: np.ndarray, bound: float) -> str:
    return f"{(np.abs(errors) <= bound).mean():.0%}"


def prediction_row(name: str, content: dict) -> str:
    """A row of the first table."""
    dense, measured, predicted, work_left = np.array(content["cuts"]).T
    errors, by_macs = predicted / (measured / dense) - 1, work_left / (measured / dense) - 1
    largest = ", ".join(f"{abs(error):.0%}" for error in errors[np.argsort(-np.abs(errors))[:4]])
    return (
        f"| {name} | {np.median(dense):.3g} | {share(errors, 0.05)} | {share(errors, 0.1)} |"
        f" {spearmanr(predicted, measured)[0]:.3f} | {largest} | {share(by_macs, 0.05)}, {share(by_macs, 0.1)},"
        f" {spearmanr(work_left, measured)[0]:.3f} | {content['noise']:.1%}, {content['profiled_s']:.0f} s |"
    )


def print_tables(work: Path) -> None:
    """Of all networks in a folder."""
    found = {
        name: json.loads((work / f"{name}.json").read_text()) for name in NETWORKS if (work / f"{name}.json").exists()
    }
    columns = (
        "network",
        "dense, ms",
        "within 5 %",
        "10 %",
        "Spearman",
        "largest errors",
        "by MACs",
        "profile: noise, time",
    )
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|")
    for name, content in found.items():
        if content["cuts"]:
            print(prediction_row(name, content))
    print("\n| network | asked | predicted | measured, 95 % interval | of what was asked | MACs |")
    print("|---|---|---|---|---|---|")
    for name, content in found.items():
        for keep, one in content["held"].items():
            print(
                f"| {name} | {keep} | {one['predicted']:.3f} | {one['measured']:.3f}, {one['low']:.3f} - {one['high']:.3f} |"
                f" {one['measured'] / float(keep) - 1:+.1%} | {one['macs']:.3f} |"
            )
    for name, content in found.items():
        for took, predicted in content["real"]:
            print(f"{name}, cut by surgery: {took:.3f} of the dense time, predicted {predicted:.3f}")


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder of what is measured.")
@click.option("--only", multiple=True, type=click.Choice(NETWORKS), help="These networks alone.")
@click.option("--cuts", default=30, help="Random networks.")
@click.option("--seconds", default=90.0, help="To profile a network.")
@click.option("--real", default=0, help="Networks cut by surgery.")
@click.option("--keep", multiple=True, type=float, help="Budgets of latency that are held.")
def main(work: Path, only: tuple[str, ...], cuts: int, seconds: float, real: int, keep: tuple[float, ...]) -> None:
    warnings.simplefilter("ignore")
    work.mkdir(parents=True, exist_ok=True)
    print(Environment.here(threads=1, batch_size=1), processor().key)
    for name in only or NETWORKS:
        known = Measured(work / f"{name}.json", {"seconds": seconds})
        measure(name, known, cuts=cuts, seconds=seconds, real=real, keep=keep or (KEEP if name in HELD else ()))
    print_tables(work)


if __name__ == "__main__":
    main()
