"""The equation of an einsum: which index each dimension of its tensors has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["Index", "indices_of"]

Index: TypeAlias = str | int
"""A letter of an equation; a number, counted from the right, for a dimension that an ellipsis stands for."""


def indices_of(equation: str, n_dims: Sequence[int]) -> tuple[list[list[Index]], list[Index]]:
    """The indices of every operand, and of the result.

    Args:
        equation: As for torch.einsum, with letters.
        n_dims: Number of dimensions of every operand.
    """
    given, arrow, result = equation.replace(" ", "").partition("->")
    terms = [_indices(term, n) for term, n in zip(given.split(","), n_dims, strict=True)]
    if not arrow:
        return terms, _implicit(terms)
    n_hidden = max(sum(isinstance(index, int) for index in term) for term in terms)
    return terms, _indices(result, len(result.replace("...", "")) + n_hidden)


def _indices(term: str, n_dims: int) -> list[Index]:
    """One index for each dimension of a tensor."""
    before, dots, after = term.partition("...")
    hidden = n_dims - len(before) - len(after) if dots else 0
    return [*before, *range(hidden - 1, -1, -1), *after]


def _implicit(indices: list[list[Index]]) -> list[Index]:
    """Without an arrow: the dimensions of the ellipsis, then the letters that occur once, in the order of the alphabet."""
    every = [index for term in indices for index in term]
    hidden = sorted({index for index in every if isinstance(index, int)}, reverse=True)
    return [*hidden, *sorted(letter for letter in every if isinstance(letter, str) and every.count(letter) == 1)]
