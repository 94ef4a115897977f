"""How a long run tells its caller where it is; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

__all__ = ["Progress", "SilentProgress"]


class Progress(Protocol):
    """What `finetune` calls while it works; a terminal renders it as it likes."""

    def start(self, phase: str, total: int) -> None:
        """A phase ("warmup", "gate", "settle", "recovery") begins and has `total` steps, of which none is done."""

    def advance(self, steps: int, figures: Mapping[str, float]) -> None:
        """`steps` more are done; `figures` are the latest means by name (loss, expected_cost, hard_cost, lr ...)."""

    def finish(self) -> None:
        """The phase is over, or was broken off."""

    def message(self, text: str) -> None:
        """One line worth showing: a decision, an evaluation, a remedy."""


class SilentProgress:
    """A progress that shows nothing."""

    def start(self, phase: str, total: int) -> None:
        """Ignore the start of a phase."""

    def advance(self, steps: int, figures: Mapping[str, float]) -> None:
        """Ignore finished steps."""

    def finish(self) -> None:
        """Ignore the end of a phase."""

    def message(self, text: str) -> None:
        """Ignore a message."""
