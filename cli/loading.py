"""From options to a model with its inputs."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0prune.cli.model_options import ModelOptions, transformers_folder
from l0prune.cli.request import RunOptions
from l0prune.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from l0prune.sources.libraries import Built
    from l0prune.sources.model_spec import LoadedModel

__all__ = [
    "PAIRS_APART",
    "has_random_weights",
    "is_architecture",
    "load",
    "require_from_scratch",
    "require_weights",
    "sides",
]


def load(options: ModelOptions, *, seed: int = 0, run: RunOptions | None = None) -> "LoadedModel":
    """Build the model that the options describe and load its weights.

    Args:
        options: What to build.
        seed: Of its initialisation, where it has no weights.
        run: What it is used for, where that decides what inputs it takes.

    Raises:
        ConfigError: if the image size has more than two numbers.
        L0PruneError: as `l0prune.sources.model_spec.load_model`.
    """
    from l0prune.sources.model_spec import load_model

    loaded = load_model(
        options.spec,
        weights=None if options.weights is None else str(options.weights),
        model_args=_model_args(options),
        input_shape=options.input_shape,
        mean=options.mean,
        std=options.std,
        image_size=sides(options.image_size),
        pretrained=options.pretrained,
        seed=seed,
        built=compact(options),
    )
    loaded = replace(loaded, model=trainable(loaded.model))
    return with_segments(loaded) if run is not None and run.text_pair and run.task != PAIRS_APART else loaded


def sides(size: tuple[int, ...] | None) -> tuple[int, int] | None:
    """(height, width) of an image size that is typed: one side, or both.

    Raises:
        ConfigError: it has more than two numbers.
    """
    if size is not None and len(size) > 2:
        raise ConfigError(f"image size has {len(size)} numbers; give one side, or HEIGHT,WIDTH")
    return None if size is None else (size[0], size[-1])


def _model_args(options: ModelOptions) -> dict[str, Any]:
    """Arguments of the model's factory, its number of classes among them where that is asked for.

    Raises:
        ConfigError: it is asked of what is no folder of transformers.
    """
    if options.num_labels is None:
        return options.model_args
    if transformers_folder(options.spec) is None:
        raise ConfigError(f"--num-labels puts a head on the body in hf:DIR, and the model is {options.spec}")
    return {**options.model_args, "num_labels": options.num_labels}


PAIRS_APART = "embeddings"
"""The task for which the texts of a pair are two inputs; for the others they are one, in two segments."""


def with_segments(loaded: "LoadedModel") -> "LoadedModel":
    """The model with an input that tells the texts of a pair apart, where it has one."""
    import torch

    inputs, config = loaded.example_inputs, getattr(loaded.model, "config", None)
    if getattr(config, "type_vocab_size", 0) < 2 or not isinstance(inputs, dict) or "input_ids" not in inputs:
        return loaded
    segments = torch.zeros_like(inputs["input_ids"])
    segments[:, segments.shape[1] // 2 :] = 1
    return replace(loaded, example_inputs={**inputs, "token_type_ids": segments})


def compact(options: ModelOptions) -> "Built | None":
    """The compact model in the folder that the options name, with the record of its cut; None where it is no such folder.

    Raises:
        L0PruneError: as `l0prune.load`.
    """
    directory = transformers_folder(options.spec)
    if directory is not None:
        return cut_hf(options, directory)
    import l0prune
    from l0prune.sources.compact_folder import CompactFolder, is_compact_folder
    from l0prune.sources.exported import plain_inputs
    from l0prune.sources.libraries import Built
    from l0prune.surgery.record import surgery_of

    if not is_compact_folder(options.spec) or options.model_args:
        return None
    folder = CompactFolder.open(options.spec)
    if folder.manifest.no_graph_because is not None:
        return None
    model = l0prune.load(options.spec)
    record = surgery_of(model)
    return Built(model, plain_inputs((record.example_args, record.example_kwargs)), folder.preprocessing)


def cut_hf(options: ModelOptions, directory: str) -> "Built | None":
    """The cut model in a folder of transformers, without its cache of keys and values; None where it is no such folder.

    Raises:
        L0PruneError: as `l0prune.hf.from_pretrained`.
    """
    from l0prune.sources.hf_folder import is_cut

    if not is_cut(directory):
        return None
    import l0prune
    from l0prune.sources.libraries import Built, image_processing
    from l0prune.surgery.record import call_of

    model: Any = l0prune.hf.from_pretrained(directory, **{"use_cache": False, **options.model_args})
    has_images = model.main_input_name == "pixel_values"
    inputs = call_of(model).kwargs
    return Built(model, inputs or None, image_processing(Path(directory), model.config) if has_images else None)


def require_weights(options: ModelOptions) -> None:
    """See that a network to be pruned has been trained, as far as its specification tells.

    Raises:
        ConfigError: if its weights would be random.
    """
    if has_random_weights(options):
        raise ConfigError(
            f"{options.spec} has random weights: give --weights FILE{shipped(options.spec)}, or start --from-scratch"
        )


def require_from_scratch(options: ModelOptions) -> None:
    """See that nothing but a seed decides about the weights.

    Raises:
        ConfigError: if the specification brings weights.
    """
    from l0prune.sources.compact_folder import is_compact_folder

    for given, name in ((options.weights is not None, "--weights"), (options.pretrained, "--pretrained")):
        if given:
            raise ConfigError(f"--from-scratch starts with random weights, {name} with trained ones: give one of them")
    if (
        transformers_folder(options.spec) is not None
        or options.spec.endswith(".pt2")
        or is_compact_folder(options.spec)
    ):
        raise ConfigError(f"{options.spec} comes with weights: --from-scratch is for named architectures and factories")


def is_architecture(spec: str) -> bool:
    """Whether a specification names an architecture alone: a registered name, or one of a library."""
    from l0prune import models

    return spec in models.names() or spec.partition(":")[0] in {"timm", "torchvision"}


def shipped(spec: str) -> str:
    """Other ways to get trained weights of an architecture, for a message."""
    from l0prune import models

    if spec in models.names():
        return " or --weights bundled" if models.entry(spec).checkpoint is not None else ""
    return " or --pretrained"


def trainable(model: "nn.Module") -> "nn.Module":
    """The model; if it is an exported graph, one whose dropout and batch norms follow its mode."""
    from torch.fx import GraphModule

    from l0prune.surgery.graph_model import GraphModel

    if isinstance(model, GraphModule) and not isinstance(model, GraphModel):
        return GraphModel(model, model.graph).eval()
    return model


def has_random_weights(options: ModelOptions) -> bool:
    """Whether nothing but a seed decides about the weights, as far as the specification tells."""
    return options.weights is None and not options.pretrained and is_architecture(options.spec)
