"""From options to the data of a run, and its task, as they fit the model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from l0prune.cli.case import Case
from l0prune.cli.flags import flag
from l0prune.cli.loading import PAIRS_APART, is_architecture
from l0prune.cli.model_options import ModelOptions
from l0prune.cli.output import note
from l0prune.cli.request import RunOptions
from l0prune.cli.tokenizer import tokenizer_folder
from l0prune.errors import ConfigError

if TYPE_CHECKING:
    from l0prune.sources.loaders import Loaders
    from l0prune.sources.model_spec import LoadedModel
    from l0prune.sources.texts import TextOptions

__all__ = ["load_case"]


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
