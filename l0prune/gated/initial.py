"""Where gates start: at a location for each drop rate, shared or by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from l0prune.errors import ConfigError
from l0prune.flow.channel_flow import ChannelFlow
from l0prune.gates.bank import LOCATION_BOUND
from l0prune.goals.by_layer import values_by_consumer

__all__ = ["DropRate", "initial_locations"]

DropRate = float | Mapping[str, float]
"""A drop rate for all gates, or by the name of the layer whose inputs are gated, with the empty name for the others."""


def initial_locations(flow: ChannelFlow, droprate: DropRate, *, default: float) -> Tensor:
    """log((1 - d) / d) for the drop rate d of each gate.

    d is not P(z = 0): a hard concrete gate with d = 0.5 is open with probability 0.83, with d = 0.2 with 0.95.

    Args:
        flow: From `trace`.
        droprate: Each in [0.00034, 0.99966], which is as far as locations go. A gate whose unit feeds several layers takes
            the least of their rates.
        default: Location of the gates that are not named.

    Returns:
        Shape `(n_gates,)`, float64.

    Raises:
        ConfigError: if a rate is out of range, or a name is of no layer with gated inputs.

    Source: Louizos, Welling, Kingma (2018), arXiv:1712.01312, section 4; the initialisation of their code.
    """
    rates = dict(droprate) if isinstance(droprate, Mapping) else {"": droprate}
    for name, rate in rates.items():
        is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if not is_number or not 0 < rate < 1 or abs(math.log((1 - rate) / rate)) > LOCATION_BOUND:
            least = 1 / (1 + math.exp(LOCATION_BOUND))
            raise ConfigError(
                f"droprate {f'{name}=' if name else ''}{rate!r}: expected a number in [{least:.2g}, {1 - least:.5f}], 0.5 or"
                " less in the L0 paper"
            )
    unnamed = rates.pop("", math.nan)
    locations = torch.full((flow.n_gates,), -math.inf, dtype=torch.float64)
    for consumer, rate in zip(flow.consumers, values_by_consumer(flow, unnamed, rates), strict=True):
        gates = torch.from_numpy(consumer.gates[consumer.gates >= 0])
        if not math.isnan(rate):
            locations[gates] = locations[gates].clamp_min(math.log((1 - rate) / rate))
    return torch.where(locations.isinf(), default, locations)
