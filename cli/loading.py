"""From options to a model with its inputs and data."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0prune.cli.case import Case
from l0prune.cli.flags import flag
from l0prune.cli.output import note
from l0prune.cli.request import FinetuneRequest, ModelOptions, RunOptions, transformers_folder
from l0prune.cli.tokenizer import tokenizer_folder
from l0prune.errors import ConfigError, L0PruneWarning

if TYPE_CHECKING:
    from torch import nn

    from l0prune.cost.kinds import Costs
    from l0prune.flow.channel_flow import ChannelFlow
    from l0prune.gated.initial import DropRate
    from l0prune.gated.model import GatedModel
    from l0prune.latency.profile import Profile
    from l0prune.model_call import ExampleInputs
    from l0prune.sources.libraries import Built
    from l0prune.sources.loaders import Loaders
    from l0prune.sources.model_spec import LoadedModel
    from l0prune.sources.texts import TextOptions

__all__ = [
    "calls_at",
    "gated_model_of",
    "has_random_weights",
    "load",
    "load_case",
    "price_by_profile",
    "require_from_scratch",
    "require_weights",
    "sides",
    "traced",
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


def traced(loaded: "LoadedModel", run: RunOptions) -> "ChannelFlow":
    """The units of a model, but for those that a run ignores.

    Raises:
        L0PruneError: as `l0prune.trace`.
    """
    import l0prune
    from l0prune.goals.budget import Budgets

    if run.length and run.budget and Budgets.parse(run.budget).knows_widths:
        raise ConfigError(
            "--length is a mean over lengths, and a profile is of one: leave it out of a budget of latency, and measure the"
            " profile at the length that counts (`l0prune profile --length`)"
        )
    first, *others = calls_at(loaded, run.length)
    return l0prune.trace(loaded.model, first, ignore=run.ignore, also=others)


def calls_at(loaded: "LoadedModel", lengths: tuple[int, ...]) -> "list[ExampleInputs]":
    """The example at each length; as it is where none is asked for.

    Raises:
        ConfigError: the model takes no tokens.
    """
    from l0prune.look.free_sizes import at_length
    from l0prune.model_call import ModelCall

    if not lengths:
        return [loaded.example_inputs]
    example = ModelCall.of(loaded.example_inputs, loaded.model)
    found = [at_length(example, length) for length in lengths]
    calls: list[ExampleInputs] = [call for call in found if call is not None]
    if len(calls) < len(lengths):
        raise ConfigError(f"--length is for models that take tokens, and {loaded.spec} takes none")
    return calls


def gated_model_of(
    loaded: "LoadedModel", request: "FinetuneRequest", *, flow: "ChannelFlow", droprate: "DropRate | None" = None
) -> "GatedModel":
    """The model with the gates that a run asks for.

    Args:
        loaded: The model.
        request: The run.
        flow: Of the model.
        droprate: Where the gates start; None for the gate's own place.

    Raises:
        L0PruneError: as `l0prune.inject`.
    """
    import l0prune

    run = request.run
    gated = l0prune.inject(
        loaded.model, flow, gate=run.gate, gate_args=run.gate_args, droprate=droprate, seed=request.training.seed
    )
    if run.profile is not None:
        price_by_profile(gated.costs, run.profile, digest=run.profile_digest, lengths=run.length)
    return gated


def price_by_profile(
    costs: "Costs",
    path: Path,
    *,
    digest: str = "",
    profile: "Profile | None" = None,
    lengths: tuple[int, ...] | None = None,
) -> "Profile":
    """Let costs that have to be measured be those of a profile; say where it was measured, if not here.

    Args:
        costs: Of the network.
        path: File of the profile.
        digest: Of the profile that a run began with, where one has.
        profile: What is in the file, where that has been read already.
        lengths: Of sequences, that the other costs are the mean over; None leaves them to the example.

    Raises:
        ConfigError: the profile is of another network or another length, or is not the one that the run began with.
        FileFormatError: the file is no profile.
    """
    from l0prune.cost.kinds import metric_named, metric_names
    from l0prune.latency.profile import Profile

    profile = profile or Profile.load(path)
    if digest and profile.digest != digest:
        raise ConfigError(f"{path} has changed since the run began: put the profile back that it began with")
    profile.require_lengths(lengths or ())
    for metric in metric_names():
        if metric_named(metric).cost is None:
            costs(metric, profile)
    elsewhere = profile.elsewhere()
    if elsewhere:
        note(f"{path} {elsewhere}: what it says holds there")
    if profile.doubts:
        warnings.warn(profile.doubts, L0PruneWarning, stacklevel=2)
    return profile


def load_case(loaded: "LoadedModel", options: ModelOptions, run: RunOptions) -> Case:
    """Load a data set and a task, and see that they fit the model; say what was taken for granted.

    Args:
        loaded: The dense model.
        options: Of the model.
        run: Data and task; without a task, what such data is for.

    Raises:
        DataError: if the data cannot be used, or not with this model.
        ConfigError: if there is no such task.
    """
    from l0prune.sources.class_map import in_order_of_outputs, read_class_map
    from l0prune.sources.datasets import DataSource
    from l0prune.sources.loaders import load_source
    from l0prune.tasks.class_logits import class_names, classes_of

    size = None if loaded.preprocessing is None else loaded.preprocessing.image_size
    data = load_source(run.data, image_size=size, texts=text_options(loaded, run), arguments=run.data_args)
    if not isinstance(data, DataSource):
        require_no_columns(run, data)
        return Case.of(loaded, data, run.task, run.task_args)
    if run.class_map is not None or (data.class_names and run.task in (None, "classification")):
        data = in_order_of_outputs(
            data,
            class_names(loaded.model),
            lambda: int(classes_of(loaded.model, loaded.example_inputs, run.task_args.get("output")).shape[1]),
            None if run.class_map is None else read_class_map(run.class_map),
        )
    case = Case.of(loaded, data, run.task, run.task_args)
    says_nothing = options.mean is None and options.std is None and not is_architecture(options.spec)
    if data.has_images and says_nothing and loaded.preprocessing is not None and loaded.preprocessing.is_plain:
        note(
            f"{options.spec} does not state mean and std, so it is given pixel / 255; if that is wrong, give --mean and --std"
        )
    return case


def require_no_columns(run: RunOptions, data: "Loaders") -> None:
    """See that nothing is asked of batches that loaders make.

    Raises:
        ConfigError: names what is.
    """
    plain = RunOptions()
    for name in ("class_map", "batch_size"):
        if getattr(run, name) != getattr(plain, name):
            remedy = "have the factory do it, with --data-arg where it takes arguments"
            raise ConfigError(f"{flag(name)} is for arrays, and {data.name} makes its batches itself: {remedy}")


def text_options(loaded: "LoadedModel", run: RunOptions) -> "TextOptions | None":
    """What is meant by a table of texts; None where the data is none.

    Raises:
        ConfigError: no tokenizer is known, or options are for texts and the data holds none.
    """
    from l0prune.sources.tables import TABLES
    from l0prune.sources.texts import TextOptions
    from l0prune.tasks.class_logits import class_names

    if run.data.partition(":")[0] not in TABLES:
        asked = [flag(name) for name in ("text", "text_pair", "label", "max_length", "tokenizer") if getattr(run, name)]
        if run.labels == "none":
            asked.append("--labels none")
        if asked:
            raise ConfigError(
                f"{asked[0]} is for texts (csv:, tsv:, jsonl:, txt:, hf-datasets:), and the data is {run.data}"
            )
        return None
    folder = tokenizer_folder(loaded, run)
    if not isinstance(loaded.example_inputs, Mapping):
        raise ConfigError(f"{loaded.spec} takes no named inputs, such as input_ids, which texts become")
    return TextOptions(
        tokenizer=folder,
        inputs=tuple(loaded.example_inputs),
        text=run.text,
        text_pair=run.text_pair,
        label=run.label,
        labelled=run.labels == "given",
        max_length=run.max_length,
        positions=getattr(getattr(loaded.model, "config", None), "max_position_embeddings", None),
        vocabulary=getattr(getattr(loaded.model, "config", None), "vocab_size", None),
        width=getattr(loaded.model, "fixed_length", None),
        as_pairs=run.task == PAIRS_APART,
        as_language=run.task == "language",
        class_names=class_names(loaded.model),
    )
