"""Save and load compact models: weights, plan and graph; no pickled code anywhere."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from l0prune.errors import CaptureError, CheckpointError, FileFormatError, L0PruneWarning, PlanMismatchError, first_line
from l0prune.files import draft_folder
from l0prune.model_call import ModelCall, evaluation_mode
from l0prune.reading import reading
from l0prune.sources.compact_folder import MANIFEST, PLAN, PROGRAM, WEIGHTS, CompactFolder, manifest_of, read_graph
from l0prune.surgery.equivalence import Difference, compare
from l0prune.surgery.graph_model import GraphModel
from l0prune.surgery.plan import SurgeryPlan
from l0prune.surgery.record import Surgery, remember_surgery_, surgery_of

if TYPE_CHECKING:
    from l0prune.flow.capture import Captured
    from l0prune.sources.preprocessing import Preprocessing

__all__ = ["has_graph", "load", "save"]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative difference allowed between a model and what is read back of it, by the coarsest dtype; 2e-2 for the others."""


def save(compact: nn.Module, directory: str | Path, *, preprocessing: Preprocessing | None = None) -> Path:
    """Write a compact model: `model.safetensors`, `surgery.json`, `model.pt2` and `manifest.json`.

    The files are written to a temporary folder, read back and compared with the model; then the folder takes the place of
    `directory`. A model of which no graph can be saved has no `model.pt2`: a warning and the manifest say why, and it is loaded
    with its dense model as `base`.

    Args:
        compact: From `l0prune.shrink` or `l0prune.load`, perhaps trained further.
        directory: Folder to write; an earlier compact model in it is replaced.
        preprocessing: How images become its input, to be known when the folder is used as a model.

    Returns:
        The folder.

    Raises:
        ConfigError: the model comes neither from `shrink` nor from `load`.
        FileFormatError: the folder exists and holds something else.
        CheckpointError: the weights cannot be written, or nothing could load the folder.
    """
    from l0prune import __version__
    from l0prune.sources.weights import save_weights

    record = surgery_of(compact)
    target = Path(directory)
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).exists():
        raise FileFormatError(f"{target} exists and is no compact model; choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(target) as folder:
        draft = folder / "new"
        draft.mkdir()
        save_weights(compact, draft / WEIGHTS)
        (draft / PLAN).write_text(json.dumps(record.plan.to_json()))
        captured, refusal = _save_graph(compact, record, draft)
        if refusal is not None and record.form == "graph":
            raise CheckpointError(
                f"{target}: nothing could load the model again: it was cut in its graph, and {refusal}; keep the dense model"
                " and the gates, and shrink them again"
            )
        contents = {
            "l0prune": __version__,
            "model_class": type(compact).__name__,
            "form": record.form,
            "max_rel_diff": record.difference.max_rel,
            "dynamic_batch": captured is not None and captured.dynamic_batch,
        }
        manifest = manifest_of(
            draft, contents, refusal=refusal, preprocessing=preprocessing, class_lost=record.not_in_place_because
        )
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))
        old = folder / "old"
        if os.path.lexists(target):
            target.replace(old)
        try:
            draft.replace(target)
        except OSError:
            if os.path.lexists(old):
                old.replace(target)
            raise
    for complaint in _not_saved(compact, refusal):
        warnings.warn(f"{target}: {complaint}", L0PruneWarning, stacklevel=2)
    return target


def _save_graph(compact: nn.Module, record: Surgery, draft: Path) -> tuple[Captured | None, str | None]:
    """Write `model.pt2`, if it is read back as the model that was saved; else say why it is not there."""
    from l0prune.flow.capture import capture

    if not (record.example_args or record.example_kwargs):
        return None, record.no_graph_because or "no inputs are known that the model runs on"
    call = _fitting(compact, record)
    refusals: list[str] = []

    def is_readable(captured: Captured) -> bool:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.export.save(captured.program, draft / PROGRAM)
        except Exception as error:  # noqa: BLE001 - whatever torch raises about what its format does not hold
            refusals.append(f"torch.export.save cannot write its graph: {first_line(error, named=True)}")
            return False
        refusal = _misread(compact, draft, captured)
        refusals.extend([refusal] if refusal else [])
        return refusal is None

    try:
        return capture(compact, call, images=True, accept=is_readable), None
    except CaptureError as error:
        (draft / PROGRAM).unlink(missing_ok=True)
        return None, refusals[-1] if refusals else str(error).partition(";")[0]


def _misread(compact: nn.Module, draft: Path, captured: Captured) -> str | None:
    """What is wrong with the graph in a folder: `load` must read it, and at all free sizes it computes what the model does."""
    call = ModelCall(captured.args, captured.kwargs)
    try:
        module, _, _ = read_graph(draft / PROGRAM)
        graph = GraphModel(module, module.graph).eval()
        found = compare(compact, graph, call.args, call.kwargs).max_rel
    except FileFormatError as error:
        return str(error).replace(f"{draft}/", "").partition(", which a plain")[0].partition("; write it")[0]
    except Exception as error:  # noqa: BLE001 - whatever torch raises about a graph that it wrote itself
        return f"its graph, read back, does not run: {first_line(error, named=True)}"
    tolerance = _tolerance(compact, call)
    if found > tolerance:
        return f"its graph, read back, gives outputs that differ by {found:.1e}"
    others = [other for other in captured.free.others(call) if _runs(compact, other)]
    if captured.free.lengths and not others:
        return "it runs at no other sizes"
    for other in others:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in other.tensors)
        try:
            found = compare(compact, graph, other.args, other.kwargs).max_rel
        except Exception as error:  # noqa: BLE001 - whatever fails inside a graph
            return f"its graph, read back, does not run at {shapes}: {first_line(error, named=True)}"
        if found > tolerance:
            return f"its graph, read back, gives outputs that differ by {found:.1e} at {shapes}"
    return None


def _runs(model: nn.Module, call: ModelCall) -> bool:
    try:
        with evaluation_mode(model), torch.no_grad():
            call(model)
    except Exception:  # noqa: BLE001 - whatever a model raises at sizes that it does not take
        return False
    return True


def _tolerance(model: nn.Module, call: ModelCall) -> float:
    dtypes = {t.dtype for t in [*model.parameters(), *call.tensors] if t.is_floating_point()}
    return max((_TOLERANCE.get(dtype, 2e-2) for dtype in dtypes), default=0.0)


def _fitting(compact: nn.Module, record: Surgery) -> ModelCall:
    """The call that the model was verified with, where it lives now, and in the precision it has been converted to since."""
    call = ModelCall(record.example_args, record.example_kwargs)
    device = next((parameter.device for parameter in compact.parameters()), None)
    kinds = {parameter.dtype for parameter in compact.parameters() if parameter.is_floating_point()}
    moved = call.to(device=device)
    if len(kinds) != 1 or all(tensor.dtype in kinds for tensor in moved.tensors if tensor.is_floating_point()):
        return moved
    try:
        with evaluation_mode(compact), torch.no_grad():
            moved(compact)
    except Exception:  # noqa: BLE001 - whatever a model raises whose inputs have another precision than its weights
        return call.to(device=device, dtype=kinds.pop())
    return moved


def _not_saved(compact: nn.Module, refusal: str | None) -> list[str]:
    """What a loaded model will lack."""
    complaints = []
    if refusal is not None:
        complaints.append(f"saved without {PROGRAM}, because {refusal}; load it with its dense model, base=model")
    extra = [name for name, value in compact.state_dict().items() if not isinstance(value, Tensor)]
    if extra:
        complaints.append(f"saved without {', '.join(extra[:3])}{' ...' * (len(extra) > 3)}, which is no tensor")
    return complaints


def load(directory: str | Path, base: nn.Module | None = None) -> nn.Module:
    """Read a compact model that `save` wrote. Nothing in the folder is run as code.

    Args:
        directory: The folder.
        base: A dense model of the class and sizes the compact one came from; it is cut in place (on a copy) and given the
            saved weights, so the result has its class. None gives a module of the saved graph.

    Returns:
        The model in evaluation mode, with the same state-dict keys either way. It can be trained, saved and pruned again.

    Raises:
        FileFormatError: a file is missing, damaged, of an unknown version, or not the one that was saved.
        PlanMismatchError: `base` is not the dense model the plan was made for, or is needed and not given.
    """
    with reading(directory, "compact model", remedy="run shrink again", folder=True):
        return _load(CompactFolder.open(directory), base)


def _load(folder: CompactFolder, base: nn.Module | None) -> nn.Module:
    plan = SurgeryPlan.from_json(folder.plan, source=str(folder.path / PLAN))
    if base is None:
        if folder.no_graph_because is not None:
            raise PlanMismatchError(
                f"{folder.path} has no {PROGRAM}, because {folder.no_graph_because}; pass the dense model as base="
            )
        module, args, kwargs = folder.graph()
        model: nn.Module = GraphModel(module, module.graph)
        _tie_(model)
        model = _filled(model, folder)
    else:
        plan.check(base)
        if plan.form == "graph":
            because = folder.not_in_place_because
            raise PlanMismatchError(
                f"{folder.path} was cut in its graph, not in its class"
                f"{because and f' ({because})'}; load it without base="
            )
        args, kwargs = folder.example_inputs()
        model, plan = _in_class(folder, base, plan, ModelCall(args, kwargs))
    replayed = base is not None or folder.manifest["form"] == plan.form
    difference = Difference(math.nan, folder.manifest["max_rel_diff"], 0)
    free_batch = folder.manifest["dynamic_batch"]
    record = Surgery(
        plan,
        None,
        np.zeros(0),
        difference,
        args,
        kwargs,
        free_batch,
        replayed,
        folder.no_graph_because or "",
        not_in_place_because="" if base is not None else folder.not_in_place_because,
    )
    remember_surgery_(model, record)
    return model.eval()


def _in_class(
    folder: CompactFolder, base: nn.Module, plan: SurgeryPlan, call: ModelCall
) -> tuple[nn.Module, SurgeryPlan]:
    """A copy of `base`, cut and with the saved weights, and the plan by which it was cut."""
    from l0prune.surgery.in_place import cut_in_place
    from l0prune.surgery.replay import ways_to_replay

    if folder.manifest["form"] == plan.form:
        return _filled(cut_in_place(base, plan), folder), plan
    module, _, _ = folder.graph()
    graph = _filled(GraphModel(module, module.graph), folder)
    for model, used in ways_to_replay(base, plan, call):
        try:
            filled = _filled(model, folder)
            found = compare(graph, filled, call.args, call.kwargs)
        except Exception:  # noqa: BLE001 - whatever a class raises whose layers do not fit together
            continue
        if found.max_rel <= _tolerance(graph, call):
            return filled, used
    raise PlanMismatchError(
        f"{folder.path} was cut in its graph after it had been loaded without its class, and the {type(base).__name__} cannot be"
        " cut in the same way; load it without base="
    )


def _filled(model: nn.Module, folder: CompactFolder) -> nn.Module:
    """The model with the saved weights, in their precision."""
    from l0prune.sources.weights import load_weights_

    load_weights_(model, folder.weights, precision=True)
    return model.eval()


def has_graph(directory: str | Path) -> bool:
    """Whether a folder that `save` wrote can be loaded without its dense model as `base`.

    Raises:
        FileFormatError: as `load`.
    """
    return CompactFolder.open(directory).no_graph_because is None


def _tie_(model: nn.Module) -> None:
    """Parameters that lie in the same memory become one parameter, as they were when they were saved."""
    first: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        known = first.setdefault(parameter.data_ptr(), parameter) if parameter.numel() else parameter
        if known is not parameter and known.shape == parameter.shape:
            path, _, leaf = name.rpartition(".")
            model.get_submodule(path)._parameters[leaf] = known
