"""The MNIST results as a page: the papers' rows, means over seeds, and every run."""

import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["render"]

TITLES = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5-Caffe"}
DENSE = {"lenet300": (784, 300, 100), "lenet5": (20, 50, 800, 500)}
PUBLISHED: dict[str, tuple[tuple[str, tuple[int, ...], str], ...]] = {
    "lenet300": (
        ("Sparse VD", (512, 114, 72), "1.8"),
        ("BC-GNJ", (278, 98, 13), "1.8"),
        ("BC-GHS", (311, 86, 14), "1.8"),
        ("L0, hard concrete, lambda = 0.1/N", (219, 214, 100), "1.4"),
        ("L0, hard concrete, separate lambda", (266, 88, 33), "1.8 (1.6 in RigL's table)"),
        ("L0-ARM (read off a secondary source)", (143, 153, 78), "1.9"),
    ),
    "lenet5": (
        ("Sparse VD", (14, 19, 242, 131), "1.0"),
        ("GL", (3, 12, 192, 500), "1.0"),
        ("GD", (7, 13, 208, 16), "1.1"),
        ("SBP", (3, 18, 284, 283), "0.9"),
        ("BC-GNJ", (8, 13, 88, 13), "1.0"),
        ("BC-GHS", (5, 10, 76, 16), "1.0"),
        ("L0, hard concrete, lambda = 0.1/N", (20, 25, 45, 462), "0.9"),
        ("L0, hard concrete, separate lambda", (9, 18, 65, 25), "1.0"),
    ),
}

HEAD = """# MNIST: the networks of the L0 papers

Written by `benchmarks/mnist_l0.py`; nothing here is typed by hand except the published rows. {machine}. {versions}.

*Architecture* is written as in the papers. For LeNet-300-100 it lists the inputs of its three layers (pixels can be gated, too,
with the model argument `select_inputs`); for LeNet-5-Caffe, the channels of both convolutions and the inputs of both fully
connected layers. The papers also gate single features between the convolutions and the first fully connected layer. Here a
feature map is kept or cut as a whole, so the third number is 16 times the second. Runs in two stages are the exception:
`macs=0.12 then params=0.0086` cuts maps under the first budget and then, with the model argument `select_features`, single
features of what is left under the second. Each budget is a share of the dense network, and each stage takes the epochs given.
MACs are the multiply-accumulates of one image, computed from the architecture in the same way for published rows and ours.

*Mode* is a budget (`macs=0.1`, `params=0.02`) or a penalty in the paper's units, either shared (`lambda=0.1`) or set by the
layer whose inputs are gated (`fc1=0.3,fc2=1,fc3=10`). The papers train for 200 epochs from scratch.

*From a checkpoint* means starting from a dense network trained (for 30 and 12 epochs) with random shifts of up to two pixels,
which also acts as the teacher, and training it under the budget or penalty with the same shifts. *From scratch* means random
weights, no teacher and no shifts. Batches hold 100 images. Open gates keep their trained values at the freeze
(`gate_decision="soft"`).

*Speed-up* is measured against the dense network in onnxruntime with batch 1 and one thread, in interleaved runs while other
runs kept the machine busy (times are processor time of the thread). Every cut network was compared with the gated one; the
largest difference of all runs is {difference:.1e} of the largest output.
"""


def render(records: Sequence[dict[str, Any]]) -> str:
    """The page of all results, Markdown."""
    good = [r for r in records if "error" not in r]
    machines = sorted({r["machine"] for r in records})
    versions = sorted({", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in records})
    largest = max((r["difference"] for r in good), default=0.0)
    parts = [HEAD.format(machine="; ".join(machines), versions="; ".join(versions), difference=largest)]
    for arch, title in TITLES.items():
        own = [r for r in records if r["case"]["arch"] == arch]
        if own:
            parts += [f"## {title}\n", published(arch), "### Ours, means over seeds\n", means(own)]
    for arch, title in TITLES.items():
        own = [r for r in records if r["case"]["arch"] == arch]
        if own:
            parts += [f"## Every run, {title}\n", every(own)]
    return "\n".join(parts)


def published(arch: str) -> str:
    """Rows of the papers."""
    dense = macs(arch, DENSE[arch])
    rows = ["| published | architecture | error % | MACs |", "|---|---|---|---|"]
    rows.append(f"| dense | {shape(DENSE[arch])} | | {dense / 1e3:.0f}K |")
    rows += [
        f"| {name} | {shape(widths)} | {error} | {macs(arch, widths) / 1e3:.1f}K ({macs(arch, widths) / dense:.1%}) |"
        for name, widths, error in PUBLISHED[arch]
    ]
    return "\n".join(rows) + "\n"


def macs(arch: str, widths: Sequence[int]) -> int:
    """Multiply-accumulates of an architecture, one image."""
    if arch == "lenet300":
        a, b, c = widths
        return a * b + b * c + c * 10
    a, b, c, d = widths
    return a * 25 * 24**2 + a * b * 25 * 8**2 + c * d + d * 10


def means(records: Sequence[dict[str, Any]]) -> str:
    """A row for each start, mode and gate, over its seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        case = record["case"]
        groups.setdefault((case["start"], case["mode"], case["gate"], case["epochs"]), []).append(record)
    rows = [
        "| start | mode | gate | epochs | seeds | architecture (smallest error) | error %, mean (range) | MACs | parameters "
        "| speed-up | training s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (start, mode, gate, epochs), group in sorted(groups.items()):
        good = [r for r in group if "error" not in r]
        begin = f"| {start} | {mode} | {gate} | {epochs:g} | {len(good)} of {len(group)} |"
        if not good:
            rows.append(f"{begin} {group[0]['error']} | | | | | |")
            continue
        best = min(good, key=lambda r: r["error_percent"])
        errors = [r["error_percent"] for r in good]
        rows.append(
            f"{begin} {shape(best['architecture'])} | {mean(errors):.2f} ({min(errors):.2f} - {max(errors):.2f}) "
            f"| {mean([r['macs'] for r in good]) / 1e3:.1f}K ({mean([r['macs_fraction'] for r in good]):.1%}) "
            f"| {mean([r['params'] for r in good]) / 1e3:.1f}K ({mean([r['params_fraction'] for r in good]):.1%}) "
            f"| {statistics.median(r['speedup'] for r in good):.2f}x | {mean([r['train_seconds'] for r in good]):.0f} |"
        )
    return "\n".join(rows) + "\n"


def every(records: Sequence[dict[str, Any]]) -> str:
    """A row for each run."""
    rows = [
        "| start | mode | gate | epochs | seed | architecture | error % | gated % | dense % | expected cost "
        "| MACs | parameters | dense us | compact us | training s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in sorted(records, key=lambda r: tuple(map(str, r["case"].values()))):
        case = record["case"]
        begin = f"| {case['start']} | {case['mode']} | {case['gate']} | {case['epochs']:g} | {case['seed']} |"
        if "error" in record:
            rows.append(f"{begin} {record['error']} |" + " |" * 9)
            continue
        rows.append(
            f"{begin} {shape(record['architecture'])} | {record['error_percent']:.2f} | {record['gated_error_percent']:.2f} "
            f"| {record['dense_error']:.2f} | {record['expected_cost']:.4f} "
            f"| {record['macs']:.0f} | {record['params']} | {record['dense_us']:.1f} | {record['compact_us']:.1f} "
            f"| {record['train_seconds']:.0f} |"
        )
    return "\n".join(rows) + "\n"


def shape(widths: Sequence[int]) -> str:
    """Widths as the papers write them."""
    return "-".join(map(str, widths))


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return statistics.fmean(values)
