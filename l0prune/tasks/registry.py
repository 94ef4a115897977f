"""Tasks by name, the names being known without loading torch: those of the files in `provided/`."""

from __future__ import annotations

import pkgutil
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0prune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from l0prune.sources.datasets import DataSource
    from l0prune.tasks.task import Task

__all__ = ["UNLABELLED", "default_task", "is_factory", "load_task", "task_names"]

FACTORY = "package.module:factory"
UNLABELLED = "match"
"""The task that needs no targets."""


def task_names() -> tuple[str, ...]:
    """Names that `load_task` understands, sorted."""
    found = pkgutil.iter_modules([str(Path(__file__).parent / "provided")])
    return tuple(sorted(module.name.replace("_", "-") for module in found))


def is_factory(spec: str) -> bool:
    """Whether `load_task` would import and call what a specification names."""
    return ":" in spec


def load_task(spec: str, **arguments: Any) -> Task:
    """A task by name, or one of your own.

    Args:
        spec: One of `task_names()`, or `package.module:factory`, which returns a `Task`.
        arguments: Arguments of the task that replace its defaults, such as `ignore` or `output`; or of the factory.

    Raises:
        ConfigError: there is no task of that name, it has no such argument, or the factory fails or returns something else.
    """
    from l0prune.tasks.task import Task

    if is_factory(spec):
        from l0prune.sources.factories import call_factory

        made = call_factory(spec, ConfigError, **arguments)
        if not isinstance(made, Task):
            raise ConfigError(f"{spec!r} returned a {type(made).__name__}, expected an l0prune.Task.")
        return made
    if spec not in task_names():
        raise ConfigError(f"unknown task {spec!r}; use one of: {', '.join(task_names())}, or {FACTORY}")
    module = import_module(f"l0prune.tasks.provided.{spec.replace('-', '_')}")
    kind = getattr(module, module.__all__[0])
    known = {field.name for field in fields(kind)}
    unknown = sorted(arguments.keys() - known)
    if unknown:
        raise ConfigError(
            f"task {spec!r} has no argument {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}"
        )
    task: Task = kind(**arguments)
    return task


def default_task(data: DataSource) -> str:
    """What data is for, where nobody says: a whole number for each entry is its class, other targets are numbers.

    Without targets, a network gives what the dense network gives.

    Raises:
        DataError: it cannot be told.
    """
    if not data.labelled:
        return UNLABELLED
    is_whole = data.y_train.dtype.kind == "i"
    if is_whole and data.y_train.ndim == 1:
        return "classification"
    if is_whole and data.has_images:
        raise DataError(
            f"{data.name}: the targets of its images have shape {data.y_train.shape}: say what they are, as in --task pixels"
        )
    return "regression"
