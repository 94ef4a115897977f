"""Weights files: read without running code, matched strictly, written atomically."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from l0prune.errors import CheckpointError, L0PruneWarning, first_line
from l0prune.files import write_whole
from l0prune.reading import reading
from l0prune.sources.pickles import imported_names, read_pickled_tensors

__all__ = ["load_weights_", "read_state_dict", "save_weights"]

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
# Where training scripts keep the weights, best first: averaged weights are the ones whose accuracy is published.
WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "net", "params")
PREFIXES = ("module.", "_orig_mod.")  # nn.DataParallel, torch.compile
N_SHOWN = 3


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a weights file; no code in it is ever run.

    Args:
        path: `.safetensors`, or a torch file (`.pt`, `.pth`, `.bin`, `.ckpt`, `.tar`) read with `weights_only`.
            Wrappers such as `state_dict` and `model` are opened (averaged weights first where there are several), and the
            prefixes that nn.DataParallel and torch.compile add are taken off.

    Returns:
        Name to tensor on the CPU, every value finite.

    Raises:
        CheckpointError: if the file is missing, empty, damaged, of another kind, holds anything but tensors, holds
            code, or holds values that are not finite.
    """
    return _without_prefix(_read(Path(path)))


def _read(path: Path) -> dict[str, Tensor]:
    """`read_state_dict` with the names as they are stored."""
    with reading(path, "weights file", error=CheckpointError):
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty (0 bytes); the copy or download that made it did not finish.")
        if path.suffix == ".safetensors":
            tensors = _read_safetensors(path)
        elif path.suffix in PICKLED:
            tensors = _unwrap(_read_pickled(path), path)
        else:
            raise CheckpointError(
                f"{path}: unknown kind of weights file {path.suffix!r}; expected .safetensors, .pt or .pth."
            )
        _check_finite(tensors, path)
    return tensors


def load_weights_(model: nn.Module, path: str | Path, *, precision: bool = False) -> None:
    """Copy a weights file into a model, all of it or none.

    Missing `num_batches_tracked` counters are left as they are, and a tensor the model uses under several names may
    be stored under one of them.

    Args:
        model: Receives the weights; unchanged where this fails.
        path: As for `read_state_dict`.
        precision: Give the model's tensors the types that the weights are stored in.

    Raises:
        CheckpointError: as `read_state_dict`, and if a name is missing, left over, or has another shape, or if its type does
            not become the model's: whole numbers are no weights, a complex number is not its real part, and a number beyond
            the model's type is not infinite.

    Warns:
        L0PruneWarning: where the model's type is narrower, so that values are rounded.
    """
    with reading(path, "weights file", error=CheckpointError):
        _load_(model, Path(path), precision=precision)


def _load_(model: nn.Module, path: Path, *, precision: bool) -> None:
    expected = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    found = _read(path)
    if not found.keys() <= expected.keys():
        found = _without_prefix(found)
    problems = _mismatches(expected, found)
    if problems:
        raise CheckpointError(
            f"{path} does not fit the model: {'; '.join(problems)}. "
            "Is it a checkpoint of another architecture, or does the model need other arguments?"
        )
    if precision:
        held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        for name, tensor in held:
            tensor.data = tensor.data.to(found[name].dtype) if name in found else tensor.data
        expected = model.state_dict()
    _check_casts(expected, found, path)
    with torch.no_grad():
        for name, value in found.items():
            expected[name].copy_(value)


def save_weights(weights: nn.Module | Mapping[str, Tensor], path: str | Path) -> Path:
    """Write weights as safetensors: to a temporary name first, then renamed.

    Args:
        weights: A model or a state dict; tensors that share memory are stored under their first name only.
        path: Ends in `.safetensors`; its folder exists.

    Returns:
        `path`.

    Raises:
        CheckpointError: if `path` has another ending or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: weights are written as .safetensors only; change the file name.")
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {names[0]: state[names[0]].detach().cpu().contiguous() for names in _aliases(state)}
    try:
        write_whole(path, save(tensors, metadata={"format": "pt"}))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({first_line(error)}).") from error
    except KeyError as error:
        raise CheckpointError(f"{path}: safetensors has no type for {error}: convert the model.") from error
    return path


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with reading(path, "safetensors file", error=CheckpointError):
        return load_file(path)


def _read_pickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return read_pickled_tensors(file, path, error=CheckpointError)
    except CheckpointError:
        raise
    except Exception as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} was refused, and nothing in it was run: it is a TorchScript program, not weights. "
                "Save `model.state_dict()` instead, best as .safetensors."
            ) from error
        imported = imported_names(path)
        if imported is None:
            raise CheckpointError(f"{path} is damaged or is not a torch file; copy or download it again.") from error
        unsafe = [name for name in imported if not name.startswith(("torch.", "collections.", "_codecs."))]
        needs = f"it needs {_some(unsafe)}, which is code" if unsafe else "it is a pickle that torch cannot read safely"
        raise CheckpointError(
            f"{path} was refused, and nothing in it was run: {needs}. "
            "If you trust the file, load it yourself and save `model.state_dict()` alone, best as .safetensors."
        ) from error


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Open wrappers until a mapping of names to tensors is left."""
    for _ in range(4):
        if not isinstance(loaded, Mapping) or not loaded:
            break
        if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()):
            return dict(loaded)
        wrapped = [loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not wrapped:
            break
        loaded = wrapped[0]
    keys = f" with keys {_some([str(key) for key in loaded])}" if isinstance(loaded, Mapping) else ""
    raise CheckpointError(
        f"{path} holds a {type(loaded).__name__}{keys}, expected names and tensors, bare or under one of "
        f"{', '.join(WRAPPERS)}. Save `model.state_dict()`."
    )


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for _ in PREFIXES:
        for prefix in PREFIXES:
            if tensors and all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    for name, value in tensors.items():
        if not (value.is_floating_point() or value.is_complex()):
            continue
        finite = torch.isfinite(value if value.itemsize > 1 else value.float())  # torch cannot say it of eight bits
        if not bool(finite.all()):
            raise CheckpointError(
                f"{path}: {name!r} has {int((~finite).sum())} of {value.numel()} values that are NaN or infinite. "
                "The training that wrote it diverged; use an earlier checkpoint."
            )


def _check_casts(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse what would become another number in the model's type, and say what is rounded to it."""
    rounded = []
    for name, value in found.items():
        kind = expected[name].dtype
        if value.dtype == kind:
            continue
        where = f"{path}: {name!r} is stored as {_type(value.dtype)}, the model has {_type(kind)}"
        if value.is_complex() and not kind.is_complex:
            raise CheckpointError(
                f"{where}, which would drop the imaginary part. Build the model with complex parameters."
            )
        if kind.is_floating_point and not value.is_floating_point():
            raise CheckpointError(
                f"{where}: a quantised checkpoint, whose numbers mean nothing without their scales. Give one that is not "
                "quantised, or dequantise it and save it in floating point."
            )
        cast = value.to(kind)
        if kind.is_floating_point and not bool(torch.isfinite(cast).all()):
            raise CheckpointError(f"{where}, which is too narrow for its largest value, {_largest(value):.3g}.")
        real = cast.real if cast.is_complex() and not value.is_complex() else cast
        if bool((real.to(value.dtype) == value).all()):
            continue
        if not kind.is_floating_point:
            raise CheckpointError(f"{where}, which cannot hold its values.")
        rounded.append(name)
    if rounded:
        stored, kept = found[rounded[0]].dtype, expected[rounded[0]].dtype
        warnings.warn(
            f"{path}: {len(rounded)} of {len(found)} tensors are rounded from {_type(stored)} to the model's {_type(kept)}:"
            f" {_some(rounded)}",
            L0PruneWarning,
            stacklevel=4,
        )


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _largest(value: Tensor) -> float:
    return float(value.double().abs().max())


def _mismatches(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """What keeps `found` from filling `expected`, one phrase a kind."""
    missing = [
        names[0]
        for names in _aliases(expected)
        if not any(name in found for name in names) and not names[0].endswith("num_batches_tracked")
    ]
    left_over = [name for name in found if name not in expected]
    shapes = [
        f"{name!r} is {_shape(value)}, expected {_shape(expected[name])}"
        for name, value in found.items()
        if name in expected and value.shape != expected[name].shape
    ]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(expected)} missing: {_some(_with_shapes(missing, expected))}")
    if left_over:
        problems.append(f"{len(left_over)} of {len(found)} left over: {_some(_with_shapes(left_over, found))}")
    if shapes:
        problems.append(f"{len(shapes)} of another shape: {_some(shapes)}")
    return problems


def _aliases(state: Mapping[str, Any]) -> list[list[str]]:
    """Names grouped by the memory behind them, in order of the first name."""
    groups: dict[Any, list[str]] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            where = (value.data_ptr(), value.shape, value.stride()) if value.numel() else name
            groups.setdefault(where, []).append(name)
    return list(groups.values())


def _with_shapes(names: list[str], tensors: Mapping[str, Tensor]) -> list[str]:
    return [f"{name!r} {_shape(tensors[name])}" for name in names]


def _shape(value: Tensor) -> str:
    return "(" + ", ".join(str(n) for n in value.shape) + ")"


def _some(items: list[str]) -> str:
    return ", ".join(items[:N_SHOWN]) + (" ..." if len(items) > N_SHOWN else "")
