"""The model card: what was cut, what it cost and scores, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from l0prune.cost.kinds import metric_named
from l0prune.errors import ConfigError
from l0prune.hf.companions import MODULES
from l0prune.hf.onnx_file import ONNX
from l0prune.sources.hf_folder import is_cut
from l0prune.surgery.record import surgery_of

__all__ = ["card_of"]


def card_of(compact: Any, dense: nn.Module, name: str, scores: Mapping[str, Any], draft: Path) -> str:
    """The text of README.md.

    Args:
        compact: The model.
        dense: What it was cut from; its weights are not looked at.
        name: Of the folder.
        scores: Name -> value, or values by model.
        draft: The folder itself, for the files that it holds.
    """
    record = surgery_of(compact)
    before, after = _parameters(dense), _parameters(compact)
    kind, plain = type(compact).__name__, not is_cut(draft)
    source = getattr(compact.config, "_name_or_path", "") or ""
    front = ["---", "library_name: transformers", "tags:", "- l0prune", "- pruned"]
    front += ["- sentence-transformers", "pipeline_tag: sentence-similarity"] if (draft / MODULES).exists() else []
    lines = [*front, "---", "", f"# {name}", ""]
    lines += [
        f"A `{kind}` of transformers, made smaller by l0prune: heads, channels and neurons that it can do without were removed."
        f" Its layers are dense ones of smaller{'' if plain else ', and different,'} widths.",
        "",
        *([f"Cut from `{Path(source).name}`.", ""] if source else []),
        *([f"Budget: `{record.budget}`.", ""] if record.budget else []),
        "| | dense | cut | kept |",
        "|---|---|---|---|",
        *(_row(_title(metric), *pair) for metric, pair in record.costs.items() if metric != "params"),
        _row("parameters", before, after),
        "",
        *_scores(scores),
    ]
    if record.difference.max_rel == record.difference.max_rel:
        lines += [
            f"When it was cut, its outputs differed from those of the gated network by at most {record.difference.max_rel:.1e} of"
            " the largest.",
            "",
        ]
    return "\n".join([*lines, *_use(kind, name, draft, plain=plain)]) + "\n"


def _use(kind: str, name: str, draft: Path, *, plain: bool) -> list[str]:
    """How to load it."""
    call = f"from transformers import {kind}" if plain else "import l0prune"
    loader = f"{kind}.from_pretrained" if plain else "l0prune.hf.from_pretrained"
    of_kind = "" if plain else f"  # a {kind}"
    lines = ["## Use", "", "```python", call, "", f'model = {loader}("{name}"){of_kind}', "```", ""]
    lines += (
        ["transformers loads it alone: all layers have the widths that its configuration says.", ""]
        if plain
        else [
            "After `l0prune.hf.register()`, the `from_pretrained` methods of transformers, its pipelines"
            + (" and `SentenceTransformer`" if (draft / MODULES).exists() else "")
            + " load the folder too. Without l0prune they refuse it: the configuration has one width for all layers.",
            "",
        ]
    )
    if (draft / ONNX).exists():
        lines += [f"`{ONNX}` runs in onnxruntime alone, and in optimum.", ""]
    return lines


def _scores(scores: Mapping[str, Any]) -> list[str]:
    """A table of the scores; nothing where there are none."""
    if not scores:
        return []
    columns = list(dict.fromkeys(key for value in scores.values() if isinstance(value, Mapping) for key in value))
    columns = columns or ["value"]
    rows = []
    for name, value in scores.items():
        given = value if isinstance(value, Mapping) else {columns[-1]: value}
        rows.append(
            f"| {name} | " + " | ".join(f"{given[column]:.6g}" if column in given else "" for column in columns) + " |"
        )
    return [f"| score | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows, ""]


def _row(title: str, before: float, after: float) -> str:
    return f"| {title} | {before:,.12g} | {after:,.12g} | {after / before if before else 1:.3f} |"


def _title(metric: str) -> str:
    try:
        return metric_named(metric).title
    except ConfigError:
        return metric


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
