"""Names of the reference networks, with what each one expects of an image."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

__all__ = ["ModelEntry", "entry", "names", "register"]

Factory = Callable[..., nn.Module]
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
    """Decorator: make a factory known under its function name.

    Args:
        input_shape: (channels, height, width) of an example input.
        mean: One value a channel, in units of pixel / 255.
        std: One value a channel, in units of pixel / 255.
        checkpoint: File name in the package's `checkpoints` folder, or None.
    """

    def add(factory: Factory) -> Factory:
        name = factory.__name__
        path = CHECKPOINTS / checkpoint if checkpoint else None
        _ENTRIES[name] = ModelEntry(name, factory, input_shape, mean, std, path)
        return factory

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
