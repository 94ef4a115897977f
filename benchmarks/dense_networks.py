"""Train the dense networks that compare.py prunes and that nobody has published.

    python benchmarks/dense_networks.py --out DIR --cifar10 CIFAR10.npz --resnet20 resnet20.safetensors \
        --mnist mnist.npz --minilm all-MiniLM-L6-v2 --sst2 SST2 [--only NAME ...]

A network is trained where the files it needs are given and its checkpoint is not there yet, one at a time and on one thread.
DIR/README.md says how each is built and what it scores. `--sst2` is a folder with train_sentences.tsv.gz and dev.tsv.gz (a
header, then sentence and label), `--minilm` a transformers folder.
"""

from __future__ import annotations

import csv
import gzip
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l0prune.sources.augmentation import Augmentation
from l0prune.sources.batches import make_batches
from l0prune.sources.datasets import load_data
from l0prune.sources.model_spec import load_model
from l0prune.sources.weights import read_state_dict, save_weights
from l0prune.tasks.provided.classification import Classification

MAX_TOKENS = 48
HF_MODEL = "minilm_sst2"


@dataclass(frozen=True)
class Recipe:
    """How a network for images is made.

    Args:
        spec: As the command line takes it.
        data: The option that names its images.
        epochs: Passes over them.
        lr: Peak of a one-cycle schedule of Nesterov SGD.
        weight_decay: Of all parameters.
        model_args: Arguments of the factory.
        start: The option that names a checkpoint of all weights but some, or none.
        augment: Random changes to the images.
        bf16: Train in mixed precision, which depthwise convolutions do not gain from.
    """

    spec: str
    data: str
    epochs: int
    lr: float
    weight_decay: float = 5e-4
    model_args: dict[str, Any] = field(default_factory=dict)
    start: str = ""
    augment: Augmentation = field(default_factory=Augmentation)
    bf16: bool = True


RECIPES = {
    "resnet20_1x1": Recipe("resnet20", "cifar10", 5, 0.05, model_args={"projects": True}, start="resnet20"),
    "lenet5": Recipe("lenet5", "mnist", 4, 0.05, augment=Augmentation(pad=2, flip=False)),
    "mobilenetv2_small": Recipe(
        "mobilenetv2_cifar", "cifar10", 8, 0.2, 2e-4, model_args={"width": 0.75, "stem_stride": 2}, bf16=False
    ),
}


@click.command(help=__doc__)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the checkpoints.")
@click.option("--cifar10", help="CIFAR-10 as npz.")
@click.option("--mnist", help="MNIST as npz.")
@click.option("--resnet20", help="The published option-A checkpoint.")
@click.option("--minilm", type=click.Path(path_type=Path), help="Folder of all-MiniLM-L6-v2.")
@click.option("--sst2", type=click.Path(path_type=Path), help="Folder of SST-2.")
@click.option("--only", "names", multiple=True, type=click.Choice([*RECIPES, HF_MODEL]), help="These alone.")
def main(out: Path, names: tuple[str, ...], minilm: Path | None, sst2: Path | None, **files: str | None) -> None:
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for name, recipe in RECIPES.items():
        needed = [recipe.data, *filter(None, [recipe.start])]
        if all(files[key] for key in needed) and (not names or name in names):
            once(out, name, partial(image_network, recipe, out / name, files))
    if minilm and sst2 and (not names or HF_MODEL in names):
        once(out, HF_MODEL, partial(text_network, minilm, sst2, out))


def once(out: Path, name: str, make: Callable[[], dict[str, Any]]) -> None:
    """Make what has no record yet, note it, and say so in the README."""
    record = out / f"{name}.json"
    if record.is_file():
        click.echo(f"{name}: there already")
        return
    clock = time.perf_counter()
    made = make()
    record.write_text(json.dumps({**made, "seconds": round(time.perf_counter() - clock)}, indent=1), encoding="utf-8")
    write_readme(out)


def image_network(recipe: Recipe, path: Path, files: dict[str, str | None]) -> dict[str, Any]:
    """Train one network for images and save it; its record."""
    torch.manual_seed(0)
    loaded, data = load_model(recipe.spec, model_args=recipe.model_args), load_data(f"npz:{files[recipe.data]}")
    model = loaded.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.start:
        found = model.load_state_dict(read_state_dict(str(files[recipe.start])), strict=False)
        click.echo(f"{path.name}: drawn at random: {', '.join(found.missing_keys)}")
    order = {"shuffle": True, "drop_last": True, "channels_last": True}
    train = make_batches(loaded, data.x_train, data.y_train, batch_size=128, augment=recipe.augment, **order)
    test = make_batches(loaded, data.x_test, data.y_test, batch_size=500, channels_last=True)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=recipe.epochs * len(train), pct_start=0.2
    )
    score = 0.0
    for epoch in range(recipe.epochs):
        train.set_epoch(epoch)
        model.train()
        for x, y in train:
            take_step(partial(model, x), y, optimizer, schedule, bf16=recipe.bf16)
        score = Classification().evaluate(model.eval(), test)
        click.echo(f"{path.name}: epoch {epoch + 1} of {recipe.epochs}, test accuracy {score:.2f} %")
    save_weights(model, path.with_suffix(".safetensors"))
    arguments = [f"--model-arg {key}={value}" for key, value in recipe.model_args.items()]
    return {
        "built": " ".join([f"{recipe.spec} --weights {path.name}.safetensors", *arguments]),
        "data": recipe.data,
        "mean": list(loaded.preprocessing.mean) if loaded.preprocessing else None,
        "std": list(loaded.preprocessing.std) if loaded.preprocessing else None,
        "accuracy": round(score, 2),
        "training": f"{recipe.epochs} epochs, one cycle to {recipe.lr:g}"
        + (f", from {recipe.start}" if recipe.start else ""),
    }


def take_step(call: Callable[[], Tensor], y: Tensor, optimizer: Any, schedule: Any, *, bf16: bool = True) -> None:
    """One step of training, in mixed precision or not."""
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = call()
    F.cross_entropy(logits.float(), y).backward()
    optimizer.step()
    schedule.step()


def text_network(minilm: Path, sst2: Path, out: Path, *, epochs: int = 2, lr: float = 1e-4) -> dict[str, Any]:
    """Fine-tune a sentence encoder with a head for two classes on SST-2, and write both it and the data."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    model = AutoModelForSequenceClassification.from_pretrained(minilm, use_safetensors=True, num_labels=2)
    arrays: dict[str, np.ndarray] = {}
    for part, file in (("train", "train_sentences.tsv.gz"), ("test", "dev.tsv.gz")):
        with gzip.open(sst2 / file, "rt", encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        tokens = tokenizer(
            [row["sentence"] for row in rows],
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="np",
        )
        for name in ("input_ids", "attention_mask"):
            arrays[f"{name}_{part}"] = tokens[name].astype(np.int64)
        arrays[f"y_{part}"] = np.array([int(row["label"]) for row in rows])
    np.savez_compressed(out / "sst2.npz", **arrays)  # type: ignore[arg-type]
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    score = 0.0
    steps = epochs * -(-len(tensors["y_train"]) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        model.train()
        for rows_ in torch.randperm(len(tensors["y_train"])).split(32):
            call = partial(text_logits, model, tensors, "train", rows_)
            take_step(call, tensors["y_train"][rows_], optimizer, schedule)
        score = text_accuracy(model, tensors)
        click.echo(f"{HF_MODEL}: epoch {epoch + 1} of {epochs}, dev accuracy {score:.2f} %")
    model.save_pretrained(out / HF_MODEL)
    tokenizer.save_pretrained(out / HF_MODEL)
    return {
        "built": f"hf:{HF_MODEL} --data compare_networks:sst2 with SST2_NPZ=sst2.npz and PYTHONPATH=benchmarks",
        "data": f"SST-2, {len(tensors['y_train'])} sentences, up to {MAX_TOKENS} tokens; tested on dev",
        "mean": None,
        "std": None,
        "accuracy": round(score, 2),
        "training": f"{epochs} epochs of AdamW, one cycle to {lr:g}",
    }


def text_logits(model: nn.Module, tensors: dict[str, Tensor], part: str, rows: Tensor) -> Tensor:
    """Logits of some sentences, which are read without the columns that only pad them."""
    mask = tensors[f"attention_mask_{part}"][rows]
    length = int(mask.sum(1).max())
    ids = tensors[f"input_ids_{part}"][rows]
    return model(input_ids=ids[:, :length], attention_mask=mask[:, :length]).logits


def text_accuracy(model: nn.Module, tensors: dict[str, Tensor]) -> float:
    """Percent of the test sentences that are classified right."""
    model.eval()
    right = 0
    with torch.no_grad():
        for rows in torch.arange(len(tensors["y_test"])).split(64):
            logits = text_logits(model, tensors, "test", rows)
            right += int((logits.argmax(1) == tensors["y_test"][rows]).sum())
    return 100 * right / len(tensors["y_test"])


def write_readme(out: Path) -> None:
    """What is there, from the records."""
    rows = [
        "# Dense networks of the comparison\n",
        "Written by benchmarks/dense_networks.py.\n",
        "| network | built as | data | mean | std | test accuracy | training | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for file in sorted(out.glob("*.json")):
        made = json.loads(file.read_text(encoding="utf-8"))
        cells = [file.stem, *(made[key] for key in ("built", "data", "mean", "std", "accuracy", "training", "seconds"))]
        rows.append("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
    (out / "README.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
