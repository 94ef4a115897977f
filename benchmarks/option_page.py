"""All options of `l0prune finetune` and `l0prune.FinetuneConfig` as tables: writes docs/options.md."""

from pathlib import Path

import click

from l0prune.cli.finetune import finetune_command
from l0prune.cli.model_options import ModelOptions
from l0prune.cli.request import RunOptions
from l0prune.finetuning.config import FinetuneConfig
from l0prune.options import GROUPS, Option, options_of

PAGE = Path(__file__).parent.parent / "docs" / "options.md"
START = """\
# Options of a fine-tuning run

Made by `make options` from the declarations in `cli/model_options.py`, `cli/request.py` and `l0prune/finetuning/config.py`. The
second column is the argument of `l0prune.FinetuneConfig`; what has none belongs to the command alone, and what has no flag to
Python. `run.json` has them all, with every number written out that was left open.
"""


def page() -> str:
    """The whole page."""
    rows: dict[str, list[str]] = {group: [] for group in (*GROUPS, "General")}
    described = set()
    for kind in (ModelOptions, RunOptions, FinetuneConfig):
        for known in options_of(kind).values():
            rows[known.group].append(row_of(known, in_python=kind is FinetuneConfig))
            described.add(known.name)
    for parameter in finetune_command.params:
        if isinstance(parameter, click.Option) and parameter.name not in described:
            flags = "`, `".join((*parameter.opts, *parameter.secondary_opts))
            help_text, _, default = (parameter.help or "").partition("  [default: ")
            rows[getattr(parameter, "group", "General")].append(
                f"| `{flags}` |  |  | {default.rstrip(']')} | {help_text} |"
            )
    head = "| flag | Python | values | default | what it does |\n|---|---|---|---|---|\n"
    return START + "".join(
        f"\n## {group}\n\n{head}" + "\n".join(lines) + "\n" for group, lines in rows.items() if lines
    )


def row_of(known: Option, *, in_python: bool) -> str:
    """One option."""
    flag = f"`{known.flag}`" if known.flag else ""
    name = f"`{known.name}`" if in_python else ""
    values = ", ".join(known.choices) or known.bounds
    return f"| {flag} | {name} | {values} | {known.shown} | {known.help} |".replace("RATE|NAME", "RATE or NAME")


if __name__ == "__main__":
    PAGE.write_text(page())
