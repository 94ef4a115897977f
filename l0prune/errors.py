"""Every error l0prune raises on purpose: what is wrong, where, found and expected, and what to do."""

import re

__all__ = [
    "BudgetInfeasibleError",
    "CaptureError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EquivalenceError",
    "ExportError",
    "FileFormatError",
    "L0PruneError",
    "L0PruneWarning",
    "ModelSpecError",
    "NoOnnxError",
    "PlanMismatchError",
    "RunDirectoryError",
    "TraceError",
    "TrainingError",
    "UntrustedCodeError",
    "first_line",
]


class L0PruneError(Exception):
    """Base of all deliberate errors; its message is one line a user can act on."""


class L0PruneWarning(UserWarning):
    """Something was done in another way than asked for, or in part; one line says what, and why."""


class ConfigError(L0PruneError, ValueError):
    """An option or argument has a value that cannot work."""


class ModelSpecError(L0PruneError):
    """A model specification names nothing that can be built."""


class CheckpointError(L0PruneError):
    """A weights file is missing, unsafe, or of another architecture."""


class DataError(L0PruneError):
    """A data specification or the data behind it cannot be used."""


class TraceError(L0PruneError):
    """The model cannot be captured or followed."""


class CaptureError(TraceError):
    """The model runs, but torch.export cannot capture it."""


class BudgetInfeasibleError(L0PruneError):
    """The budget is below what the gates can reach."""


class QualityMissedError(L0PruneError):
    """No network that was tried keeps the quality asked for."""


class PlanMismatchError(L0PruneError):
    """A surgery plan was made for another dense model."""


class EquivalenceError(L0PruneError):
    """The shrunk model does not compute what the gated model computed."""


class ExportError(L0PruneError):
    """ONNX export failed or its result differs from torch."""


class NoOnnxError(ExportError):
    """No ONNX file can hold the model: torch.export refuses it or ONNX lacks an operation, and TorchScript does not help."""


class FileFormatError(L0PruneError):
    """A file has an unknown format, version, key or is damaged."""


class RunDirectoryError(L0PruneError):
    """A run directory is missing, incomplete, or already exists."""


class TrainingError(L0PruneError):
    """Training cannot go on: its numbers are no longer finite."""


class UntrustedCodeError(L0PruneError):
    """A file names code to run, and the user has neither typed it nor said that the file is trusted."""


def first_line(error: BaseException, *, named: bool = False) -> str:
    """What another library's error says, to stand inside a message of ours.

    Args:
        error: The error.
        named: Put the name of its class before it.

    Returns:
        The first line that is not empty, at most 300 characters, without a terminal's colours and the full stop; the name of
        the class alone where there is none.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [" ".join(line.split()) for line in plain.splitlines() if line.strip()]
    name = type(error).__name__
    if not lines:
        return name
    line = lines[0][:300].rstrip(" .:")
    return f"{name}: {line}" if named else line
