"""Options as flags: each `l0prune.options.Option` becomes one, and the values that are typed become the options again."""

import ast
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from l0prune.cli.process import DEBUG_KEY
from l0prune.errors import ConfigError
from l0prune.machine import most_threads
from l0prune.options import GROUPS, Option, Options, options_of

__all__ = [
    "THREADS",
    "Decorator",
    "FilePath",
    "GroupedCommand",
    "GroupedOption",
    "Typed",
    "apply",
    "chosen",
    "common_options",
    "flag",
    "flag_of",
    "flags_of",
    "given",
    "threads_option",
    "whole",
]


Command = Callable[..., Any]
Decorator = Callable[[Command], Command]
Kind = TypeVar("Kind", bound=Options)


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


class Typed(click.ParamType):
    """A value as its option reads it: a number within its bounds, numbers separated by commas, one of a few words."""

    def __init__(self, known: Option) -> None:
        self.known = replace(known, name="", default=None)
        name = {int: "n", float: "x"}.get(known.items or known.kinds[0], "text")
        self.name = f"{name},..." if known.items else name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        try:
            return self.known.parse(value) if isinstance(value, str) else self.known.accept(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def whole(within: str) -> Typed:
    """A whole number, where it lies as in "[1, inf)"."""
    return Typed(Option(kind=int, within=within))


THREADS = whole(f"[1, {most_threads()}]")


class FilePath(click.Path):
    """A path that the libraries underneath can open: safetensors, torch and onnxruntime know names in UTF-8 alone."""

    def __init__(self, *, dir_okay: bool = True, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay, file_okay=file_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"{str(value)!r} is not a valid UTF-8 name: give a link to it with another name", param, ctx)
        return super().convert(value, param, ctx)


class GroupedOption(click.Option):
    """A flag that stands under a heading in the help."""

    def __init__(self, *args: Any, group: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists its flags under headings, those that most people need first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them."""
        groups: dict[str, list[tuple[str, str]]] = {group: [] for group in (*GROUPS, "General")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups[getattr(parameter, "group", "") or "General"].append(record)
        for group, records in groups.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)


def flags_of(kind: type[Options], *, only: Collection[str] = (), **changes: Any) -> Decorator:
    """Add all options of a class that have a flag, in their order; the command receives those that are typed, else None.

    Args:
        kind: The class.
        only: Names of those to add; empty for all.
        changes: As of `flag_of`.
    """
    flags = {name: known.flag or "" for name, known in options_of(kind).items() if not only or name in only}
    named = (name for name, typed in flags.items() if typed.startswith("-"))
    return partial(apply, tuple(flag_of(kind, name, **changes) for name in named))


def flag_of(kind: type[Options], name: str, **changes: Any) -> Decorator:
    """Add one option of a class.

    Args:
        kind: The class.
        name: The option's.
        changes: What this command has otherwise, as keyword arguments of `click.option`.
    """
    known = options_of(kind)[name]
    help_text = known.about(lambda other: options_of(kind)[other].flag or other)
    about: dict[str, Any] = {"default": None, "group": known.group, "metavar": known.metavar or None}
    about["help"] = f"{help_text}  [{known.range_and_default}]" if known.range_and_default else help_text
    return click.option(*_names(known), name, cls=GroupedOption, **{**about, **_reading(known), **changes})


def _names(known: Option) -> tuple[str, ...]:
    flag_name = known.flag or ""
    may_be_denied = known.kinds == (bool,) and type(None) in get_args(known.kind)
    return (f"{flag_name}/--no-{flag_name.removeprefix('--')}",) if may_be_denied else (flag_name,)


def _reading(known: Option) -> dict[str, Any]:
    """How click reads what is typed."""
    kind = known.kinds[0]
    if kind is bool:
        return {} if type(None) in get_args(known.kind) else {"is_flag": True}
    if kind is Path:
        return {"type": FilePath()}
    if known.choices:
        return {"type": click.Choice(known.choices)}
    if isinstance(known.default, dict):
        return {"type": KeyValue(), "multiple": True, "callback": lambda _ctx, _param, pairs: dict(pairs) or None}
    if known.joined:
        return {"multiple": True, "callback": lambda _ctx, _param, texts: ",".join(texts) or None}
    if known.items is str:
        return {"multiple": True}
    return {"type": Typed(known)}


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the parameters of a command, those that were typed."""
    return {name: value for name, value in values.items() if value is not None and value != ()}


def chosen(kind: type[Kind], values: dict[str, Any]) -> Kind:
    """The options of a class out of the parameters of a command, which lose them.

    Raises:
        ConfigError: as the class.
    """
    return kind(**given({name: values.pop(name) for name in options_of(kind) if name in values}))


def flag(name: str, value: str = "") -> str:
    """A parameter as it is typed to the command that runs: `--gate-arg` for `gate_args`, `MODEL` for `spec`; and its value."""
    context = click.get_current_context(silent=True)
    typed = f"--{name.replace('_', '-')}"
    for parameter in context.command.params if context else ():
        if parameter.name == name and isinstance(parameter, click.Argument):
            typed = (parameter.metavar or name).strip("[]")
        elif parameter.name == name and value == "False":
            return max(parameter.secondary_opts, key=len)
        elif parameter.name == name:
            typed = max(parameter.opts, key=len)
    return f"{typed} {value}".strip()


def _remember(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.meta[DEBUG_KEY] = value


debug_option = click.option(
    "--debug",
    is_flag=True,
    callback=_remember,
    expose_value=False,
    is_eager=True,
    help="Show the traceback of an error.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout and everything else on stderr."
)


def common_options(command: Command) -> Command:
    """Add `--json` (received as `as_json`) and `--debug`."""
    return json_option(debug_option(command))


def _set_threads(_ctx: click.Context, _param: click.Parameter, value: int | None) -> None:
    """Limit torch to so many CPU threads."""
    if value is not None:
        import torch

        torch.set_num_threads(value)


threads_option = click.option(
    "--threads",
    type=THREADS,
    callback=_set_threads,
    expose_value=False,
    help="CPU threads torch may use.  [default: torch's choice]",
)
"""Add `--threads`, which limits torch at once."""


def apply(options: tuple[Decorator, ...], command: Command) -> Command:
    """Apply decorators so that `--help` lists them in the order given."""
    for decorate in reversed(options):
        command = decorate(command)
    return command
