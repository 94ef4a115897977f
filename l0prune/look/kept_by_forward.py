"""What a forward pass keeps in its modules for the next one: anchors, grids or masks, and the shape that they were made for.

A graph that is exported while a module has something for the very shape of the example holds that as a constant, and so the
shape is fixed. Made to forget it, the module computes it again, from sizes that may stay free. So it does with tensors in
dictionaries of its own, such as attention biases looked up once and kept for evaluation: a graph has no parameter behind them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.model_call import ModelCall, evaluation_mode, output_tensors

__all__ = ["empty_caches_", "forgetful", "replaced_forward", "without_caches"]

_OWN = frozenset(vars(nn.Module()))  # what every module has: its parameters, buffers, hooks, mode
_Kept = dict[tuple[nn.Module, str], Any]


@contextmanager
def forgetful(model: nn.Module, call: ModelCall) -> Iterator[None]:
    """For a while every forward pass finds nothing kept by an earlier one, and leaves nothing for the next.

    What is kept is found by calling the model with another batch and other sizes. A model that cannot do without what it
    keeps, or computes something else then, stays as it is.

    Args:
        model: Any module; it has its attributes back afterwards.
        call: Inputs it takes.
    """
    kept = _kept(model, call)
    forgotten = (
        next((empty for empty in _forgotten(kept) if _computes_the_same(model, call, empty)), None) if kept else None
    )
    if forgotten is None:
        yield
        return
    forward = model.forward

    @functools.wraps(forward)
    def forgetting(*args: Any, **kwargs: Any) -> Any:
        with _attributes(forgotten):
            return forward(*args, **kwargs)

    with _attributes(forgotten), replaced_forward(model, forgetting):
        yield


@contextmanager
def replaced_forward(model: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """For a while, `model` has another forward pass."""
    own = vars(model).get("forward")
    model.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


def _kept(model: nn.Module, call: ModelCall) -> _Kept:
    """Attributes that calls of other sizes change, with what they are now, if tensors or shapes are among them."""
    suspects = [module for module in model.modules() if any(_holds_tensors(value) for value in _plain(module).values())]
    if not suspects:
        return {}
    before = {(module, name): value for module in suspects for name, value in _plain(module).items()}
    changed: _Kept = {}
    with _attributes(before), evaluation_mode(model), torch.no_grad():
        for other in _of_other_sizes(call):
            try:
                other(model)
            except Exception:  # noqa: BLE001 - a model may refuse other sizes in any way
                continue
            after = {(module, name): value for module in suspects for name, value in _plain(module).items()}
            changed |= {
                place: before.get(place) for place, value in after.items() if not _same(value, before.get(place))
            }
    return changed if any(_holds_tensors(value) for value in changed.values()) else {}


def _plain(module: nn.Module) -> dict[str, Any]:
    """Attributes that are neither parameters nor buffers nor modules; lists and dicts as copies."""
    return {name: _copied(value) for name, value in vars(module).items() if name not in _OWN}


def _copied(value: Any) -> Any:
    return type(value)(value) if type(value) in (list, dict) else value


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor | torch.Size) or (
        type(value) in (list, tuple) and any(isinstance(part, Tensor) for part in value)
    )


def _same(one: Any, other: Any) -> bool:
    if type(one) in (list, tuple) and type(other) is type(one):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    try:
        return one is other or bool(one == other)
    except Exception:  # noqa: BLE001 - things that cannot be compared are not the same
        return False


def _of_other_sizes(call: ModelCall) -> Iterator[ModelCall]:
    """The call with another batch; with other sizes in every dimension behind the second; with both."""

    def shorter(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            for dim in range(2, leaf.ndim):
                leaf = leaf.narrow(dim, 0, max(leaf.shape[dim] // 2, 1))
        return leaf

    more = call.with_batch((call.batch_size or 1) + 1)
    yield more
    for one in (call, more):
        yield ModelCall(*pytree.tree_map(shorter, (one.args, one.kwargs)))


def _forgotten(kept: _Kept) -> Iterator[_Kept]:
    """The same attributes as a module has them before its first forward pass, as far as that can be guessed, in two ways."""
    for of_tensor in (lambda tensor: tensor.new_empty(0), lambda _: None):
        yield {
            (module, name): getattr(type(module), name, None)
            if hasattr(type(module), name)
            else _empty(value, of_tensor)
            for (module, name), value in kept.items()
        }


def _empty(value: Any, of_tensor: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return of_tensor(value)
    if type(value) in (list, tuple) and _holds_tensors(value):
        return type(value)(_empty(part, of_tensor) for part in value)
    return None


def _computes_the_same(model: nn.Module, call: ModelCall, forgotten: _Kept) -> bool:
    with evaluation_mode(model), torch.no_grad():
        expected = output_tensors(call(model))
        try:
            with _attributes(forgotten):
                found = output_tensors(call(model))
        except Exception:  # noqa: BLE001 - whatever a module raises that finds nothing where it kept something
            return False
    return len(found) == len(expected) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(found, expected, strict=True)
    )


@contextmanager
def _attributes(values: _Kept) -> Iterator[None]:
    """For a while, attributes of modules have these values; afterwards those that they have now."""
    modules = dict.fromkeys(module for module, _ in values)
    before = {module: {name: value for name, value in vars(module).items() if name not in _OWN} for module in modules}
    contents = {module: _plain(module) for module in modules}
    try:
        for (module, name), value in values.items():
            vars(module)[name] = _copied(value)
        yield
    finally:
        for module, held in before.items():
            for name in [name for name in vars(module) if name not in _OWN and name not in held]:
                del vars(module)[name]
            vars(module).update(held)
            for name, value in held.items():
                _restore_(value, contents[module][name])


def _restore_(held: Any, content: Any) -> None:
    """Give a list or a dict that was changed in place its content back."""
    if type(held) is list:
        held[:] = content
    elif type(held) is dict:
        held.clear()
        held.update(content)


@contextmanager
def without_caches(model: nn.Module) -> Iterator[None]:
    """For a while the caches are empty, so that what is kept in them is computed again, from the parameters there are."""
    kept = [(held, dict(held)) for held in _caches(model)]
    empty_caches_(model)
    try:
        yield
    finally:
        for held, tensors in kept:
            held.clear()
            held.update(tensors)


def empty_caches_(model: nn.Module) -> None:
    """Empty the caches of all modules."""
    for held in _caches(model):
        held.clear()


def _caches(model: nn.Module) -> list[dict[Any, Tensor]]:
    """Dictionaries of modules that hold tensors and nothing else; parameters and buffers are kept elsewhere."""
    return [
        held
        for module in model.modules()
        for name, held in vars(module).items()
        if type(held) is dict
        and name not in ("_parameters", "_buffers")
        and held
        and all(isinstance(value, Tensor) for value in held.values())
    ]
