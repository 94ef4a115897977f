"""A profile of another machine: a folder of graphs with a script that times them there, and the profile from its results."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from l0prune.errors import ConfigError, FileFormatError
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.latency.profile import Profile, network_fingerprint
from l0prune.measuring.hardware import Environment
from l0prune.model_call import ExampleInputs, ModelCall
from l0prune.plain_data import FileKind, from_plain
from l0prune.profiling import runner
from l0prune.profiling.cuts import random_cuts
from l0prune.profiling.measure import BLOCKS, ProfileOptions, Progress, Workload, profile_of, sample_from
from l0prune.profiling.outline import Moment, Outline
from l0prune.profiling.tables import MULTIPLE
from l0prune.reading import is_file, read_json, reading

__all__ = ["profile_from_kit", "write_kit"]

RESULTS = FileKind("l0prune.kit-results", 1, "the results of a kit", "run its run.py again")
GRAPHS = 120
"""Of a kit."""
SCRIPT, ABOUT = "run.py", "kit.json"
_BLOCK = 16  # whole blocks of 16 are whole blocks of 8 as well
_KEYS = ("about", "threads", "facts", "seconds", "samples")


@dataclass(frozen=True)
class About:
    """What a kit says of itself, and its results repeat.

    Attributes:
        fingerprint: Of the network.
        model: What it is called.
        outline: Of its graphs.
        needs: Contraction -> dimensions without which it is dropped.
        sizes: Of each graph, kept indices of each dimension.
        inputs: Of the graphs.
        batch_size: Rows of the inputs.
    """

    fingerprint: str
    model: str
    outline: Outline
    needs: dict[str, list[int]]
    sizes: tuple[tuple[int, ...], ...]
    inputs: tuple[dict[str, Any], ...]
    batch_size: int


def write_kit(
    model: nn.Module,
    example_inputs: ExampleInputs,
    folder: Path,
    *,
    flow: ChannelFlow,
    name: str = "",
    options: ProfileOptions | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the graphs that a profile is made of, and a script that times them with numpy and onnxruntime alone.

    Args:
        model: The traced network.
        example_inputs: What it was traced with.
        folder: New, or empty.
        flow: Of the network.
        name: What it is called.
        options: On what terms.
        progress: Is told how much is done, in [0, 1], and what.

    Returns:
        The script.

    Raises:
        ConfigError: the folder is not empty, or the network cannot be profiled.
        ExportError: it cannot be exported.
    """
    options, tell = options or ProfileOptions(), progress or (lambda share, text: None)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty: give a new folder for the kit")
    tell(0.0, "exporting the network")
    work = Workload.of(model, flow, ModelCall.of(example_inputs, model), options)
    folder.mkdir(parents=True, exist_ok=True)
    work.graph.write_weights(folder)
    needs = work.needs(folder)
    for scratch in folder.glob("*.onnx"):
        scratch.unlink()
    sizes, names = [], []
    cuts = random_cuts(flow, block=_BLOCK, multiple=MULTIPLE, seed=options.seed)
    for number, is_open in enumerate(itertools.islice(cuts, GRAPHS)):
        names.append(f"{number:03d}.onnx")
        work.graph.write(is_open, folder / names[-1])
        sizes.append(tuple(work.graph.sizes(is_open).tolist()))
        tell((number + 1) / GRAPHS, f"{number + 1} graphs written")
    about = About(
        network_fingerprint(flow), name, work.graph.outline, needs, tuple(sizes), tuple(work.inputs), options.batch_size
    )
    content = {
        "about": asdict(about),
        "graphs": names,
        "inputs": work.inputs,
        "threads": options.threads,
        "seconds": options.seconds / GRAPHS,
    }
    (folder / ABOUT).write_text(json.dumps(content), encoding="utf-8")
    script = folder / SCRIPT
    shutil.copyfile(Path(runner.__file__), script)
    return script


def profile_from_kit(results: Path) -> Profile:
    """The profile of the machine that a kit was run on.

    Args:
        results: The file that its script has written.

    Raises:
        ConfigError: there is no such file.
        FileFormatError: it is something else.
    """
    if not is_file(results):
        raise ConfigError(f"{results}: no such file. Run the kit's run.py, which writes it.")
    with reading(results, "results of a kit"):
        content = RESULTS.content(read_json(results, "results of a kit"), str(results), _KEYS)
        about: About = from_plain(About, content["about"], f"{results}, about")
        samples = [sample_from(sample, f"{results}, samples") for sample in content["samples"]]
        facts = _facts(content, str(results))
    if not samples or len(samples) > len(about.sizes):
        raise FileFormatError(
            f"{results} has {len(samples)} timings of {len(about.sizes)} graphs; run its run.py again"
        )
    rows = np.array(about.sizes[: len(samples)], np.int64)
    whole = rows.max(axis=0)
    moments = [Moment(row, bool((row == whole).all()), sample) for row, sample in zip(rows, samples, strict=True)]
    environment = Environment(
        cpu=facts["cpu"],
        instruction_set=facts["instruction_set"],
        n_cores=facts["n_cores"],
        threads=content["threads"],
        batch_size=about.batch_size,
        onnxruntime=facts["onnxruntime"],
        python=facts["python"],
        os=facts["os"],
    )
    return profile_of(
        about.outline,
        moments,
        about.needs,
        fingerprint=about.fingerprint,
        inputs=about.inputs,
        name=about.model,
        processor_key=facts["processor"],
        environment=environment,
        block=BLOCKS.get(facts["instruction_set"], 8),
        seconds=float(content["seconds"]),
    )


def _facts(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What the script found out about its machine.

    Raises:
        FileFormatError: something is missing, or of another kind.
    """
    facts, threads = content["facts"], content["threads"]
    texts = ("processor", "cpu", "instruction_set", "onnxruntime", "python", "os")
    fits = isinstance(facts, Mapping) and all(isinstance(facts.get(name), str) for name in texts)
    if not fits or not isinstance(facts.get("n_cores"), int) or not isinstance(threads, int):
        raise FileFormatError(f"{source} does not say what machine it is of; run its run.py again")
    return dict(facts)
