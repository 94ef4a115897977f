"""What an ONNX file is run on: inputs given, or made at random in the file's own shapes and types."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from l0prune.errors import ConfigError
from l0prune.machine import memory_bytes
from l0prune.onnx.onnx_model import DTYPES, EXAMPLE_KEY, LARGEST_KEY, sizes_of

__all__ = ["given_feeds", "random_feeds", "rows_of"]


def rows_of(inputs: Any) -> int | None:
    """Batch size of the inputs given; None where there are none."""
    if inputs is None:
        return None
    arrays = (
        inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple | list) else (inputs,)
    )
    return next((int(array.shape[0]) for array in arrays if array.ndim), None)


def given_feeds(name: str, session: onnxruntime.InferenceSession, inputs: Any) -> dict[str, np.ndarray]:
    """The inputs given, by the model's names."""
    wanted = [node.name for node in session.get_inputs()]
    if isinstance(inputs, Mapping):
        feeds = dict(inputs)
    else:
        arrays = inputs if isinstance(inputs, tuple | list) else (inputs,)
        feeds = dict(zip(wanted, arrays, strict=False)) if len(arrays) == len(wanted) else {}
    if set(feeds) != set(wanted):
        found = ", ".join(feeds) if isinstance(inputs, Mapping) else f"{len(arrays)} arrays"
        raise ConfigError(f"model {name!r}: expected the inputs {', '.join(wanted)}, found {found}.")
    return {key: _array(value) for key, value in feeds.items()}


def random_feeds(
    name: str, session: onnxruntime.InferenceSession, rows: int, sizes: Mapping[str, int], *, seed: int
) -> dict[str, np.ndarray]:
    """Inputs of the model's own shapes and types; equal for equal models.

    Args:
        name: What the caller calls the model.
        session: The model.
        rows: Size of the batch.
        sizes: Of other free dimensions, by their names; the others have that of the example.
        seed: Of the numbers.

    Raises:
        ConfigError: the model refuses the batch, has no free dimension of a name in `sizes`, or one whose size nobody knows.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    known = session.get_modelmeta().custom_metadata_map
    _require_batch(name, session, rows)
    sizes = _free_sizes(name, session, sizes)
    for node in session.get_inputs():
        named = [sizes.get(str(size)) or int(known.get(f"{EXAMPLE_KEY}{size}", 0)) or size for size in sizes_of(node)]
        if named and isinstance(named[0], str):
            named[0] = rows
        unknown = [size for size in named if not isinstance(size, int)]
        if unknown:
            raise ConfigError(
                f"model {name!r}: input {node.name!r} has the free dimension {unknown[0]!r}. Pass inputs, or give its size: "
                f"sizes={{{unknown[0]!r}: 128}}, on the command line --length 128 or --image-size 128."
            )
        shape = [size for size in named if isinstance(size, int)]
        _require_room(name, node.name, shape)
        largest = int(known.get(f"{LARGEST_KEY}{node.name}", 9))
        feeds[node.name] = _random_array(name, node, shape, rng, largest=largest)
    return feeds


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def _require_batch(name: str, session: onnxruntime.InferenceSession, rows: int) -> None:
    """See that a model takes so many rows; one that names a first dimension takes any."""
    first = {node.name: sizes_of(node)[0] for node in session.get_inputs() if node.shape}
    if first and rows not in first.values() and not any(isinstance(size, str) for size in first.values()):
        key, size = next(iter(first.items()))
        raise ConfigError(
            f"model {name!r}: input {key!r} has a fixed batch of {size}, found batch_size={rows}. "
            f"Benchmark with batch_size={size}, or export with dynamic_batch=True."
        )


def _free_sizes(name: str, session: onnxruntime.InferenceSession, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes by the names that a model has for its free dimensions; the only one beside the batch may have any name.

    Raises:
        ConfigError: it has none of a name.
    """
    free = dict.fromkeys(size for node in session.get_inputs() for size in sizes_of(node)[1:] if isinstance(size, str))
    if len(free) == len(sizes) == 1:
        return {next(iter(free)): next(iter(sizes.values()))}
    wrong = next((size for size in sizes if size not in free), None)
    if wrong is not None:
        found = ", ".join(free) or "none but the batch"
        raise ConfigError(f"model {name!r} has no free dimension {wrong!r}; free dimensions: {found}.")
    return dict(sizes)


def _require_room(name: str, input_name: str, shape: list[int]) -> None:
    """See that an input can be made here, with a copy of it.

    Raises:
        ConfigError: it takes more than half of the memory.
    """
    n_bytes, memory = 2 * 8 * math.prod(shape), memory_bytes()
    if memory is not None and n_bytes > memory / 2:
        raise ConfigError(
            f"model {name!r}: input {input_name!r} of shape {shape} takes {n_bytes / 1e9:.3g} GB of this machine's"
            f" {memory / 1e9:.3g} GB. Choose a smaller batch_size."
        )


def _random_array(name: str, node: Any, shape: list[int], rng: np.random.Generator, *, largest: int) -> np.ndarray:
    dtype = DTYPES.get(node.type)
    if dtype is None:
        raise ConfigError(f"model {name!r}: input {node.name!r} is a {node.type}; pass inputs for it.")
    if "mask" in node.name or dtype is np.bool_:
        return np.ones(shape, dtype=dtype)
    if np.issubdtype(dtype, np.integer):
        if "type" in node.name or largest < 1:
            return np.zeros(shape, dtype=dtype)
        return rng.integers(1, min(largest, 9) + 1, size=shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)
