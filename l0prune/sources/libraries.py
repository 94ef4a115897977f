"""Models of timm, torchvision and transformers, and how each library describes its inputs."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from l0prune.errors import CheckpointError, ModelSpecError
from l0prune.reading import is_file, read_json, reading
from l0prune.sources.factories import describe
from l0prune.sources.preprocessing import Preprocessing

__all__ = [
    "LAYERS",
    "NAMED_LABELS",
    "Built",
    "ExampleInputs",
    "build_hf",
    "build_timm",
    "build_torchvision",
    "construct",
    "drop_auxiliary_heads_",
    "for_channels",
    "hub_code",
    "image_processing",
    "optional",
    "quiet",
]

ExampleInputs = tuple[Any, ...] | dict[str, Any]
IMAGENET = Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LAYERS = 1000  # as many, and as many labels, as any configuration may ask for
_COUNT = re.compile(r"(^|_)(layers?|depths?)$")
NAMED_LABELS = "num_labels"  # transformers makes a name for each
N_TOKENS = 16  # length of an example sequence


@dataclass(frozen=True)
class Built:
    """A model as its source gives it, with what the source knows of its input."""

    model: nn.Module
    example_inputs: ExampleInputs | None = None
    preprocessing: Preprocessing | None = None


def build_timm(name: str, arguments: Mapping[str, Any], *, pretrained: bool) -> Built:
    """`timm:NAME`, random weights unless `pretrained`.

    Raises:
        ModelSpecError: if timm is not installed, has no such model, or cannot build it with `arguments`.
    """
    timm = optional("timm", "timm")
    if not name or not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    model = construct(f"timm:{name}", timm.create_model, name, pretrained=pretrained, **arguments)
    config = timm.data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    channels = int(arguments.get("in_chans", channels))
    mean, std = (for_channels(config[key], channels) for key in ("mean", "std"))
    return Built(model, None, Preprocessing((height, width), mean, std))


def build_torchvision(name: str, arguments: Mapping[str, Any], *, pretrained: bool, initialised: bool = True) -> Built:
    """`torchvision:NAME`, a classification model, random weights unless `pretrained`; those of the paper if `initialised`.

    Raises:
        ModelSpecError: if torchvision is not installed, has no such model, or cannot build it with `arguments`.
    """
    known = optional("torchvision.models", "timm")
    names = known.list_models(module=known)
    if name not in names:
        raise _unknown("torchvision", name, names)
    given = dict(arguments)
    if name in {"googlenet", "inception_v3"} and not pretrained:
        given.setdefault("init_weights", initialised)  # silences a warning; it takes seconds
    weights = "DEFAULT" if pretrained else None
    return Built(construct(f"torchvision:{name}", known.get_model, name, weights=weights, **given), None, IMAGENET)


def drop_auxiliary_heads_(model: nn.Module) -> None:
    """Remove the training-only heads of torchvision's GoogLeNet and Inception, whose outputs evaluation never uses."""
    if type(model).__module__.startswith("torchvision.models.") and getattr(model, "aux_logits", False):
        for name, gone in (("aux_logits", False), ("aux1", None), ("aux2", None), ("AuxLogits", None)):
            if hasattr(model, name):
                setattr(model, name, gone)


def build_hf(directory: str, arguments: Mapping[str, Any], *, pretrained: bool) -> Built:
    """`hf:DIR`, a local transformers folder with its weights in safetensors; no code in it is run.

    Raises:
        ModelSpecError: if transformers is not installed, or the folder has no configuration it knows.
        CheckpointError: if the folder has no safetensors, or they do not fit the configuration.
    """
    transformers = optional("transformers", "hf")
    path = Path(directory)
    spec = f"hf:{directory}"
    if not is_file(path / "config.json"):
        raise ModelSpecError(f"{spec!r}: expected a folder with config.json and *.safetensors; download it first.")
    if not any(path.glob("*.safetensors")):
        raise CheckpointError(f"{spec!r}: no *.safetensors in the folder; pickled weights are not read. Convert them.")
    with reading(path, "folder of transformers", error=ModelSpecError, folder=True):
        return _built_hf(transformers, spec, path, arguments)


def _built_hf(transformers: Any, spec: str, path: Path, arguments: Mapping[str, Any]) -> Built:
    _refuse_code(spec, path / "config.json")
    _require_fitting(path)
    read_config = transformers.AutoConfig.from_pretrained
    with quiet(transformers):
        config = construct(spec, read_config, path, local_files_only=True, trust_remote_code=False, **arguments)
        if hasattr(config, "use_cache"):
            config.use_cache = False
        model = _load_hf(transformers, spec, path, config, with_new_head=NAMED_LABELS in arguments)
    if model.main_input_name == "pixel_values":
        preprocessing = image_processing(path, config)
        images = torch.randn(2, *preprocessing.input_shape, generator=torch.Generator().manual_seed(0))
        return Built(model, {"pixel_values": images}, preprocessing)
    return Built(model, _token_inputs(spec, model))


def _refuse_code(spec: str, file: Path) -> None:
    """See that a configuration does not ask transformers for code."""
    asked = hub_code(read_json(file, "configuration of transformers", error=ModelSpecError))
    if asked is not None:
        raise ModelSpecError(
            f"{spec!r} was refused, and nothing in it was run: {file.name} has {asked}. If you trust the folder, remove that."
        )


def hub_code(configuration: Any) -> str | None:
    """What in a configuration asks transformers for kernels of the hub, which it would download and run; None if nothing does."""
    stack = [configuration]
    while stack:
        value = stack.pop()
        for key, inner in value.items() if isinstance(value, dict) else ():
            if str(key).endswith("_implementation") and "/" in json.dumps(inner):
                return f"{key}={str(inner)[:60]!r}, code of the hub"
        stack += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return None


def _require_fitting(path: Path) -> None:
    """See that a configuration asks for no more layers and labels than the weights can be of: transformers would make them all.

    Raises:
        CheckpointError: it does.
    """
    n_tensors = longest = 0
    for file in path.glob("*.safetensors"):
        with reading(file, "safetensors file", error=CheckpointError), safe_open(file, "pt") as content:
            names = content.keys()
            shapes = [content.get_slice(name).get_shape() for name in names]
            n_tensors += len(names)
            longest = max(longest, *(max(shape) for shape in shapes if shape and 0 not in shape), 0)
    stack = [read_json(path / "config.json", "configuration of transformers", error=ModelSpecError)]
    while stack:
        value = stack.pop()
        for key, inner in value.items() if isinstance(value, dict) else ():
            counts = inner if isinstance(inner, list) else [inner]
            found, what = (longest, "rows") if key == NAMED_LABELS else (n_tensors, "tensors")
            is_bounded = key == NAMED_LABELS or _COUNT.search(str(key))
            if is_bounded and any(type(n) is int and n > max(LAYERS, found) for n in counts):
                raise CheckpointError(
                    f"{path / 'config.json'} has {key}={str(inner)[:60]}, which is more than its {found} {what} can account for."
                )
        stack += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _classifier_of(transformers: Any, spec: str, config: Any) -> Any:
    """The class that puts a classification head on the body of a configuration."""
    for name in ("SEQUENCE", "IMAGE"):
        known = getattr(transformers, f"MODEL_FOR_{name}_CLASSIFICATION_MAPPING")
        if type(config) in known:
            found = known[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise ModelSpecError(
        f"{spec!r}: transformers has no class that classifies with a {config.model_type}; leave out num_labels."
    )


def _load_hf(transformers: Any, spec: str, path: Path, config: Any, *, with_new_head: bool = False) -> Any:
    """The architecture that the configuration names, with every weight found and fitting, but for a new classification head."""
    architecture = str((getattr(config, "architectures", None) or ["AutoModel"])[0])
    named = getattr(transformers, architecture, None)
    is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
    model_class: Any = named if is_model else transformers.AutoModel
    if with_new_head:
        model_class, is_model = _classifier_of(transformers, spec, config), True
        architecture = model_class.__name__
    try:
        model, info = model_class.from_pretrained(
            path,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **({"ignore_mismatched_sizes": True} if with_new_head else {}),
            **({} if is_model else {"trust_remote_code": False}),
        )
    except Exception as cause:
        why = "their shapes differ from what config.json says" if "mismatched" in str(cause) else describe(cause)
        raise CheckpointError(f"{spec!r}: the weights do not load into {architecture}: {why}.") from cause
    missing = sorted(info["missing_keys"])
    if with_new_head:
        body = f"{model_class.base_model_prefix}."
        missing = [name for name in missing if name.startswith(body) and ".pooler." not in name]
    if missing:
        raise CheckpointError(
            f"{spec!r}: {len(missing)} weights of {architecture} are missing: {', '.join(missing[:3])}"
            f"{' ...' if len(missing) > 3 else ''}. Train and save the whole model first."
        )
    return model.float()


class quiet:  # noqa: N801 - used like a function
    """transformers without its progress bars and advice for a while."""

    def __init__(self, transformers: Any) -> None:
        self.logging = transformers.utils.logging

    def __enter__(self) -> None:
        self.level = self.logging.get_verbosity()
        self.bars = self.logging.is_progress_bar_enabled()
        self.logging.set_verbosity_error()
        self.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        self.logging.set_verbosity(self.level)
        if self.bars:
            self.logging.enable_progress_bar()


def _token_inputs(spec: str, model: Any) -> ExampleInputs:
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    if model.main_input_name != "input_ids" or not size:
        raise ModelSpecError(
            f"{spec!r}: its input is {model.main_input_name!r}; input_ids and pixel_values are understood. "
            "Write a factory that returns (model, example_inputs)."
        )
    ids = torch.randint(0, size, (2, N_TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def image_processing(path: Path, config: Any) -> Preprocessing:
    """How images become the input of a model in a folder of transformers."""
    file = path / "preprocessor_config.json"
    stated = read_json(file, "configuration of images", error=ModelSpecError) if file.is_file() else {}
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(config, "num_channels", 3)
    mean = for_channels(stated.get("image_mean", IMAGENET.mean), channels)
    return Preprocessing((height, width), mean, for_channels(stated.get("image_std", IMAGENET.std), channels))


def for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value a channel: as given where the number is right, else their average for each."""
    if len(values) == channels:
        return tuple(float(value) for value in values)
    return (sum(values) / len(values),) * channels


def construct(spec: str, build: Any, *positional: Any, **keywords: Any) -> Any:
    """What `build` returns; whatever it raises is a ModelSpecError that names the specification."""
    try:
        return build(*positional, **keywords)
    except Exception as cause:
        raise ModelSpecError(f"{spec!r} cannot be built: {describe(cause)}.") from cause


def optional(module: str, extra: str) -> Any:
    """A module of a library that need not be installed.

    Raises:
        ModelSpecError: it is not there, or does not work; the message names the extra that brings it.
    """
    name = module.partition(".")[0]
    try:
        import_module(name)
        return import_module(module)
    except ModuleNotFoundError as cause:
        if cause.name == name:
            how = f"pip install 'l0prune[{extra}]'"
            raise ModelSpecError(f"{name} is not installed; {how} installs it.") from cause
        raise ModelSpecError(f"{name} could not be imported: {describe(cause)}.") from cause
    except (ImportError, RuntimeError) as cause:
        raise ModelSpecError(f"{name} could not be imported: {describe(cause)}.") from cause


def _unknown(library: str, name: str, names: Sequence[str]) -> ModelSpecError:
    close = get_close_matches(name, names, n=3)
    hint = (
        f"did you mean {' or '.join(f'{library}:{match}' for match in close)}?"
        if close
        else "its documentation lists them."
    )
    return ModelSpecError(f"{library} has no model {name!r}; {hint}")
