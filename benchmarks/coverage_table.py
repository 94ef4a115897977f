"""The coverage table, written from the results of benchmarks/coverage.py."""

from __future__ import annotations

from collections import Counter, defaultdict
from statistics import median
from typing import Any

from coverage_vision import LARGEST, TOO_LARGE

__all__ = ["render"]

Record = dict[str, Any]

TITLES = {
    "timm": "timm: the smallest model of every family",
    "classification": "torchvision: classification",
    "segmentation": "torchvision: segmentation",
    "video": "torchvision: video",
    "transformers": "transformers: small configurations",
}
LOW = 0.80
"""Share of the parameters in reach below which the table says why."""

ONNX_TOLERANCE = 1e-4

INTRODUCTION = """# Coverage

Written by `make coverage` (benchmarks/coverage.py). Each model runs in a process of its own, with random weights and random norm
statistics, on two inputs of the smallest size it accepts. Half of its units are closed at random, the others get gate values
between 0.3 and 1, and the closed units are cut out.

- **followed by**: where the units come from: the graph of `torch.export`; a `recording` of the operations on each path that
  inputs are found to take; or the dependency graph of `torch-pruning`.
- **not compared**: units that changed no output, neither at these weights nor at any drawn at random, so the comparison does
  not cover them.
- **exact**: largest difference between the cut model and the gated one, relative to the largest output, in float64 (float32
  above 200 M parameters). Above 1e-9 (1e-4 in float32) the model counts as wrong. Models that compute in float32 internally,
  whatever dtype they are given (the RMSNorm of Llama and its relatives), are judged as float32 and differ by 1e-7.
- **form**: `in-place` keeps the user's class, `graph` is the exported graph with smaller tensors. A number in brackets counts
  the calls in the class's code whose sizes are not held in any integer of the model; they are given the sizes of the compact
  model.
- **params**, **MACs**: share that some gate can remove.
- **ONNX**: relative difference between onnxruntime and torch for the cut model in float32. Where float32 itself is off by more
  than that (torch in float32 against float64), up to five times its own error counts as agreement.
- **seconds**: torch.export / analysis. **GB**: peak memory of the process, libraries included.
- **torch-pruning**: whether its own high-level pruner ran within 150 s and left a model that runs. It is asked for half of the
  channels by magnitude, ignoring the classifier and otherwise with its defaults. It is not given what it can be told about a
  particular model (such as the number of heads), since l0prune is told nothing either. Its output is not compared with
  anything.
"""


def render(records: list[Record], versions: dict[str, str]) -> str:
    """The page.

    Args:
        records: The last result of every model and check.
        versions: Of the packages that took part.
    """
    by_model: dict[tuple[str, str], dict[str, Record]] = defaultdict(dict)
    for record in records:
        by_model[record["suite"], record["name"]][record["check"]] = record
    lines = [INTRODUCTION, "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".", ""]
    lines += _summary(by_model)
    for suite, title in TITLES.items():
        rows = {name: checks for (kind, name), checks in by_model.items() if kind == suite}
        if rows:
            lines += ["", f"## {title}", "", *_table(rows)]
    lines += _reasons(by_model)
    left_out = ", ".join(f"{family} ({n / 1e6:.0f} M)" for family, n in sorted(TOO_LARGE.items()))
    lines += [
        "",
        f"timm families whose smallest model has over {LARGEST / 1e6:.0f} M parameters, left out: {left_out}.",
    ]
    return "\n".join(lines) + "\n"


def _summary(by_model: dict[tuple[str, str], dict[str, Record]]) -> list[str]:
    lines = [
        "| suite | models | followed by torch.export / recording / torch-pruning | exact | wrong | in place "
        "| median params | median MACs | below 0.80 | ONNX agrees | "
        "torch-pruning ran |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for suite in TITLES:
        models = [checks for (kind, _), checks in by_model.items() if kind == suite]
        cuts = [checks["cut"] for checks in models if "cut" in checks]
        if not cuts:
            continue
        captured = [r for r in cuts if "prunable_params" in r]
        exact = [r for r in cuts if r.get("exact")]
        shares = [r["prunable_params"] for r in captured]
        macs = [r["prunable_macs"] for r in captured]
        onnx = [_onnx(checks["onnx"]) for checks in models if "onnx" in checks]
        tried = [state for state in onnx if state != "exporter"]
        rivals = [checks["rival"] for checks in models if "rival" in checks]
        cells: list[Any] = [
            TITLES[suite].split(":")[0]
            + (f" {suite}" if suite in TITLES and suite not in TITLES[suite].split(":")[0] else "")
        ]
        followed = Counter(r["tracer"] for r in captured if "tracer" in r)
        by = " / ".join(str(followed[name]) for name in ("torch.export", "recording", "torch-pruning"))
        cells += [
            len(cuts),
            by if followed else f"{len(captured)}, by what was not noted",
            len(exact),
            sum(r.get("exact") is False for r in cuts),
        ]
        given = sum(r.get("calls_given_sizes", 0) > 0 for r in exact)
        cells += [
            f"{sum(r.get('form') == 'in-place' for r in exact)} of {len(exact)}"
            + (f" ({given} with sizes given to calls)" if given else "")
        ]
        cells += (
            [f"{median(shares):.4f}", f"{median(macs):.4f}", sum(s < LOW for s in shares)] if shares else ["", "", ""]
        )
        cells += [f"{sum(s == 'agrees' for s in tried)} of {len(tried)}" if onnx else ""]
        cells += [f"{sum(bool(r.get('ran')) for r in rivals)} of {len(rivals)}" if rivals else ""]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return lines


def _table(rows: dict[str, dict[str, Record]]) -> list[str]:
    lines = [
        "| model | M params | followed by | exact | not compared | form | params | MACs | ONNX | seconds | GB | torch-pruning |",
        "|---|---:|---|---:|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, checks in sorted(rows.items()):
        cut = checks.get("cut", {})
        seconds = cut.get("seconds", {})
        exact = f"{cut['max_rel_diff']:.0e}" if cut.get("exact") else "**wrong**" if "exact" in cut else "failed"
        cells = [
            name,
            f"{cut['params'] / 1e6:.2f}" if "params" in cut else "",
            cut.get("tracer", ""),
            exact if cut else "",
            str(cut["not_compared"] or "") if "not_compared" in cut else "",
            cut.get("form", "") + (f" ({cut['calls_given_sizes']})" if cut.get("calls_given_sizes") else ""),
            f"{cut['prunable_params']:.4f}" if "prunable_params" in cut else "",
            f"{cut['prunable_macs']:.4f}" if "prunable_macs" in cut else "",
            _onnx_cell(checks.get("onnx")),
            f"{seconds['export']:.1f} / {seconds['analysis']:.1f}" if "analysis" in seconds else "",
            f"{cut['peak_memory_mb'] / 1024:.1f}" if "peak_memory_mb" in cut else "",
            _rival_cell(checks.get("rival")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _onnx(record: Record) -> str:
    """agrees, differs, cut (the cut model alone does not export), exporter (nor does the dense one) or failed."""
    if "onnx_max_rel_diff" in record:
        own = record.get("float32_max_rel_diff") or 0.0
        return "agrees" if record["onnx_max_rel_diff"] <= max(ONNX_TOLERANCE, 5 * own) else "differs"
    if "onnx_error" in record:
        return "cut" if record.get("dense_onnx") == "exported" else "exporter"
    return "failed"


def _onnx_cell(record: Record | None) -> str:
    if record is None:
        return ""
    state = _onnx(record)
    if "onnx_max_rel_diff" in record:
        return f"{record['onnx_max_rel_diff']:.0e}" + ("" if state == "agrees" else " **differs**")
    return {"cut": "**cut fails**", "exporter": "exporter"}.get(state, "failed")


def _rival_cell(record: Record | None) -> str:
    if record is None:
        return ""
    if record.get("ran"):
        return "ran"
    return "timeout" if "timeout" in record.get("error", "") else "failed"


def _reasons(by_model: dict[tuple[str, str], dict[str, Record]]) -> list[str]:
    """What failed, what is wrong, and which ops hold what is out of reach."""
    failed, low, onnx = [], [], []
    unknown: Counter[str] = Counter()
    for (suite, name), checks in sorted(by_model.items()):
        cut = checks.get("cut", {})
        unknown.update(cut.get("unknown_ops", {}).keys())
        if "error" in cut or cut.get("exact") is False:
            failed.append(f"- {suite}:{name}: {cut.get('error') or cut.get('why')}")
        elif cut.get("prunable_params", 1.0) < LOW:
            total = cut["params"]
            held = ", ".join(f"{count / total:.2f} {reason}" for reason, count in list(cut["unreached"].items())[:3])
            low.append(f"- {suite}:{name}: {cut['prunable_params']:.3f} in reach; the rest: {held}")
        record = checks.get("onnx")
        if record is not None and _onnx(record) != "agrees":
            why = record.get("onnx_error") or record.get("error") or record.get("why")
            own = record.get("float32_max_rel_diff")
            measured = f"differs by {record.get('onnx_max_rel_diff')} (float32 itself: {own})"
            onnx.append(f"- {suite}:{name} ({_onnx(record)}): {why or measured}")
    lines = []
    for title, entries in (
        ("Failed or wrong", failed),
        (f"Less than {LOW:.2f} of the parameters in reach, and the op that holds them", low),
        ("ONNX: the cut model differs or does not export (exporter: neither does the dense one)", onnx),
    ):
        lines += ["", f"## {title}", "", *(entries or ["None."])]
    if not any("onnx" in checks for checks in by_model.values()):
        lines[-1] = "Not run."
    if unknown:
        ops = ", ".join(f"{op} ({n} models)" for op, n in unknown.most_common())
        lines += ["", f"Ops without a rule that met units: {ops}."]
    return lines
