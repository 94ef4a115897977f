"""Options that several commands share, and what they mean once read."""

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import click

from l0prune.cli.failures import DEBUG_KEY
from l0prune.machine import most_threads
from l0prune.plain_data import read_fields
from l0prune.tasks.registry import task_names

__all__ = [
    "THREADS",
    "Alignment",
    "FilePath",
    "KeyValue",
    "ModelOptions",
    "Number",
    "Whole",
    "align_option",
    "common_options",
    "data_option",
    "flag",
    "ignore_option",
    "model_options",
    "task_options",
    "threads_option",
]

BUNDLED = "bundled"  # as sources.model_spec calls the checkpoint that ships with a network

LARGEST = 2**63 - 1
THREADS = click.IntRange(1, most_threads())

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


@dataclass(frozen=True)
class ModelOptions:
    """Everything a person can say about a model on the command line.

    Args:
        spec: Registry name, `timm:NAME`, `torchvision:NAME`, `hf:DIR`, `package.module:factory` or a `.pt2` file.
        weights: Checkpoint file, or None for the weights the model is built with.
        model_args: Keyword arguments of the factory.
        input_shape: Shape of one input without the batch, or None where the model knows it.
        mean: Per-channel mean of the normalisation, or None for the model's own.
        std: Per-channel standard deviation, or None for the model's own.
        image_size: Side, or height and width, the images are resized to, or None for the model's own.
        pretrained: Load the weights its library publishes (timm, torchvision; needs a network connection).
    """

    spec: str
    weights: Path | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: tuple[int, ...] | None = None
    pretrained: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data, the path of the weights absolute."""
        path = None if self.weights is None else str(self.weights)
        absolute = path if path is None or path == BUNDLED else str(Path(path).absolute())
        return {**asdict(self), "weights": absolute}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelOptions":
        """The inverse of `to_json`.

        Raises:
            FileFormatError: if a key is missing or unknown, or a value of another kind.
        """
        return read_fields(cls, data, "run.json, model", remedy="start the run again")


class KeyValue(click.ParamType):
    """`key=value`, the value read as a Python literal where it is one and as text otherwise."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Split at the first `=` and read the value."""
        if isinstance(value, tuple):
            return value
        key, found, text = str(value).partition("=")
        if not found or not key.isidentifier():
            self.fail(f"{value!r} is not key=value, as in width=64", param, ctx)
        return key, literal(text)


def literal(text: str) -> Any:
    """`text` as a Python literal (also true, false, null as JSON writes them), or unchanged."""
    named = {"true": True, "false": False, "null": None}
    if text in named:
        return named[text]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


class Numbers(click.ParamType):
    """Comma-separated numbers, as in `3,32,32` or `0.5,0.5,0.5`."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind
        self.name = "n,n,..." if kind is int else "x,x,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Read every number."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers separated by commas", param, ctx)
        if not all(map(math.isfinite, numbers)):
            self.fail(f"{value!r}: numbers are finite", param, ctx)
        if self.kind is int and any(number < 1 for number in numbers):
            self.fail(f"{value!r}: sizes are positive", param, ctx)
        return numbers


class Whole(click.IntRange):
    """A whole number from a bound on, of 64 bits: larger ones are errors deep inside the libraries."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        number: int = super().convert(value, param, ctx)
        if number > LARGEST:
            self.fail(f"{value!r} is more than {LARGEST}", param, ctx)
        return number


class Number(click.FloatRange):
    """A number within bounds; NaN, which compares with nothing, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class FilePath(click.Path):
    """A path that the libraries underneath can open: safetensors, torch and onnxruntime know names in UTF-8 alone."""

    def __init__(self, *, dir_okay: bool = True, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay, file_okay=file_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"{str(value)!r} is no name in UTF-8: give a link to it with another name", param, ctx)
        return super().convert(value, param, ctx)


class Alignment(click.ParamType):
    """`auto`, or the positive number that every kept width is rounded to a multiple of."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        """Read `auto` or a positive number."""
        if isinstance(value, int) or value == "auto":
            return value
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"{value!r} is neither 'auto' nor a positive number; 1 means no alignment", param, ctx)
        return int(value)


def model_options(*, metavar: str = "MODEL", required: bool = True) -> Decorator:
    """Add the options that describe a model; the command receives them as one `model: ModelOptions`.

    Args:
        metavar: What the argument is called in the help.
        required: Whether the argument must be given; without it `model.spec` is empty.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_model(*positional: Any, **values: Any) -> Any:
            described = {name: values.pop(name) for name in ModelOptions.__dataclass_fields__}
            described["model_args"] = dict(described["model_args"])
            described["spec"] = described["spec"] or ""
            return command(*positional, model=ModelOptions(**described), **values)

        return apply((click.argument("spec", metavar=metavar, required=required), *described_model()), with_model)

    return decorate


def described_model() -> tuple[Decorator, ...]:
    """The options of `ModelOptions` except the specification itself."""
    return (
        click.option(
            "--weights",
            type=FilePath(),
            help="Checkpoint: .safetensors, .pt or .pth; bundled: the one shipped.",
        ),
        click.option(
            "--model-arg",
            "model_args",
            type=KeyValue(),
            multiple=True,
            help="Keyword argument of the model's factory; repeatable.",
        ),
        click.option("--input-shape", type=Numbers(int), help="Shape of one input without the batch, as in 3,224,224."),
        click.option("--mean", type=Numbers(float), help="Per-channel mean of the normalisation, inputs in [0, 1]."),
        click.option("--std", type=Numbers(float), help="Per-channel standard deviation of the normalisation."),
        click.option("--image-size", type=Numbers(int), help="Resize images to this side, or to HEIGHT,WIDTH."),
        click.option("--pretrained", is_flag=True, help="Download the published weights (timm, torchvision)."),
    )


def data_option(*, required: bool) -> Decorator:
    """Add `--data SPEC`."""
    return click.option(
        "--data",
        "data_spec",
        metavar="SPEC",
        required=required,
        help="digits, npz:FILE, mnist:DIR, cifar10:DIR, folder:DIR or package.module:factory.",
    )


def task_options(command: Command) -> Command:
    """Add `--task NAME` and `--task-arg KEY=VALUE`."""
    options = (
        click.option(
            "--task",
            metavar="NAME",
            help=f"What the network is for: {', '.join(task_names())}, or package.module:factory.  [default: by the data]",
        ),
        click.option(
            "--task-arg",
            "task_args",
            type=KeyValue(),
            multiple=True,
            help="Argument of the task, as in ignore=255 or output=logits; repeatable.",
        ),
    )
    return apply(options, command)


def flag(name: str) -> str:
    """A parameter as it is typed to the command that runs: `--gate-arg` for `gate_args`, `MODEL` for `spec`."""
    context = click.get_current_context(silent=True)
    for parameter in context.command.params if context else ():
        if parameter.name == name:
            if isinstance(parameter, click.Argument):
                return (parameter.metavar or name).strip("[]")
            return max(parameter.opts, key=len)
    return f"--{name.replace('_', '-')}"


def ignore_option(command: Command) -> Command:
    """Add `--ignore NAME`, repeatable."""
    return click.option(
        "--ignore", multiple=True, metavar="NAME", help="Module or parameter whose units stay; repeatable."
    )(command)


def align_option(default: str | None, *, shown: str | None = None) -> Decorator:
    """Add `--align auto|N`.

    Args:
        default: Where it is not given; None leaves the choice to the command.
        shown: What the help says of it; None shows `default`.
    """
    return click.option(
        "--align",
        type=Alignment(),
        default=default,
        show_default=shown or True,
        help="Round kept widths to a multiple of N, but for one that fills the budget; auto: what onnxruntime likes on this CPU.",
    )


def common_options(command: Command) -> Command:
    """Add `--json` (received as `as_json`) and `--debug`."""
    options = (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr."),
        debug_option,
    )
    return apply(options, command)


def debug_option(command: Command) -> Command:
    """Add `--debug`, which shows the traceback of an error."""

    def remember(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        ctx.meta[DEBUG_KEY] = value

    return click.option(
        "--debug",
        is_flag=True,
        callback=remember,
        expose_value=False,
        is_eager=True,
        help="Show the traceback of an error.",
    )(command)


def threads_option(command: Command) -> Command:
    """Add `--threads`, which limits torch at once."""
    return click.option(
        "--threads",
        type=THREADS,
        callback=_set_threads,
        expose_value=False,
        help="CPU threads torch may use.  [default: torch's choice]",
    )(command)


def _set_threads(_ctx: click.Context, _param: click.Parameter, value: int | None) -> None:
    """Limit torch to so many CPU threads."""
    if value is not None:
        import torch

        torch.set_num_threads(value)


def apply(options: tuple[Decorator, ...], command: Command) -> Command:
    """Apply decorators so that `--help` lists them in the order given."""
    for option in reversed(options):
        command = option(command)
    return command
