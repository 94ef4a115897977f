"""Gate distributions by name. A family is a file of families/, so that their names are known without loading torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0prune.errors import ConfigError

if TYPE_CHECKING:
    from l0prune.gates.distribution import GateDistribution

__all__ = ["family_names", "gate_distribution", "gate_names"]

_STRETCHED, _STRAIGHT = "-stretched", "-st"
_STRETCH = (-0.4, 1.4)


def family_names() -> tuple[str, ...]:
    """Names of the families, sorted."""
    files = Path(__file__).with_name("families").glob("[!_]*.py")
    return tuple(sorted(file.stem.replace("_", "-") for file in files))


def gate_names() -> tuple[str, ...]:
    """Names that `gate_distribution` understands, sorted: of the families, and of their stretched and straight-through forms."""
    families = {name: _family(name) for name in family_names()}
    stretched = [name + _STRETCHED for name, family in families.items() if family.stretched_temperature is not None]
    straight = [name + _STRAIGHT for name, family in families.items() if family.is_relaxed]
    return tuple(sorted([*families, *stretched, *straight]))


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
    suffix = next((suffix for suffix in (_STRETCHED, _STRAIGHT) if name.endswith(suffix)), "")
    stretched, straight = suffix == _STRETCHED, suffix == _STRAIGHT
    plain = name.removesuffix(suffix)
    family = _family(plain) if plain in family_names() else None
    if family is None or (stretched and family.stretched_temperature is None) or (straight and not family.is_relaxed):
        raise ConfigError(f"unknown gate {name!r}; use one of: {', '.join(gate_names())}")
    known = {field.name for field in fields(family)} - {"k"} | ({"stretch"} if stretched else set())
    unknown = sorted(parameters.keys() - known)
    if unknown:
        raise ConfigError(f"gate {name!r} has no parameter {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    if stretched:
        from l0prune.gates.stretched import StretchedGate

        stretch = given.pop("stretch", _STRETCH)
        return StretchedGate(family(**{"temperature": family.stretched_temperature, **given}), stretch=stretch)
    gate: GateDistribution = family(**given)
    if straight:
        from l0prune.gates.binary import StraightThroughGate

        return StraightThroughGate(gate)
    return gate


def _own_distribution(gate: Any, parameters: Mapping[str, Any]) -> GateDistribution:
    from l0prune.gates.distribution import GateDistribution

    if not isinstance(gate, GateDistribution):
        found = f"the class {gate.__name__}" if isinstance(gate, type) else f"a {type(gate).__name__}"
        raise ConfigError(f"gate is {found}; expected a name, such as 'hard-concrete', or a GateDistribution object")
    if parameters:
        raise ConfigError(
            f"the gate {gate.name!r} is already an object: pass {', '.join(sorted(parameters))} to its class"
        )
    return gate


def _family(name: str) -> Any:
    """The class in the file of that name, which bears it."""
    module = import_module(f"l0prune.gates.families.{name.replace('-', '_')}")
    return next(value for value in vars(module).values() if isinstance(value, type) and vars(value).get("name") == name)
