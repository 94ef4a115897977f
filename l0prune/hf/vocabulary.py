"""Cut the rows of an embedding that a corpus does not need, and have the tokenizer do without them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from l0prune.errors import ConfigError, EquivalenceError, FileFormatError, ModelSpecError
from l0prune.files import replaced_folder, write_json, write_whole
from l0prune.hf.companions import MODULES, write_companions
from l0prune.hf.stand_ins import directions, rows_worth_keeping, stand_ins
from l0prune.hf.token_choice import chosen_by_count, is_share, number_of
from l0prune.hf.token_files import (
    needed_tokens,
    renumbered_config,
    renumbered_tokenizer,
    special_tokens,
    vocabulary_of,
    with_parts,
)
from l0prune.model_call import output_tensors
from l0prune.reading import is_file, read_json
from l0prune.sources.hf_folder import CONFIG, is_cut
from l0prune.sources.libraries import build_hf, optional, quiet
from l0prune.sources.tokenizers import load_tokenizer

__all__ = ["VocabularyCut", "cut_vocabulary"]

_TOKENIZER = "tokenizer.json"
_RENUMBERED = ("tokenizer_config.json", "generation_config.json")
_STALE = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "added_tokens.json",
)
_BATCH, _COMPARED, _TOLERANCE, _TOLERANCE_OF_HALF = 1000, 2000, 1e-6, 1e-2
_FEWEST = 8


@dataclass(frozen=True)
class VocabularyCut:
    """What became of a vocabulary.

    Attributes:
        tokens: How many there were, and are.
        n_bytes: Of the weights, before and after.
        coverage: Share of the tokens of the corpus that are still there.
        unchanged: Share of its texts that become the same tokens as before.
        max_rel_diff: Largest difference of the model's outputs on tokens that are there, relative to the largest.
    """

    tokens: tuple[int, int]
    n_bytes: tuple[int, int]
    coverage: float
    unchanged: float
    max_rel_diff: float


def cut_vocabulary(
    directory: str | Path,
    texts: Iterable[str],
    out: str | Path,
    *,
    keep: float | int = 0.99,
    merge: bool | None = None,
    half: bool = False,
) -> VocabularyCut:
    """Write a folder of transformers with the part of its vocabulary that a corpus needs.

    A token that loses its row of the embedding takes the row of the token most like it (`merge`), so that texts are split as
    before; or it goes altogether, and its texts are split into smaller tokens. Special tokens, bytes and single letters always
    stay, so that whatever could be split before still can be. A text whose tokens are all left is split as before and gives the
    same outputs, both of which is checked before the folder appears. The result is a plain folder, which transformers loads and
    l0prune prunes like any other.

    Args:
        directory: A folder of transformers with safetensors and `tokenizer.json`, that is not one of a cut model.
        texts: The corpus.
        out: Folder to write; it must not exist, or be empty.
        keep: Share of the corpus's tokens that must be left, in (0, 1], the most frequent ones first; or a number of tokens.
        merge: Whether tokens share rows; None lets them where the model predicts no tokens, whose names would be lost, and the
            tokenizer can say it (WordPiece, BPE, WordLevel).
        half: Whether the file holds the embedding in float16; it is computed with as before, and takes half the bytes.

    Returns:
        What was cut.

    Raises:
        ConfigError: `keep` is out of range or leaves nothing to cut, or the tokenizer is of a kind that cannot be cut.
        ModelSpecError: transformers is not installed, or the folder is none of a model of tokens.
        FileFormatError: a file is missing or damaged, or `out` holds something.
        EquivalenceError: the result splits texts, or computes, otherwise than before.
    """
    source, target = Path(directory), Path(out)
    if is_cut(source):
        raise ConfigError(
            f"{source} is a cut model: cut the vocabulary of the dense one first, then prune what that gives"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileFormatError(f"{target} exists and is not an empty folder; choose another one")
    if not is_file(source / _TOKENIZER):
        raise FileFormatError(f"{source} has no {_TOKENIZER}: save its tokenizer with a recent version of transformers")
    content = read_json(source / _TOKENIZER, "tokenizer")
    vocabulary = vocabulary_of(content, str(source / _TOKENIZER))
    model: Any = build_hf(str(source), {}, pretrained=False).model
    tokenizer = load_tokenizer(source)
    corpus = list(texts)
    counts, letters = _counted(tokenizer, corpus)
    weight = _embedding(model, source).weight
    n_rows = int(weight.shape[0])
    needed = with_parts(content, vocabulary, needed_tokens(content, vocabulary, letters))
    others: dict[int, int] = {}
    if _shares_rows(model, content, merge):
        toward = directions(weight)
        n = None if is_share(keep) else number_of(keep, needed)
        kept = _in_order(rows_worth_keeping(toward, counts, needed, n=n, coverage=keep), n_rows)
        others = stand_ins(toward, kept, apart=special_tokens(content, vocabulary))
    else:
        kept = _in_order(with_parts(content, vocabulary, chosen_by_count(counts, needed, keep)), n_rows)
    if len(kept) >= n_rows:
        raise ConfigError(f"keep={keep:g} leaves all {n_rows} tokens: ask for fewer, or give a smaller corpus")
    place = {int(old): new for new, old in enumerate(kept)}
    before = _numbers_of(model, kept)
    with replaced_folder(target) as draft:
        _cut_rows_(model, kept)
        with quiet(optional("transformers", "hf")):
            model.save_pretrained(draft)
        if half:
            _halve_(draft, {name for name, tensor in model.state_dict().items() if _is_embedding(model, tensor)})
        for path in draft.glob("*.safetensors"):  # which is written for the owner alone
            path.chmod(0o666 & draft.stat().st_mode)
        _write_config(source, draft, model, place, len(kept))
        _write_tokenizer(source, draft, renumbered_tokenizer(content, kept, others), place, len(kept))
        ids = place | {old: place[other] for old, other in others.items()}
        unchanged = _require_same_pieces(tokenizer, load_tokenizer(draft), corpus, ids, draft, set(place))
        difference = _difference(build_hf(str(draft), {}, pretrained=False).model, before, kept)
        tolerance = _TOLERANCE_OF_HALF if half else _TOLERANCE
        if not difference <= tolerance:
            raise EquivalenceError(
                f"with fewer tokens the outputs differ by {difference:.1e} of the largest (tolerance {tolerance:g});"
                " nothing was written: the model uses the numbers of its tokens in another way"
            )
        n_bytes = _size(source), _size(draft)
    total = sum(counts.values())
    covered = sum(count for number, count in counts.items() if number in place)
    return VocabularyCut((n_rows, len(kept)), n_bytes, covered / max(total, 1), unchanged, difference)


def _in_order(chosen: set[int], n_rows: int) -> npt.NDArray[np.int64]:
    """Ids that the embedding has, ascending."""
    return np.array(sorted(number for number in chosen if number < n_rows), np.int64)


def _embedding(model: Any, source: Path) -> nn.Embedding:
    found = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if not isinstance(found, nn.Embedding):
        raise ModelSpecError(
            f"{source}: {type(model).__name__} has no embedding of tokens, so there is no vocabulary to cut"
        )
    return found


def _counted(tokenizer: Any, corpus: Sequence[str]) -> tuple[Counter[int], set[str]]:
    """How often each token occurs in a corpus, and the characters of the corpus as the tokenizer sees them.

    Raises:
        ConfigError: there are no texts.
    """
    counts: Counter[int] = Counter()
    letters: set[str] = set()
    for rows in _encoded(tokenizer, corpus):
        for row in rows:
            counts.update(row)
    for text in corpus:
        letters.update(text)
        letters.update(text.lower())
    if not counts:
        raise ConfigError("the corpus holds no tokens: give texts such as the model will see")
    return counts, letters


def _encoded(tokenizer: Any, corpus: Sequence[str]) -> Iterable[list[list[int]]]:
    """Token ids of the texts, in batches."""
    for start in range(0, len(corpus), _BATCH):
        encode = tokenizer(list(corpus[start : start + _BATCH]), truncation=False, padding=False, verbose=False)
        yield encode["input_ids"]


def _shares_rows(model: Any, content: Mapping[str, Any], asked: bool | None) -> bool:
    """Whether tokens that go take the rows of others.

    Raises:
        ConfigError: they are asked to, and cannot.
    """
    predicts, kind = model.get_output_embeddings() is not None, content["model"]["type"]
    if asked and (predicts or kind == "Unigram"):
        why = "it predicts tokens, whose names would be lost" if predicts else "a Unigram tokenizer numbers its tokens"
        raise ConfigError(f"tokens of this {type(model).__name__} cannot share rows, because {why}: leave merge out")
    return not predicts and kind != "Unigram" if asked is None else asked


def _is_embedding(model: Any, tensor: Tensor) -> bool:
    weight = model.get_input_embeddings().weight
    return tensor.data_ptr() == weight.data_ptr() and tensor.shape == weight.shape


def _halve_(draft: Path, names: set[str]) -> None:
    """Store tensors in float16."""
    for path in draft.glob("*.safetensors"):
        tensors = load_file(path)
        halved = {name: tensor.half() if name in names else tensor for name, tensor in tensors.items()}
        save_file(halved, path, metadata={"format": "pt"})


@torch.no_grad()
def _cut_rows_(model: Any, kept: npt.NDArray[np.int64]) -> None:
    """Leave rows of the embedding, and of the head that predicts tokens."""
    rows = torch.from_numpy(kept)
    n_rows = model.get_input_embeddings().weight.shape[0]
    head = model.get_output_embeddings()
    held: list[tuple[str, Tensor]] = []
    places = (model.get_input_embeddings(), head)
    for number, module in enumerate(places):
        for name, tensor in module.named_parameters() if module is not None else ():
            if tensor.shape[0] == n_rows:
                held.append((f"{number}.{name}", tensor[rows].clone()))
    model.resize_token_embeddings(len(kept), mean_resizing=False)
    after = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, tensor in held:
        of, _, leaf = name.partition(".")
        after[int(of)].get_parameter(leaf).copy_(tensor)


def _write_config(source: Path, draft: Path, model: Any, place: Mapping[int, int], size: int) -> None:
    """The configuration of the source with the new ids, also those that its class would add."""
    stated = read_json(source / CONFIG, "configuration of transformers")
    implied = json.loads(model.config.to_json_string(use_diff=False))
    implied = {key: value for key, value in implied.items() if key.endswith("token_id") and value is not None}
    write_json(draft / CONFIG, renumbered_config({"vocab_size": size, **implied, **stated}, place, size))


def _write_tokenizer(
    source: Path, draft: Path, content: Mapping[str, Any], place: Mapping[int, int], size: int
) -> None:
    """The tokenizer's files, with the new ids; those that hold the old vocabulary are left out."""
    write_companions(draft, source, pooling=None)
    for name in _STALE:
        (draft / name).unlink(missing_ok=True)
    write_whole(draft / _TOKENIZER, json.dumps(content, ensure_ascii=False))
    for name in _RENUMBERED:
        if is_file(source / name):
            about = renumbered_config(read_json(source / name, "configuration of transformers"), place, size)
            write_whole(draft / name, json.dumps(about, ensure_ascii=False, indent=2) + "\n")
    if is_file(source / "README.md") and not (draft / "README.md").exists() and (draft / MODULES).exists():
        shutil.copyfile(source / "README.md", draft / "README.md")


def _require_same_pieces(
    before: Any, after: Any, corpus: Sequence[str], place: Mapping[int, int], draft: Path, kept: set[int]
) -> float:
    """Share of the texts whose tokens all have rows of their own; where all have a new id, texts must be split as before.

    Raises:
        EquivalenceError: they are not.
    """
    same = 0
    for old_rows, new_rows in zip(_encoded(before, corpus), _encoded(after, corpus), strict=True):
        for old, new in zip(old_rows, new_rows, strict=True):
            if any(number not in place for number in old):
                continue
            same += all(number in kept for number in old)
            if [place[number] for number in old] != list(new):
                raise EquivalenceError(
                    f"the tokenizer of {draft.name} would split a text otherwise although all of its tokens are left; nothing was"
                    " written. Please report the tokenizer: this should not happen"
                )
    return same / max(len(corpus), 1)


def _numbers_of(model: Any, kept: npt.NDArray[np.int64]) -> list[Tensor]:
    return _outputs(model, torch.from_numpy(kept))


@torch.no_grad()
def _outputs(model: Any, ids: Tensor) -> list[Tensor]:
    """Outputs for random tokens, of those that are left."""
    generator = torch.Generator().manual_seed(0)
    longest = min(16, getattr(model.config, "max_position_embeddings", 16) or 16)
    rows = ids[torch.randint(_FEWEST, len(ids), (8, longest), generator=generator)]
    given = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
    if getattr(model.config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = rows
    return output_tensors(model.eval()(**given))


def _difference(model: Any, before: Sequence[Tensor], kept: npt.NDArray[np.int64]) -> float:
    """Largest relative difference; of predictions of tokens, over those that are left."""
    after = _outputs(model, torch.arange(len(kept)))
    largest = 0.0
    for was, now in zip(before, after, strict=True):
        expected = was[..., torch.from_numpy(kept)] if was.shape != now.shape else was
        scale = float(expected.abs().max())
        largest = max(largest, float((expected - now).abs().max()) / (scale or 1.0))
    return largest


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in islice(folder.glob("*.safetensors"), _COMPARED))
