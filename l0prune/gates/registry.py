"""Gate distributions by name."""

from l0prune.errors import ConfigError
from l0prune.gates.distribution import GateDistribution
from l0prune.gates.hard_concrete import HardConcrete

__all__ = ["gate_distribution", "gate_names"]

_FAMILIES: dict[str, type[GateDistribution]] = {HardConcrete.name: HardConcrete}


def gate_names() -> tuple[str, ...]:
    """Names that `gate_distribution` understands, sorted."""
    return tuple(sorted(_FAMILIES))


def gate_distribution(name: str) -> GateDistribution:
    """The gate distribution called `name`, with its default parameters.

    Raises:
        ConfigError: if there is none of that name.
    """
    family = _FAMILIES.get(name)
    if family is None:
        raise ConfigError(f"unknown gate {name!r}; use one of: {', '.join(gate_names())}")
    return family()
