"""The tokenizer in a folder, and one line about what is wrong with it where there is none that can be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from l0prune.errors import ModelSpecError
from l0prune.reading import is_file, read_json, reading
from l0prune.sources.libraries import optional, quiet

__all__ = ["load_tokenizer"]

_FILE, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_TRIAL = "a b\u2603 \U0001f600"
"""Some tokenizers are built, and fail at the first word that they do not know."""
_REMEDY = "give the folder of a tokenizer that transformers has saved (save_pretrained)"


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a folder; no code of it is run.

    Args:
        folder: With a `tokenizer.json`, which may be alone, or other files that transformers reads.

    Raises:
        ModelSpecError: names the file that is wrong and what it should be; or transformers is not installed.
    """
    transformers = optional("transformers", "hf")
    path = Path(folder)
    with reading(path, "folder of a tokenizer", error=ModelSpecError, remedy=_REMEDY, folder=True):
        if is_file(path / _CONFIG):
            _require_object(path / _CONFIG)
        if is_file(path / _FILE):
            _require_object(path / _FILE)
            with reading(path / _FILE, "file of the tokenizers library", error=ModelSpecError, remedy=_REMEDY):
                optional("tokenizers", "hf").Tokenizer.from_file(str(path / _FILE))
        with quiet(transformers):
            found = transformers.AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False
            )
            if not isinstance(found.model_max_length, (int, float)):
                raise ModelSpecError(
                    f"{path / _CONFIG}: model_max_length is {found.model_max_length!r}, expected a number; {_REMEDY}"
                )
            found(_TRIAL)
    return found


def _require_object(path: Path) -> None:
    content = read_json(path, "JSON file of a tokenizer", error=ModelSpecError, remedy=_REMEDY)
    if not isinstance(content, dict):
        raise ModelSpecError(f"{path} holds a {type(content).__name__}, expected the object of a tokenizer; {_REMEDY}")
