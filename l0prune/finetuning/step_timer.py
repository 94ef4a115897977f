"""How long a training step takes."""

from __future__ import annotations

import time

__all__ = ["StepTimer"]


class StepTimer:
    """Wall-clock time of the steps since the last reading; stopped while something else is done between them."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._seconds = 0.0
        self._n_steps = 0

    def start(self) -> None:
        """Time counts from here, if it did not already."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """Time no longer counts."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
        self._since = None

    def count(self) -> None:
        """A step is done."""
        self._n_steps += 1

    def take(self) -> float:
        """Seconds a step since the last call, 0 if there was none; the timer stops and begins anew."""
        self.stop()
        mean = self._seconds / self._n_steps if self._n_steps else 0.0
        self._seconds, self._n_steps = 0.0, 0
        return mean
