"""What lies beside the weights: files of the tokenizer, of processors, and of sentence-transformers."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from l0prune.errors import ConfigError, FileFormatError
from l0prune.files import write_json, write_whole
from l0prune.reading import is_file, read_json, reading
from l0prune.sources.libraries import construct, optional, quiet

__all__ = ["MODULES", "write_companions"]

MODULES = "modules.json"
POOLINGS = ("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")
_TOKENIZER = {
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
    ),
    *("merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "source.spm", "target.spm"),
    *(
        "chat_template.jinja",
        "chat_template.json",
        "preprocessor_config.json",
        "processor_config.json",
        "image_processor.json",
    ),
}
"""Files of a folder of transformers that describe its inputs, and hold no code."""
_SENTENCES = {"sentence_bert_config.json", "config_sentence_transformers.json"}
_IN_MODULES = {"config.json", "model.safetensors"}


def write_companions(draft: Path, tokenizer: Any, *, pooling: str | None) -> tuple[str, ...] | None:
    """Write the files into a new folder.

    Args:
        draft: The folder.
        tokenizer: A tokenizer or processor, a folder with one, or None.
        pooling: How sentence-transformers pools, or None.

    Returns:
        Names of the tensors that the tokenizer makes; None without one.

    Raises:
        ConfigError: it is none of these, or there is no such pooling.
        FileFormatError: the folder is damaged.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise ConfigError(f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}")
    if isinstance(tokenizer, str | Path):
        with reading(tokenizer, "folder of transformers", folder=True):
            _copy(Path(tokenizer), draft, with_modules=pooling is None)
    elif tokenizer is not None and not callable(getattr(tokenizer, "save_pretrained", None)):
        raise ConfigError(
            f"tokenizer is a {type(tokenizer).__name__}; expected one of transformers, or a folder with one"
        )
    elif tokenizer is not None:
        tokenizer.save_pretrained(draft)
    if pooling is not None:
        _write_modules(draft, pooling)
    return _made_by(tokenizer, draft)


def _made_by(tokenizer: Any, draft: Path) -> tuple[str, ...] | None:
    """What goes from the tokenizer into the model."""
    if isinstance(tokenizer, str | Path):
        if not is_file(draft / "tokenizer_config.json") and not is_file(draft / "tokenizer.json"):
            return None
        transformers = optional("transformers", "hf")
        with quiet(transformers):
            load = transformers.AutoTokenizer.from_pretrained
            tokenizer = construct(str(tokenizer), load, draft, local_files_only=True, trust_remote_code=False)
    names = getattr(tokenizer, "model_input_names", None)
    return None if not names else tuple(str(name) for name in names)


def _copy(source: Path, draft: Path, *, with_modules: bool) -> None:
    """Copy the files of the inputs, and those of sentence-transformers with the folders that its modules lie in."""
    for name in sorted(_TOKENIZER | _SENTENCES):
        if is_file(source / name):
            shutil.copyfile(source / name, draft / name)
    if not with_modules or not is_file(source / MODULES):
        return
    modules = read_json(source / MODULES, "list of modules")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise FileFormatError(f"{source / MODULES} is not a list of modules; leave it out, and pass pooling=")
    for module in modules:
        path, kind = str(module.get("path", "")), str(module.get("type", ""))
        parts = PurePosixPath(path).parts
        if not kind.startswith("sentence_transformers.") or "\\" in path or ".." in parts or path.startswith("/"):
            raise FileFormatError(
                f"{source / MODULES} has a module {kind[:60]!r} at {path[:40]!r}, which is none of sentence-transformers "
                "in a folder of its own; pass pooling= instead"
            )
        if not parts:
            continue
        (draft / path).mkdir(parents=True, exist_ok=True)
        for name in sorted(_IN_MODULES):
            if is_file(source / path / name):
                shutil.copyfile(source / path / name, draft / path / name)
    write_whole(draft / MODULES, (source / MODULES).read_bytes())


def _write_modules(draft: Path, pooling: str) -> None:
    """The network, then a pooling of its tokens."""
    width = read_json(draft / "config.json", "configuration of transformers")
    size = next(
        (width[name] for name in ("hidden_size", "dim", "d_model", "n_embd") if isinstance(width.get(name), int)), None
    )
    if size is None:
        raise ConfigError(
            "pooling needs the width of the model's outputs, and its configuration names none; leave pooling out"
        )
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (draft / "1_Pooling").mkdir()
    write_json(draft / "1_Pooling" / "config.json", {"word_embedding_dimension": size, "pooling_mode": pooling})
    write_whole(draft / MODULES, json_text(modules))


def json_text(content: list[Any]) -> str:
    """A list as a JSON file holds it."""
    import json

    return json.dumps(content, indent=2) + "\n"
