"""How long work is shown: a bar on a terminal, plain lines in a log; always on stderr."""

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from l0prune.cli.output import console

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["BarProgress", "LineProgress", "progress_for_stderr"]

SECONDS_BETWEEN_LINES = 10.0
TITLES = {"warmup": "warm-up", "gate": "learning gates", "settle": "closing gates", "recovery": "recovery"}


def progress_for_stderr() -> "BarProgress | LineProgress":
    """A bar where stderr is a terminal, lines elsewhere."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()


def figures_text(figures: Mapping[str, float]) -> str:
    """The latest figures in a few words: `loss 0.213  expected_cost 0.501`."""
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


class LineProgress:
    """One line when a phase starts, one now and then while it runs, one when it ends."""

    def __init__(self, seconds_between_lines: float = SECONDS_BETWEEN_LINES) -> None:
        self._seconds_between_lines = seconds_between_lines
        self._last_line = 0.0
        self._phase = ""
        self._done = self._total = self._shown = 0
        self._figures: dict[str, float] = {}

    def start(self, phase: str, total: int) -> None:
        """Say that a phase of `total` steps begins."""
        self._phase, self._total = TITLES.get(phase, phase), total
        self._done = self._shown = 0
        self._figures = {}
        self._last_line = time.monotonic()
        self.message(f"{self._phase}: {total} steps")

    def advance(self, steps: int, figures: Mapping[str, float]) -> None:
        """Count finished steps; write a line if the last one is old enough."""
        self._done += steps
        self._figures = dict(figures)
        if time.monotonic() - self._last_line >= self._seconds_between_lines:
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
        self.message(f"{self._phase}: {self._done}/{self._total}  {figures_text(self._figures)}".rstrip())


class BarProgress:
    """A bar for each phase, with the time left and the latest figures."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def start(self, phase: str, total: int) -> None:
        """Open a bar of `total` steps."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.finish()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console(stderr=True),
        )
        self._bars.start()
        self._task = self._bars.add_task(TITLES.get(phase, phase), total=total, figures="")

    def advance(self, steps: int, figures: Mapping[str, float]) -> None:
        """Move the bar on."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, advance=steps, figures=figures_text(figures))

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
