"""The tokenizer that texts go through: the one asked for, the model's own, or that of the run that the model comes from."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from l0prune.cli.model_options import transformers_folder
from l0prune.cli.request import FinetuneRequest, RunOptions
from l0prune.errors import ConfigError, L0PruneError

if TYPE_CHECKING:
    from l0prune.sources.model_spec import LoadedModel

__all__ = ["tokenizer_folder"]


def tokenizer_folder(loaded: "LoadedModel", run: RunOptions) -> str:
    """Folder of the tokenizer.

    Args:
        loaded: The model; a compact one, and its ONNX file, may lie in the directory of a run.
        run: Names a folder, or leaves it to the model.

    Raises:
        ConfigError: nothing tells of one.
    """
    if run.tokenizer is not None:
        return str(run.tokenizer)
    own = getattr(loaded.model, "folder", None)
    if own is not None:
        return str(own)
    found = transformers_folder(loaded.spec)
    if found is None:
        found = _of_run_around(Path(loaded.spec))
    if found is None:
        raise ConfigError(f"{loaded.spec} has no tokenizer of its own: give the folder of one with --tokenizer")
    return found


def _of_run_around(path: Path) -> str | None:
    """The tokenizer of the run that wrote a compact model or an ONNX file; None where there is none."""
    from l0prune.run_directory import RunDirectory

    for above in path.absolute().parents[:2]:
        directory = RunDirectory(above)
        if path.absolute() == directory.compact or path.absolute().parent == directory.onnx:
            with suppress(L0PruneError):  # another kind of file, or a damaged one
                request = FinetuneRequest.from_record(directory.read())
                if request.run.tokenizer is not None:
                    return str(request.run.tokenizer)
                return transformers_folder(request.model.spec)
    return None
