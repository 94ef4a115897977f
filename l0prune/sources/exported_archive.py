"""Archives of exported programs, taken apart: every string in them is checked, and what they claim to hold is bounded."""

import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from l0prune.errors import ModelSpecError
from l0prune.reading import bounded_archive, require_bounded
from l0prune.sources.allowed_ops import is_allowed
from l0prune.sources.pickles import read_pickled_tensors
from l0prune.sources.size_expressions import is_small_arithmetic

__all__ = ["checked_archive", "checked_inputs", "refusal"]

# Parts of an archive that are raw data, or JSON that is checked, or written anew.
DATA = re.compile(r"data/(weights/weight_\d+|constants/tensor_\d+)")
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
MODEL = "models/model.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
PLAIN = ("archive_format", "archive_version", ".data/version", ".format_version", "version", "byteorder")
IGNORED = re.compile(r"\.data/.*|extra/.*")

NAME = re.compile(r"[A-Za-z0-9_.@/+\-]*")  # no quotes, brackets, spaces or line ends: such text cannot become code
TENSOR_NAMES = {"parameter_name", "buffer_name", "buffer_mutated", "tensor_constant_name", "fqn", "config"}
"""Where names of tensors stand, or are keys. They come into code between double quotes, and a module may have any name."""
OUTPUT_CLASS = re.compile(r"transformers\.[\w.]*Output\w*")
PYTREE_TYPE = re.compile(rf"builtins\.(tuple|list|dict)|collections\.OrderedDict|{OUTPUT_CLASS.pattern}")
SPECS = {"in_spec", "out_spec"}  # how inputs and outputs nest
FREE_TEXT = {"torch_version", "as_string"}  # stored and quoted, never interpreted
DROPPED = {"guards_code", "metadata"}  # code that checks inputs; stack traces
BYTES_A_VALUE = 16  # of the largest type


def checked_archive(path: Path) -> io.BytesIO:
    """A new archive of the checked parts of one, for torch.export.load.

    Raises:
        ModelSpecError: it holds what an exported network does not need, or claims more than its size can hold.
        Exception: of any kind, where it is damaged.
    """
    members = _read_members(path)
    parts = {name: content for name, content in members.items() if DATA.fullmatch(name) or name in PLAIN}
    for name in (*CONFIGS, MODEL):
        checked = _checked(json.loads(members[name]), path)
        if name in CONFIGS:
            _check_payloads(checked["config"], name, members, path)
        parts[name] = json.dumps(checked).encode()
    parts[SAMPLE_INPUTS] = _rewritten(_sample_inputs(members[SAMPLE_INPUTS], path))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(f"model/{name}", content)
    buffer.seek(0)
    return buffer


def _read_members(path: Path) -> dict[str, bytes]:
    """Contents by name below the archive's folder."""
    members: dict[str, bytes] = {}
    with bounded_archive(path, path.stat().st_size, path, error=ModelSpecError) as archive:
        for info in archive.infolist():
            _, _, name = info.filename.partition("/")
            if IGNORED.fullmatch(name) and name not in PLAIN:
                continue
            known = name in (*CONFIGS, MODEL, SAMPLE_INPUTS, *PLAIN) or DATA.fullmatch(name)
            if not known or name in members:
                raise refusal(path, f"it has a part {info.filename[:80]!r}")
            members[name] = archive.read(info)
    missing = [name for name in (*CONFIGS, MODEL, SAMPLE_INPUTS) if name not in members]
    if missing:
        raise ValueError(f"no {missing[0]}")
    return members


def _check_payloads(payloads: dict[str, Any], name: str, members: dict[str, bytes], path: Path) -> None:
    """See that tensors are raw data that is there, and that their sizes have something to do with it."""
    folder = name.rpartition("/")[0]
    for key, payload in payloads.items():
        if payload["use_pickle"] is not False:
            raise refusal(path, f"{name} has pickled entries")
        content = members[f"{folder}/{payload['path_name']}"]
        sizes = [size["as_int"] for size in payload["tensor_meta"]["sizes"]]
        claimed = BYTES_A_VALUE * math.prod(sizes)
        if min(sizes, default=0) < 0 or (claimed > 0 and not content):
            raise ValueError(f"no content for {key} of sizes {sizes}")
        require_bounded(claimed, len(content), path, error=ModelSpecError)


def checked_inputs(path: Path) -> Any:
    """The sample inputs alone, as they were exported; None where there are none.

    Raises:
        ModelSpecError: they need code to load, or claim more than their size can hold.
        Exception: of any kind, where the archive is damaged.
    """
    with bounded_archive(path, path.stat().st_size, path, error=ModelSpecError) as archive:
        held = [name for name in archive.namelist() if name.partition("/")[2] == SAMPLE_INPUTS]
        return _sample_inputs(archive.read(held[0]), path) if held else None


def _sample_inputs(content: bytes, path: Path) -> Any:
    """Sample inputs, read as tensors only."""
    if not content:
        return None
    try:
        return read_pickled_tensors(io.BytesIO(content), path, error=ModelSpecError)
    except ModelSpecError:
        raise
    except Exception as error:
        raise refusal(path, "its sample inputs need code to load") from error


def _rewritten(inputs: Any) -> bytes:
    """Sample inputs as a file that torch may read as it likes."""
    buffer = io.BytesIO()
    if inputs is not None:
        torch.save(inputs, buffer)
    return buffer.getvalue()


def _checked(value: Any, path: Path, key: str = "") -> Any:
    """A JSON value with every key and string checked."""
    if isinstance(value, dict):
        if value.keys() & {"as_custom_obj", "as_operator", "custom_obj"}:
            raise refusal(path, "it holds custom objects")
        for name in value:
            _check_text(name, key if key in TENSOR_NAMES else "name", path)
        return {name: _emptied(item) if name in DROPPED else _checked(item, path, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_checked(item, path, key) for item in value]
    if isinstance(value, str):
        _check_text(value, key, path)
        return json.dumps(_without_classes(json.loads(value))) if key in SPECS and value else value
    return value


def _without_classes(spec: Any) -> Any:
    """A serialised pytree with dicts for the outputs of transformers, which need not be installed."""
    if isinstance(spec, list):
        return [_without_classes(item) for item in spec]
    if not isinstance(spec, dict):
        return spec
    is_output = OUTPUT_CLASS.fullmatch(spec.get("type") or "") is not None
    return {
        "type": "builtins.dict" if is_output else spec.get("type"),
        "context": spec.get("context"),
        "children_spec": _without_classes(spec.get("children_spec")),
    }


def _emptied(value: Any) -> Any:
    return type(value)() if isinstance(value, dict | list) else value


def _check_text(text: str, key: str, path: Path) -> None:
    if key in TENSOR_NAMES:
        fine = text.isprintable() and not set(text) & {'"', "\\"} and not _has_dunder(text)
    elif key == "expr_str":
        fine = is_small_arithmetic(text)
    elif key in SPECS:
        fine = not text or all(_is_container(node, free=key == "out_spec") for node in _nodes(json.loads(text)))
    elif key == "target":
        fine = is_allowed(text)
    elif key in FREE_TEXT:
        fine = text.isprintable()
    else:
        fine = NAME.fullmatch(text) is not None and not _has_dunder(text)
    if not fine:
        raise refusal(path, f"{key or 'a value'} {text[:60]!r}")


def _has_dunder(text: str) -> bool:
    return any(part.startswith("__") for part in text.split("."))


def _nodes(spec: Any) -> Iterator[Any]:
    """The nodes of a serialised pytree."""
    if isinstance(spec, list):
        for item in spec:
            yield from _nodes(item)
    elif isinstance(spec, dict):
        yield spec
        yield from _nodes(spec.get("children_spec"))


def _is_container(node: Any, *, free: bool) -> bool:
    """Whether a part of a pytree is a sequence or a mapping; `free` keys are no names in code, so any text or number will do."""
    kind, context = node.get("type"), node.get("context")
    if kind is not None and PYTREE_TYPE.fullmatch(kind) is None:
        return False
    keys = json.loads(context) if context else None
    if free and isinstance(keys, list):
        return all(isinstance(key, str | int | float) for key in keys)
    return keys is None or all(isinstance(key, str) and NAME.fullmatch(key) for key in keys)


def refusal(path: Path, what: str) -> ModelSpecError:
    """The error of a file that was not run, and why."""
    return ModelSpecError(
        f"{path} was refused, and nothing in it was run: {what}, which a plain exported network does not need. "
        "If you trust it, load it yourself and give l0prune a factory that returns the module."
    )
