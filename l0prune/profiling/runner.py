"""Times ONNX graphs in onnxruntime: each as a whole, and its kernels by onnxruntime's own profiler.

This file needs numpy and onnxruntime alone. A copy of it goes into every kit, where it runs as a script:

    python run.py [--threads 1] [--out results.json]
"""

import argparse
import base64
import json
import os
import platform
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime

__all__ = ["facts", "feeds_of", "measure"]

SUFFIX = "_kernel_time"
SHAPED = ("MatMul", "FusedMatMul", "Gather", "LayerNormalization", "Conv", "FusedConv", "ConvTranspose")
LEAST_RUNS = 8
MEMORY = "/dev/shm"


def open_session(path: Path, threads: int, folder: "Path | None" = None) -> Any:
    """A session as `l0prune bench` has it; with a folder it profiles, and writes what the optimiser made of the graph there."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if folder is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        options.optimized_model_filepath = str(folder / "optimised.onnx")
        external = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(external + "file_name", "weights.bin")
        options.add_session_config_entry(external + "min_size_in_bytes", "64")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds_of(inputs: list[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Inputs by name from their shapes, types and largest whole numbers."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    for known in inputs:
        dtype = np.dtype(known["dtype"])
        if dtype.kind == "b" or "mask" in known["name"]:
            feeds[known["name"]] = np.ones(known["shape"], dtype)
        elif dtype.kind in "iu":
            feeds[known["name"]] = rng.integers(0, known["largest"] + 1, known["shape"]).astype(dtype)
        else:
            feeds[known["name"]] = rng.normal(size=known["shape"]).astype(dtype)
    return feeds


def measure(path: Path, feeds: dict[str, Any], threads: int = 1, seconds: float = 0.1) -> dict[str, Any]:
    """Time one graph.

    Args:
        path: Of the ONNX file.
        feeds: Inputs by name.
        threads: Of onnxruntime.
        seconds: To spend on runs, about; at least 8 runs are made, with the profiler and without.

    Returns:
        A dict: "total_us", a usual run without the profiler, by the processor time of the thread where there is one;
        "nodes", name of a kernel -> microseconds; "shapes", name -> shapes of what it reads and writes, of a few
        operators; "optimised", the optimised graph without its weights, compressed.
    """
    with tempfile.TemporaryDirectory(dir=MEMORY if Path(MEMORY).is_dir() else None) as place:
        folder = Path(place)
        session = open_session(path, threads, folder)
        binding = session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
        for node in session.get_outputs():
            binding.bind_output(node.name, "cpu")
        clock = time.thread_time if threads == 1 else time.perf_counter
        session.run_with_iobinding(binding)
        begin = clock()
        session.run_with_iobinding(binding)
        runs = max(LEAST_RUNS, min(40, int(0.4 * seconds / max(clock() - begin, 1e-6))))
        for _ in range(runs + runs // 2):
            session.run_with_iobinding(binding)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        optimised = (folder / "optimised.onnx").read_bytes()
        session.run_with_iobinding(binding)
        stamps = [clock()]
        for _ in range(runs):
            session.run_with_iobinding(binding)
            stamps.append(clock())
    nodes, shapes = kernels_of(events)
    return {
        "total_us": _usual(np.diff(stamps)) * 1e6,
        "nodes": nodes,
        "shapes": shapes,
        "optimised": base64.b85encode(zlib.compress(optimised)).decode(),
    }


def kernels_of(events: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Microseconds and shapes of kernels by name, from the events of the profiler."""
    durations: dict[str, list[float]] = {}
    shapes: dict[str, Any] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(SUFFIX):
            name, about = event["name"][: -len(SUFFIX)], event["args"]
            durations.setdefault(name, []).append(event["dur"])
            if about["op_name"] in SHAPED and name not in shapes:
                sizes = [about["input_type_shape"], about["output_type_shape"]]
                shapes[name] = [[list(next(iter(entry.values()))) for entry in side if entry] for side in sizes]
    nodes = {}
    for name, every in durations.items():
        nodes[name] = _usual(every[2:] if len(every) > 4 else every)
    return nodes, shapes


def _usual(values: Any) -> float:
    """The mean between the 20 % and the 60 % quantile: interruptions lengthen some runs."""
    ordered = np.sort(values)
    first = len(ordered) // 5
    return float(ordered[first : max(first + 1, (3 * len(ordered)) // 5)].mean())


def facts() -> dict[str, Any]:
    """Processor and versions, as far as a script can tell."""
    found: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
        found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    except OSError:
        pass
    name = found.get("model name") or platform.processor() or platform.machine() or "unknown"
    if "cpu family" in found and "model" in found:
        name = f"{name} (family {found['cpu family']}, model {found['model']})"
    flags = (found.get("flags") or found.get("Features") or "").split()
    known = ("avx512f", "avx2", "avx", "asimd", "neon")
    instruction_set = next((one for one in known if one in flags), "unknown")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": f"{name}, {instruction_set}, {platform.machine()}",
        "cpu": name,
        "instruction_set": instruction_set,
        "n_cores": cores or 1,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "os": platform.platform(terse=True),
    }


def main(arguments: "list[str] | None" = None) -> None:
    """Time all graphs of the kit that this script lies in."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Time the graphs of a kit of l0prune in onnxruntime.")
    parser.add_argument("--threads", type=int, default=None, help="onnxruntime's threads [default: the kit's]")
    parser.add_argument("--out", type=Path, default=here / "results.json", help="where the timings go")
    chosen = parser.parse_args(arguments)
    kit = json.loads((here / "kit.json").read_text(encoding="utf-8"))
    threads = chosen.threads or kit["threads"]
    feeds, began, samples = feeds_of(kit["inputs"]), time.time(), []
    for number, name in enumerate(kit["graphs"]):
        samples.append(measure(here / name, feeds, threads, kit["seconds"]))
        left = (time.time() - began) / (number + 1) * (len(kit["graphs"]) - number - 1)
        sys.stdout.write(
            f"{number + 1}/{len(kit['graphs'])} {samples[-1]['total_us'] / 1000:.3f} ms, {left:.0f} s to go\n"
        )
        sys.stdout.flush()
    content = {
        "format": "l0prune.kit-results",
        "version": 1,
        "about": kit["about"],
        "threads": threads,
        "facts": facts(),
        "seconds": time.time() - began,
        "samples": samples,
    }
    draft = chosen.out.with_name(chosen.out.name + ".part")
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.replace(chosen.out)
    sys.stdout.write(f"{chosen.out}: give it to `l0prune profile --from-kit`\n")


if __name__ == "__main__":
    main()
