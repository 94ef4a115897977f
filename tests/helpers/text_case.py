"""A folder of transformers with a tokenizer, and tables of texts."""

from pathlib import Path

import pytest
from hf_models import tiny_bert

WORDS = ["a", "an", "the", "film", "story", "plot", "is", "was", "good", "bad", "dull", "fine", "and"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def text_folder(path: Path, **options) -> Path:
    """A tiny BERT with three classes and a tokenizer of words."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(path)
    tiny_bert(**options).save_pretrained(path)
    return path


def texts(n: int) -> list[str]:
    """Texts of three to six words."""
    return [" ".join(WORDS[(i * (j + 1) + j) % len(WORDS)] for j in range(3 + i % 4)) for i in range(n)]


def text_table(path: Path, n: int = 24) -> Path:
    """A tsv file of texts and classes."""
    lines = [f"{text}\t{i % 3}" for i, text in enumerate(texts(n))]
    path.write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    return path
