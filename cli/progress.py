"""How far long work is: a bar with the count and the time left on a terminal, a line now and then in a log; on stderr."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from l0prune.cli.output import console, note

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["BarProgress", "LineProgress", "progress_for_stderr", "share_bar"]

SECONDS_BETWEEN_LINES = 10.0
BAR = 16
TITLES = {"warmup": "warm-up", "gate": "learning gates", "settle": "closing gates", "recovery": "recovery"}


def progress_for_stderr() -> "BarProgress | LineProgress":
    """A bar where stderr is a terminal, lines elsewhere."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()


SHORT = {"task_loss": "loss", "expected_cost": "expected", "hard_cost": "hard"}
"""What figures are called beside a bar, which leaves 28 of 80 columns."""


def time_text(seconds: float) -> str:
    """Hours, minutes and seconds: 0:01:05."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def figures_text(figures: Mapping[str, float]) -> str:
    """The latest figures in a few words: `loss 0.213  expected_cost 0.501`."""
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


class LineProgress:
    """One line when a phase starts, one now and then while it runs, one when it ends."""

    def __init__(self, seconds_between_lines: float = SECONDS_BETWEEN_LINES) -> None:
        self._seconds_between_lines = seconds_between_lines
        self._last_line = self._began = 0.0
        self._phase = ""
        self._done = self._total = self._shown = self._before = 0
        self._figures: dict[str, float] = {}

    def start(self, phase: str, total: int) -> None:
        """Say that a phase of `total` steps begins."""
        self._phase, self._total = TITLES.get(phase, phase), total
        self._done = self._shown = self._before = 0
        self._figures = {}
        self._last_line = self._began = time.monotonic()
        self.message(f"{self._phase}: {total} steps")

    def advance(self, steps: int, figures: Mapping[str, float]) -> None:
        """Count finished steps; write a line if the last one is old enough. Steps without figures were done before."""
        self._done += steps
        self._figures = dict(figures)
        if not figures:
            self._before += steps
        elif time.monotonic() - self._last_line >= self._seconds_between_lines:
            self._line()

    def finish(self) -> None:
        """Write where the phase ended."""
        if self._phase and self._done > self._shown:
            self._line()
        self._phase = ""

    def message(self, text: str) -> None:
        """Write one line."""
        click.echo(text, err=True)

    def _line(self) -> None:
        self._last_line = time.monotonic()
        self._shown = self._done
        here, to_do = self._done - self._before, self._total - self._done
        left = (time.monotonic() - self._began) / here * to_do if here else 0.0
        at = f"{self._done}/{self._total}" + (f", {time_text(left)} left" if left else "")
        self.message(f"{self._phase}: {at}  {figures_text(self._figures)}".rstrip())


class BarProgress:
    """A bar for each phase, with the count, the time left and, as far as there is room, the latest figures."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def start(self, phase: str, total: int) -> None:
        """Open a bar of `total` steps."""
        self.finish()
        self._bars = bars(count=f"{total}/{total}", title=max(TITLES.values(), key=len))
        self._bars.start()
        self._task = self._bars.add_task(TITLES.get(phase, phase), total=total, figures="")

    def advance(self, steps: int, figures: Mapping[str, float]) -> None:
        """Move the bar on."""
        if self._bars is not None and self._task is not None:
            self._bars.update(
                self._task, advance=steps, figures=figures_text({SHORT.get(k, k): v for k, v in figures.items()})
            )

    def finish(self) -> None:
        """Leave the bar as it stands and give the terminal back."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None

    def message(self, text: str) -> None:
        """Write one line above the bar."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False)
        else:
            click.echo(text, err=True)


def bars(*, count: str, title: str = "") -> "Bars":
    """Bars that keep title, bar, count and time left, and show as much of the figures as there is room for.

    Args:
        count: The longest count; a share in per cent where it ends so.
        title: The longest title.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    def whole(longest: str) -> Column:
        return Column(no_wrap=True, min_width=len(longest))

    counted = TaskProgressColumn if count.endswith("%") else MofNCompleteColumn
    return Progress(
        *([TextColumn("{task.description}", table_column=whole(title))] if title else []),
        BarColumn(bar_width=BAR, table_column=whole("-" * BAR)),
        counted(table_column=whole(count)),
        TimeRemainingColumn(table_column=whole("0:00:00")),
        TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        console=console(stderr=True),
        expand=True,
    )


@contextmanager
def share_bar() -> "Iterator[Callable[[float, str], None]]":
    """For work that says which share of it, in [0, 1], is done, and what it is at."""
    if console(stderr=True).is_terminal:
        with bars(count="100%") as shown:
            task = shown.add_task("", total=1.0, figures="")
            yield lambda share, text: shown.update(task, completed=share, figures=text)
        return
    said, first = [time.monotonic() - SECONDS_BETWEEN_LINES], list[tuple[float, float]]()

    def line(share: float, text: str) -> None:
        now = time.monotonic()
        if share and not first:  # what went before says nothing about the rest
            first.append((now, share))
        if now - said[0] >= SECONDS_BETWEEN_LINES:
            said[0] = now
            done = share - first[0][1] if first else 0.0
            left = f", {time_text((now - first[0][0]) * (1 - share) / done)} left" if done > 0 else ""
            note(f"{share:4.0%}{left}  {text}")

    yield line
