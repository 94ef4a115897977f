"""A folder of transformers that holds a cut model: what its configuration says of the cut, checked before anything is built."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l0prune.errors import ConfigError, FileFormatError
from l0prune.plain_data import FileKind
from l0prune.reading import is_file, read_json, reading
from l0prune.sources.library_models import LibraryModel

__all__ = [
    "CONFIG",
    "KIND",
    "METHOD",
    "PLAN",
    "REMEDY",
    "SECTION",
    "WEIGHTS",
    "CutFolder",
    "CutSection",
    "ExampleTensor",
    "digest",
    "is_cut",
]

CONFIG, WEIGHTS, PLAN = "config.json", "model.safetensors", "surgery.json"
SECTION, METHOD = "quantization_config", "l0prune"
"""Where transformers looks for what has to be done to a model before its weights fit, and who is to do it."""
KIND, REMEDY = "folder of a cut model", "write it again with l0prune.hf.save_pretrained"
FILE = FileKind("l0prune.hf", 1, "a cut model's section", REMEDY)
_SHARDS = "model.safetensors.index.json"
_CHOICES = {"attn_implementation", "output_attentions", "output_hidden_states", "use_cache"}
"""Entries that may be given, though the file need not have them."""
_DECIDED = {"architectures", "dtype", "model_type", "torch_dtype", SECTION}
_ELSEWHERE = ("_name_or_path", "_commit_hash")
_DTYPES = {
    str(d).removeprefix("torch."): d for d in (torch.int64, torch.int32, torch.bool, torch.float32, torch.float64)
}
_MOST_NUMBERS = 1 << 24


@dataclass(frozen=True)
class ExampleTensor:
    """An input that a model was verified with: whole numbers as they were, noise in place of fractions.

    Attributes:
        dtype: Its type, as in "int64".
        shape: Its sizes.
        values: Its numbers, row by row, with spaces between; None for noise.
    """

    dtype: str
    shape: tuple[int, ...]
    values: str | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> ExampleTensor:
        """What stands for a tensor."""
        exact = None if tensor.is_floating_point() else " ".join(str(int(value)) for value in tensor.flatten())
        name = str(tensor.dtype).removeprefix("torch.")
        return cls(name if name in _DTYPES else "float32", tuple(tensor.shape), exact)

    def tensor(self, where: str) -> Tensor:
        """The tensor.

        Raises:
            FileFormatError: there is none of this description.
        """
        count = math.prod(self.shape)
        numbers = None if self.values is None else self.values.split()
        fits = numbers is None or len(numbers) == count
        if self.dtype not in _DTYPES or not fits or min(self.shape, default=0) < 0 or count > _MOST_NUMBERS:
            raise FileFormatError(f"{where} describes no tensor; {REMEDY}")
        dtype = _DTYPES[self.dtype]
        if numbers is not None:
            try:
                return torch.tensor([int(number) for number in numbers], dtype=dtype).view(self.shape)
            except (ValueError, RuntimeError, OverflowError) as error:
                raise FileFormatError(f"{where} holds what is no number of its type; {REMEDY}") from error
        if not dtype.is_floating_point:
            raise FileFormatError(f"{where} is {self.dtype} without values; {REMEDY}")
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@dataclass(frozen=True)
class CutSection:
    """What the configuration of a cut model says of the cut.

    Attributes:
        l0prune: Version that wrote it.
        transformers: Version of transformers that the model was cut in.
        model_class: Name of its class in transformers.
        plan: SHA-256 of the plan beside it.
        max_rel_diff: Largest difference of its outputs from those of the gated model, relative to the largest.
        inputs: Name -> what the model was verified with; empty where that is not known.
        budget: What was asked for; may be empty.
        costs: Metric -> cost of the dense and of the cut model, in its own unit.
    """

    l0prune: str
    transformers: str
    model_class: str
    plan: str
    max_rel_diff: float
    inputs: dict[str, ExampleTensor] = field(default_factory=dict)
    budget: str = ""
    costs: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object for the configuration; transformers finds who understands it under "quant_method"."""
        return {"quant_method": METHOD, **FILE.stamped(asdict(self))}

    @classmethod
    def from_json(cls, data: Any, source: str) -> CutSection:
        """The inverse of `to_json`.

        Raises:
            FileFormatError: another format or version, missing or unknown keys, or a value of another kind.
        """
        stated = (
            {key: value for key, value in data.items() if key != "quant_method"} if isinstance(data, Mapping) else data
        )
        return FILE.read(cls, stated, source)


def is_cut(path: str | Path) -> bool:
    """Whether a path is a folder whose configuration says that its model was cut, damaged or not."""
    if not is_file(Path(path) / CONFIG):
        return False
    try:
        config = read_json(Path(path) / CONFIG, "configuration of transformers")
    except FileFormatError:
        return False
    return isinstance(config, dict) and _names_l0prune(config.get(SECTION))


def _names_l0prune(section: Any) -> bool:
    return isinstance(section, dict) and section.get("quant_method") == METHOD


@dataclass(frozen=True)
class CutFolder:
    """A folder that `l0prune.hf.save_pretrained` wrote.

    Attributes:
        path: The folder.
        section: What its configuration says of the cut.
        origin: How transformers builds the dense model.
        plan: The content of `surgery.json`.
    """

    path: Path
    section: CutSection
    origin: LibraryModel
    plan: Any

    @classmethod
    def open(cls, path: str | Path, changes: Mapping[str, Any] | None = None) -> CutFolder:
        """Read what says how the model is built, and see that all that is needed is there. No code of the folder is looked at.

        Args:
            path: The folder.
            changes: Entries of the configuration that replace those of the file.

        Raises:
            FileFormatError: a file is missing, damaged or of an unknown version, or asks for more than a model.
            ConfigError: a change is none of an entry that can be changed.
        """
        with reading(path, KIND, remedy=REMEDY, folder=True):
            return cls._open(Path(path), dict(changes or {}))

    @classmethod
    def _open(cls, path: Path, changes: dict[str, Any]) -> CutFolder:
        config = read_json(path / CONFIG, "configuration of transformers", remedy=REMEDY)
        if not isinstance(config, dict) or not _names_l0prune(config.get(SECTION)):
            raise FileFormatError(f"{path / CONFIG} says nothing of a cut: load the folder with transformers itself")
        fixed = [key for key in changes if key in _DECIDED or key not in {*config, *_CHOICES}]
        if fixed:
            raise ConfigError(
                f"{fixed[0]!r} is no entry of {path / CONFIG} that can be changed; move and convert the model once it is loaded"
            )
        where = f"{path / CONFIG}, {SECTION}"
        section = CutSection.from_json(config[SECTION], where)
        args = {key: value for key, value in config.items() if key not in (SECTION, *_ELSEWHERE)} | changes
        stated = {"kind": "hf", "name": section.model_class, "args": args, "version": section.transformers}
        origin = LibraryModel.from_json(stated, str(path / CONFIG), remedy=REMEDY)
        if is_file(path / _SHARDS):
            raise FileFormatError(f"{path} holds its weights in several files, expected {WEIGHTS} alone; {REMEDY}")
        for name in (WEIGHTS, PLAN):
            if not is_file(path / name):
                raise FileFormatError(f"{path / name} is missing; {REMEDY}")
        if digest(path / PLAN) != section.plan:
            raise FileFormatError(f"{path / PLAN} is not the plan of this model (its SHA-256 differs); {REMEDY}")
        return cls(path, section, origin, read_json(path / PLAN, "surgery plan", remedy=REMEDY))

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return self.path / WEIGHTS

    def example_inputs(self) -> dict[str, Tensor]:
        """Keyword inputs that the model was verified with, or noise like them; empty where none are known.

        Raises:
            FileFormatError: they are described wrongly.
        """
        where = f"{self.path / CONFIG}, {SECTION}, inputs"
        return {name: example.tensor(f"{where}, {name[:40]}") for name, example in self.section.inputs.items()}


def digest(path: Path) -> str:
    """SHA-256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
