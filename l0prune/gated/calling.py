"""A gated model looks from outside like the model that it holds: what its call takes, and what trainers ask of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from l0prune.model_call import signature_of

if TYPE_CHECKING:
    from l0prune.gated.model import GatedModel

__all__ = ["SHARED", "CalledLikeItsModel"]

SHARED = frozenset(
    {
        *("config", "device", "dtype", "main_input_name", "accepts_loss_kwargs", "loss_type", "floating_point_ops"),
        *("activation_checkpointing_enable", "activation_checkpointing_disable", "is_gradient_checkpointing"),
        *("gradient_checkpointing_enable", "gradient_checkpointing_disable", "enable_input_require_grads"),
    }
)
"""Attributes that a gated model has where its model has them. What computes or saves (`generate`, `save_pretrained`) is not
among them: it would go past the gates."""


class CalledLikeItsModel:
    """A method `forward(*args, **kwargs)` that states the arguments of the model it calls.

    Trainers read them to find out which columns of a data set the model takes. Of the class it states that there may be `labels`,
    which transformers looks for there.

    Args:
        function: The method.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.__doc__ = function.__doc__
        own = inspect.signature(function)
        self._first, *rest = own.parameters.values()
        labels = inspect.Parameter("labels", inspect.Parameter.KEYWORD_ONLY, default=None)
        self._of_class = self._signed(own.replace(parameters=[self._first, rest[0], labels, *rest[1:]]))
        self._made: WeakKeyDictionary[GatedModel, tuple[int, Callable[..., Any]]] = WeakKeyDictionary()

    def __get__(self, gated: GatedModel | None, owner: type | None = None) -> Callable[..., Any]:
        """The method of a gated model."""
        if gated is None:
            return self._of_class
        of, function = self._made.get(gated, (0, self._function))
        if of != id(gated.model):
            known = signature_of(gated.model)
            if known is None:
                function = self._function
            else:
                others = [parameter for name, parameter in known.parameters.items() if name != self._first.name]
                function = self._signed(known.replace(parameters=[self._first, *others]))
            self._made[gated] = id(gated.model), function
        return MethodType(function, gated)

    def _signed(self, signature: inspect.Signature) -> Callable[..., Any]:
        """The function, with a signature that is stated."""
        plain: Any = self._function
        function: Any = FunctionType(
            plain.__code__, plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__
        )
        function.__doc__, function.__module__, function.__qualname__ = (
            plain.__doc__,
            plain.__module__,
            plain.__qualname__,
        )
        function.__signature__ = signature
        return function
