"""Save and load compact models: weights, plan and graph; no pickled code anywhere."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l0prune.errors import CaptureError, CheckpointError, FileFormatError, ModelSpecError, PlanMismatchError
from l0prune.surgery.graph_model import GraphModel
from l0prune.surgery.plan import SurgeryPlan

__all__ = ["has_graph", "load", "save"]

FORMAT = "l0prune.compact"
VERSION = 1
WEIGHTS, PLAN, PROGRAM, MANIFEST = "model.safetensors", "surgery.json", "model.pt2", "manifest.json"
FILES = (WEIGHTS, PLAN, PROGRAM)
_MANIFEST_KEYS = {"format", "version", "l0prune", "model_class", "form", "max_rel_diff", "dynamic_batch", "files"}
_REFUSAL = "no_graph_because"


def save(compact: nn.Module, directory: str | Path) -> Path:
    """Write a compact model: `model.safetensors`, `surgery.json`, `model.pt2` and `manifest.json`.

    The files are written to a temporary folder that then takes the place of `directory`. A model that torch.export refuses
    has no `model.pt2`, and the manifest says why: it is loaded with its dense model as `base`.

    Args:
        compact: From `l0prune.shrink`, perhaps trained further.
        directory: Folder to write; an earlier compact model in it is replaced.

    Returns:
        The folder.

    Raises:
        ConfigError: the model does not come from `shrink`.
        FileFormatError: the folder exists and holds something else.
        CheckpointError: the weights cannot be written, or nothing could load the folder.
    """
    from l0prune import __version__
    from l0prune.flow.capture import capture
    from l0prune.sources.weights import save_weights
    from l0prune.surgery.shrink import surgery_of

    record = surgery_of(compact)
    target = Path(directory)
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).exists():
        raise FileFormatError(f"{target} exists and is no compact model; choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        save_weights(compact, draft / WEIGHTS)
        (draft / PLAN).write_text(json.dumps(record.plan.to_json()))
        captured, refusal = None, {}
        try:
            captured = capture(compact, record.example_kwargs or record.example_args)
        except CaptureError as error:
            reason = str(error).partition(";")[0]
            if record.form == "graph":
                raise CheckpointError(
                    f"{target}: nothing could load the model again: it was cut in its graph, and {reason}; keep the dense model"
                    " and the gates, and shrink them again"
                ) from error
            refusal[_REFUSAL] = reason
        if captured is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.export.save(captured.program, draft / PROGRAM)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "l0prune": __version__,
            "model_class": type(compact).__name__,
            "form": record.form,
            "max_rel_diff": record.difference.max_rel,
            "dynamic_batch": captured is not None and captured.dynamic_batch,
            "files": {name: _sha256(draft / name) for name in FILES if (draft / name).exists()},
            **refusal,
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))
        draft.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            target.replace(old / "old")
            draft.replace(target)
            shutil.rmtree(old)
        else:
            draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def load(directory: str | Path, base: nn.Module | None = None) -> nn.Module:
    """Read a compact model that `save` wrote. Nothing in the folder is run as code.

    Args:
        directory: The folder.
        base: A dense model of the class and sizes the compact one came from; it is cut in place (on a copy) and given the
            saved weights, so the result has its class. None gives a module of the saved graph.

    Returns:
        The model in evaluation mode, with the same state-dict keys either way.

    Raises:
        FileFormatError: a file is missing, damaged, of an unknown version, or not the one that was saved.
        PlanMismatchError: `base` is not the dense model the plan was made for, or is needed and not given.
    """
    from l0prune.sources.weights import load_weights_

    folder = Path(directory)
    with_graph = _check_manifest(folder)
    plan = SurgeryPlan.from_json(_read_json(folder / PLAN), source=str(folder / PLAN))
    if base is not None:
        plan.check(base)
        if plan.form == "graph":
            raise PlanMismatchError(
                f"{folder} was cut in its graph, because its class has sizes in its code; load it without base="
            )
        from l0prune.surgery.in_place import cut_in_place

        model = cut_in_place(base, replace(plan, folds={}))
    elif not with_graph:
        raise PlanMismatchError(
            f"{folder} has no {PROGRAM}, because torch.export cannot capture the model; pass the dense model as base="
        )
    else:
        model = _load_graph(folder / PROGRAM)
    load_weights_(model, folder / WEIGHTS)
    return model.eval()


def has_graph(directory: str | Path) -> bool:
    """Whether a folder that `save` wrote can be loaded without its dense model as `base`.

    Raises:
        FileFormatError: as `load`.
    """
    return _check_manifest(Path(directory))


def _load_graph(path: Path) -> nn.Module:
    from l0prune.sources.exported import load_exported_program

    try:
        module = load_exported_program(path).module(check_guards=False)
    except ModelSpecError as error:
        raise FileFormatError(f"{error} Or run shrink again.") from error
    model = GraphModel(module, module.graph)
    _tie_(model)
    return model


def _tie_(model: nn.Module) -> None:
    """Parameters that lie in the same memory become one parameter, as they were when they were saved."""
    first: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        known = first.setdefault(parameter.data_ptr(), parameter) if parameter.numel() else parameter
        if known is not parameter and known.shape == parameter.shape:
            path, _, leaf = name.rpartition(".")
            model.get_submodule(path)._parameters[leaf] = known


def _check_manifest(folder: Path) -> bool:
    """See that every file is the one that was saved; says whether there is a graph."""
    if not folder.is_dir():
        raise FileFormatError(f"{folder} is no folder; run `l0prune shrink` first, or give the folder it wrote")
    manifest = _read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FileFormatError(f"{folder / MANIFEST} is no manifest of a compact model; run shrink again")
    if manifest.get("version") != VERSION:
        raise FileFormatError(
            f"{folder / MANIFEST} has version {manifest.get('version')!r}; this l0prune reads version {VERSION}; run shrink again"
        )
    if set(manifest) - {_REFUSAL} != _MANIFEST_KEYS or not isinstance(manifest["files"], dict):
        odd = ", ".join(sorted((set(manifest) - {_REFUSAL}) ^ _MANIFEST_KEYS)) or "files"
        raise FileFormatError(f"{folder / MANIFEST} has missing or unknown keys: {odd}; run shrink again")
    with_graph = _REFUSAL not in manifest
    for name in FILES if with_graph else (WEIGHTS, PLAN):
        if not (folder / name).is_file():
            raise FileFormatError(f"{folder / name} is missing; run shrink again")
        if _sha256(folder / name) != manifest["files"].get(name):
            raise FileFormatError(
                f"{folder / name} is not the file that was saved (its SHA-256 differs from {MANIFEST}); run shrink again"
            )
    return with_graph


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FileFormatError(f"{path} is missing; run shrink again") from None
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read as JSON ({error}); run shrink again") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
