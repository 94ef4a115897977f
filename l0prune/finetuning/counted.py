"""Batches that have a length, whatever they are: data that do not say how many there are, or of which a part is an epoch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from l0prune.errors import DataError, L0PruneWarning
from l0prune.finetuning.passes import Batches, FirstBatches, begin_pass
from l0prune.randomness import left_alone
from l0prune.sources.loaders import is_repeatable

__all__ = ["counted", "require_repeatable"]


def counted(batches: Iterable[Any], per_epoch: int | None = None) -> Batches:
    """The batches, with a length.

    Args:
        batches: Can be iterated again and again.
        per_epoch: Batches that are taken of each pass; None takes all, which are counted in a pass where they do not say.

    Raises:
        DataError: they can be iterated once only, or there are fewer.

    Warns:
        L0PruneWarning: they have to be counted.
    """
    require_repeatable(batches, "train_batches")
    length = _length(batches)
    if per_epoch is None and length is not None:
        return batches  # type: ignore[return-value]
    if per_epoch is not None:
        if length is not None and length < per_epoch:
            raise DataError(
                f"batches_per_epoch={per_epoch}, and train_batches has {length}: leave it out, or ask for fewer"
            )
        return batches if length == per_epoch else FirstBatches(batches, per_epoch)  # type: ignore[return-value]
    warnings.warn(
        "the training data have no length, so the batches of a pass are counted: if they are endless, say how many make an epoch"
        " (batches_per_epoch)",
        L0PruneWarning,
        stacklevel=3,
    )
    with left_alone():
        begin_pass(batches, 0, seed=0)
        length = sum(1 for _ in batches)
    return FirstBatches(batches, length)


def require_repeatable(batches: Any, name: str) -> None:
    """See that a second pass can be made.

    Raises:
        DataError: it cannot.
    """
    if not is_repeatable(batches):
        raise DataError(
            f"{name} is a {type(batches).__name__}, which cannot be iterated again and again: give a DataLoader, a list of"
            " batches, or an object whose __iter__ begins anew"
        )


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:  # as a loader of a stream raises it, which has the method
        return None
