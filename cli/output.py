"""What a command prints: results on stdout, as a table or as one JSON object; notes on stderr."""

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from l0prune.errors import L0PruneWarning

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "console",
    "cost_rows",
    "first_few",
    "metric_text",
    "note",
    "print_table",
    "ratio",
    "say",
    "say_what_was_lost",
    "score_text",
    "show",
    "size",
    "working",
]

WIDTH_WITHOUT_TERMINAL = 120


@contextmanager
def working() -> Iterator[None]:
    """Keep stdout free for the result while libraries work: their prints go to stderr, their warnings nowhere; ours are notes.

    A warning that was said is not said again.
    """
    said = set()

    def tell(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            note(str(message))

    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", L0PruneWarning)
        warnings.showwarning = tell
        yield


def show(result: dict[str, Any], as_json: bool, table: Callable[[], None]) -> None:
    """Print the result of a command: `result` as one JSON object, or by calling `table`."""
    if as_json:
        click.echo(json.dumps(_finite(result), indent=2, allow_nan=False))
    else:
        table()


def _finite(value: Any) -> Any:
    """The same value with what JSON cannot say (NaN, infinity) replaced by null."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def note(message: str) -> None:
    """Say something about the work in progress, on stderr."""
    click.echo(message, err=True)


def say(text: str) -> None:
    """Print a line of a result as it is, however long."""
    console().print(text, markup=False, soft_wrap=True)


def say_what_was_lost(result: Mapping[str, Any]) -> None:
    """Print why a cut network lost its class, and which of its integers may be wrong, if anything."""
    if result["not_in_place_because"]:
        say(f"Its class was not kept: {result['not_in_place_because']}")
    if result["integers_left"]:
        say(f"Integers left as they were: {first_few(result['integers_left'])}")


def console(*, stderr: bool = False) -> "Console":
    """A rich console; wide enough for tables where there is no terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else WIDTH_WITHOUT_TERMINAL, highlight=False)


def print_table(out: "Console", title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a title and a table whose first column is text and whose other columns are figures; all of it plain text."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(header))
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out.print(Text(title, style="bold"), soft_wrap=True)
    out.print(table)


def size(n: float) -> str:
    """A count or a number of bytes with three significant digits: 1.23M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= scale:
            return f"{n / scale:.3g}{unit}" if n < 1000 * scale else f"{n / scale:.0f}{unit}"
    return f"{n:g}"


def ratio(after: float, before: float) -> str:
    """How much is left, as people read it: 0.50x."""
    return f"{after / before:.2f}x" if before else "-"


def cost_rows(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """A table's rows of what a network cost before and after: every metric that the result has figures of."""
    from l0prune.cost.kinds import metric_named, metric_names

    rows = []
    for metric in map(metric_named, metric_names()):
        before, after = result.get(f"{metric.name}_before"), result.get(f"{metric.name}_after")
        if before is not None and after is not None:
            rows.append((metric.title, metric.short_text(before), metric.short_text(after), ratio(after, before)))
    return rows


def first_few(values: dict[str, int], n: int = 5) -> str:
    """Names with their numbers, as many as a line bears."""
    shown = ", ".join(f"{name} {value}" for name, value in list(values.items())[:n])
    return shown if len(values) <= n else f"{shown} and {len(values) - n} more"


def score_text(value: float | None, about: Mapping[str, Any]) -> str:
    """A score as people read it.

    Args:
        value: The score; None where there is none.
        about: Says its `metric` and `unit`; of an older run without the latter, accuracies are per cent.
    """
    if value is None:
        return "-"
    unit = about.get("unit", "%" if about["metric"] == "accuracy" else "")
    return f"{value:.2f} %" if unit == "%" else f"{value:.4g}{unit and f' {unit}'}"


def metric_text(about: Mapping[str, Any]) -> str:
    """The name of a score, and its direction where that is not the usual one."""
    return str(about["metric"]) if about.get("higher_is_better", True) else f"{about['metric']} (lower is better)"
