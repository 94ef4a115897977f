"""Read a cut model into its class: built without memory, cut by the plan, filled."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from l0prune.errors import FileFormatError, L0PruneWarning, first_line
from l0prune.reading import is_file, read_json, reading
from l0prune.sources.hf_folder import CONFIG, KIND, PLAN, REMEDY, CutFolder, is_cut
from l0prune.sources.libraries import build_hf, optional, quiet
from l0prune.surgery.equivalence import Difference
from l0prune.surgery.in_place import cut_in_place
from l0prune.surgery.into_class import allocated, dense_model, filled
from l0prune.surgery.plan import SurgeryPlan
from l0prune.surgery.record import Surgery, remember_surgery_

__all__ = ["GENERATION", "dense_of", "from_pretrained", "model_of", "plan_of", "record_of"]

GENERATION = "generation_config.json"


def from_pretrained(directory: str | Path, **config: Any) -> nn.Module:
    """Read a model that `save_pretrained` wrote, as the class of transformers that it was.

    The class is built without memory for its weights, cut by the plan, and filled. No code of the folder is run, and no more
    memory is taken than the cut model needs.

    Args:
        directory: The folder.
        config: Entries of the configuration to change, as in `use_cache=False`; sizes stay as they are.

    Returns:
        The model in evaluation mode, on the CPU, in the precision of its file. It can be trained, pruned again, and saved.

    Raises:
        ConfigError: the configuration has no such entry, or it cannot be changed.
        ModelSpecError: transformers is not installed, or does not build the model.
        FileFormatError: a file is missing, damaged, of an unknown version, or asks for code.
        CheckpointError: the weights do not fit.
        PlanMismatchError: this version of transformers builds the dense model with other tensors.
    """
    optional("transformers", "hf")
    with reading(directory, KIND, remedy=REMEDY, folder=True):
        if not is_cut(directory) and is_file(Path(directory) / PLAN):
            return _plain(Path(directory), config)
        folder = CutFolder.open(directory, config)
        model = model_of(folder)
        if not folder.origin.is_of_this_version:
            warnings.warn(
                f"{directory} was written with transformers {folder.section.transformers}, but another version is installed:"
                " compare its outputs with those of onnx/model.onnx",
                L0PruneWarning,
                stacklevel=2,
            )
        return model


def _plain(directory: Path, config: dict[str, Any]) -> nn.Module:
    """The model in a folder that transformers loads itself: it has no record of its cut, and is pruned again as a dense one."""
    stated = read_json(directory / CONFIG, "configuration of transformers")
    model: Any = build_hf(str(directory), config, pretrained=True).model
    if "use_cache" not in config and "use_cache" in stated:
        model.config.use_cache = bool(stated["use_cache"])
    dtype = getattr(torch, str(stated.get("dtype")), None)
    return model.to(dtype).eval() if isinstance(dtype, torch.dtype) else model.eval()


def dense_of(folder: CutFolder) -> nn.Module:
    """The dense model that the one in a folder was cut from, without memory for its weights."""
    return dense_model(folder.origin, plan_of(folder), folder.weights, empty=True)


def model_of(folder: CutFolder) -> nn.Module:
    """The model in a folder, with the record of its cut."""
    plan = plan_of(folder)
    model: Any = filled(allocated(cut_in_place(dense_of(folder), plan)), folder.weights)
    _configure_(model, folder)
    remember_surgery_(model, record_of(folder))
    return model.eval()


def record_of(folder: CutFolder) -> Surgery:
    """What is known of the cut of the model in a folder."""
    return Surgery(
        plan_of(folder),
        None,
        np.zeros(0),
        Difference(math.nan, folder.section.max_rel_diff, 0),
        (),
        folder.example_inputs(),
        dynamic_batch=True,
        origins=(folder.origin,),
        budget=folder.section.budget,
        costs=folder.section.costs,
    )


def plan_of(folder: CutFolder) -> SurgeryPlan:
    """The plan in a folder.

    Raises:
        FileFormatError: it is none that a class can be cut by.
    """
    source = str(folder.path / PLAN)
    plan = SurgeryPlan.from_json(folder.plan, source=source)
    if plan.form != "in-place":
        raise FileFormatError(f"{source} was made for a graph, and transformers loads classes; {REMEDY}")
    return plan


def _configure_(model: Any, folder: CutFolder) -> None:
    """What transformers leaves on a model that it has loaded."""
    model.config._name_or_path = str(folder.path)
    model.name_or_path = str(folder.path)
    file = folder.path / GENERATION
    if is_file(file) and getattr(model, "generation_config", None) is not None:
        transformers = optional("transformers", "hf")
        stated = read_json(file, "configuration of generate", remedy=REMEDY)
        try:
            with quiet(transformers):
                model.generation_config = transformers.GenerationConfig.from_dict(stated)
        except Exception as error:
            raise FileFormatError(f"{file} cannot be understood ({first_line(error)}); {REMEDY}") from error
