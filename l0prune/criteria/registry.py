"""Criteria by name. One of the package is a file of provided/, so that their names are known without loading torch."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from l0prune.errors import ConfigError

if TYPE_CHECKING:
    from l0prune.criteria.criterion import Criterion

__all__ = ["GATES", "criterion_names", "load_criterion", "method_names", "register"]

GATES = "gates"
"""The method that trains gates instead of asking a criterion."""

_registered: dict[str, Criterion] = {}


def register(criterion: Criterion) -> None:
    """Make a criterion of your own known by its name, in this process; it replaces an earlier one of that name.

    Raises:
        ConfigError: it is no criterion, or its name is that of one of the package.
    """
    from l0prune.criteria.criterion import Criterion

    if not isinstance(criterion, Criterion):
        found = f"the class {criterion.__name__}" if isinstance(criterion, type) else f"a {type(criterion).__name__}"
        raise ConfigError(f"criterion is {found}; expected an object of a class derived from Criterion")
    if criterion.name in (GATES, "open", *_provided_names()):
        raise ConfigError(f"the name {criterion.name!r} is taken: give the criterion another one")
    _registered[criterion.name] = criterion


def criterion_names() -> tuple[str, ...]:
    """Names that `load_criterion` understands, sorted."""
    return tuple(sorted({*_provided_names(), *_registered}))


def method_names() -> tuple[str, ...]:
    """What can choose units: gates that are trained, or one of the criteria."""
    return (GATES, *criterion_names())


def load_criterion(name: str) -> Criterion:
    """The criterion called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name in _registered:
        return _registered[name]
    if name not in _provided_names():
        raise ConfigError(f"unknown criterion {name!r}; use one of: {', '.join(criterion_names())}")
    module = import_module(f"l0prune.criteria.provided.{name.replace('-', '_')}")
    kind = next(value for value in vars(module).values() if isinstance(value, type) and vars(value).get("name") == name)
    criterion: Criterion = kind()
    return criterion


def _provided_names() -> tuple[str, ...]:
    files = Path(__file__).with_name("provided").glob("[!_]*.py")
    return tuple(sorted(file.stem.replace("_", "-") for file in files))
