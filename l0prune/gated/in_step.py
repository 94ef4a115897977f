"""Sizes that have to stay in proportion for the configuration of a model to be able to say them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping

from torch import nn

from l0prune.goals.uniform import Alike
from l0prune.sources.class_settings import ClassSettings

__all__ = ["sizes_in_step"]


def sizes_in_step(model: nn.Module) -> Alike:
    """What the configuration of a model of transformers has one setting for, in whatever layers.

    Raises:
        ConfigError: it is no model of a class that transformers exports.
    """
    settings = ClassSettings(model)

    def accepts(sizes: Mapping[tuple[str, int], int], integers: Mapping[int, Collection[int]]) -> bool:
        shapes = {
            name: tuple(sizes.get((name, dim), size) for dim, size in enumerate(shape))
            for name, shape in settings.shapes.items()
        }
        return settings.can_have(shapes, integers)

    unmoved = (1.0,) * len(settings.sizes)
    names: dict[Hashable, str] = {
        grows: " and ".join(setting.name for setting, times in zip(settings.sizes, grows, strict=True) if times != 1.0)
        for grows in set(settings.alike.values()) - {unmoved}
    }
    return Alike(f"the configuration of {settings.name}", settings.alike, frozenset({unmoved}), accepts, names)
