"""The configuration, if there is one, at which the class of a cut model has its sizes: then nothing but transformers loads it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.errors import ConfigError
from l0prune.model_call import ModelCall, signature_of
from l0prune.sources.class_settings import ClassSettings, Shapes
from l0prune.sources.libraries import optional
from l0prune.sources.library_models import LibraryModel
from l0prune.surgery.equivalence import compare
from l0prune.surgery.into_class import tolerance_of
from l0prune.surgery.reaction import holding, own_modules
from l0prune.surgery.record import Surgery, call_of, surgery_of
from l0prune.surgery.redrawn import numbers_for

__all__ = ["PlainModel", "plain_model"]

_N_DRAWS = 2


class PlainModel:
    """A configuration that says the sizes of a cut model.

    Attributes:
        config: The entries of `config.json`.
        dense: The dense model, without memory.
    """

    def __init__(self, compact: Any, settings: ClassSettings, changes: Mapping[str, Any]) -> None:
        config: dict[str, Any] = json.loads(settings.config(changes).to_json_string(use_diff=False))
        config |= {key: settings.stated[key] for key in settings.stated.keys() - config.keys()} | dict(changes)
        config["architectures"] = [settings.name]
        config["dtype"] = str(next(compact.parameters()).dtype).removeprefix("torch.")
        if "use_cache" in config and compact.can_generate():
            config["use_cache"] = True
        for elsewhere in ("_name_or_path", "auto_map"):
            config.pop(elsewhere, None)
        self.config = config
        self.dense = settings.built({})


def plain_model(compact: Any, *, required: bool = False) -> PlainModel | None:
    """The configuration at which the class of a cut model has the same sizes, and gives the same outputs.

    Args:
        compact: A cut model of transformers.
        required: Whether it is an error that there is none.

    Raises:
        ConfigError: there is none, although it is required; says why.
    """
    try:
        found = _found(compact)
    except ConfigError:
        if required:
            raise
        return None
    if found is None and required:
        name = type(compact).__name__
        raise ConfigError(
            f"no configuration of {name} gives the sizes and outputs of the cut model: prune it with uniform"
        )
    return found


def _found(compact: Any) -> PlainModel | None:
    """The first configuration that does.

    Raises:
        ConfigError: there cannot be one; says why.
    """
    record = surgery_of(compact)
    _require_uniform(compact)
    settings = ClassSettings(compact, _dense_configuration(compact, record))
    shapes = {name: tuple(tensor.shape) for name, tensor in compact.named_parameters(remove_duplicate=False)}
    for changes in _changes(settings, shapes, record):
        if settings.shapes_at(changes) == shapes and _is_equal(compact, settings, changes):
            return PlainModel(compact, settings, changes)
    return None


def _require_uniform(compact: nn.Module) -> None:
    """See that tensors whose names differ in the numbers of layers alone, have one shape.

    Raises:
        ConfigError: names two that do not.
    """
    first: dict[str, tuple[str, torch.Size]] = {}
    for name, tensor in compact.named_parameters():
        known, shape = first.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "#", name), (name, tensor.shape))
        if shape != tensor.shape:
            raise ConfigError(
                f"{known!r} has shape {tuple(shape)} and {name!r} {tuple(tensor.shape)}, but a configuration has one size for all"
                " layers: prune with uniform, which keeps them alike"
            )


def _dense_configuration(compact: Any, record: Surgery) -> dict[str, Any]:
    """That of the compact model, for what its user has changed since the cut, with the sizes of the dense one."""
    stated: dict[str, Any] = json.loads(compact.config.to_json_string(use_diff=False))
    for change in record.plan.attributes:
        holder, _, name = change.attribute.rpartition(".")
        if (change.module, holder) == ("", "config"):
            stated[name] = change.dense
    return stated


def _changes(settings: ClassSettings, shapes: Shapes, record: Surgery) -> Iterator[dict[str, int]]:
    """Settings at which the class may have the shapes of the cut model; those that no size tells follow its modules' integers."""
    integers: dict[int, set[int]] = defaultdict(set)
    for change in record.plan.attributes:
        if type(change.dense) is int and type(change.compact) is int:
            integers[change.dense].add(change.compact)
    pairs = {
        pair
        for name in settings.shapes.keys() & shapes.keys()
        for pair in zip(shapes[name], settings.shapes[name], strict=True)
    }
    return settings.changes_for(shapes, integers, shares={Fraction(new, old) for new, old in pairs if new != old})


def _is_equal(compact: Any, settings: ClassSettings, changes: Mapping[str, Any]) -> bool:
    """Whether the class, at other settings, computes what the cut model does: with its weights, and with others."""
    call = call_of(compact)
    signature = signature_of(compact)
    if signature is not None and "use_cache" in signature.parameters:
        call = ModelCall(call.args, {"use_cache": False, **call.kwargs})
    try:
        plain = _built(compact, settings, changes)
        alike = compare(compact, plain, call.args, call.kwargs).max_rel <= tolerance_of(compact, call)
        return alike and all(_agree_on_draw(compact, plain, call, seed) for seed in range(_N_DRAWS))
    except Exception:  # noqa: BLE001 - whatever a class says of settings or weights that do not fit each other
        return False


def _built(compact: Any, settings: ClassSettings, changes: Mapping[str, Any]) -> nn.Module:
    """The class at other settings, with the tensors of the cut model."""
    version = optional("transformers", "hf").__version__
    origin = LibraryModel("hf", settings.name, {**settings.stated, **changes}, version)
    plain = origin.build(n_tensors=len(settings.shapes), empty=True)
    plain.load_state_dict(compact.state_dict(), assign=True)
    return plain.to(next(compact.parameters()).device).eval()


def _agree_on_draw(compact: nn.Module, plain: nn.Module, call: ModelCall, seed: int) -> bool:
    """Whether two models with the same tensors compute the same with others in their place: trained ones may hide that."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[int, Tensor] = {}
    placed: dict[str, Tensor] = {}
    for path, module in own_modules(compact):
        for leaf, tensor in module._parameters.items():
            if tensor is not None:
                if id(tensor) not in made:
                    made[id(tensor)] = numbers_for(leaf, tensor, generator, 0.0).to(tensor)
                placed[f"{path}.{leaf}" if path else leaf] = made[id(tensor)]
    with holding(compact, placed), holding(plain, placed):
        return compare(compact, plain, call.args, call.kwargs).max_rel <= tolerance_of(compact, call)
