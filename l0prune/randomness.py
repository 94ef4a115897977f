"""The default random generators of a process: those of torch, Python and numpy, which data and dropout draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

__all__ = ["Randomness", "left_alone", "seed_all"]


CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Randomness:
    """Where the generators stand.

    Attributes:
        cpu: State of torch's on the CPU.
        cuda: State of torch's on the GPU that is in use; None without one.
        python: State of Python's.
        numpy: State of numpy's.
    """

    cpu: Tensor
    cuda: Tensor | None
    python: tuple[Any, ...]
    numpy: tuple[Any, ...]

    @classmethod
    def now(cls, device: torch.device = CPU) -> Randomness:
        """As they stand.

        Args:
            device: That is computed on.
        """
        kind, keys, *rest = cast("tuple[Any, ...]", np.random.get_state(legacy=True))
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, random.getstate(), (kind, keys.tolist(), *rest))

    def restore(self) -> None:
        """Have them go on from here."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
        version, words, gauss = self.python
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(self.numpy)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Randomness:
        """The inverse of `state_dict`."""
        return cls(**state)


def seed_all(seed: int) -> None:
    """Begin anew.

    Args:
        seed: In [0, 2^63).
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def left_alone(device: torch.device = CPU) -> Iterator[None]:
    """Whatever is drawn or seeded within, the generators are as before afterwards."""
    before = Randomness.now(device)
    try:
        yield
    finally:
        before.restore()
