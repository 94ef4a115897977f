"""A finished run on disk: what it was asked for, and its dense, gated and compact model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from l0prune.cli.gating import gated_model_of, traced
from l0prune.cli.loading import load
from l0prune.cli.request import FinetuneRequest
from l0prune.cli.trust import data_call, model_call, require_typed, task_call
from l0prune.errors import CheckpointError, RunDirectoryError, first_line
from l0prune.reading import reading

if TYPE_CHECKING:
    from torch import nn

    from l0prune.gated.model import GatedModel
    from l0prune.run_directory import RunDirectory
    from l0prune.sources.model_spec import LoadedModel

__all__ = ["OpenedRun", "compact_model", "dense_model", "gated_model", "open_finished"]

AGAIN = "start the run again"


@dataclass(frozen=True)
class OpenedRun:
    """A finished run.

    Args:
        directory: Its paths.
        request: What it was asked for.
        trust: Whether factories may run that the user has not typed.
    """

    directory: "RunDirectory"
    request: FinetuneRequest
    trust: bool = False

    def require_typed(self, *, data: bool, task: bool = False) -> None:
        """See that the model, and the run's own data and task where that is said, are no code that the user has not typed.

        Raises:
            UntrustedCodeError: names what is.
        """
        run = self.request.run
        used = task_call(run.task, run.task_args) if task else None
        calls = (model_call(self.request.model), data_call(run.data, run.data_args) if data else None, used)
        require_typed(calls, self.directory.record_path, trust=self.trust)


def open_finished(path: Path, *, trust: bool = False) -> OpenedRun:
    """Open a run whose training is over.

    Args:
        path: Its directory.
        trust: Whether factories may run that only its run.json names.

    Raises:
        RunDirectoryError: if there is no run, or it has not finished.
        FileFormatError: if its run.json cannot be understood.
    """
    from l0prune.run_directory import RunDirectory

    directory = RunDirectory.open(path)
    record = directory.read()
    if record.status != "finished":
        raise RunDirectoryError(
            f"{path}: the run is {record.status}, not finished; continue it with "
            f"`l0prune finetune --out {path} --resume`"
        )
    return OpenedRun(directory, FinetuneRequest.from_record(record), trust)


def dense_model(run: OpenedRun) -> "LoadedModel":
    """The model with the weights the run began with.

    Raises:
        CheckpointError: if these weights are gone or have changed since.
        UntrustedCodeError: if it takes code that the user has not typed.
    """
    from l0prune.finetuning.checkpoints import load_checkpoint, weights_digest

    run.require_typed(data=False)
    loaded = load(run.request.model, seed=run.request.initial_seed, run=run.request.run)
    with reading(run.directory.path, "run with a checkpoint", error=CheckpointError, remedy=AGAIN, folder=True):
        digest = load_checkpoint(run.directory.checkpoint).trainer["identity"]["dense_weights"]
    if digest != weights_digest(loaded.model):
        source = run.request.model.weights or run.request.model.spec
        raise CheckpointError(
            f"{source} gives different weights from those {run.directory.path} began with; put the original weights back"
        )
    return loaded


def gated_model(run: OpenedRun, loaded: "LoadedModel") -> "GatedModel":
    """The gated model as training left it. `loaded.model` takes the trained weights.

    Raises:
        CheckpointError: if the checkpoint is damaged or of another model.
    """
    from l0prune.finetuning.checkpoints import load_checkpoint
    from l0prune.gated.in_step import sizes_in_step
    from l0prune.goals.budget import Budgets

    checkpoint = load_checkpoint(run.directory.checkpoint)
    gated = gated_model_of(loaded, run.request, flow=traced(loaded, run.request.run))
    if run.request.run.budget:
        alike = sizes_in_step(gated.model) if run.request.training.uniform else None
        gated.set_goal(Budgets.parse(run.request.run.budget).uniform(alike), 1)
    with reading(run.directory.path, "run with a checkpoint", error=CheckpointError, remedy=AGAIN, folder=True):
        try:
            gated.model.load_state_dict(checkpoint.model)
            gated.gates.load_state_dict(checkpoint.gates)
        except RuntimeError as error:
            raise CheckpointError(
                f"{run.directory.checkpoint} does not fit the model ({first_line(error)}); start the run again"
            ) from error
    return gated.eval()


def compact_model(run: OpenedRun, loaded: "LoadedModel") -> "nn.Module":
    """The compact model of a run that has been shrunk, with its weights.

    Args:
        run: The run.
        loaded: Its dense model, whose class a compact model takes that has no graph.
    """
    import l0prune
    from l0prune.compact import has_graph

    folder = run.directory.compact
    return l0prune.load(folder, base=None if has_graph(folder) else loaded.model)
