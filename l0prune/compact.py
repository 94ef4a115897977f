"""Save and load compact models: weights, plan and graph; no pickled code anywhere."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from l0prune.errors import CaptureError, CheckpointError, FileFormatError, L0PruneWarning, PlanMismatchError, first_line
from l0prune.files import replaced_folder
from l0prune.model_call import ModelCall
from l0prune.reading import reading
from l0prune.sources.compact_folder import (
    MANIFEST,
    PLAN,
    PROGRAM,
    WEIGHTS,
    CompactFolder,
    Manifest,
    hashes_of,
    read_graph,
)
from l0prune.surgery.equivalence import Difference, compare
from l0prune.surgery.graph_model import GraphModel
from l0prune.surgery.into_class import dense_model, filled, in_class, library_of, tolerance_of
from l0prune.surgery.plan import SurgeryPlan
from l0prune.surgery.record import Surgery, call_of, remember_surgery_, surgery_of

if TYPE_CHECKING:
    from l0prune.look.capture import Captured
    from l0prune.sources.preprocessing import Preprocessing

__all__ = ["has_graph", "load", "save"]


def save(compact: nn.Module, directory: str | Path, *, preprocessing: Preprocessing | None = None) -> Path:
    """Write a compact model: `model.safetensors`, `surgery.json`, `model.pt2` and `manifest.json`.

    The files are written to a temporary folder, read back and compared with the model; then the folder replaces
    `directory`. If timm, torchvision, transformers or l0prune itself can build the dense model again, the manifest says
    how, and `load` gives back that class. A model whose graph cannot be saved has no `model.pt2`, and the manifest says
    why; there is also a warning if it can then only be loaded with its dense model as `base`.

    Args:
        compact: From `l0prune.shrink` or `l0prune.load`, perhaps trained further.
        directory: Folder to write; an earlier compact model in it is replaced.
        preprocessing: How images become its input, stored for when the folder is used as a model.

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
        raise FileFormatError(f"{target} exists and is not a compact model; choose another folder")
    with replaced_folder(target) as draft:
        save_weights(compact, draft / WEIGHTS)
        (draft / PLAN).write_text(json.dumps(record.plan.to_json()))
        captured, refusal = _save_graph(compact, record, draft)
        library = library_of(compact, record, call_of(compact), draft / WEIGHTS)
        if refusal is not None and record.form == "graph":
            raise CheckpointError(
                f"{target}: the saved model could not be loaded again: it was cut in its graph, and {refusal}; keep the dense"
                " model and the gates, and shrink them again"
            )
        manifest = Manifest(
            l0prune=__version__,
            model_class=type(compact).__name__,
            form=record.form,
            max_rel_diff=record.difference.max_rel,
            dynamic_batch=captured is not None and captured.dynamic_batch,
            files=hashes_of(draft),
            no_graph_because=refusal,
            preprocessing=None if preprocessing is None else preprocessing.to_json(),
            not_in_place_because=record.not_in_place_because,
            library=None if library is None else library.to_json(),
        )
        (draft / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=1))
    for complaint in _not_saved(compact, refusal, has_class=library is not None):
        warnings.warn(f"{target}: {complaint}", L0PruneWarning, stacklevel=2)
    return target


def _save_graph(compact: nn.Module, record: Surgery, draft: Path) -> tuple[Captured | None, str | None]:
    """Write `model.pt2`, if it is read back as the model that was saved; else say why it is not there."""
    from l0prune.look.capture import capture

    call = call_of(compact)
    if not (call.args or call.kwargs):
        return None, record.no_graph_because or "no inputs are known on which the model runs"
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
        return capture(compact, call, images=True, tuples=True, accept=is_readable), None
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
    tolerance = tolerance_of(compact, call)
    if found > tolerance:
        return f"its graph, read back, gives outputs that differ by {found:.1e}"
    others = [other for other in captured.free.others(call) if other.runs_in(compact)]
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


def _not_saved(compact: nn.Module, refusal: str | None, *, has_class: bool) -> list[str]:
    """What a loaded model will lack."""
    complaints = []
    if refusal is not None and not has_class:
        complaints.append(f"saved without {PROGRAM}, because {refusal}; load it with its dense model, base=model")
    extra = [name for name, value in compact.state_dict().items() if not isinstance(value, Tensor)]
    if extra:
        complaints.append(f"saved without {', '.join(extra[:3])}{' ...' * (len(extra) > 3)}, which is not a tensor")
    return complaints


def load(directory: str | Path, base: nn.Module | None = None) -> nn.Module:
    """Read a compact model that `save` wrote. Nothing in the folder is run as code.

    Args:
        directory: The folder.
        base: A dense model of the class and sizes the compact one came from. A copy of it is cut in place and given the
            saved weights, so the result has its class. None gives the class of the library the dense model came from, if
            `save` recorded it and the installed library can build it, or else a module of the saved graph.

    Returns:
        The model in evaluation mode, with the same state-dict keys either way. It can be trained, saved and pruned again.

    Raises:
        FileFormatError: a file is missing, damaged, of an unknown version, or not the one that was saved.
        PlanMismatchError: `base` is not the dense model the plan was made for, or it is required but missing.
    """
    with reading(directory, "compact model", remedy="run shrink again", folder=True):
        return _load(CompactFolder.open(directory), base)


def _load(folder: CompactFolder, base: nn.Module | None) -> nn.Module:
    plan = SurgeryPlan.from_json(folder.plan, source=str(folder.path / PLAN))
    found = _of_library(folder, plan) if base is None else None
    if base is not None:
        plan.check(base)
        if plan.form == "graph":
            because = folder.manifest.not_in_place_because
            raise PlanMismatchError(
                f"{folder.path} was cut in its graph, not in its class"
                f"{because and f' ({because})'}; load it without base="
            )
        call = ModelCall(*folder.example_inputs())
        model, plan = in_class(base, plan, folder, call)
    elif found is not None:
        model, plan, call = found
    else:
        if folder.manifest.no_graph_because is not None:
            raise PlanMismatchError(
                f"{folder.path} has no {PROGRAM}, because {folder.manifest.no_graph_because}; pass the dense model as base="
            )
        model, call = _graph(folder)
    replayed = not isinstance(model, GraphModel) or folder.manifest.form == plan.form
    record = Surgery(
        plan,
        None,
        np.zeros(0),
        Difference(math.nan, folder.manifest.max_rel_diff, 0),
        call.args,
        call.kwargs,
        folder.manifest.dynamic_batch,
        replayed,
        folder.manifest.no_graph_because or "",
        not_in_place_because=folder.manifest.not_in_place_because if isinstance(model, GraphModel) else "",
        origins=() if folder.library is None else (folder.library,),
    )
    remember_surgery_(model, record)
    return model.eval()


def _graph(folder: CompactFolder) -> tuple[nn.Module, ModelCall]:
    """The saved graph with the saved weights, and its example inputs."""
    module, args, kwargs = folder.graph()
    model = GraphModel(module, module.graph)
    _tie_(model)
    return filled(model, folder.weights), ModelCall(args, kwargs)


def _of_library(folder: CompactFolder, plan: SurgeryPlan) -> tuple[nn.Module, SurgeryPlan, ModelCall] | None:
    """The model in the class of its library, its plan and example inputs; None, with a warning, if that fails."""
    origin = folder.library
    if origin is None:
        return None
    try:
        call = ModelCall(*folder.example_inputs())
        base = dense_model(origin, plan, folder.weights)
        model, used = in_class(base, plan, folder, call, compared=folder.manifest.no_graph_because is None)
    except Exception as error:
        why = f"{folder.path} cannot be loaded as {origin.kind}:{origin.name}: {first_line(error).rstrip('.')}"
        if folder.manifest.no_graph_because is not None:
            raise PlanMismatchError(f"{why}; it has no {PROGRAM}, so pass the dense model as base=") from error
        warnings.warn(f"{why}; it is loaded as the module of its graph", L0PruneWarning, stacklevel=4)
        return None
    if folder.manifest.no_graph_because is not None and not origin.is_of_this_version:
        warnings.warn(
            f"{folder.path} was made with {origin.kind} {origin.version}, but another version is installed, and it has no graph"
            " to compare with: compare its outputs yourself",
            L0PruneWarning,
            stacklevel=4,
        )
    return model, used, call


def has_graph(directory: str | Path) -> bool:
    """Whether a folder that `save` wrote can be loaded without any dense model, from its graph.

    Raises:
        FileFormatError: as `load`.
    """
    return CompactFolder.open(directory).manifest.no_graph_because is None


def _tie_(model: nn.Module) -> None:
    """Parameters that lie in the same memory become one parameter, as they were when they were saved."""
    first: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        known = first.setdefault(parameter.data_ptr(), parameter) if parameter.numel() else parameter
        if known is not parameter and known.shape == parameter.shape:
            path, _, leaf = name.rpartition(".")
            model.get_submodule(path)._parameters[leaf] = known
