"""Texts as data: the columns of a table that are meant, through the tokenizer of the model's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from l0prune.errors import DataError
from l0prune.sources.datasets import DataSource
from l0prune.sources.held_out import held_rows
from l0prune.sources.stored import TokenRows
from l0prune.sources.tables import Table, read_parts
from l0prune.sources.tokenizers import load_tokenizer

__all__ = ["TextOptions", "read_texts"]

TEXTS = ("text", "sentence", "sentence1", "question", "premise", "content", "review")
PAIRED = {"sentence1": "sentence2", "premise": "hypothesis"}
LABELS = ("label", "labels", "score", "class", "target")
TEST_SHARE = 0.1
IGNORED = -100
_MOST, _UNBOUNDED = 512, 1 << 30
_MASK, _SEGMENTS = "attention_mask", "token_type_ids"


@dataclass(frozen=True)
class TextOptions:
    """What is meant by a table of texts.

    Attributes:
        tokenizer: Folder of the tokenizer.
        inputs: Names of the model's inputs.
        text: Column of the texts; None takes the first of the usual names.
        text_pair: Column of the second text of a pair; None takes what belongs to `text`.
        label: Column of the targets; None takes the first of the usual names.
        labelled: Whether there are targets.
        max_length: Most tokens of an entry; None is what the tokenizer and the model take, 512 at most.
        positions: Most that the model takes, where that is known.
        vocabulary: Tokens that the model knows, where that is known.
        width: Tokens that all entries are padded to, where the model takes no other number; None pads as little as it can.
        as_pairs: Whether the two texts of a pair are two inputs, instead of one.
        as_language: Whether the tokens are their own targets.
        class_names: What the model calls its outputs; empty where it does not say.
    """

    tokenizer: str
    inputs: tuple[str, ...]
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    labelled: bool = True
    max_length: int | None = None
    positions: int | None = None
    vocabulary: int | None = None
    width: int | None = None
    as_pairs: bool = False
    as_language: bool = False
    class_names: tuple[str, ...] = ()


def read_texts(kind: str, rest: str, options: TextOptions) -> DataSource:
    """Data of a table of texts; entries are padded when a batch is made.

    Args:
        kind: One of `TABLES`.
        rest: Path, or paths.
        options: What is meant.

    Raises:
        DataError: the table, a column or a label cannot be used.
        ModelSpecError: the tokenizer cannot be loaded.
    """
    name = f"{kind}:{rest}"
    train, test = read_parts(kind, rest)
    text = _column(train, options.text, TEXTS, "text")
    pair = options.text_pair or (PAIRED.get(text) if options.text is None else None)
    pair = None if pair is None else _column(train, pair, (), "text-pair")
    if options.as_pairs and options.labelled and pair is None:
        raise DataError(
            f"{train.source}: scores are of pairs, and no column of second texts is named: give --text-pair"
        )
    tables = [train] if test is None else [train, test]
    tokenizer = load_tokenizer(options.tokenizer)
    targets, class_names = _targets(tables, options, name)
    inputs = [_encoded(tokenizer, table, text, pair, options) for table in tables]
    if options.as_language:
        targets = [_own_targets(part) for part in inputs]
    x_train: Any = inputs[0]
    y_train = targets[0]
    if test is None:
        rows = held_rows(y_train, max(1, round(TEST_SHARE * len(y_train))), seed=0)
        rest_of = np.setdiff1d(np.arange(len(y_train)), rows)
        if not len(rest_of):
            raise DataError(f"{name} has {len(y_train)} rows, too few to hold any out for testing; name a second file")
        parts: list[tuple[Any, Any]] = [
            ({key: rows_of[at] for key, rows_of in x_train.items()}, y_train[at]) for at in (rest_of, rows)
        ]
    else:
        parts = [(x_train, y_train), (inputs[1], targets[1])]
    labelled = options.labelled or options.as_language
    (x_train, y_train), (x_test, y_test) = parts
    n_classes = len(class_names) or None
    return DataSource(x_train, y_train, x_test, y_test, n_classes, class_names, name, labelled)


def _column(table: Table, asked: str | None, usual: Sequence[str], option: str) -> str:
    """The name of a column that is there."""
    found = asked if asked is not None else next((name for name in usual if name in table.columns), None)
    if found is None or found not in table.columns:
        missing = (
            f"no column {asked!r}" if asked is not None else f"no column is called {', '.join(usual[:3])} or the like"
        )
        without = ", or do without: --labels none, or --task language" if option == "label" and asked is None else ""
        raise DataError(
            f"{table.source}: {missing}; it has {', '.join(map(str, table.columns))[:200]}: name it with --{option}{without}"
        )
    return found


def _encoded(tokenizer: Any, table: Table, text: str, pair: str | None, options: TextOptions) -> dict[str, TokenRows]:
    """Name -> rows, of the inputs that the model takes."""
    columns = [_texts(table, name) for name in (text, pair) if name is not None]
    known = (getattr(tokenizer, "model_max_length", None) or _MOST, options.positions or _MOST)
    longest = min(options.max_length or min(_MOST, *known), options.width or _UNBOUNDED)
    if options.as_pairs and pair is not None:
        given: tuple[list[str], ...] = (columns[0] + columns[1],)
    else:
        given = tuple(columns)
    encoded = tokenizer(
        *given,
        truncation=True,
        max_length=longest,
        return_attention_mask=True,
        return_token_type_ids=_SEGMENTS in options.inputs,
    )
    rows = encoded["input_ids"]
    if not all(rows):
        empty = next(i for i, row in enumerate(rows) if not row)
        raise DataError(f"{table.source}: the text of row {empty % len(table) + 1} has no tokens; leave it out")
    most = _UNBOUNDED if options.vocabulary is None else options.vocabulary
    beyond = next((number for row in rows for number in row if number >= most), None)
    if beyond is not None:
        raise DataError(
            f"{options.tokenizer}: its tokenizer makes token {beyond} ({tokenizer.convert_ids_to_tokens(beyond)!r}), and the"
            f" model knows {most}: give the folder of its own tokenizer with --tokenizer"
        )
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    fill = fill if fill < most else 0
    fills = {"input_ids": fill, _SEGMENTS: getattr(tokenizer, "pad_token_type_id", 0), _MASK: 0}
    missing = [name for name in options.inputs if name not in encoded]
    if missing:
        raise DataError(f"{options.tokenizer}: its tokenizer makes no {missing[0]}, which the model takes")
    pairs = options.as_pairs and pair is not None
    return {
        name: TokenRows.of(encoded[name], fills.get(name, 0), pairs=pairs, width=options.width)
        for name in options.inputs
    }


def _texts(table: Table, name: str) -> list[str]:
    values = table.columns[name]
    odd = next((i for i, value in enumerate(values) if not isinstance(value, str)), None)
    if odd is not None:
        raise DataError(f"{table.source}: {name} of row {odd + 1} is {str(values[odd])[:40]!r}, expected a text")
    return values


def _own_targets(inputs: Mapping[str, TokenRows]) -> TokenRows:
    """The tokens themselves, for language."""
    return inputs["input_ids"].filled(IGNORED)


def _targets(tables: Sequence[Table], options: TextOptions, name: str) -> tuple[list[Any], tuple[str, ...]]:
    """Numbers of classes, or numbers, of each table; and what the classes are called."""
    if not options.labelled or options.as_language:
        return [np.zeros(len(table), np.int64) for table in tables], ()
    label = _column(tables[0], options.label, LABELS, "label")
    values = [table.columns[_column(table, label, (), "label")] for table in tables]
    numbers = [_numbers(part) for part in values]
    if all(part is not None for part in numbers):
        stated = tables[0].class_names.get(label, ())
        found = [part for part in numbers if part is not None]
        if any(part.min() < 0 for part in found) and stated:
            raise DataError(f"{name}: {label} has -1, which stands for no label; leave these rows out")
        return found, stated
    names = sorted({str(value) for part in values for value in part})
    if set(names) <= set(options.class_names):
        names = list(options.class_names)
    if len(names) > max(1000, len(options.class_names)):
        raise DataError(
            f"{name}: {label} has {len(names)} different values, too many for classes; name another --label"
        )
    place = {value: number for number, value in enumerate(names)}
    return [np.array([place[str(value)] for value in part], np.int64) for part in values], tuple(names)


def _numbers(values: Sequence[Any]) -> npt.NDArray[Any] | None:
    """Whole numbers as int64, others as float32; None where some are none."""
    try:
        if all(isinstance(value, bool) or float(value).is_integer() for value in values):
            is_whole = not any(
                isinstance(value, float) or (isinstance(value, str) and "." in value) for value in values
            )
            return np.array([float(value) for value in values]).astype(np.int64 if is_whole else np.float32)
        return np.array([float(value) for value in values], np.float32)
    except (TypeError, ValueError):
        return None
