"""The page docs/benchmarks.md: methods side by side, over budgets, networks and lengths of training, and what they cost.

python benchmarks/compare_table.py [benchmarks/results/compare.jsonl] [docs/benchmarks.md]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compare_case import NETWORKS, Case, of_rows
from compare_plan import CHECK, GATES, STEPS_100, STUDIES, best_baselines
from compare_plan import rows as rows_of
from results_file import read

from l0prune.criteria.registry import method_names

__all__ = ["render"]

Record = Mapping[str, Any]
BASELINE = "magnitude"
PUBLISHED = {
    "resnet56": (
        ("uniform L1, rate well chosen", "Wang et al. 2023, arXiv:2301.05219", "93.78", "93.74", "0.502", "120"),
        ("the same", "", "93.78", "92.27", "0.279", "120"),
        ("DepGraph, sparse training first", "Fang et al. 2023, arXiv:2301.12900", "93.53", "93.77", "0.469", ""),
        ("the same", "", "93.53", "93.64", "0.389", ""),
        ("ResRep", "Ding et al. 2021, arXiv:2007.03260", "93.71", "93.71", "0.471", ""),
        ("GReg-2", "Wang et al. 2021, arXiv:2012.09243", "93.36", "93.36", "0.392", ""),
        ("AMC", "He et al. 2018, arXiv:1802.03494", "92.80", "91.90", "0.5", ""),
    ),
    "resnet20": (
        ("Hinge", "Li et al. 2020, arXiv:2003.08935", "92.54", "91.84", "0.455", ""),
        ("DHP", "Li et al. 2020, arXiv:2003.13683", "92.54", "91.54", "0.518", ""),
        ("SSS", "Huang, Wang 2018, arXiv:1707.01213", "92.53", "90.85", "0.452", ""),
    ),
}
HEAD = """\
# Gates against criteria

Every method of `l0prune finetune --method` through the same run: the same dense network, budget, number of epochs, batches,
augmentation, surgery, recovery and teachers (the dense network's outputs and features). What decides which units go is the only
difference. The figures are those of the **last** epoch on the test data, never of the best one. To repeat them:

    python benchmarks/dense_networks.py --out DENSE ...     # the dense networks that nobody has published
    make bench-compare COMPARE_ARGS='--data CIFAR10.npz --checkpoints DENSE'   # hours; goes on where it was stopped

- *Rate* is the peak learning rate of the run. For each method, network and length it is chosen from three by runs a third as long
  (two epochs at most), at one budget, on nine tenths of the training data and scored on the tenth that is left.
- *At the freeze* means just after the cut, with the statistics of batch norms estimated anew.
- *MACs* are those of the network that was cut, a share of the dense ones, counted exactly. All rows of a network round widths
  alike (`--align`).
- *ms* is the median in onnxruntime with batch 1 and one thread, measured in turn with the dense network; the speed-up has its
  95 % interval.
- *Minutes* are those of the processor for the whole of `l0prune finetune`: loading, scoring, gates, recovery, and a test after
  each epoch.

Networks with `--precision bf16` among their flags were trained in mixed precision, which is about twice as fast; all are scored
and timed in float32. Several seeds are given as mean (lowest - highest).

Machine: {machine}. Versions: {versions}. Commits: {commits}.
"""
COLUMNS = "| method | seeds | rate | at the freeze | end | MACs | parameters | ms | times faster | minutes |"


def render(records: Iterable[Record]) -> str:
    """The page of all results, Markdown; of each row the last record counts."""
    every = of_rows(records)
    good = [record for record in every if "error" not in record]
    rows = [r for r in good if not r["case"]["held_out"]]
    trials = [r for r in good if r["case"]["held_out"]]
    head = HEAD.format(
        machine="; ".join(distinct(r["machine"] for r in rows)) or "none yet",
        versions="; ".join(distinct(", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in rows))
        or "none yet",
        commits=", ".join(distinct(r["commit"] for r in rows)) or "none yet",
    )
    parts = [head, summary(rows)]
    for network, about in NETWORKS.items():
        own = [r for r in rows if r["case"]["network"] == network]
        if own:
            parts.append(f"## {about.title}\n\n{settings_of(network, own)}\n")
            parts += side_by_side(own)
            parts += published(network)
    parts += [over_lengths(rows), minutes(rows), rates(trials), failures(every), not_run(every), all_rows(rows)]
    return "\n".join(part for part in parts if part)


def summary(rows: Sequence[Record]) -> str:
    """Gates against the best criterion, wherever both are there."""
    lines = []
    for (network, epochs, macs), group in grouped(rows, "network", "epochs", "macs"):
        of_method = {method: own for (method,), own in grouped(group, "method")}
        rivals = {method: mean_end(own) for method, own in of_method.items() if method != GATES}
        if GATES not in of_method or not rivals:
            continue
        sign = 1 if group[0]["higher_is_better"] else -1
        best = max(rivals, key=lambda method: sign * rivals[method])
        ahead = sign * (mean_end(of_method[GATES]) - rivals[best])
        lines.append(
            f"| {NETWORKS[network].title} | {macs:g} | {length(epochs)} | {ends(of_method[GATES])} | {ends(of_method[best])} "
            f"| {best} | {ahead:+.2f} |"
        )
    if not lines:
        return "" if rows else "No rows yet.\n"
    head = [
        "| network | MACs | epochs | gates | best criterion | which | gates ahead by |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(["## Gates against the best criterion\n", *head, *lines]) + "\n"


def settings_of(network: str, rows: Sequence[Record]) -> str:
    """What the dense network scores and how its rows were trained."""
    first = rows[0]
    aligned = ", ".join(distinct(str(r["inputs"]["align"]) for r in rows))
    options = " ".join((*first["inputs"]["options"], f"--align {aligned}"))
    size = f"{first['macs_before'] / 1e6:.1f} million MACs, {first['params_before']:,} parameters"
    weights = NETWORKS[network].weights
    return f"`{weights}`: {first['metric']} {first['dense']:.2f}, {size}. Flags of all its rows: `{options}`."


def side_by_side(rows: Sequence[Record]) -> list[str]:
    """A table for each length and budget that has several methods, the best first."""
    tables = []
    for (epochs, macs), group in grouped(rows, "epochs", "macs"):
        sign = 1 if group[0]["higher_is_better"] else -1
        methods = sorted(grouped(group, "method"), key=lambda pair: -sign * mean_end(pair[1]))
        lines = [row_of(str(method), own) for (method,), own in methods]
        rule = "|---" * (COLUMNS.count("|") - 1) + "|"
        tables.append("\n".join([f"`macs={macs:g}`, {length(epochs)}:\n", COLUMNS, rule, *lines]) + "\n")
    return tables


def row_of(method: str, own: Sequence[Record]) -> str:
    """A method's rows as one line."""
    speed = [r["speedup"] for r in own]
    faster = f"{mean(s['ratio'] for s in speed):.2f} ({min(s['low'] for s in speed):.2f} - {max(s['high'] for s in speed):.2f})"
    frozen = [score for score in map(at_freeze, own) if score is not None]
    cells = [
        method,
        str(len(own)),
        rate_text(own),
        f"{mean(frozen):.2f}" if frozen else "",
        ends(own),
        f"{mean(r['hard_cost'] for r in own):.4f}" + ("" if all(r["budget_met"] for r in own) else " (missed)"),
        f"{mean(r['params_after'] / r['params_before'] for r in own):.3f}",
        f"{mean(r['compact_ms'] for r in own):.3f}",
        faster,
        minutes_text(own),
    ]
    return "| " + " | ".join(cells) + " |"


def published(network: str) -> list[str]:
    """Published rows of a network."""
    known = PUBLISHED.get(network, ())
    if not known:
        return []
    head = ["| published | source | dense | pruned | MACs | epochs, where known |", "|---|---|---|---|---|---|"]
    lines = ["| " + " | ".join(cells) + " |" for cells in known]
    return ["\n".join([*head, *lines]) + "\n"]


def over_lengths(rows: Sequence[Record]) -> str:
    """Scores at half the MACs over the length of the run, of the networks that have several lengths."""
    planned = tuple(dict.fromkeys(block.network for block in STUDIES["lengths"]))
    half = [r for r in rows if r["case"]["macs"] == 0.5 and r["case"]["network"] in planned]
    lengths = sorted({r["case"]["epochs"] for r in half})
    if len(lengths) < 2:
        return ""
    lines = [
        "## Over the length of training\n",
        "Scores of the last step at `macs=0.5`; a length of 0 trains nothing.\n",
        "| network | method | " + " | ".join(length(epochs) for epochs in lengths) + " |",
        "|---|---|" + "---|" * len(lengths),
    ]
    for (network, method), group in grouped(half, "network", "method"):
        of_length = {epochs: own for (epochs,), own in grouped(group, "epochs")}
        cells = [ends(of_length[epochs]) if epochs in of_length else "" for epochs in lengths]
        lines.append(f"| {NETWORKS[network].title} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def minutes(rows: Sequence[Record]) -> str:
    """Time of gates against magnitude, at equal epochs."""
    lines = []
    for (network, epochs), group in grouped(rows, "network", "epochs"):
        times = {m: [r["cpu_seconds"] for r in own if r["cpu_seconds"]] for (m,), own in grouped(group, "method")}
        if times.get(GATES) and times.get(BASELINE):
            gates, baseline = (mean(times[method]) for method in (GATES, BASELINE))
            lines.append(
                f"| {NETWORKS[network].title} | {length(epochs)} | {gates / 60:.1f} | {baseline / 60:.1f} "
                f"| {gates / baseline:.2f} |"
            )
    if not lines:
        return ""
    head = ["| network | epochs | gates, minutes | magnitude, minutes | ratio |", "|---|---|---|---|---|"]
    return "\n".join(["## What gates cost\n", *head, *lines]) + "\n"


def rates(trials: Sequence[Record]) -> str:
    """What the trials of rates scored."""
    lines = []
    for (network, epochs, method), group in grouped(trials, "network", "epochs", "method"):
        of_rate = sorted(group, key=lambda r: r["case"]["lr"])
        tried = ", ".join(f"{r['case']['lr']:g}: {r['final']:.2f}" for r in of_rate)
        lines.append(f"| {NETWORKS[network].title} | {epochs:g} | {group[0]['case']['macs']:g} | {method} | {tried} |")
    if not lines:
        return ""
    head = ["| network | epochs | MACs | method | rate: score on held-out training data |", "|---|---|---|---|---|"]
    return "\n".join(["## Choice of the rates\n", *head, *lines]) + "\n"


def failures(records: Sequence[Record]) -> str:
    """Rows that ended with an error."""
    bad = [r for r in records if "error" in r and not r["case"]["held_out"]]
    if not bad:
        return ""
    lines = [
        f"- {NETWORKS[c['network']].title}, {c['method']}, `macs={c['macs']:g}`: {r['error']}"
        for r in bad
        for c in [r["case"]]
    ]
    return "\n".join(["## Not possible\n", *lines]) + "\n"


def not_run(records: Sequence[Record]) -> str:
    """Rows that are planned and have no record."""
    done = {Case(**{**r["case"], "lr": None}) for r in records}
    best = best_baselines(records)
    planned = rows_of([study for study in STUDIES if study != CHECK], every=method_names(), best=best)
    missing = [{"case": asdict(case)} for case in planned if case not in done]
    if not missing:
        return ""
    lines = ["## Planned, not run\n"]
    for (network, epochs, macs), group in grouped(missing, "network", "epochs", "macs"):
        methods = [f"{r['case']['method']} (seed {r['case']['seed']})" for r in group]
        named = ", ".join(name.removesuffix(" (seed 0)") for name in methods)
        lines.append(f"- {NETWORKS[network].title}, `macs={macs:g}`, {length(epochs)}: {named}")
    return "\n".join(lines) + "\n"


def all_rows(rows: Sequence[Record]) -> str:
    """A line for each row."""
    if not rows:
        return ""
    lines = [
        "## Every row\n",
        "| network | method | MACs asked | epochs | seed | rate | at the freeze | end | MACs | ms | minutes | commit |",
        "|---" * 12 + "|",
    ]
    for r in sorted(rows, key=lambda r: order_of(r["case"])):
        case, frozen = r["case"], at_freeze(r)
        lines.append(
            f"| {case['network']} | {case['method']} | {case['macs']:g} | {case['epochs']:g} | {case['seed']} | {rate_text([r])} "
            f"| {'' if frozen is None else f'{frozen:.2f}'} | {r['final']:.2f} | {r['hard_cost']:.4f} | {r['compact_ms']:.3f} "
            f"| {minutes_text([r])} | {r['commit']} |"
        )
    return "\n".join(lines) + "\n"


def grouped(rows: Iterable[Record], *names: str) -> list[tuple[tuple[Any, ...], list[Record]]]:
    """Rows by the values of some fields of their cases, networks as they are listed, the rest ascending."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in rows:
        groups.setdefault(tuple(record["case"][name] for name in names), []).append(record)
    return sorted(groups.items(), key=lambda pair: order_of(dict(zip(names, pair[0], strict=True))))


def order_of(case: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a case stands: networks as they are listed, long runs and large budgets first, gates before criteria."""
    place = list(NETWORKS).index(case["network"]) if "network" in case else 0
    method = case.get("method", "")
    return (place, -case.get("epochs", 0), -case.get("macs", 0), method != GATES, method, case.get("seed", 0))


def at_freeze(record: Record) -> float | None:
    """The score just after the cut."""
    return next((score for when, _, score, _ in record["history"] if when == "freeze"), None)


def ends(own: Sequence[Record]) -> str:
    """The last scores: one, or mean and range."""
    scores = [r["final"] for r in own]
    return f"{mean(scores):.2f}" + (f" ({min(scores):.2f} - {max(scores):.2f})" if len(scores) > 1 else "")


def rate_text(own: Sequence[Record]) -> str:
    """The learning rate of some rows."""
    return ", ".join(distinct("default" if r["case"]["lr"] is None else f"{r['case']['lr']:g}" for r in own))


def minutes_text(own: Sequence[Record]) -> str:
    """Mean minutes of those that were not interrupted."""
    known = [r["cpu_seconds"] / 60 for r in own if r["cpu_seconds"]]
    return f"{mean(known):.1f}" if known else ""


def length(epochs: float) -> str:
    """A length for people."""
    return "100 steps" if epochs == STEPS_100 else f"{epochs:g} epoch" + "s" * (epochs != 1)


def mean_end(own: Sequence[Record]) -> float:
    """Mean of the last scores."""
    return mean(r["final"] for r in own)


def distinct(texts: Iterable[str]) -> list[str]:
    """Each once, in order, without empty ones."""
    return [text for text in dict.fromkeys(texts) if text]


mean: Callable[[Iterable[float]], float] = statistics.fmean

if __name__ == "__main__":
    given = [Path(text) for text in sys.argv[1:]]
    results, page = [*given, *(Path("benchmarks/results/compare.jsonl"), Path("docs/benchmarks.md"))[len(given) :]]
    page.write_text(render(read(results)), encoding="utf-8")
    print(f"wrote {page}")
