"""Print how well a profile predicts what onnxruntime takes (the tables of docs/latency.md).

Usage: python benchmarks/latency.py [--only NAME ...] [--cuts 30] [--seconds 90] [--real 2] [--keep 0.5 ...]

Each network has random weights: its times do not depend on them. It is profiled, and then so many networks of random widths,
drawn by another seed, some with residual branches gone, are timed in sessions of their own. Of `--real` of them the cut is
made by surgery and exported as `l0prune shrink` does. With `--keep`, random gates are selected under that budget of latency,
cut by surgery, exported, and timed against the dense network.
"""

import itertools
import tempfile
import warnings
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from scipy.stats import spearmanr

import l0prune
from l0prune.cost.kinds import Costs
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
        terms = {"warmup_s": 0.02, "min_samples": 20, "min_seconds": 0.3, "max_seconds": 3.0, "block_s": 0.01}
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


def held(name: str, keep: float, profile, folder: Path) -> str:
    """What a budget comes to: measured ratio, and its interval."""
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
    report = l0prune.benchmark({"dense": dense, "compact": compact})
    speedup = report.speedup["compact"]
    macs = gated.hard_cost("macs")
    return (
        f"latency={keep:g}: predicted {gated.hard_cost('latency'):.3f}, measured {1 / speedup.ratio:.3f}"
        f" ({1 / speedup.high:.3f} - {1 / speedup.low:.3f}), {1 / speedup.ratio / keep - 1:+.1%} of it; MACs {macs:.3f}"
    )


def share(errors: np.ndarray, bound: float) -> str:
    return f"{(np.abs(errors) <= bound).mean():.0%}"


@click.command(help=__doc__)
@click.option("--only", multiple=True, type=click.Choice(NETWORKS), help="These networks alone.")
@click.option("--cuts", default=30, help="Random networks.")
@click.option("--seconds", default=90.0, help="To profile a network.")
@click.option("--real", default=0, help="Networks cut by surgery.")
@click.option("--keep", multiple=True, type=float, help="Budgets of latency that are held.")
def main(only: tuple[str, ...], cuts: int, seconds: float, real: int, keep: tuple[float, ...]) -> None:
    warnings.simplefilter("ignore")
    print(Environment.here(threads=1, batch_size=1), processor().key)
    for name in only or NETWORKS:
        model, inputs = network(name)
        flow = l0prune.trace(model, inputs)
        options = ProfileOptions(seconds=seconds)
        profile = profile_network(model, inputs, flow=flow, name=name, options=options, fresh=True)
        costs = Costs(flow)
        latency, macs = costs("latency", profile), costs("macs")
        work = Workload.of(model, flow, ModelCall.of(inputs, model), options)
        drawn = (cut for cut in random_cuts(flow, block=profile.block, multiple=MULTIPLE, seed=7) if not cut.all())
        chosen = list(itertools.islice(drawn, cuts))
        with tempfile.TemporaryDirectory(dir=runner.MEMORY) as place:
            folder = Path(place)
            work.graph.write_weights(folder)
            feeds = runner.feeds_of(work.inputs)
            work.graph.write(np.ones(flow.n_gates, bool), folder / "whole.onnx")
            rows = []
            for is_open in chosen:
                work.graph.write(is_open, folder / "cut.onnx")
                times = interleaved([folder / "whole.onnx", folder / "cut.onnx"], feeds)
                rows.append((*times, latency.hard(is_open), macs.hard(is_open)))
            dense, measured, predicted, work_left = np.array(rows).T
            errors = predicted / (measured / dense) - 1
            by_macs = work_left / (measured / dense) - 1
            print(
                f"{name}: dense {np.median(dense):.3f} ms (profile {latency.dense:.3f}, noise {profile.noise:.1%}), profiled in"
                f" {profile.seconds:.0f} s; of {len(rows)} cuts within 5 % {share(errors, 0.05)}, within 10 %"
                f" {share(errors, 0.1)}, Spearman {spearmanr(predicted, measured)[0]:.3f}; by MACs {share(by_macs, 0.05)},"
                f" {share(by_macs, 0.1)}, {spearmanr(work_left, measured)[0]:.3f}; largest errors"
                f" {np.round(errors[np.argsort(-np.abs(errors))[:5]], 3).tolist()}",
                flush=True,
            )
            for one in keep:
                print(f"  {held(name, one, profile, folder)}", flush=True)
            for is_open in chosen[:real]:
                took = real_cut(name, is_open, feeds, folder)
                print(
                    f"  cut by surgery: {took:.3f} of the dense time, predicted {latency.hard(is_open):.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
