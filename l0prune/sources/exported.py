"""Exported programs (`.pt2`), loaded without running anything that the file brings along.

`torch.export.load` unpickles weights, constants and sample inputs where the file asks for it, evaluates symbolic
expressions, and generates Python code from names in the graph. So nothing of a file reaches it unseen: the archive is
taken apart, every string in it is checked against what an exported network needs, and torch is given a new archive
made of the checked parts only.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.errors import ModelSpecError

__all__ = ["load_example_inputs", "load_exported", "load_exported_program"]

# Parts of an archive that are raw data, or JSON that is checked, or written anew.
DATA = re.compile(r"data/(weights/weight_\d+|constants/tensor_\d+)")
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
MODEL = "models/model.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
PLAIN = ("archive_format", "archive_version", ".data/version", ".format_version", "version", "byteorder")
IGNORED = re.compile(r"\.data/.*|extra/.*")

NAME = re.compile(r"[A-Za-z0-9_.@/+\-]*")  # no quotes, brackets, spaces or line ends: such text cannot become code
TARGET = re.compile(
    r"torch\.ops\.(aten|prims|prim)\.\w+\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|torch\.sym_(int|float|not|max|min|sqrt|ite|sum)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc)"
)
OUTPUT_CLASS = re.compile(r"transformers\.[\w.]*Output\w*")
PYTREE_TYPE = re.compile(rf"builtins\.(tuple|list|dict)|collections\.OrderedDict|{OUTPUT_CLASS.pattern}")
SPECS = {"in_spec", "out_spec"}  # how inputs and outputs nest
SYMPY = {"Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "FloorDiv", "CleanDiv", "Mod"}
SYMPY |= {"PythonMod", "ModularIndexing", "CeilDiv", "IntTrueDiv", "FloatTrueDiv", "ToFloat", "CeilToInt", "FloorToInt"}
SYMPY |= {"TruncToInt", "Identity", "Where", "PowByNatural", "Equality", "Unequality", "StrictLessThan", "LessThan"}
SYMPY |= {"StrictGreaterThan", "GreaterThan", "And", "Or", "Not"}
SYMPY_NODES = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.keyword, ast.Constant, ast.UnaryOp, ast.USub)
MODES = {"training", "train", "use_input_stats"}  # arguments that say whether an op is in training mode
FREE_TEXT = {"torch_version", "as_string"}  # stored and quoted, never interpreted
DROPPED = {"guards_code", "metadata"}  # code that checks inputs; stack traces


def load_exported(path: str | Path) -> tuple[nn.Module, tuple[Tensor, ...] | dict[str, Tensor] | None]:
    """The module of an exported program, and the inputs it was exported with.

    Args:
        path: A `.pt2` file written by torch.export.save.

    Returns:
        The module, for evaluation: batch norm takes its running statistics and dropout does nothing, also where the
        network was exported in training mode. And its example inputs as a tuple of positional or a dict of keyword
        tensors, or None where the file has none of that form.

    Raises:
        ModelSpecError: if the file is missing or damaged, or holds what an exported network does not need.
    """
    program = load_exported_program(path)
    module = program.module(check_guards=False)
    _evaluate_(module)
    for method in ("train", "eval"):  # torch forbids both on this module; here they set the flags and nothing else
        module.__dict__.pop(method, None)
    return module, _plain_inputs(program.example_inputs)


def load_exported_program(path: str | Path) -> torch.export.ExportedProgram:
    """Load a `.pt2` file after checking every part of it.

    Raises:
        ModelSpecError: if the file is missing or damaged, or holds what an exported network does not need.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelSpecError(f"{path}: no such file.")
    try:
        members = _read_members(path)
        archive = _rebuild(members, path)
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ModelSpecError(f"{path} is damaged or was not written by torch.export.save ({error}).") from error
    try:
        return torch.export.load(archive)
    except Exception as error:
        raise ModelSpecError(
            f"{path} cannot be loaded by torch {torch.__version__} ({type(error).__name__}); export it again."
        ) from error


def load_example_inputs(path: str | Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword inputs that a `.pt2` file was exported with; none where it says nothing of them.

    Raises:
        ModelSpecError: if the file is missing or damaged, or its inputs need code to load.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name for name in archive.namelist() if name.partition("/")[2] == SAMPLE_INPUTS]
            content = archive.read(held[0]) if held else b""
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ModelSpecError(f"{path} is damaged or was not written by torch.export.save ({error}).") from error
    checked = _checked_sample_inputs(content, path)
    args, kwargs = torch.load(io.BytesIO(checked), weights_only=True) if checked else ((), {})
    return tuple(args), dict(kwargs)


def _evaluate_(module: torch.fx.GraphModule) -> None:
    """Take every op out of training mode, but norms that have no running statistics."""
    for node in list(module.graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target is torch.ops.aten.add_.Tensor and str(node.args[0]).endswith("num_batches_tracked"):
            module.graph.erase_node(node)
            continue
        positions = {argument.name: position for position, argument in enumerate(node.target._schema.arguments)}
        has_statistics = "running_mean" not in positions or node.args[positions["running_mean"]] is not None
        for name in MODES & positions.keys():
            if has_statistics and positions[name] < len(node.args):
                node.update_arg(positions[name], False)
    module.recompile()


def _read_members(path: Path) -> dict[str, bytes]:
    """Contents by name below the archive's folder."""
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            _, _, name = info.filename.partition("/")
            if IGNORED.fullmatch(name) and name not in PLAIN:
                continue
            known = name in (*CONFIGS, MODEL, SAMPLE_INPUTS, *PLAIN) or DATA.fullmatch(name)
            if not known or name in members:
                raise _refusal(path, f"it has a part {info.filename!r}")
            members[name] = archive.read(info)
    missing = [name for name in (*CONFIGS, MODEL, SAMPLE_INPUTS) if name not in members]
    if missing:
        raise KeyError(f"no {missing[0]}")
    return members


def _rebuild(members: dict[str, bytes], path: Path) -> io.BytesIO:
    """A new archive of the checked parts."""
    parts = {name: content for name, content in members.items() if DATA.fullmatch(name) or name in PLAIN}
    for name in (*CONFIGS, MODEL):
        checked = _checked(json.loads(members[name]), path)
        if name in CONFIGS and any(payload["use_pickle"] is not False for payload in checked["config"].values()):
            raise _refusal(path, f"{name} has pickled entries")
        parts[name] = json.dumps(checked).encode()
    parts[SAMPLE_INPUTS] = _checked_sample_inputs(members[SAMPLE_INPUTS], path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(f"model/{name}", content)
    buffer.seek(0)
    return buffer


def _checked_sample_inputs(content: bytes, path: Path) -> bytes:
    """Sample inputs, read as tensors only and written anew."""
    try:
        inputs = torch.load(io.BytesIO(content), weights_only=True) if content else None
    except Exception as error:
        raise _refusal(path, "its sample inputs need code to load") from error
    buffer = io.BytesIO()
    if inputs is not None:
        torch.save(inputs, buffer)
    return buffer.getvalue()


def _checked(value: Any, path: Path, key: str = "") -> Any:
    """A JSON value with every key and string checked."""
    if isinstance(value, dict):
        if value.keys() & {"as_custom_obj", "as_operator", "custom_obj"}:
            raise _refusal(path, "it holds custom objects")
        for name in value:
            _check_text(name, "name", path)
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
    if key == "expr_str":
        fine = _is_arithmetic(text)
    elif key in SPECS:
        fine = not text or all(_is_container(node) for node in _nodes(json.loads(text)))
    elif key == "target":
        fine = TARGET.fullmatch(text) is not None
    elif key in FREE_TEXT:
        fine = text.isprintable()
    else:
        fine = NAME.fullmatch(text) is not None and not any(part.startswith("__") for part in text.split("."))
    if not fine:
        raise _refusal(path, f"{key or 'a value'} {text[:60]!r}")


def _is_arithmetic(text: str) -> bool:
    """Whether sympy, evaluating the text, meets nothing but numbers, symbols and the functions in SYMPY."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    for node in ast.walk(tree):
        if not isinstance(node, SYMPY_NODES):
            return False
        if isinstance(node, ast.Name) and node.id not in SYMPY and not re.fullmatch(r"[a-z]+\d+|True|False", node.id):
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not re.fullmatch(r"\w+", node.value):
            return False
    return True


def _nodes(spec: Any) -> Iterator[Any]:
    """The nodes of a serialised pytree."""
    if isinstance(spec, list):
        for item in spec:
            yield from _nodes(item)
    elif isinstance(spec, dict):
        yield spec
        yield from _nodes(spec.get("children_spec"))


def _is_container(node: Any) -> bool:
    kind, context = node.get("type"), node.get("context")
    if kind is not None and PYTREE_TYPE.fullmatch(kind) is None:
        return False
    keys = json.loads(context) if context else None
    return keys is None or all(isinstance(key, str) and NAME.fullmatch(key) for key in keys)


def _plain_inputs(example: Any) -> tuple[Tensor, ...] | dict[str, Tensor] | None:
    args, kwargs = example if example is not None else ((), {})
    if args and not kwargs and all(isinstance(value, Tensor) for value in args):
        return tuple(args)
    if kwargs and not args and all(isinstance(value, Tensor) for value in kwargs.values()):
        return dict(kwargs)
    return None


def _refusal(path: Path, what: str) -> ModelSpecError:
    return ModelSpecError(
        f"{path} was refused, and nothing in it was run: {what}, which a plain exported network does not need. "
        "Load it yourself where you trust it, and give l0prune a factory that returns the module."
    )
