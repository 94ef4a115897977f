"""Whose code may run: factories that the user typed; those that only the file of a run names take `--trust`."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import click

from l0prune.cli.model_options import ModelOptions
from l0prune.cli.output import note
from l0prune.errors import UntrustedCodeError
from l0prune.files import write_json
from l0prune.machine import state_directory

__all__ = ["FactoryCall", "data_call", "model_call", "remember", "require_typed", "task_call", "trust_option"]

FOLDER = "typed"


@dataclass(frozen=True)
class FactoryCall:
    """A factory with what it is called with.

    Args:
        spec: `package.module:factory`.
        typed_as: A command that calls it and writes nothing.
        arguments: Its keyword arguments.
    """

    spec: str
    typed_as: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What makes it the same call: its name, its arguments, and the file that the name stands for at present."""
        from l0prune.sources.factories import factory_file

        return {"spec": self.spec, "arguments": dict(self.arguments), "file": factory_file(self.spec)}

    def record(self) -> Path:
        """The file that stands for it among what the user has typed.

        Raises:
            OSError: the user has no home.
        """
        text = json.dumps(self.identity(), sort_keys=True)
        return state_directory() / FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def model_call(options: ModelOptions) -> FactoryCall | None:
    """The factory that a model is built by; None where that is no code of a user."""
    from l0prune.sources.model_spec import is_factory

    if not is_factory(options.spec):
        return None
    arguments, typed = _as_typed(options.model_args, "--model-arg")
    return FactoryCall(options.spec, f"l0prune inspect {quote(options.spec)}{typed}", arguments)


def data_call(spec: str, arguments: Mapping[str, Any]) -> FactoryCall | None:
    """The factory that data comes from; None where that is no code of a user."""
    from l0prune.sources.datasets import is_factory

    if not is_factory(spec):
        return None
    plain, typed = _as_typed(arguments, "--data-arg")
    return FactoryCall(spec, f"l0prune eval MODEL --data {quote(spec)}{typed}", plain)


def task_call(spec: str | None, arguments: Mapping[str, Any]) -> FactoryCall | None:
    """The factory that a task comes from; None where that is no code of a user."""
    from l0prune.tasks.registry import is_factory

    if spec is None or not is_factory(spec):
        return None
    plain, typed = _as_typed(arguments, "--task-arg")
    return FactoryCall(spec, f"l0prune eval MODEL --data SPEC --task {quote(spec)}{typed}", plain)


def _as_typed(arguments: Mapping[str, Any], option: str) -> tuple[dict[str, Any], str]:
    """Arguments of a factory as run.json has them, and as they are typed."""
    plain = json.loads(json.dumps(dict(arguments), default=repr))
    return plain, "".join(f" {option} {quote(f'{key}={value}')}" for key, value in plain.items())


def remember(call: FactoryCall | None) -> None:
    """Keep that the user has typed a call, so that runs which name it can be used without typing it again.

    Where nothing can be kept, later commands need `--trust`, and that is said.
    """
    if call is None:
        return
    try:
        record = call.record()
        if not record.exists():
            record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_json(record, call.identity())
    except OSError as error:
        reason = error.strerror or error
        note(f"what you type cannot be remembered ({reason}), so later commands of a run need --trust for {call.spec}")


def require_typed(calls: Iterable[FactoryCall | None], source: Path, *, trust: bool) -> None:
    """See that the code named in a file is code that the user has typed before.

    Args:
        calls: What the file names; None is no code.
        source: The file.
        trust: The user trusts the file.

    Raises:
        UntrustedCodeError: it is not; nothing was imported.
    """
    unknown = [call for call in calls if call is not None and not trust and not is_remembered(call)]
    if not unknown:
        return
    found = ", ".join(f"{call.spec!r} ({call.identity()['file'] or 'not found here'})" for call in unknown)
    typed = " and ".join(f"`{call.typed_as}`" for call in unknown)
    raise UntrustedCodeError(
        f"{source} names code that you have not typed yourself, and none of it was run: {found}. If you trust it, give --trust,"
        f" or type it once, as in {typed}"
    )


def is_remembered(call: FactoryCall) -> bool:
    """Whether the user has typed this very call, of the code in this very place."""
    try:
        return call.record().exists()
    except OSError:
        return False


trust_option = click.option(
    "--trust", is_flag=True, help="Run the factories that RUN names, even though you have not typed them yourself."
)
"""Add `--trust`."""
