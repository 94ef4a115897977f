"""Numbers below the normal range: many processors are up to a hundred times slower with them, unless they count as zero."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["denormals_are_flushed", "flushed_denormals"]


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """In this block they count as zero on the calling thread, where the processor can; afterwards they are as before.

    onnxruntime's own option would change the calling thread for good.
    """
    before = denormals_are_flushed()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def denormals_are_flushed() -> bool:
    """Whether they count as zero on this thread."""
    smallest = np.finfo(np.float32).tiny
    return not (np.array([smallest], np.float32) * np.float32(0.5)).any()
