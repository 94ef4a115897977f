"""Tables of texts: csv, tsv, json lines, plain texts, and data sets that the `datasets` library has saved to disk."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l0prune.errors import DataError
from l0prune.reading import is_file, read_json, reading
from l0prune.sources.readers import unpacked

__all__ = ["TABLES", "Table", "read_parts"]

TABLES = ("csv", "tsv", "jsonl", "txt", "hf-datasets")
TRAIN = ("train",)
TEST = ("validation", "valid", "val", "dev", "test")
"""What the rows that a network is scored on may be called, best first: `test` is often without labels."""
_LONGEST = 1 << 24
_END = "<|endoftext|>"
"""A line that ends a text, as in collections for language models."""


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        columns: Name -> values.
        class_names: Column -> what its numbers are called, where the file says so.
        source: Where it was read from.
    """

    columns: dict[str, list[Any]]
    class_names: dict[str, tuple[str, ...]]
    source: str

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), []))


def read_parts(kind: str, rest: str) -> tuple[Table, Table | None]:
    """The tables to train and to test on; None for the second where there is one alone.

    Args:
        kind: One of `TABLES`.
        rest: A file, two with a comma between them, or a folder with `train` and `validation`, `dev` or `test`.

    Raises:
        DataError: something is missing or damaged, or a library that reads it is not installed.
    """
    whole = Path(rest).expanduser()
    if whole.exists() or "," not in rest:
        paths = [whole]
    else:
        paths = [Path(part.strip()).expanduser() for part in rest.split(",")]
    if len(paths) > 2:
        raise DataError(f"{kind}:{rest} names {len(paths)} files; expected one to train on and one to test on")
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise DataError(f"{kind}:{rest}: no such file or folder: {missing}")
    is_set = kind == "hf-datasets" and is_file(paths[0] / "state.json")
    if len(paths) == 1 and paths[0].is_dir() and not is_set:
        paths = [_part(paths[0], kind, names) for names in (TRAIN, TEST)]
    tables = [_READERS[kind](path) for path in paths]
    for table in tables:
        if not len(table):
            raise DataError(f"{table.source} has no rows")
    return tables[0], tables[1] if len(tables) == 2 else None


def _part(folder: Path, kind: str, names: tuple[str, ...]) -> Path:
    """The part of a folder that has one of some names."""
    ends = ("",) if kind == "hf-datasets" else (f".{kind}", f".{kind}.gz")
    for name in names:
        for end in ends:
            if (folder / f"{name}{end}").exists():
                return folder / f"{name}{end}"
    expected = " or ".join(f"{name}{ends[0]}" for name in names)
    raise DataError(f"{folder} has no {expected}; name the files, as in {kind}:{folder}/A{ends[0]},{folder}/B{ends[0]}")


def _lines(text: str) -> list[str]:
    """What lies between line feeds, carriage returns before them left out; other characters that break lines are text."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def _read_separated(path: Path, split: Callable[[str], Iterable[list[str]]]) -> Table:
    with reading(path, "table", error=DataError):
        header, *rows = list(split(unpacked(path).decode("utf-8-sig"))) or [[]]
        rows = [row for row in rows if row]
    if len(set(header)) != len(header) or not header:
        raise DataError(f"{path}: its first line must name the columns, each once; found {', '.join(header)[:80]!r}")
    odd = next((number for number, row in enumerate(rows, 2) if len(row) != len(header)), None)
    if odd is not None:
        raise DataError(
            f"{path}: row {odd} has {len(rows[odd - 2])} columns, its first line {len(header)}; quote what holds a separator"
        )
    return Table({name: [row[i] for row in rows] for i, name in enumerate(header)}, {}, str(path))


def _read_csv(path: Path) -> Table:
    def split(text: str) -> Iterable[list[str]]:
        csv.field_size_limit(_LONGEST)
        return csv.reader(io.StringIO(text, newline=""), strict=True)

    return _read_separated(path, split)


def _read_tsv(path: Path) -> Table:
    """Quotation marks stand for themselves, as in the files of GLUE."""
    return _read_separated(path, lambda text: (line.split("\t") if line else [] for line in _lines(text)))


def _read_jsonl(path: Path) -> Table:
    columns: dict[str, list[Any]] = {}
    with reading(path, "file of json lines", error=DataError):
        for number, line in enumerate(_lines(unpacked(path).decode("utf-8-sig")), 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict) or (columns and set(row) != set(columns)):
                raise DataError(f"{path}: line {number} is no object with the entries of the first one")
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    return Table(columns, {}, str(path))


def _read_txt(path: Path) -> Table:
    """Texts in a column "text": what lies between lines of `<|endoftext|>`; without any, each line that is not empty."""
    with reading(path, "text file", error=DataError):
        content = unpacked(path).decode("utf-8-sig")
    lines = _lines(content)
    if any(line.strip() == _END for line in lines):
        lines = re.split(rf"^[ \t]*{re.escape(_END)}[ \t]*$", "\n".join(lines), flags=re.M)
    texts = [text.strip() for text in lines]
    return Table({"text": [text for text in texts if text]}, {}, str(path))


def _read_saved(path: Path) -> Table:
    """A data set saved to disk: arrow files, listed in state.json; no code of the folder is run."""
    try:
        import pyarrow as pa
    except ModuleNotFoundError as error:
        raise DataError("pyarrow is not installed; run `pip install pyarrow` to read hf-datasets:DIR") from error
    with reading(path, "data set saved to disk", error=DataError, folder=True):
        state = read_json(path / "state.json", "state of a data set", error=DataError)
        info = read_json(path / "dataset_info.json", "description of a data set", error=DataError)
        files = [str(entry["filename"]) for entry in state["_data_files"]]
        if any(Path(name).name != name for name in files):
            raise DataError(f"{path / 'state.json'} names files outside of its folder; save the data set again")
        parts = []
        for name in files:
            with pa.memory_map(str(path / name)) as source:
                parts.append(pa.ipc.open_stream(source).read_all())
        table = pa.concat_tables(parts)
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        features = info.get("features") or {}
        names = {name: tuple(map(str, about["names"])) for name, about in features.items() if "names" in about}
    return Table(columns, names, str(path))


_READERS: dict[str, Callable[[Path], Table]] = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "jsonl": _read_jsonl,
    "txt": _read_txt,
    "hf-datasets": _read_saved,
}
