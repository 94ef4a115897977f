"""The files of a tokenizer for a part of its vocabulary: ids are counted anew, and other texts are split as before."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from l0prune.errors import ConfigError, FileFormatError

__all__ = [
    "needed_tokens",
    "renumbered_config",
    "renumbered_tokenizer",
    "special_tokens",
    "vocabulary_of",
    "with_parts",
]

Ids = npt.NDArray[np.int64]
_KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_OF_TOKEN = re.compile(r"(^|_)token_ids?$")


def vocabulary_of(tokenizer: Mapping[str, Any], where: str) -> dict[str, int]:
    """Token -> id, without added ones.

    Args:
        tokenizer: The content of tokenizer.json.
        where: The file, for messages.

    Raises:
        ConfigError: its kind is not understood.
        FileFormatError: it is damaged.
    """
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind not in _KINDS or not isinstance(model, dict):
        raise ConfigError(
            f"{where} holds a {str(kind)[:40]} tokenizer; the vocabulary of {', '.join(_KINDS)} can be cut"
        )
    vocabulary = model.get("vocab")
    if kind == "Unigram" and isinstance(vocabulary, list):
        return {str(piece): number for number, (piece, _) in enumerate(vocabulary)}
    if isinstance(vocabulary, dict) and all(type(number) is int for number in vocabulary.values()):
        return vocabulary
    raise FileFormatError(f"{where} has no vocabulary of tokens and numbers; download it again")


def needed_tokens(tokenizer: Mapping[str, Any], vocabulary: Mapping[str, int], letters: set[str]) -> set[int]:
    """Ids that stay whatever a corpus says: special and added tokens, bytes, and the letters that others are split into.

    Args:
        tokenizer: The content of tokenizer.json.
        vocabulary: Of it.
        letters: Characters of the corpus. Tokens of one character of ASCII stay as well.
    """
    model = tokenizer["model"]
    prefix = model.get("continuing_subword_prefix") or ""
    kept = {int(added["id"]) for added in tokenizer.get("added_tokens") or []}
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        kept.add(int(model["unk_id"]))
    if model.get("unk_token") in vocabulary:
        kept.add(vocabulary[model["unk_token"]])
    is_of_bytes = "ByteLevel" in str(tokenizer.get("pre_tokenizer"))
    for token, number in vocabulary.items():
        letter = token.removeprefix(prefix) if prefix else token
        bare = letter.removeprefix("\u2581")
        is_letter = len(bare) <= 1 and (is_of_bytes or not bare or bare.isascii() or bare in letters)
        if is_letter or _BYTE.fullmatch(token):
            kept.add(number)
    return kept


def with_parts(tokenizer: Mapping[str, Any], vocabulary: Mapping[str, int], kept: set[int]) -> set[int]:
    """The same ids with those that BPE merges them from."""
    model = tokenizer["model"]
    if model["type"] != "BPE":
        return kept
    made: dict[str, list[tuple[str, str]]] = {}
    for first, second in _merges(model):
        made.setdefault(first + second, []).append((first, second))
    tokens = {number: token for token, number in vocabulary.items()}
    found, stack = set(kept), [tokens[number] for number in kept if number in tokens]
    while stack:
        for part in {part for pair in made.get(stack.pop(), []) for part in pair}:
            number = vocabulary.get(part)
            if number is not None and number not in found:
                found.add(number)
                stack.append(part)
    return found


def special_tokens(tokenizer: Mapping[str, Any], vocabulary: Mapping[str, int]) -> set[int]:
    """Ids of tokens that stand for no text: special and added ones, and the one of unknown pieces."""
    found = {int(added["id"]) for added in tokenizer.get("added_tokens") or []}
    unknown = vocabulary.get(str(tokenizer["model"].get("unk_token")))
    return found if unknown is None else found | {unknown}


def renumbered_tokenizer(
    tokenizer: Mapping[str, Any], kept: Ids, stand_ins: Mapping[int, int] | None = None
) -> dict[str, Any]:
    """The content of tokenizer.json for some of its tokens.

    Args:
        tokenizer: The content of the file.
        kept: Their ids, ascending; the new ids are their places.
        stand_ins: Ids of other tokens, which stay as well -> the one among `kept` whose id they get.
    """
    place = {int(old): new for new, old in enumerate(kept)}
    place |= {old: place[other] for old, other in (stand_ins or {}).items()}
    found: dict[str, Any] = copy.deepcopy(dict(tokenizer))
    model = found["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        if model.get("unk_id") is not None:
            model["unk_id"] = place[model["unk_id"]]
    else:
        model["vocab"] = {token: place[old] for token, old in model["vocab"].items() if old in place}
    if model["type"] == "BPE":
        vocabulary = model["vocab"]
        is_left = [all(part in vocabulary for part in (*pair, "".join(pair))) for pair in _merges(model)]
        model["merges"] = [merge for merge, left in zip(model["merges"], is_left, strict=True) if left]
    for added in found.get("added_tokens") or []:
        added["id"] = place[added["id"]]
    _renumber_in_place(found.get("post_processor"), place)
    if isinstance(found.get("padding"), dict):
        found["padding"]["pad_id"] = place[found["padding"]["pad_id"]]
    return found


def _renumber_in_place(part: Any, place: Mapping[int, int]) -> None:
    """Give the special tokens of a post-processor their new ids."""
    if isinstance(part, list):
        for inner in part:
            _renumber_in_place(inner, place)
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        if key in ("sep", "cls") and isinstance(value, list) and len(value) == 2:
            part[key] = [value[0], place[value[1]]]
        elif key == "ids" and isinstance(value, list):
            part[key] = [place[number] for number in value]
        else:
            _renumber_in_place(value, place)


def renumbered_config(config: Any, place: Mapping[int, int], size: int) -> Any:
    """A configuration of transformers with its ids of tokens, and the size of its vocabulary, as they are after the cut.

    Args:
        config: Of a model, of `generate`, or of a tokenizer.
        place: Old id -> new one.
        size: Tokens that are left.
    """
    if isinstance(config, list):
        return [renumbered_config(inner, place, size) for inner in config]
    if not isinstance(config, dict):
        return config
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key == "vocab_size" and type(value) is int:
            found[key] = size
        elif key == "added_tokens_decoder" and isinstance(value, dict):
            found[key] = {str(place[int(number)]): about for number, about in value.items() if int(number) in place}
        elif _OF_TOKEN.search(key) and type(value) is int:
            found[key] = place.get(value, value)
        elif _OF_TOKEN.search(key) and isinstance(value, list):
            found[key] = [place.get(number, number) if type(number) is int else number for number in value]
        else:
            found[key] = renumbered_config(value, place, size)
    return found


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of tokens that BPE merges, the first ones first."""
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or []]
    return [(str(first), str(second)) for first, second in pairs]
