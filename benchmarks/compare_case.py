"""What the comparison compares: networks, rows, and the records that rows leave."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = [
    "NETWORKS",
    "Case",
    "Inputs",
    "Network",
    "choose_rate",
    "code_version",
    "file_hash",
    "key_of",
    "newest",
    "of_rows",
    "row_key",
    "tuning_cases",
    "tuning_epochs",
]

ROOT = Path(__file__).parents[1]
PRODUCT = ("l0prune", "cli", "models")
SGD_RATES = (0.01, 0.02, 0.04)
TUNING_SHARE, TUNING_LEAST, TUNING_MOST = 1 / 3, 0.3, 2.0


@dataclass(frozen=True)
class Network:
    """A dense network to prune and how it is trained.

    Attributes:
        title: For people.
        spec: As the command line takes it; `{weights}` stands for the path of the checkpoint.
        weights: File or folder among the checkpoints; "bundled" ships with the package.
        data: "cifar10", "mnist", "sst2" or "digits".
        options: Flags of `l0prune finetune` that all its rows have.
        rates: Peak learning rates to choose from.
        minutes: Of one core, an epoch takes about, as long as no row has been measured.
        tuned_at: The budget at which a method's rate is chosen, share of the MACs.
    """

    title: str
    spec: str
    weights: str
    data: str
    options: tuple[str, ...] = ()
    rates: tuple[float, ...] = SGD_RATES
    minutes: float = 2.0
    tuned_at: float = 0.5


BF16 = ("--precision", "bf16")
CIFAR_VIT = ("--mean", "0.4914,0.4822,0.4465", "--std", "0.2023,0.1994,0.2010")
NETWORKS = {
    "digits": Network("the demo's network, digits", "digits_resnet", "bundled", "digits", ("--augment",), minutes=0.05),
    "resnet20": Network(
        "ResNet-20, CIFAR-10", "resnet20", "resnet20.safetensors", "cifar10", BF16, minutes=1.8, tuned_at=0.35
    ),
    "resnet20_1x1": Network(
        "ResNet-20 with 1x1 shortcuts, CIFAR-10",
        "resnet20",
        "resnet20_1x1.safetensors",
        "cifar10",
        ("--model-arg", "projects=true", *BF16),
        minutes=1.8,
    ),
    "resnet56": Network("ResNet-56, CIFAR-10", "resnet56", "resnet56.safetensors", "cifar10", BF16, minutes=5.4),
    "lenet5": Network("LeNet-5-Caffe, MNIST", "lenet5", "lenet5.safetensors", "mnist", ("--augment",), minutes=0.6),
    "mobilenetv2_small": Network(
        "MobileNetV2-small, CIFAR-10",
        "mobilenetv2_cifar",
        "mobilenetv2_small.safetensors",
        "cifar10",
        ("--model-arg", "width=0.75", "--model-arg", "stem_stride=2"),
        minutes=3.5,
    ),
    "vit_small": Network(
        "ViT-small, CIFAR-10",
        "compare_networks:vit_small",
        "vit_d128_l6.safetensors",
        "cifar10",
        (*CIFAR_VIT, "--optimizer", "adamw"),
        rates=(2e-4, 5e-4, 1.2e-3),
        minutes=10.0,
    ),
    "minilm_sst2": Network(
        "MiniLM, SST-2",
        "hf:{weights}",
        "minilm_sst2",
        "sst2",
        ("--optimizer", "adamw", "--batch-size", "32", *BF16),
        rates=(5e-5, 1.5e-4, 4e-4),
        minutes=12.0,
    ),
}


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        network: A name of `NETWORKS`.
        method: "gates", or a criterion.
        macs: Share of the dense MACs that may be kept.
        epochs: Of the whole run, whatever the method does first.
        seed: Of order, augmentation and gates.
        lr: Peak learning rate of the run; None is the product's own.
        held_out: Trained on nine tenths of the training data and scored on the tenth that is left, to choose `lr`.
    """

    network: str
    method: str
    macs: float
    epochs: float
    seed: int
    lr: float | None = None
    held_out: bool = False

    def __str__(self) -> str:
        """For people."""
        rate = "" if self.lr is None else f", rate {self.lr:g}"
        data = ", held-out data" if self.held_out else ""
        return f"{self.network} {self.method} macs={self.macs:g}, {self.epochs:g} epochs, seed {self.seed}{rate}{data}"


@dataclass(frozen=True)
class Inputs:
    """What a row depends on beside its case.

    Attributes:
        weights: Hash of the dense network's checkpoint.
        data: Hash of the data's file.
        options: Of its network.
        align: What kept widths are rounded to.
        code: Version of the code that ran it.
    """

    weights: str
    data: str
    options: tuple[str, ...]
    align: int
    code: str


def row_key(case: Case, inputs: Inputs) -> str:
    """Everything that determines a row, as text: equal keys, equal results."""
    options = {**asdict(inputs), "options": list(inputs.options)}
    return json.dumps({"case": asdict(case), "inputs": options}, sort_keys=True)


def key_of(record: Mapping[str, Any], *, any_code: bool = False) -> str:
    """The key of a row's record; rows of any version of the code have the same key if `any_code`."""
    known = {field.name for field in fields(Case)}
    case = Case(**{name: value for name, value in record["case"].items() if name in known})
    inputs = Inputs(**{**record["inputs"], "options": tuple(record["inputs"]["options"])})
    return row_key(case, replace(inputs, code="") if any_code else inputs)


def of_rows(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last record of each row, whatever code ran it and, unless it is a trial, at whatever rate: what the page shows.

    Rows with other options than their network has now are left out.
    """
    found = {}
    for record in records:
        case = record["case"]
        about = NETWORKS.get(case["network"])
        if about is not None and tuple(record["inputs"]["options"]) == about.options:
            found[json.dumps(case if case["held_out"] else {**case, "lr": None}, sort_keys=True)] = record
    return list(found.values())


def newest(records: Iterable[Mapping[str, Any]], *, any_code: bool = False) -> dict[str, Mapping[str, Any]]:
    """The last record of each key."""
    return {key_of(record, any_code=any_code): record for record in records}


def tuning_epochs(epochs: float) -> float:
    """Length of the runs that choose a rate: a third of the row's, not under 100 steps of CIFAR-10, and two epochs at most."""
    return round(min(max(epochs * TUNING_SHARE, min(epochs, TUNING_LEAST)), TUNING_MOST), 4)


def tuning_cases(case: Case, rates: Sequence[float]) -> list[Case]:
    """The runs that choose the rate of a row, one a rate; they are the same for all budgets and seeds.

    Nothing is to be chosen from one rate, or for a row without training.
    """
    if len(rates) < 2 or not case.epochs:
        return []
    at = replace(case, macs=NETWORKS[case.network].tuned_at, epochs=tuning_epochs(case.epochs), seed=0, held_out=True)
    return [replace(at, lr=rate) for rate in rates]


def choose_rate(tried: Iterable[Mapping[str, Any]]) -> float | None:
    """The rate with the best score of the runs that tried it, the smaller of equals; None if none of them ended."""
    good = [record for record in tried if "error" not in record]
    if not good:
        return None
    sign = 1 if good[0]["higher_is_better"] else -1
    best = max(good, key=lambda record: (sign * record["final"], -record["case"]["lr"]))
    return float(best["case"]["lr"])


@cache
def code_version() -> dict[str, str]:
    """What is measured: `code`, a hash of the product's files, and the commit; its version where there is no repository."""
    try:
        files = git("ls-files", "-s", "--", *PRODUCT) + git("diff", "HEAD", "--", *PRODUCT)
        changed = "+" if git("status", "--porcelain", "--", *PRODUCT) else ""
        commit = git("rev-parse", "--short", "HEAD").strip() + changed
    except (OSError, subprocess.CalledProcessError):
        return {"code": version("l0prune"), "commit": ""}
    return {"code": hashlib.sha256(files.encode()).hexdigest()[:10], "commit": commit}


def git(*arguments: str) -> str:
    """What git prints in the repository of this file."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


@cache
def file_hash(path: Path) -> str:
    """Short hash of a file, or of a folder's weights."""
    found = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as content:
            while part := content.read(1 << 24):
                found.update(part)
    return found.hexdigest()[:10]
