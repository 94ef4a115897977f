"""How many tokens stay, and which, by how often a corpus has them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from l0prune.errors import ConfigError

__all__ = ["chosen_by_count", "is_share", "number_of"]


def is_share(keep: float | int) -> bool:
    """Whether it is a share of the corpus, instead of a number of tokens."""
    return isinstance(keep, float) and 0 < keep <= 1


def number_of(keep: float | int, needed: set[int]) -> int:
    """A number of tokens.

    Raises:
        ConfigError: it is none, or less than what is needed in any case.
    """
    if not math.isfinite(keep) or keep != int(keep) or keep < len(needed) + 1:
        raise ConfigError(
            f"keep={keep:g}: expected a share of the corpus in (0, 1], or a number of tokens above the {len(needed)} that stay in"
            " any case (special ones, bytes and letters)"
        )
    return int(keep)


def chosen_by_count(counts: Mapping[int, int], needed: set[int], keep: float | int) -> set[int]:
    """Ids that stay.

    Raises:
        ConfigError: `keep` is out of range, or less than what is needed in any case.
    """
    by_count = sorted(counts, key=lambda number: (-counts[number], number))
    if is_share(keep):
        total = sum(counts.values())
        left = total - sum(counts[number] for number in by_count if number in needed)
        chosen, covered = set(needed), total - left
        for number in by_count:
            if covered >= keep * total:
                break
            if number not in chosen:
                chosen.add(number)
                covered += counts[number]
        return chosen
    n = number_of(keep, needed)
    others = [number for number in by_count if number not in needed]
    return needed | set(others[: n - len(needed)])
