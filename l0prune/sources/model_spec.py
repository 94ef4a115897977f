"""Models by specification: a registered name, a library's, a user's factory, a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l0prune import models
from l0prune.errors import ConfigError, ModelSpecError, first_line
from l0prune.model_call import ModelCall, lazy_layers
from l0prune.sources import libraries
from l0prune.sources.compact_folder import CompactFolder, is_compact_folder
from l0prune.sources.exported import load_exported
from l0prune.sources.factories import call_factory, describe
from l0prune.sources.hf_folder import is_cut
from l0prune.sources.libraries import Built, ExampleInputs, for_channels
from l0prune.sources.library_models import remember_origin_
from l0prune.sources.preprocessing import Preprocessing
from l0prune.sources.weights import load_weights_

__all__ = ["BUNDLED", "ExampleInputs", "LoadedModel", "bundled_weights", "is_factory", "load_model"]

BUNDLED = "bundled"
LIBRARIES = {"timm": libraries.build_timm, "torchvision": libraries.build_torchvision, "hf": libraries.build_hf}
EXAMPLE_BATCH = 2  # torch.export treats batches of 0 and 1 specially
FORMS = "a registered name, timm:NAME, torchvision:NAME, hf:DIR, package.module:factory, FILE.pt2 or RUN/compact"


@dataclass(frozen=True)
class LoadedModel:
    """A model, ready for evaluation, with what it takes to call it.

    Attributes:
        model: In eval mode, on the CPU.
        example_inputs: A tuple of positional or a dict of keyword tensors, batch size 2.
        preprocessing: How uint8 images become its input, or None where its input is no image.
        spec: The specification it was loaded from.
        weights: The file its weights came from, or None.
        runs_only: Whether it is a file of another runtime, which can be run, and neither trained nor copied.
    """

    model: nn.Module
    example_inputs: ExampleInputs
    preprocessing: Preprocessing | None
    spec: str
    weights: Path | None = None
    runs_only: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first input without the batch."""
        return tuple(ModelCall.of(self.example_inputs).tensors[0].shape[1:])


def load_model(
    spec: str,
    *,
    weights: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | tuple[int, int] | None = None,
    pretrained: bool = False,
    seed: int = 0,
    built: Built | None = None,
) -> LoadedModel:
    """Build a model and load its weights.

    Args:
        spec: A name from `l0prune.models`, `timm:NAME`, `torchvision:NAME`, `hf:DIR` (a local transformers folder with
            safetensors), `package.module:factory` (returns an nn.Module, or a pair with example inputs), a `.pt2`
            file of torch.export, or the folder of a compact model, of which this is the saved graph.
        weights: A weights file; `"bundled"` for the checkpoint that ships with a registered name; None keeps what
            the specification gives: random weights, or those of the folder, factory or file.
        model_args: Keyword arguments of the model's factory.
        input_shape: One input without the batch, e.g. (3, 224, 224); where the specification does not know it, or
            to replace what it knows.
        mean: Normalisation mean, one value or one a channel, in units of pixel / 255.
        std: Normalisation standard deviation, likewise.
        image_size: Side, or (height, width), that images are resized to.
        pretrained: Let timm or torchvision download the published weights; for a registered name the same as
            `weights="bundled"`.
        seed: Seed of random weights and of the example inputs.
        built: What the specification stands for, where it has been built already.

    Raises:
        ModelSpecError: if the specification names nothing that can be built, with the closest names there are.
        CheckpointError: if the weights are missing, unsafe, damaged, or do not fit.
        ConfigError: if `mean`, `std`, `image_size` or `input_shape` cannot describe the model's input.
    """
    arguments = dict(model_args or {})
    _check_weights_source(spec, weights, pretrained)
    if pretrained and spec in models.names():
        weights, pretrained = BUNDLED, False
    path = bundled_weights(spec) if str(weights) == BUNDLED else Path(weights) if weights is not None else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = built or _build(
            spec,
            arguments,
            pretrained=pretrained,
        )
        if next(lazy_layers(built.model), None) is not None:
            preprocessing = _preprocessing(built, input_shape, mean, std, image_size)
            _complete_(spec, built.model, _example_inputs(spec, built, input_shape, preprocessing, seed))
    if path is not None:
        load_weights_(built.model, path)
    libraries.drop_auxiliary_heads_(built.model)
    built.model.eval()
    preprocessing = _preprocessing(built, input_shape, mean, std, image_size)
    inputs = _example_inputs(spec, built, input_shape, preprocessing, seed)
    return LoadedModel(built.model, inputs, preprocessing, spec, path)


@torch.no_grad()
def _complete_(spec: str, model: nn.Module, inputs: ExampleInputs) -> None:
    """Give lazy layers the sizes that follow from the inputs, and random weights."""
    try:
        ModelCall.of(inputs, model)(model.eval())
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise ModelSpecError(
            f"{spec!r} has lazy layers, whose sizes follow from the example inputs, and fails on these: "
            f"{first_line(error, named=True)}"
        ) from error
    left = next(lazy_layers(model), None)
    if left is not None:
        raise ModelSpecError(
            f"{spec!r}: {left} sees no input, so that the sizes of its weights are not known; leave it out"
        )


def is_factory(spec: str) -> bool:
    """Whether `load_model` would import and call what a specification names."""
    if spec.endswith(".pt2") or spec in models.names() or is_compact_folder(spec):
        return False
    kind, colon, _ = spec.partition(":")
    return bool(colon) and kind not in LIBRARIES


def bundled_weights(name: str) -> Path:
    """The checkpoint that ships with a registered network.

    Raises:
        ModelSpecError: if `name` is not registered or has none.
    """
    having = [known for known in models.names() if models.entry(known).checkpoint is not None]
    if name not in having:
        raise ModelSpecError(f"{name!r} has no bundled weights; models that have: {', '.join(having) or 'none'}.")
    path = models.entry(name).checkpoint
    assert path is not None
    return path


def _check_weights_source(spec: str, weights: str | Path | None, pretrained: bool) -> None:
    if not pretrained:
        return
    if weights is not None:
        raise ConfigError("pretrained and weights exclude each other; give one.")
    if spec not in models.names() and spec.partition(":")[0] not in {"timm", "torchvision"}:
        raise ConfigError(f"pretrained is for timm, torchvision and bundled models; {spec!r} takes a weights file.")


def _build(spec: str, arguments: dict[str, Any], *, pretrained: bool) -> Built:
    if spec.endswith(".pt2"):
        if arguments:
            raise ModelSpecError(f"{spec!r}: an exported program takes no model arguments, found {list(arguments)}.")
        return Built(*load_exported(spec))
    if spec in models.names():
        return _build_registered(spec, arguments)
    if is_compact_folder(spec):
        if arguments:
            raise ModelSpecError(f"{spec!r}: a compact model takes no model arguments, found {list(arguments)}.")
        return _compact_graph(CompactFolder.open(spec))
    kind, colon, name = spec.partition(":")
    if kind == "hf" and is_cut(name):
        raise ModelSpecError(
            f"{spec!r} is a model that l0prune has cut: l0prune.hf.from_pretrained({name!r}) loads it."
        )
    if colon and kind in LIBRARIES:
        built = LIBRARIES[kind](name, arguments, pretrained=pretrained)
        if kind != "hf":  # whose configuration says it
            remember_origin_(built.model, kind, name, arguments)
        return built
    if is_factory(spec):
        close = get_close_matches(kind, LIBRARIES, n=1)
        if close and "." not in kind:
            raise ModelSpecError(f"{spec!r}: unknown prefix {kind!r}; did you mean {close[0]}:{name}?")
        return _from_factory(spec, arguments)
    close = get_close_matches(spec, models.names(), n=3)
    if spec.endswith(".onnx"):
        raise ModelSpecError(
            f"{spec!r} is an ONNX file, which is for `l0prune eval` and `l0prune bench`: it can be run only."
        )
    hint = f"did you mean {' or '.join(close)}?" if close else f"registered models are {', '.join(models.names())}."
    if (Path(spec) / "compact").is_dir():
        hint = f"is it a run? Its compact model is {Path(spec) / 'compact'}."
    raise ModelSpecError(f"unknown model {spec!r}: {hint} A model is {FORMS}.")


def _compact_graph(folder: CompactFolder) -> Built:
    if folder.manifest.no_graph_because is not None:
        raise ModelSpecError(
            f"{str(folder.path)!r} is a compact model without a graph, because {folder.manifest.no_graph_because}: in Python, "
            "l0prune.load(folder, base=dense) loads it. A factory can return that."
        )
    model, inputs = load_exported(folder.program)
    load_weights_(model, folder.weights)
    return Built(model, inputs, folder.preprocessing)


def _build_registered(name: str, arguments: dict[str, Any]) -> Built:
    known = models.entry(name)
    try:
        model = known.factory(**arguments)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ModelSpecError(f"{name!r} cannot be built with {arguments}: {describe(error)}.") from error
    channels = int(arguments.get("in_channels", known.input_shape[0]))
    side = arguments.get("image_size")
    size = (int(side), int(side)) if side is not None else known.input_shape[1:]
    mean, std = (for_channels(values, channels) for values in (known.mean, known.std))
    return Built(model, None, Preprocessing(size, mean, std))


def _from_factory(spec: str, arguments: dict[str, Any]) -> Built:
    made = call_factory(spec, ModelSpecError, **arguments)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelSpecError(
            f"{spec!r} returned a {type(made).__name__}, expected an nn.Module or a pair (nn.Module, example_inputs)."
        )
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    inputs = tuple(inputs) if isinstance(inputs, list) else inputs
    if inputs is not None and (not isinstance(inputs, Mapping | tuple) or not _has_batch(inputs)):
        raise ModelSpecError(
            f"{spec!r}: example inputs are a {type(inputs).__name__}, expected a tensor, a tuple of tensors or a dict "
            "of tensors."
        )
    return Built(model, dict(inputs) if isinstance(inputs, Mapping) else inputs)


def _has_batch(inputs: tuple[Any, ...] | Mapping[Any, Any]) -> bool:
    """Whether there is a tensor with rows, and none without."""
    tensors = ModelCall.of(inputs).tensors
    return bool(tensors) and all(tensor.ndim > 0 for tensor in tensors)


def _preprocessing(
    built: Built,
    input_shape: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    image_size: int | tuple[int, int] | None,
) -> Preprocessing | None:
    """The model's own preprocessing with the user's changes; plain pixel / 255 for an image input without any."""
    known = built.preprocessing
    shape = tuple(input_shape) if input_shape is not None else known.input_shape if known else _single_shape(built)
    if len(shape) != 3:
        if mean is not None or std is not None or image_size is not None:
            raise ConfigError(
                "mean, std and image size describe image inputs; give input_shape=(channels, height, width) with them."
            )
        return None
    channels, height, width = shape
    base = Preprocessing(
        (height, width),
        for_channels(known.mean if known else (0.0,), channels),
        for_channels(known.std if known else (1.0,), channels),
    )
    return base.override(image_size=image_size, mean=mean, std=std)


def _single_shape(built: Built) -> tuple[int, ...]:
    """Shape without the batch where there is one input and it holds floats, else ()."""
    tensors = [] if built.example_inputs is None else ModelCall.of(built.example_inputs).tensors
    return tuple(tensors[0].shape[1:]) if len(tensors) == 1 and tensors[0].is_floating_point() else ()


def _example_inputs(
    spec: str, built: Built, input_shape: Sequence[int] | None, preprocessing: Preprocessing | None, seed: int
) -> ExampleInputs:
    """The model's own, or random ones of the shape that was asked for."""
    known = built.example_inputs
    shape = preprocessing.input_shape if preprocessing else tuple(input_shape or ())
    if known is not None and shape in {(), _single_shape(built)}:
        return known
    if known is not None and len(known) > 1:
        raise ConfigError(f"{spec!r} comes with {len(known)} example inputs of its own; leave out input_shape.")
    if not shape:
        raise ModelSpecError(
            f"{spec!r} does not say what its input looks like; give the shape of one input without the batch "
            "(--input-shape 3,224,224), or return (model, example_inputs) from the factory."
        )
    try:
        random = torch.randn(EXAMPLE_BATCH, *shape, generator=torch.Generator().manual_seed(seed))
    except (RuntimeError, MemoryError) as error:
        raise ConfigError(
            f"{spec!r}: {EXAMPLE_BATCH} inputs of shape {shape} do not fit into memory; give other sizes."
        ) from error
    return {next(iter(known)): random} if isinstance(known, Mapping) else (random,)
