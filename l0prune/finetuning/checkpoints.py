"""Checkpoints of a run: a folder of safetensors and plain trainer state, replaced as a whole or not at all."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from l0prune.errors import CheckpointError, first_line
from l0prune.files import remove
from l0prune.finetuning.config import FinetuneConfig
from l0prune.finetuning.settings import Settings, resolve
from l0prune.reading import reading
from l0prune.sources.pickles import read_pickled_tensors

__all__ = [
    "Checkpoint",
    "Store",
    "checkpoint_exists",
    "load_checkpoint",
    "recorded_settings",
    "save_checkpoint",
    "weights_digest",
]

FORMAT = "l0prune.checkpoint"
VERSION = 3
REMEDY = "start the run again"
FOLDER = "checkpoint"
MODEL, GATES, COMPACT, AVERAGE, TRAINER = (
    "model.safetensors",
    "gates.safetensors",
    "compact.safetensors",
    "average.safetensors",
    "trainer.pt",
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything a run needs to go on.

    Attributes:
        model: Dense shapes, names as in the user's own model.
        gates: State of the gate bank.
        trainer: Tensors and plain values: position, optimizer, gate optimizer, constraint, noise, history.
        compact: Weights of the compact network, from the freeze on.
        average: Moving average of what is trained, where one is kept.
    """

    model: dict[str, Tensor]
    gates: dict[str, Tensor]
    trainer: dict[str, Any] = field(default_factory=dict)
    compact: dict[str, Tensor] | None = None
    average: dict[str, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Store:
    """Where a run keeps its checkpoint.

    Args:
        run: Directory of the run; None keeps nothing.
        identity: What a later resume must agree with: plain values, `config` a mapping.
        writes: Whether this process is the one that writes.
    """

    run: Path | None
    identity: Mapping[str, Any]
    writes: bool = True

    def save(self, checkpoint: Checkpoint) -> None:
        """Write it in place of the last one.

        Raises:
            CheckpointError: it cannot be written; the old one stays.
        """
        if self.run is not None and self.writes:
            trainer = {"identity": dict(self.identity), **checkpoint.trainer}
            save_checkpoint(self.run / FOLDER, replace(checkpoint, trainer=trainer))

    def load(self) -> Checkpoint:
        """The last one, after seeing that it is of the same run.

        Raises:
            CheckpointError: there is none, it is damaged, or of another run.
        """
        checkpoint = load_checkpoint(Path() if self.run is None else self.run / FOLDER)
        _require_same_run(checkpoint.trainer["identity"], self.identity)
        return checkpoint


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of the one in `directory`.

    The new folder is complete on disk before the old one goes; whenever the process is killed, `load_checkpoint` finds
    one of the two. A link in its place is replaced; what it points at stays as it is.

    Args:
        directory: The checkpoint folder; parents are created.
        checkpoint: What to write.

    Raises:
        CheckpointError: it cannot be written; the old one stays.
    """
    partial, previous = _beside(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        remove(partial)
        _write(partial, checkpoint)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch raises the last where a disk is full
        with suppress(OSError):
            remove(partial)
        raise CheckpointError(
            f"{directory} cannot be written ({first_line(error)}): free some space or check the permissions, then resume"
        ) from error
    for path in (*partial.iterdir(), partial):
        _flush(path)
    if os.path.lexists(directory):
        remove(previous)
        directory.rename(previous)
    partial.rename(directory)
    with suppress(OSError):
        remove(previous)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    folder.mkdir()
    _write_tensors(folder / MODEL, checkpoint.model)
    _write_tensors(folder / GATES, checkpoint.gates)
    if checkpoint.compact is not None:
        _write_tensors(folder / COMPACT, checkpoint.compact)
    if checkpoint.average is not None:
        _write_tensors(folder / AVERAGE, checkpoint.average)
    torch.save({"format": FORMAT, "version": VERSION, **checkpoint.trainer}, folder / TRAINER)
    readers = folder.stat().st_mode & 0o666
    for path in folder.iterdir():  # safetensors writes for the owner alone, whatever the user's other files are like
        with suppress(OSError):
            path.chmod(readers)


def checkpoint_exists(directory: Path) -> bool:
    """Whether `load_checkpoint` would find something to load."""
    return _present(directory) is not None


def load_checkpoint(directory: Path) -> Checkpoint:
    """The last complete checkpoint of `directory`.

    No file can run code: weights are safetensors, trainer state is read with `weights_only`.

    Raises:
        CheckpointError: if there is none, or a file is missing, damaged or of another version.
    """
    folder = _present(directory)
    if folder is None:
        raise CheckpointError(f"{directory} holds no checkpoint: the run stopped before its first one; start it again")
    return Checkpoint(
        model=_read_tensors(folder / MODEL),
        gates=_read_tensors(folder / GATES),
        trainer=_read_trainer(folder / TRAINER),
        compact=_read_tensors(folder / COMPACT) if (folder / COMPACT).exists() else None,
        average=_read_tensors(folder / AVERAGE) if (folder / AVERAGE).exists() else None,
    )


def recorded_settings(run: Path) -> Settings | None:
    """What a run was trained with; None where it has no checkpoint.

    Args:
        run: Its directory.

    Raises:
        CheckpointError: the trainer's state is damaged or of another version.
    """
    folder = _present(run / FOLDER)
    if folder is None:
        return None
    with reading(run, "run with a checkpoint", error=CheckpointError, remedy=REMEDY, folder=True):
        return _settings_in(_read_trainer(folder / TRAINER)["identity"])


def weights_digest(model: nn.Module) -> str:
    """Hash of all names and values of a model's state dict, whatever device and memory order they have."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _require_same_run(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """See that a checkpoint is resumed with what it was made with.

    Args:
        saved: Identity of the run in the checkpoint: plain values, `config` those of `Settings` in this or an earlier version.
        present: Identity of the run that wants to go on.

    Raises:
        CheckpointError: names what differs, found and expected.
    """
    before, now = ({**identity, "config": None} for identity in (saved, present))
    asked, settings = _settings_in(saved), _settings_in(present)
    for name in set(asked.differing(settings)) - {"checkpoint_minutes"}:  # changes nothing but the checkpoints
        before[name], now[name] = getattr(asked, name), getattr(settings, name)
    differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if "dense_weights" in differing:
        raise CheckpointError(
            "the model's weights are not those the run began with: load the same checkpoint and inject gates again"
            " before resuming (training changes the model in place)"
        )
    if differing:
        listed = ", ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in differing)
        raise CheckpointError(f"the run cannot be resumed with other settings: {listed}; use the ones it began with")


def _settings_in(identity: Mapping[str, Any]) -> Settings:
    """The settings of a run, in this or an earlier version."""
    return resolve(FinetuneConfig.from_json(identity["config"]), penalised=identity.get("penalty") is not None)


def _beside(directory: Path) -> tuple[Path, Path]:
    """Where a new checkpoint is written, and where the old one waits meanwhile."""
    return directory.with_name(directory.name + ".partial"), directory.with_name(directory.name + ".previous")


def _present(directory: Path) -> Path | None:
    """The folder itself or, if a kill left it renamed, the previous one."""
    for folder in (directory, _beside(directory)[1]):
        if (folder / TRAINER).exists():
            return folder
    return None


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Shared and strided tensors are written out in full under each of their names."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with reading(path, "safetensors file", error=CheckpointError, remedy=REMEDY):
        return load_file(path)


def _read_trainer(path: Path) -> dict[str, Any]:
    with reading(path, "trainer state", error=CheckpointError, remedy=REMEDY):
        try:
            with path.open("rb") as file:
                state = read_pickled_tensors(file, path, error=CheckpointError)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} was refused, and nothing in it was run: it holds more than tensors and plain values; {REMEDY}"
            ) from error
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is not trainer state of l0prune: start the run again")
    version = state.pop("version", None)
    if version != VERSION:
        raise CheckpointError(
            f"{path} has version {version!r}, this l0prune reads {VERSION}: use the one that wrote it"
        )
    return state


def _flush(path: Path) -> None:
    """Have the system write a file or folder to the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
