"""Sums of products over named indices: einsum, and the products of vectors and tensors that are cases of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch.fx import Node

from l0prune.ops.contractions import SCORES, best, contract, count_multiplications, made_of, places_that_zero
from l0prune.ops.node import NoRuleError, argument_of, node_shape
from l0prune.ops.operation import Op, Operation
from l0prune.ops.tracker import IdArray, Labels, Places

__all__ = ["Index", "multilinear"]

Index: TypeAlias = str | int
"""A letter of an equation; a number, counted from the right, for a dimension that an ellipsis stands for."""


def _factors(op: Op, node: Node, dim: int) -> Places:
    """Any tensor with the index may be zero, as a factor of a product."""
    operands = argument_of(node, "tensors")
    terms, out = _indices_of(argument_of(node, "equation"), [len(node_shape(x)) for x in operands])
    choices = []
    for k, (x, term) in enumerate(zip(operands, terms, strict=True)):
        if out[dim] in term and node_shape(x)[term.index(out[dim])] == node_shape(node)[dim]:
            places = places_that_zero(op, x, term.index(out[dim]))
            parameters = {place.parameter for place in places or ()}
            if not any(made_of(op, other, parameters) for j, other in enumerate(operands) if j != k):
                choices.append(places)
    return best(choices)


@Operation("einsum", zeros=_factors)
def einsum(op: Op) -> Labels:
    """Any equation in which no tensor has an index twice."""
    operands = list(op.arg("tensors"))
    indices, out = _indices_of(op.arg("equation"), [len(op.shape(x)) for x in operands])
    return multilinear(op, operands, indices, out)


@Operation("mv dot vdot outer ger inner")
def vectors(op: Op) -> Labels:
    """Products with vectors; `inner` of tensors contracts the last dimensions."""
    a, b = op.node.args[:2]
    n_a, n_b = len(op.shape(a)), len(op.shape(b))
    if n_a == 0 or n_b == 0:
        raise NoRuleError
    first: list[Index] = [f"a{d}" for d in range(n_a)]
    second: list[Index] = [f"b{d}" for d in range(n_b)]
    if op.name not in ("outer", "ger"):
        second[-1] = first[-1]
    return multilinear(op, [a, b], [first, second], _once(first, second))


def _once(first: list[Index], second: list[Index]) -> list[Index]:
    """Indices that only one of two tensors has."""
    return [index for index in [*first, *second] if not (index in first and index in second)]


@Operation("tensordot")
def tensordot(op: Op) -> Labels:
    """The given dimensions of two tensors are contracted with each other; the remaining ones follow in order."""
    a, b = op.arg("self"), op.arg("other")
    first: list[Index] = [f"a{d}" for d in range(len(op.shape(a)))]
    second: list[Index] = [f"b{d}" for d in range(len(op.shape(b)))]
    for d, e in zip(op.arg("dims_self"), op.arg("dims_other"), strict=True):
        second[e] = first[d]
    return multilinear(op, [a, b], [first, second], _once(first, second))


def multilinear(op: Op, operands: Sequence[Any], indices: Sequence[list[Index]], out: Sequence[Index]) -> Labels:
    """The product of `operands`, summed over every index that is not in `out`.

    Index by index, equal units are tied. An index that is summed over is consumed by a parameter that has it, because the
    product is linear in each operand; without one, or with one operand alone, its units are pinned.

    Args:
        op: The call.
        operands: Tensors.
        indices: For each tensor the index of each of its dimensions.
        out: Indices of the result.

    Returns:
        Labels of the result.

    Raises:
        NoRuleError: a tensor has an index twice: its diagonal is taken.
    """
    if any(len(set(term)) < len(term) for term in [*indices, out]):
        raise NoRuleError
    sizes: dict[Index, int] = {}
    for x, term in zip(operands, indices, strict=True):
        for i, size in zip(term, op.shape(x), strict=True):
            sizes[i] = max(sizes.get(i, 1), size)
    ids = {index: _tied(op, index, size, operands, indices) for index, size in sizes.items()}
    for index in sizes.keys() - set(out):
        _summed(op, index, sizes[index], operands, indices)
    _count(op, indices, out, sizes, ids)
    return [ids.get(index) for index in out]


def _holders(
    op: Op, index: Index, size: int, operands: Sequence[Any], indices: Sequence[list[Index]]
) -> list[tuple[Any, int]]:
    """The operands that have an index at full size, with its dimension; those of size one are broadcast, and pinned."""
    found = []
    for x, term in zip(operands, indices, strict=True):
        if index in term:
            dim = term.index(index)
            if op.shape(x)[dim] == size:
                found.append((x, dim))
            else:
                op.tracker.pin(op.labels(x)[dim], "a single unit is broadcast over a dimension")
    return found


def _tied(op: Op, index: Index, size: int, operands: Sequence[Any], indices: Sequence[list[Index]]) -> IdArray | None:
    column = [op.labels(x)[dim] for x, dim in _holders(op, index, size, operands, indices)]
    if all(ids is None for ids in column):
        return None
    first = column[0]
    for ids in column[1:]:
        first = op.tracker.tie(first, ids)
    return first


def _summed(op: Op, index: Index, size: int, operands: Sequence[Any], indices: Sequence[list[Index]]) -> None:
    """One parameter that has the index consumes its units; scaling it scales the whole product."""
    holders = _holders(op, index, size, operands, indices)
    for x, dim in holders:
        if op.origin(x) is not None and len(holders) > 1:
            contract(op, op.labels(x)[dim], x, dim)
            return
    for x, dim in holders:
        op.tracker.pin(op.labels(x)[dim], SCORES if len(holders) > 1 else "summed over")


def _count(
    op: Op,
    indices: Sequence[list[Index]],
    out: Sequence[Index],
    sizes: dict[Index, int],
    ids: dict[Index, IdArray | None],
) -> None:
    """Multiplications, taking the operands one after another."""
    held = set(indices[0])
    for k in range(1, len(indices)):
        held |= set(indices[k])
        count_multiplications(op, [(sizes[i], ids[i]) for i in sorted(held, key=str)])
        held &= set(out).union(*indices[k + 1 :])


def _indices_of(equation: str, n_dims: Sequence[int]) -> tuple[list[list[Index]], list[Index]]:
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
