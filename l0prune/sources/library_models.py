"""Dense models of libraries as data: a name in the library's own registry, and plain arguments. Nothing else can be named."""

from __future__ import annotations

import copy
import json
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registration

from l0prune import models
from l0prune.errors import FileFormatError, L0PruneError, ModelSpecError
from l0prune.plain_data import read_fields
from l0prune.reading import shortened
from l0prune.sources.libraries import (
    LAYERS,
    NAMED_LABELS,
    build_timm,
    build_torchvision,
    construct,
    hub_code,
    optional,
    quiet,
)

__all__ = ["LibraryModel", "origins_of", "remember_origin_"]

PACKAGES = {"l0prune": "l0prune", "timm": "timm", "torchvision": "torchvision", "hf": "transformers"}
LARGEST = 1 << 24
"""Of whole numbers among the arguments: vocabularies, lengths and bases of rotary embeddings are smaller."""
ALWAYS_FINE, A_TENSOR = 10_000, 100
"""Parameters, buffers and modules that may be made: so many, and so many more for each tensor of the weights."""
_ORIGIN, _EMPTY = "_l0prune_origin", "_l0prune_empty"
_LABELS = {"id2label", "label2id"}
_OPENS = {"checkpoint_path", "cache_dir", "progress", "scriptable", "exportable", "no_jit"}
"""Arguments that are not of the model: what is opened, kept or compiled while it is built."""
_FETCHES = {"auto_map", "use_pretrained_backbone"}
"""What of a configuration asks for code, or for weights."""


@dataclass(frozen=True)
class LibraryModel:
    """How a library builds a dense model, without its weights.

    Attributes:
        kind: "l0prune", "timm", "torchvision" or "hf" (transformers).
        name: In the library's registry; of transformers the name of one of its own model classes.
        args: Plain keyword arguments; of transformers the configuration.
        version: Of the library.
    """

    kind: str
    name: str
    args: dict[str, Any]
    version: str

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, source: str, *, remedy: str = "run shrink again") -> LibraryModel:
        """The inverse of `to_json`; nothing is imported.

        Raises:
            FileFormatError: keys are missing or unknown, a value is of another kind, or an argument asks for more than a model.
        """
        read = read_fields(cls, data, source, remedy=remedy)
        if read.kind not in PACKAGES:
            raise FileFormatError(f"{source} has kind {read.kind[:40]!r}, expected {', '.join(PACKAGES)}; {remedy}")
        wrong = _unsafe(read.kind, {"name": read.name}) or _unsafe(read.kind, read.args)
        if wrong is not None:
            raise FileFormatError(f"{source} was refused, and nothing in it was run: {wrong}; {remedy}")
        return read

    def build(self, *, n_tensors: int, empty: bool = False) -> nn.Module:
        """The model with random weights, on the device that is current; random generators stay as they are.

        Args:
            n_tensors: Of its weights, by which it is seen that no more is built than they can be of.
            empty: Leave its parameters on the meta device, without memory; its buffers have the values they are built with.

        Raises:
            ModelSpecError: the library is not installed, has no such model, or cannot build it.
        """
        spec = f"{self.kind}:{self.name}"
        place = _parameters_on_meta() if empty else nullcontext()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), _bounded(spec, n_tensors), place:
            warnings.simplefilter("ignore")
            if self.kind == "timm":
                return build_timm(self.name, copy.deepcopy(self.args), pretrained=False).model
            if self.kind == "torchvision":
                return build_torchvision(self.name, copy.deepcopy(self.args), pretrained=False, initialised=False).model
            if self.kind == "hf":
                return _built_hf(spec, self.name, copy.deepcopy(self.args))
            if self.name not in models.names():
                raise ModelSpecError(f"l0prune has no model {self.name[:60]!r}.")
            built: nn.Module = construct(spec, models.entry(self.name).factory, **self.args)
            return built

    @property
    def is_of_this_version(self) -> bool:
        """Whether the library that is installed is the one the model was built with."""
        return _version(self.kind) == self.version


def remember_origin_(model: nn.Module, kind: str, name: str, args: Mapping[str, Any]) -> None:
    """Leave on a model how its library built it."""
    object.__setattr__(model, _ORIGIN, (kind, name, dict(args)))


def origins_of(model: nn.Module) -> tuple[LibraryModel, ...]:
    """How a library may have built a model, the likeliest first; to be compared with it. No library is imported for it."""
    found = []
    for kind, name, args in _candidates(model):
        with suppress(L0PruneError, TypeError, ValueError, RecursionError):
            data = {"kind": kind, "name": name, "args": args, "version": _version(kind)}
            origin = LibraryModel.from_json(json.loads(json.dumps(data, allow_nan=False)), "the model")
            found += [origin] if origin not in found else []
    return tuple(found)


def _candidates(model: nn.Module) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if isinstance(model.__dict__.get(_ORIGIN), tuple):
        yield model.__dict__[_ORIGIN]
    built_as = model.__dict__.get(models.BUILT_AS)
    if isinstance(built_as, tuple):
        yield "l0prune", *built_as
    library = type(model).__module__.partition(".")[0]
    if library == "timm":
        yield from _of_timm(model)
    elif library == "torchvision":
        yield from _of_torchvision(model)
    elif library == "transformers":
        yield from _of_transformers(model)


def _of_timm(model: nn.Module) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The architecture that the model says it is of, with as few arguments as may do."""
    stated = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    name = stated.get("architecture") if isinstance(stated, Mapping) else None
    if not isinstance(name, str):
        return
    first = next((parameter for parameter in model.parameters() if parameter.dim() == 4), None)
    known = {
        "num_classes": _n_classes(model),
        "in_chans": None if first is None else first.shape[1],
        "img_size": getattr(getattr(model, "patch_embed", None), "img_size", None),
        "global_pool": getattr(model, "global_pool", None),
    }
    args: dict[str, Any] = {}
    yield "timm", name, {}
    for key, value in known.items():
        if isinstance(value, int | str | tuple):
            args = {**args, key: value}
            yield "timm", name, args


def _n_classes(model: Any) -> Any:
    """Outputs of the classifier that a timm model has now, or as many as it says."""
    with suppress(Exception):
        return model.get_classifier().out_features
    return getattr(model, "num_classes", None)


def _of_torchvision(model: nn.Module) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every name of the file that the class is defined in: torchvision's models do not say which they are."""
    library = sys.modules["torchvision.models"]
    last = next(
        (module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear | nn.Conv2d)), None
    )
    n_classes = {nn.Linear: "out_features", nn.Conv2d: "out_channels"}
    for name in library.list_models(module=library):
        if library.get_model_builder(name).__module__ == type(model).__module__:
            yield "torchvision", name, {}
            if last is not None:
                yield "torchvision", name, {"num_classes": getattr(last, n_classes[type(last)], None)}


def _of_transformers(model: nn.Module) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """A class that transformers exports, and its configuration as it is now."""
    name = type(model).__name__
    config: Any = getattr(model, "config", None)
    if getattr(sys.modules["transformers"], name, None) is type(model) and hasattr(config, "to_dict"):
        stated = config.to_dict()
        for elsewhere in (
            "_name_or_path",
            "auto_map",
        ):  # a folder or a page of the hub, and code that is not this class
            stated.pop(elsewhere, None)
        yield "hf", name, stated


def _built_hf(spec: str, name: str, config: dict[str, Any]) -> nn.Module:
    transformers = optional("transformers", "hf")
    with quiet(transformers):
        found = getattr(transformers, name, None) if name.isidentifier() else None
        is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
        if found is None or not is_model or found.__module__.partition(".")[0] != "transformers":
            raise ModelSpecError(f"transformers exports no model class {name[:60]!r}.")
        kind: Any = found
        read = construct(spec, lambda: kind.config_class.from_dict(config))
        built: nn.Module = construct(spec, kind, read)
        return built


def _unsafe(kind: str, args: Mapping[str, Any]) -> str | None:
    """What among the arguments is no plain size or choice, or would have a library open or download something."""
    if kind == "hf":
        asked = hub_code(args)
        if asked is not None:
            return asked
    stack: list[tuple[str, Any]] = [("args", args)]
    while stack:
        where, value = stack.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                opens = key in _OPENS or key.startswith(("pretrained", "weights"))
                if (kind != "hf" and opens) or (key in _FETCHES and inner):
                    return f"it gives the argument {key[:60]!r}, which is not one of the model's"
                if key not in _LABELS or kind != "hf":
                    stack.append((key, inner))
        elif isinstance(value, list):
            stack += [(where, inner) for inner in value]
        elif isinstance(value, str):
            if set(value) & set("/\\:"):
                return f"its {where[:60]!r} is {shortened(value, 60)!r}, which may be a path or an address"
        elif isinstance(value, int) and abs(value) > (most := LAYERS if where == NAMED_LABELS else LARGEST):
            return f"its {where[:60]!r} is {shortened(str(value), 60)}, which is more than {most}"
    return None


@contextmanager
def _bounded(spec: str, n_tensors: int) -> Iterator[None]:
    """Stop the building of a model that has many more parts than its weights can be of."""
    left = ALWAYS_FINE + A_TENSOR * n_tensors
    thread = threading.get_ident()

    def count(module: nn.Module, name: str, part: Any) -> None:
        nonlocal left
        if threading.get_ident() == thread:
            left -= 1
            if left < 0:
                raise ModelSpecError(f"{spec} has far more parts than {n_tensors} tensors can account for.")

    handles = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
        registration.register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Every parameter loses its memory when a module takes it; one that several modules take stays one."""
    thread = threading.get_ident()

    def emptied(module: nn.Module, name: str, parameter: Any) -> Any:
        if threading.get_ident() != thread or parameter is None or parameter.is_meta:
            return None
        if not hasattr(parameter, _EMPTY):
            setattr(parameter, _EMPTY, nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad))
        return getattr(parameter, _EMPTY)

    handle = registration.register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        handle.remove()


def _version(kind: str) -> str:
    """Of a library that is there; empty where it is not."""
    try:
        return str(import_module(PACKAGES[kind]).__version__)
    except (ImportError, RuntimeError, AttributeError):
        return ""
