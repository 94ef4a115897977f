"""Names of the reference networks, with what each one expects of an image."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["BUILT_AS", "ModelEntry", "entry", "names", "register"]

Factory = Callable[..., nn.Module]
BUILT_AS = "_l0prune_built_as"
"""Attribute of a model that a registered factory built: the name and the keyword arguments."""
CHECKPOINTS = Path(__file__).parent / "checkpoints"


@dataclass(frozen=True)
class ModelEntry:
    """A registered network.

    Attributes:
        name: What a user types.
        factory: Builds the network; takes keyword arguments only, `num_classes` among them.
        input_shape: Example input without the batch, (channels, height, width).
        mean: One value a channel, in units of pixel / 255.
        std: One value a channel, in units of pixel / 255, above 0.
        checkpoint: Trained weights that ship with the package, or None.
    """

    name: str
    factory: Factory
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checkpoint: Path | None = None


_ENTRIES: dict[str, ModelEntry] = {}


def register(
    *,
    input_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    checkpoint: str | None = None,
) -> Callable[[Factory], Factory]:
    """Decorator: make a factory known under its function name; what it builds remembers that.

    Args:
        input_shape: (channels, height, width) of an example input.
        mean: One value a channel, in units of pixel / 255.
        std: One value a channel, in units of pixel / 255.
        checkpoint: File name in the package's `checkpoints` folder, or None.
    """

    def add(factory: Factory) -> Factory:
        name = factory.__name__
        path = CHECKPOINTS / checkpoint if checkpoint else None

        @wraps(factory)
        def remembered(**arguments: Any) -> nn.Module:
            model = factory(**arguments)
            object.__setattr__(model, BUILT_AS, (name, arguments))
            return model

        _ENTRIES[name] = ModelEntry(name, remembered, input_shape, mean, std, path)
        return remembered

    return add


def names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_ENTRIES))


def entry(name: str) -> ModelEntry:
    """The entry of one name.

    Raises:
        KeyError: if no network is registered under `name`.
    """
    return _ENTRIES[name]
