"""A cut model whose class can save itself says that its folder is not what it looks like."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from l0prune.errors import L0PruneWarning

__all__ = ["warn_when_saved_"]

_METHOD = "save_pretrained"


def warn_when_saved_(compact: nn.Module) -> None:
    """Have the `save_pretrained` of a compact model warn: the folder lacks the cut, and no `from_pretrained` takes it.

    Args:
        compact: Of any class; those without such a method stay as they are.
    """
    if callable(getattr(type(compact), _METHOD, None)):
        object.__setattr__(compact, _METHOD, _Warned(compact))


class _Warned:
    """The method of one model; a copy of the model has one of its own."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Warn, and save."""
        name = type(self.model).__name__
        is_known = type(self.model).__module__.partition(".")[0] == "transformers"
        instead = "l0prune.hf.save_pretrained" if is_known else "l0prune.save"
        warnings.warn(
            f"the folder that this cut {name} writes itself lacks the cut that its weights need, so that"
            f" {name}.from_pretrained refuses it: write it with {instead}(model, directory)",
            L0PruneWarning,
            stacklevel=2,
        )
        return getattr(type(self.model), _METHOD)(self.model, *args, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Warned:
        """Of the copy that is being made."""
        return _Warned(memo.get(id(self.model), self.model))
