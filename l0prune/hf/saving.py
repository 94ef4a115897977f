"""Write a cut model as a folder of transformers, read it back, and compare, before the folder appears."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from l0prune.errors import (
    CheckpointError,
    ConfigError,
    ExportError,
    FileFormatError,
    L0PruneError,
    L0PruneWarning,
    first_line,
)
from l0prune.files import replaced_folder, write_json, write_whole
from l0prune.hf.card import card_of
from l0prune.hf.companions import write_companions
from l0prune.hf.loading import dense_of, model_of
from l0prune.hf.onnx_file import ONNX, write_onnx
from l0prune.hf.plain import PlainModel, plain_model
from l0prune.model_call import ModelCall, signature_of
from l0prune.reading import is_file
from l0prune.sources.hf_folder import (
    CONFIG,
    PLAN,
    SECTION,
    WEIGHTS,
    CutFolder,
    CutSection,
    ExampleTensor,
    digest,
    is_cut,
)
from l0prune.sources.libraries import optional, quiet
from l0prune.sources.weights import save_weights
from l0prune.surgery.equivalence import compare
from l0prune.surgery.into_class import tolerance_of
from l0prune.surgery.record import Surgery, call_of, surgery_of

__all__ = ["Scores", "require_folder", "save_pretrained"]

Scores = Mapping[str, float | Mapping[str, float]]
"""Name of a score -> its value, or values of several models, as in `{"accuracy": {"dense": 91.2, "compact": 90.8}}`."""


def save_pretrained(
    compact: nn.Module,
    directory: str | Path,
    tokenizer: Any = None,
    *,
    pooling: str | None = None,
    scores: Scores | None = None,
    onnx: bool = True,
    plain: bool | None = None,
) -> Path:
    """Write a cut model of transformers as a folder that `l0prune.hf.from_pretrained` reads.

    Where all layers have the same widths (`uniform`), and the class can be built with them, the folder is a plain one: its
    configuration says the sizes of the cut model, and transformers loads it without l0prune, which is tried. Else
    `config.json` (of the dense model, with a section on the cut), `model.safetensors`, `surgery.json`, `README.md`; where there
    are any, the settings of `generate` and the files of the tokenizer; `onnx/model.onnx`, which onnxruntime runs on what the
    tokenizer returns; `modules.json` and what it names, for sentence-transformers. Everything is written to a temporary folder,
    read back and compared with the model; then it takes the place of `directory`. A model that generates is written with
    `use_cache` on, as it is published.

    Args:
        compact: From `l0prune.shrink`, `l0prune.load` or `l0prune.hf.from_pretrained`, perhaps trained further.
        directory: Folder to write; an earlier one of this kind is replaced.
        tokenizer: A tokenizer, processor or image processor, to be saved in the folder. Or the folder of the dense model, whose
            files of the tokenizer, the processor and sentence-transformers are copied.
        pooling: For sentence-transformers, how the vectors of the tokens become one, as in "mean"; None leaves it to the
            folder of the dense model.
        scores: What the model card says of its quality.
        onnx: Whether to write `onnx/model.onnx`. Where none can be written, a warning says why.
        plain: Whether the folder has to be a plain one, or must not be; None makes it one where it can be.

    Returns:
        The folder.

    Raises:
        ConfigError: the model comes neither from `shrink` nor from a folder, or is no class of transformers; or there is no plain
            configuration for it, and `plain` asks for one.
        ModelSpecError: transformers is not installed.
        FileFormatError: the folder exists and holds something else.
        CheckpointError: what was written is not read back as the same model.
    """
    record, target = surgery_of(compact), Path(directory)
    require_folder(compact, target)
    as_plain = None if plain is False else plain_model(compact, required=bool(plain))
    complaint = None
    with replaced_folder(target) as draft:
        save_weights(compact, draft / WEIGHTS)
        write_whole(draft / PLAN, json.dumps(record.plan.to_json()))
        settings: Any = getattr(compact, "generation_config", None)
        if settings is not None:
            settings.save_pretrained(draft)
        if as_plain is None:
            dense = dense_of(_written(compact, record, draft, target))
        else:
            dense = as_plain.dense
            _write_plain(compact, as_plain, draft, target)
        names = write_companions(draft, tokenizer, pooling=pooling)
        if onnx:
            try:
                write_onnx(compact, draft / ONNX, names)
            except (ExportError, ConfigError) as error:
                complaint = first_line(error).replace(str(draft), str(target))
        write_whole(draft / "README.md", card_of(compact, dense, target.name, scores or {}, draft))
    if complaint is not None:
        warnings.warn(f"{target}: saved without {ONNX}, because {complaint}", L0PruneWarning, stacklevel=2)
    return target


def require_folder(compact: nn.Module, target: Path) -> None:
    """See that a model is one that a folder of transformers can describe, and that nothing else lies where it is to go.

    Raises:
        ConfigError: it was cut in its graph, or is no class of transformers.
        ModelSpecError: transformers is not installed.
        FileFormatError: the folder exists and holds something else.
    """
    record, name = surgery_of(compact), type(compact).__name__
    if target.exists() and not (target.is_dir() and (_is_own(target) or not any(target.iterdir()))):
        raise FileFormatError(f"{target} exists and is not a folder of a cut model; choose another one")
    if (target / ".git").exists():
        raise FileFormatError(
            f"{target} is a clone of a repository, which would be gone; write elsewhere, and copy the files"
        )
    if record.form == "graph":
        because = record.not_in_place_because
        raise ConfigError(
            f"this model was cut in its graph, and transformers loads classes{because and f' ({because})'}: "
            "write it with l0prune.save"
        )
    if getattr(optional("transformers", "hf"), name, None) is not type(compact):
        raise ConfigError(f"{name} is no class that transformers exports: write it with l0prune.save")


def _is_own(target: Path) -> bool:
    """Whether a folder was written here: it says that its model was cut, or holds the plan of the cut beside a configuration."""
    return is_cut(target) or all(is_file(target / name) for name in (CONFIG, PLAN, WEIGHTS))


def _write_plain(compact: Any, plain: PlainModel, draft: Path, target: Path) -> None:
    """Write the configuration, and see that transformers reads the folder as the model that was saved.

    Raises:
        CheckpointError: it does not.
    """
    write_json(draft / CONFIG, plain.config)
    kind: Any = type(compact)
    problem = ""
    try:
        with quiet(optional("transformers", "hf")):
            loaded = kind.from_pretrained(draft, local_files_only=True, use_safetensors=True, dtype="auto").eval()
        difference = _difference(compact, loaded)
        if not difference <= tolerance_of(compact, call_of(compact)):
            problem = f"what transformers reads gives outputs that differ by {difference:.1e}"
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        problem = first_line(error).replace(str(draft), str(target))
    if problem:
        raise CheckpointError(f"{target}: the model cannot be written as a plain folder: {problem}; pass plain=False")


def _written(compact: Any, record: Surgery, draft: Path, target: Path) -> CutFolder:
    """Write the configuration, and see that the folder is read as the model that was saved.

    Raises:
        CheckpointError: it is not.
    """
    problem = "it has no configuration that can be written as plain data"
    for config, version in _dense_configurations(compact, record):
        section = CutSection(
            _own_version(),
            version,
            type(compact).__name__,
            digest(draft / PLAN),
            record.difference.max_rel,
            _inputs_of(compact),
            record.budget,
            record.costs,
        )
        write_json(draft / CONFIG, {**config, SECTION: section.to_json()})
        try:
            folder = CutFolder.open(draft)
            difference = _difference(compact, model_of(folder))
        except L0PruneError as error:
            problem = first_line(error).replace(str(draft), str(target))
            continue
        if difference <= tolerance_of(compact, call_of(compact)):
            return folder
        problem = f"what is read back gives outputs that differ by {difference:.1e}"
    raise CheckpointError(
        f"{target}: the model cannot be written as a folder of transformers: {problem}; use l0prune.save"
    )


def _dense_configurations(compact: Any, record: Surgery) -> Iterator[tuple[dict[str, Any], str]]:
    """Configurations of the dense model, the likeliest first, each with the version of transformers that has it.

    That of the compact model comes first, for what its user has changed since the cut, with the sizes that the cut has changed
    as they were.
    """
    transformers = optional("transformers", "hf")
    stated = json.loads(compact.config.to_json_string(use_diff=False))
    for change in record.plan.attributes:
        holder, _, name = change.attribute.rpartition(".")
        if (change.module, holder) == ("", "config"):
            stated[name] = change.dense
    configurations = [(stated, transformers.__version__)]
    configurations += [(dict(origin.args), origin.version) for origin in record.origins if origin.kind == "hf"]
    for config, version in configurations:
        config["architectures"] = [type(compact).__name__]
        if "use_cache" in config and compact.can_generate():
            config["use_cache"] = True
        for elsewhere in ("_name_or_path", "auto_map", SECTION):
            config.pop(elsewhere, None)
        yield config, version


def _inputs_of(compact: nn.Module) -> dict[str, ExampleTensor]:
    """The inputs that the model was verified with, if all are tensors with a name."""
    call = call_of(compact)
    names = call.input_names(compact)
    given = [value for value in (*call.args, *call.kwargs.values()) if value is not None]
    if len(names) != len(given) or len(given) != len(call.tensors):
        return {}
    return {name: ExampleTensor.of(tensor) for name, tensor in zip(names, call.tensors, strict=True)}


def _difference(compact: Any, loaded: Any) -> float:
    """Largest relative difference between a model and what was read of it; 0 where no inputs are known."""
    call = call_of(compact)
    if not call.tensors:
        return 0.0
    device = next(compact.parameters()).device
    signature = signature_of(compact)
    if signature is not None and "use_cache" in signature.parameters:
        call = ModelCall(call.args, {"use_cache": False, **call.kwargs})
    try:
        return compare(compact, loaded.to(device), call.args, call.kwargs).max_rel
    except (RuntimeError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise CheckpointError(f"what is read back does not run ({first_line(error, named=True)})") from error


def _own_version() -> str:
    from l0prune import __version__

    return __version__
