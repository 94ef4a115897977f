"""Numbers that differ among layers: read from text, and laid out over the parameters that gates multiply."""

from __future__ import annotations

import math
from collections.abc import Mapping

from l0prune.errors import ConfigError
from l0prune.flow.channel_flow import ChannelFlow

__all__ = ["gated_layers", "read_by_layer", "values_by_consumer"]

_SHOWN = 8


def read_by_layer(text: str) -> dict[str, float]:
    """Read `NAME=NUMBER,NAME=NUMBER,...`; a bare number has the empty name.

    Raises:
        ConfigError: if a part has another form, is not a number, or a name occurs twice.
    """
    values: dict[str, float] = {}
    for part in text.split(","):
        name, separator, number = part.rpartition("=")
        name = name.strip()
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if math.isnan(value) or (separator and not name):
            raise ConfigError(f"{part.strip()!r} is not understood; expected NAME=NUMBER, such as fc1=0.2")
        if name in values:
            raise ConfigError(f"{text!r} gives {name or 'the shared value'!r} twice; give it once")
        values[name] = value
    return values


def values_by_consumer(flow: ChannelFlow, shared: float, layers: Mapping[str, float]) -> list[float]:
    """A number for each of `flow.consumers`, the parameters that gates multiply.

    Args:
        flow: From `trace`.
        shared: Of the consumers that no name covers.
        layers: By dotted name of a module or parameter, or a prefix of it; the longest that fits counts.

    Raises:
        ConfigError: if a name covers no consumer; lists some that would.
    """
    names = [consumer.parameter for consumer in flow.consumers]
    for name in layers:
        if not any(_covers(name, parameter) for parameter in names):
            known = gated_layers(flow)
            listed = ", ".join(known[:_SHOWN]) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
            raise ConfigError(f"no gate multiplies the inputs of {name!r}; layers whose inputs are gated: {listed}")
    by_length = sorted(layers, key=len, reverse=True)
    return [next((layers[name] for name in by_length if _covers(name, parameter)), shared) for parameter in names]


def gated_layers(flow: ChannelFlow) -> list[str]:
    """Modules with gated inputs, in the order of the model."""
    return list(
        dict.fromkeys(consumer.parameter.rpartition(".")[0] or consumer.parameter for consumer in flow.consumers)
    )


def _covers(name: str, parameter: str) -> bool:
    return parameter == name or parameter.startswith(f"{name}.")
