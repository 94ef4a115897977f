"""What is asked of a model, wherever one is named on the command line; specifications and paths as they are recorded."""

from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from l0prune.cli.flags import Command, Decorator, apply, chosen, flags_of
from l0prune.options import MODEL, MOST_USED, Options, documented, option

__all__ = ["BUNDLED", "ModelOptions", "model_options", "recorded", "transformers_folder"]

BUNDLED = "bundled"  # as sources.model_spec calls the checkpoint that ships with a network
PATH_PREFIXES = ("npz", "mnist", "cifar10", "folder", "hf", "csv", "tsv", "jsonl", "txt", "hf-datasets")


@documented
@dataclass(frozen=True)
class ModelOptions(Options):
    """Everything a person can say about a model on the command line."""

    spec: str = option(
        "",
        "Registry name, timm:NAME, torchvision:NAME, hf:DIR, package.module:factory, FILE.pt2 or the folder of a compact model.",
        group=MODEL,
        flag="MODEL",
    )
    weights: Path | None = option(
        None,
        "Checkpoint to start from: .safetensors, .pt or .pth; bundled is the one shipped with the package.",
        group=MOST_USED,
        metavar="FILE",
        shown="those the model is built with",
    )
    model_args: dict[str, Any] = option(
        {}, "Keyword argument of the model's factory; repeatable.", group=MODEL, flag="--model-arg"
    )
    input_shape: tuple[int, ...] | None = option(
        None,
        "Shape of one input without the batch, as in 3,224,224, for models that do not declare it.",
        group=MODEL,
        within="[1, inf)",
    )
    mean: tuple[float, ...] | None = option(
        None,
        "Mean of each channel that images are normalised with, for pixels in [0, 1].",
        group=MODEL,
        within="(-inf, inf)",
        shown="the model's own",
    )
    std: tuple[float, ...] | None = option(
        None,
        "Standard deviation of each channel that images are normalised with.",
        group=MODEL,
        within="(-inf, inf)",
        shown="the model's own",
    )
    image_size: tuple[int, ...] | None = option(
        None,
        "Size that images are resized to: one side, or HEIGHT,WIDTH.",
        group=MODEL,
        within="[1, inf)",
        shown="the model's own",
    )
    num_labels: int | None = option(
        None,
        "Put a new classification head of so many classes on the body in hf:DIR; without a teacher then.",
        group=MODEL,
        within="[1, inf)",
        shown="the head that it has",
    )
    pretrained: bool = option(False, "Download the weights that timm or torchvision publish.", group=MODEL)


def model_options(*, metavar: str = "MODEL", required: bool = True) -> Decorator:
    """Add the options that describe a model; the command receives them as one `model: ModelOptions`.

    Args:
        metavar: What the argument is called in the help.
        required: Whether the argument must be given; without it `model.spec` is empty.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_model(*positional: Any, **values: Any) -> Any:
            return command(*positional, model=chosen(ModelOptions, values), **values)

        return apply(
            (click.argument("spec", metavar=metavar, required=required), flags_of(ModelOptions, group=MODEL)),
            with_model,
        )

    return decorate


def transformers_folder(spec: str) -> str | None:
    """The folder of transformers that a specification names, as in `hf:DIR`; None where it names something else."""
    return spec.removeprefix("hf:") if spec.startswith("hf:") else None


def recorded(name: str, value: Any) -> Any:
    """The value of an option that does not depend on the working directory."""
    if name in ("weights", "tokenizer", "class_map") and value is not None and str(value) != BUNDLED:
        return str(Path(value).absolute())
    return absolute(value) if name in ("spec", "data") else value


def absolute(spec: str) -> str:
    """A specification whose path, if it has one, does not depend on the working directory."""
    kind, colon, rest = spec.partition(":")
    if colon and kind in PATH_PREFIXES and rest:
        parts = [rest] if Path(rest).expanduser().exists() else rest.split(",")
        return f"{kind}:{','.join(str(Path(part.strip()).expanduser().absolute()) for part in parts)}"
    from l0prune.sources.compact_folder import is_compact_folder

    return str(Path(spec).expanduser().absolute()) if spec.endswith(".pt2") or is_compact_folder(spec) else spec
