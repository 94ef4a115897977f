"""The model card: what was cut, what it cost and scores, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l0prune.cost.kinds import metric_named
from l0prune.errors import ConfigError
from l0prune.hf.companions import MODULES
from l0prune.hf.onnx_file import ONNX
from l0prune.sources.hf_folder import CutFolder
from l0prune.surgery.into_class import dense_model
from l0prune.surgery.record import surgery_of

__all__ = ["card_of"]


def card_of(compact: Any, folder: CutFolder, name: str, scores: Mapping[str, Any], draft: Path) -> str:
    """The text of README.md.

    Args:
        compact: The model.
        folder: What was written of it.
        name: Of the folder.
        scores: Name -> value, or values by model.
        draft: The folder itself, for the files that it holds.
    """
    record = surgery_of(compact)
    dense = dense_model(folder.origin, record.plan, folder.weights, empty=True)
    before, after = _parameters(dense), _parameters(compact)
    kind = type(compact).__name__
    source = getattr(compact.config, "_name_or_path", "") or ""
    front = ["---", "library_name: transformers", "tags:", "- l0prune", "- pruned"]
    front += ["- sentence-transformers", "pipeline_tag: sentence-similarity"] if (draft / MODULES).exists() else []
    lines = [*front, "---", "", f"# {name}", ""]
    lines += [
        f"A `{kind}` of transformers, made smaller by l0prune: heads, channels and neurons that it can do without were removed."
        " Its layers are dense ones of smaller, and different, widths.",
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
    return "\n".join([*lines, *_use(kind, name, draft)]) + "\n"


def _use(kind: str, name: str, draft: Path) -> list[str]:
    """How to load it."""
    lines = [
        "## Use",
        "",
        "```python",
        "import l0prune",
        "",
        f'model = l0prune.hf.from_pretrained("{name}")  # a {kind}',
        "```",
        "",
    ]
    lines += [
        "After `l0prune.hf.register()`, the `from_pretrained` methods of transformers, its pipelines"
        + (" and `SentenceTransformer`" if (draft / MODULES).exists() else "")
        + " load the folder too. Without l0prune they refuse it: the configuration has one width for all layers.",
        "",
    ]
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
