"""Measures a network in onnxruntime on this machine, and makes its profile."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from l0prune.errors import ConfigError, FileFormatError, L0PruneWarning
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.kept import Kept
from l0prune.latency.profile import Profile, network_fingerprint
from l0prune.machine import cache_directory, require_threads
from l0prune.measuring.hardware import Environment, processor
from l0prune.model_call import ExampleInputs, ModelCall
from l0prune.onnx.onnx_model import EXAMPLE_KEY, LARGEST_KEY
from l0prune.plain_data import from_plain
from l0prune.profiling import runner
from l0prune.profiling.cuts import random_cuts
from l0prune.profiling.graphs import WidthGraph
from l0prune.profiling.outline import Moment, Outline, Sample
from l0prune.profiling.tables import MULTIPLE, checks_of, tables_of

__all__ = ["ProfileOptions", "Workload", "profile_network", "remember"]

PROVIDER = "CPUExecutionProvider"
BLOCKS = {"avx512f": 16}
"""Channels of a block of onnxruntime's convolutions, by instruction set; others have 8."""
_WAY = 4
"""Counts the ways of measuring: what was remembered of an earlier one is measured again."""
_CHECKED_EVERY = 10
_FEWEST, _MOST = 30, 400
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class ProfileOptions:
    """On what terms a network is measured.

    Attributes:
        threads: Of onnxruntime.
        batch_size: Rows of the inputs.
        length: Of sequences, where the network takes any; None for that of the example.
        seconds: To spend on timing, about; twice as long at most, where others use the processor meanwhile.
        seed: Of the widths.
    """

    threads: int = 1
    batch_size: int = 1
    length: int | None = None
    seconds: float = 90.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_threads(self.threads)
        for name in ("batch_size", "length", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value}: expected a number above 0.")


@dataclass(eq=False)
class Workload:
    """The graphs of a network, and what goes into them.

    Attributes:
        flow: The traced network.
        graph: Of it.
        inputs: Name, shape, type and largest number of each input.
    """

    flow: ChannelFlow
    graph: WidthGraph
    inputs: list[dict[str, Any]]

    @classmethod
    def of(cls, model: nn.Module, flow: ChannelFlow, call: ModelCall, options: ProfileOptions) -> Workload:
        """Export a network."""
        graph = WidthGraph(flow, model, call, seed=options.seed)
        return cls(flow, graph, _inputs(graph.model, options))

    def needs(self, folder: Path) -> dict[str, list[int]]:
        """Contraction -> dimensions without which it is dropped.

        Args:
            folder: For graphs, where the weights have been written.
        """
        found: dict[str, list[int]] = {}
        everything = self.graph.write(np.ones(self.flow.n_gates, bool), folder / "whole.onnx")
        for dimension in self.flow.dimensions:
            if dimension.removable:
                is_open = np.ones(self.flow.n_gates, bool)
                is_open[dimension.gates] = False
                kept = Kept(is_open)
                empty = [
                    number
                    for number, known in enumerate(self.graph.dimensions)
                    if known.where is not None and not kept.count(known.gates)
                ]
                left = self.graph.write(is_open, folder / "closed.onnx")
                for part in everything - left:
                    found.setdefault(part, []).extend(empty[:1])
        return found


def profile_network(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    flow: ChannelFlow,
    name: str = "",
    options: ProfileOptions | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Profile:
    """What a network takes in onnxruntime on this machine, at any widths.

    The network is exported, and its graph is timed at many random widths: as a whole, and its kernels by onnxruntime's own
    profiler. Tables are fitted to these times; every tenth network takes no part and checks them.

    Args:
        model: The traced network.
        example_inputs: What it was traced with.
        flow: Of the network.
        name: What it is called.
        options: On what terms.
        fresh: Measure again what was measured before, for the same network, processor, version and options; what was
            measured on a noisy machine is measured again in any case.
        progress: Is told how much is done, in [0, 1], and what.

    Returns:
        The profile.

    Raises:
        ConfigError: the network cannot be profiled.
        ExportError: it cannot be exported.
    """
    options = options or ProfileOptions()
    tell = progress or (lambda share, text: None)
    cache = _cache_of(flow, options)
    if not fresh and cache is not None and cache.exists():
        with suppress(FileFormatError):
            tell(1.0, "measured before")
            return Profile.load(cache)
    began = time.perf_counter()
    tell(0.0, "exporting the network")
    work = Workload.of(model, flow, ModelCall.of(example_inputs, model), options)
    block = BLOCKS.get(processor().instruction_set, 8)
    with tempfile.TemporaryDirectory(dir=_memory()) as place:
        folder = Path(place)
        work.graph.write_weights(folder)
        needs = work.needs(folder)
        feeds = runner.feeds_of(work.inputs)
        moments = []
        start, worked = time.perf_counter(), time.process_time()
        seconds = _seconds_each(options)
        for is_open in random_cuts(flow, block=block, multiple=MULTIPLE, seed=options.seed):
            path = folder / "cut.onnx"
            work.graph.write(is_open, path)
            sample = sample_from(runner.measure(path, feeds, options.threads, seconds), "profiler")
            moments.append(Moment(work.graph.sizes(is_open), bool(is_open.all()), sample))
            share = _share_done(time.perf_counter() - start, time.process_time() - worked, options)
            tell(min(share, 1.0), f"{len(moments)} networks timed")
            if (share >= 1 and len(moments) >= _FEWEST) or len(moments) >= _MOST:
                break
    environment = Environment.here(threads=options.threads, batch_size=options.batch_size)
    profile = profile_of(
        work.graph.outline,
        moments,
        needs,
        fingerprint=network_fingerprint(flow),
        inputs=work.inputs,
        name=name,
        processor_key=processor().key,
        environment=environment,
        block=block,
        seconds=time.perf_counter() - began,
    )
    if cache is not None:
        remember(profile, cache)
    return profile


def remember(profile: Profile, cache: Path) -> None:
    """Keep a profile for the next time, where that is possible; one of a noisy machine is rather made again."""
    if not profile.doubts:
        with suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            profile.save(cache)


def profile_of(
    outline: Outline,
    moments: Sequence[Moment],
    needs: dict[str, list[int]],
    *,
    fingerprint: str,
    inputs: Sequence[Mapping[str, Any]],
    name: str,
    processor_key: str,
    environment: Environment,
    block: int,
    seconds: float,
) -> Profile:
    """Make the profile of what was measured; a noisy machine is warned of."""
    dense = np.array([moment.sample.total_us for moment in moments if moment.is_whole]) / 1000
    moments = without_drift(moments)
    whole = [moment for moment in moments if moment.is_whole]
    others = [moment for moment in moments if not moment.is_whole]
    held_out = others[_CHECKED_EVERY - 1 :: _CHECKED_EVERY]
    fitted = [moment for at, moment in enumerate(others) if at % _CHECKED_EVERY != _CHECKED_EVERY - 1]
    tables = tables_of(outline, [*whole, *fitted], needs, block=block)
    middle, interval = _middle(dense)
    profile = Profile(
        fingerprint=fingerprint,
        model=name,
        processor=processor_key,
        environment=environment,
        provider=PROVIDER,
        inputs={known["name"]: tuple(known["shape"]) for known in inputs},
        block=tables.block,
        multiple=tables.multiple,
        dense_ms=middle,
        dense_interval_ms=interval,
        fixed_us=tables.fixed_us,
        tables=tables.tables,
        layers=tables.layers,
        checks=checks_of(outline, tables, held_out),
        seconds=seconds,
        whole=tables.whole,
    )
    if profile.doubts:
        warnings.warn(profile.doubts, L0PruneWarning, stacklevel=3)
    return profile


def without_drift(moments: Sequence[Moment]) -> list[Moment]:
    """The same with all times as if the machine had been as fast all the time as it was in the middle.

    The whole network was timed now and then. Between two such times the others are scaled by what it took, the median of three
    neighbouring times.
    """
    at = [number for number, moment in enumerate(moments) if moment.is_whole]
    dense = np.array([moments[number].sample.total_us for number in at])
    padded = np.concatenate([dense[:1], dense, dense[-1:]])
    smooth = np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)
    factors = np.median(dense) / np.interp(np.arange(len(moments)), at, smooth)
    return [_scaled(moment, float(factor)) for moment, factor in zip(moments, factors, strict=True)]


def _scaled(moment: Moment, factor: float) -> Moment:
    sample = moment.sample
    nodes = {name: us * factor for name, us in sample.nodes.items()}
    return replace(moment, sample=replace(sample, total_us=sample.total_us * factor, nodes=nodes))


def sample_from(measured: Mapping[str, Any], source: str) -> Sample:
    """What `runner.measure` says, checked.

    Raises:
        FileFormatError: it is something else.
    """
    return from_plain(Sample, dict(measured), source)  # type: ignore[no-any-return]


def _middle(dense: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Median of several sessions, and the 95 % interval of that median by the percentile bootstrap."""
    draws = np.random.default_rng(0).choice(dense, size=(2000, len(dense)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return float(np.median(dense)), (float(low), float(high))


def _share_done(passed: float, worked: float, options: ProfileOptions) -> float:
    """How much of the time to spend is over: by the processor's own, and on a busy machine after twice as long at the latest.

    Args:
        passed: Seconds on the wall.
        worked: Of the processor; several threads wait for each other, and the wall counts.
        options: On what terms.
    """
    spent = worked if options.threads == 1 else passed
    return max(spent, passed / 2, 0.0) / options.seconds


def _seconds_each(options: ProfileOptions) -> float:
    return min(0.1, options.seconds / 200)


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _inputs(model: onnx.ModelProto, options: ProfileOptions) -> list[dict[str, Any]]:
    """Name, shape, type and largest number of every input.

    Raises:
        ConfigError: a size is free that nothing says anything about.
    """
    known = {entry.key: entry.value for entry in model.metadata_props}
    found = []
    for value in model.graph.input:
        shape = []
        for at, size in enumerate(value.type.tensor_type.shape.dim):
            example = known.get(f"{EXAMPLE_KEY}{size.dim_param}")
            if size.dim_value:
                shape.append(size.dim_value)
            elif example is not None:
                shape.append(options.length or int(example))
            elif at == 0:
                shape.append(options.batch_size)
            else:
                raise ConfigError(
                    f"input {value.name!r} has the free size {size.dim_param!r}, which nothing gives a number"
                )
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type or TensorProto.FLOAT)
        largest = min(int(known.get(f"{LARGEST_KEY}{value.name}", 9)), 9)
        found.append({"name": value.name, "shape": shape, "dtype": str(dtype), "largest": largest})
    batches = {entry["shape"][0] for entry in found if entry["shape"]}
    if options.batch_size not in batches:
        raise ConfigError(
            f"batch_size={options.batch_size}: the file of this network takes a batch of {min(batches, default=1)} alone"
        )
    return found


def _cache_of(flow: ChannelFlow, options: ProfileOptions) -> Path | None:
    """Where the profile is remembered; None where nothing can be."""
    import onnxruntime

    network = [network_fingerprint(flow), flow.captured.row_shapes, flow.n_gates]
    about = [_WAY, *network, processor().key, onnxruntime.__version__, vars(options)]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]
    try:
        return cache_directory() / "profiles" / f"{digest}.json"
    except OSError:
        return None
