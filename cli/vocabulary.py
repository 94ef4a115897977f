"""`l0prune vocabulary`: a folder of transformers without the tokens that a corpus does not need."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from l0prune.cli.flags import FilePath, common_options, threads_option
from l0prune.cli.model_options import transformers_folder
from l0prune.cli.output import console, print_table, say, show, size, working
from l0prune.errors import ConfigError, DataError

__all__ = ["vocabulary_command"]


@click.command("vocabulary")
@click.argument("model", metavar="hf:DIR")
@click.option(
    "--data", required=True, metavar="SPEC", help="Corpus: csv:, tsv:, jsonl: or txt: with files, or hf-datasets:DIR."
)
@click.option(
    "--text", multiple=True, metavar="COLUMN", help="Column of texts; repeatable.  [default: all that hold texts]"
)
@click.option(
    "--keep-tokens",
    default="0.99",
    show_default=True,
    metavar="SHARE|N",
    help="Share of the corpus's tokens that is left, as in 0.99, or a number of tokens.",
)
@click.option(
    "--merge/--split",
    default=None,
    help="Give a token without a row the row of the one most like it, or split its texts into smaller tokens.  [default: merge;"
    " split where the model predicts tokens, or the tokenizer is a Unigram]",
)
@click.option("--half", is_flag=True, help="Store the embedding in float16, at half the bytes.")
@click.option("--out", type=FilePath(), required=True, help="Folder to write.")
@threads_option
@common_options
def vocabulary_command(
    model: str,
    data: str,
    text: tuple[str, ...],
    keep_tokens: str,
    merge: bool | None,
    half: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Cut the tokens that a corpus does not need from a model's embedding and from its tokenizer.

    The folder that is written is a plain one of transformers. Texts whose tokens are all left are split as before and give the
    same outputs, which is checked.
    """
    with working():
        result = cut(model, data, text, keep_tokens, out, merge=merge, half=half)
    show(result, as_json, lambda: print_result(result))


def cut(
    model: str,
    data: str,
    columns: tuple[str, ...],
    keep_tokens: str,
    out: Path,
    *,
    merge: bool | None = None,
    half: bool = False,
) -> dict[str, Any]:
    """What was cut, as plain data.

    Raises:
        L0PruneError: names what cannot be done.
    """
    import l0prune

    folder = transformers_folder(model)
    if folder is None:
        raise ConfigError(f"{model} is no folder of transformers: give it as hf:DIR")
    corpus = _corpus(data, columns)
    found = l0prune.hf.cut_vocabulary(folder, corpus, out, keep=_keep(keep_tokens), merge=merge, half=half)
    return {"model": model, "data": data, "out": str(out), **asdict(found)}


def _keep(asked: str) -> float | int:
    try:
        return int(asked) if asked.isdigit() and asked != "1" else float(asked)
    except ValueError:
        raise ConfigError(f"--keep-tokens {asked!r}: expected a share, such as 0.99, or a number of tokens") from None


def _corpus(data: str, columns: tuple[str, ...]) -> list[str]:
    """The texts of all tables."""
    from l0prune.sources.tables import TABLES, read_parts

    kind, _, rest = data.partition(":")
    if kind not in TABLES or not rest:
        raise DataError(f"{data!r} holds no texts; expected {', '.join(f'{name}:' for name in TABLES)} with a path")
    table, second = read_parts(kind, rest)
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"{table.source}: no column {missing[0]!r}; it has {', '.join(table.columns)[:200]}")
    used = columns or tuple(name for name, values in table.columns.items() if _are_texts(values))
    if not used:
        raise DataError(f"{table.source}: no column holds texts; it has {', '.join(table.columns)[:200]}")
    tables = [table] if second is None else [table, second]
    return [str(value) for one in tables for name in used for value in one.columns.get(name, ())]


def _are_texts(values: list[Any]) -> bool:
    """Whether some of them are words with a space between."""
    return any(isinstance(value, str) and " " in value.strip() for value in values[:1000])


def print_result(result: dict[str, Any]) -> None:
    """Before and after, in one small table."""
    (before, after), (bytes_before, bytes_after) = result["tokens"], result["n_bytes"]
    rows = [
        ("tokens", f"{before}", f"{after}", f"{after / before:.2f}x"),
        ("weights", size(bytes_before), size(bytes_after), f"{bytes_after / bytes_before:.2f}x"),
    ]
    print_table(console(), f"{result['model']}, vocabulary", ("", "before", "after", "ratio"), rows)
    covered, unchanged = (f"{100 * result[name]:.4g} %" for name in ("coverage", "unchanged"))
    say(
        f"{covered} of the corpus's tokens are left, and {unchanged} of its texts become the same tokens as before. On tokens"
        f" that are left, outputs differ by at most {result['max_rel_diff']:.1e} of the largest."
    )
    say(f"Next: l0prune finetune hf:{result['out']} --data ... --budget macs=0.5 --out RUN")
