"""Gate distributions by name; the names are known without loading torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from l0prune.errors import ConfigError

if TYPE_CHECKING:
    from l0prune.gates.distribution import GateDistribution

__all__ = ["gate_distribution", "gate_names"]

_RELAXED = {
    "hard-concrete": ("hard_concrete", "HardConcrete"),
    "concrete": ("concrete", "BinaryConcrete"),
    "mdr-exponential": ("mdr_exponential", "MdrExponential"),
    "mdr-exponential-uniform": ("mdr_exponential_uniform", "MdrExponentialUniform"),
    "mdr-power": ("mdr_power", "MdrPower"),
}
_FAMILIES = {
    **_RELAXED,
    "exact-k": ("exact_k", "ExactK"),
    "continuous-sparsification": ("annealed", "ContinuousSparsification"),
}
# However far a stretched mixture is shut, its component at 0 reaches beyond the clip: at these temperatures and this
# stretch a shut gate still counts 4 to 5 % in the expected cost, at the temperatures of the plain mixtures 7 to 9 %.
_STRETCHED = {"mdr-exponential": 15.0, "mdr-exponential-uniform": 20.0, "mdr-power": 40.0}
_STRETCH = (-0.4, 1.4)


def gate_names() -> tuple[str, ...]:
    """Names that `gate_distribution` understands, sorted."""
    stretched = [f"{name}-stretched" for name in _STRETCHED]
    return tuple(sorted([*_FAMILIES, *stretched, *(f"{name}-st" for name in _RELAXED)]))


def gate_distribution(name: str | GateDistribution, **parameters: Any) -> GateDistribution:
    """The gate distribution called `name`; an object that is one already is handed back.

    Args:
        name: One of `gate_names()`. "-stretched" behind a mixture gives it atoms at 0 and 1, "-st" makes the samples of a
            relaxed gate binary and passes their gradients straight through.
        parameters: Of the family, such as `temperature` or `stretch`, in the place of its defaults.

    Raises:
        ConfigError: if there is no gate of that name, it has no such parameter, or a value is out of range; or if it is
            neither a name nor a distribution.
    """
    if not isinstance(name, str):
        return _own_distribution(name, parameters)
    if name not in gate_names():
        raise ConfigError(f"unknown gate {name!r}; use one of: {', '.join(gate_names())}")
    stretched, passed = name.endswith("-stretched"), name.endswith("-st")
    plain = name.removesuffix("-stretched").removesuffix("-st")
    family = _family(plain)
    known = {field.name for field in fields(family)} - {"k"} | ({"stretch"} if stretched else set())
    unknown = sorted(parameters.keys() - known)
    if unknown:
        raise ConfigError(f"gate {name!r} has no parameter {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    if stretched:
        from l0prune.gates.stretched import StretchedGate

        stretch = given.pop("stretch", _STRETCH)
        return StretchedGate(family(**{"temperature": _STRETCHED[plain], **given}), stretch=stretch)
    gate: GateDistribution = family(**given)
    if passed:
        from l0prune.gates.binary import StraightThroughGate

        return StraightThroughGate(gate)
    return gate


def _own_distribution(gate: Any, parameters: Mapping[str, Any]) -> GateDistribution:
    from l0prune.gates.distribution import GateDistribution

    if not isinstance(gate, GateDistribution):
        found = f"the class {gate.__name__}" if isinstance(gate, type) else f"a {type(gate).__name__}"
        raise ConfigError(
            f"gate is {found}; expected a name, such as 'hard-concrete', or an object of a GateDistribution"
        )
    if parameters:
        raise ConfigError(
            f"the gate {gate.name!r} is an object already: give {', '.join(sorted(parameters))} to its class"
        )
    return gate


def _family(name: str) -> Any:
    module, family = _FAMILIES[name]
    return getattr(import_module(f"l0prune.gates.{module}"), family)
