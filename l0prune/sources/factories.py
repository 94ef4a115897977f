"""Objects that a user names as `package.module:factory`."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l0prune.errors import L0PruneError

__all__ = ["call_factory", "factory_file"]


def call_factory(spec: str, error: type[L0PruneError], **arguments: Any) -> Any:
    """Import a factory and call it; modules in the current directory can be imported.

    Args:
        spec: `package.module:factory`.
        error: What to raise where the specification or the factory fails.
        arguments: Keyword arguments of the factory.

    Returns:
        Whatever the factory returns.

    Raises:
        L0PruneError: of type `error`, naming the part of the specification that failed.
    """
    module_name, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *name.split(".")]):
        raise error(f"{spec!r} is not of the form package.module:factory.")
    with _current_directory_importable():
        factory = _find(spec, module_name, name, error)
        try:
            return factory(**arguments)
        except L0PruneError:
            raise
        except Exception as cause:
            called = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            raise error(f"{spec!r}: {name}({called}) failed with {describe(cause)}.") from cause


def factory_file(spec: str) -> str | None:
    """Where the code of `package.module:factory` would come from, found without running any of it.

    Returns:
        The file of the package's first module, or the folders of a package without one; None where there is none.
    """
    top = spec.partition(":")[0].partition(".")[0]
    with _current_directory_importable():
        try:
            found = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return None
    if found is None:
        return None
    if found.has_location and found.origin is not None:
        return os.path.realpath(found.origin)
    folders = sorted(os.path.realpath(folder) for folder in found.submodule_search_locations or ())
    return os.pathsep.join(folders) or found.origin


def _find(spec: str, module_name: str, name: str, error: type[L0PruneError]) -> Callable[..., Any]:
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as cause:
        if cause.name is None or not f"{module_name}.".startswith(f"{cause.name}."):
            raise error(f"{spec!r}: {module_name} could not be imported: {describe(cause)}.") from cause
        raise error(
            f"{spec!r}: there is no module {cause.name!r}, neither installed nor in the current directory "
            f"({Path.cwd()})."
        ) from cause
    except Exception as cause:
        raise error(f"{spec!r}: {module_name} could not be imported: {describe(cause)}.") from cause
    for part in name.split("."):
        if not hasattr(found, part):
            public = sorted(key for key, value in vars(found).items() if callable(value) and not key.startswith("_"))
            raise error(f"{spec!r}: {module_name} has no {part!r}; it has {', '.join(public[:8]) or 'no callables'}.")
        found = getattr(found, part)
    if not callable(found):
        raise error(f"{spec!r}: {name} is a {type(found).__name__}, expected a function or class to call.")
    return found


def describe(cause: BaseException) -> str:
    """An exception as one line: its type and the first line of its message."""
    text = (str(cause).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
