"""Train the demo's checkpoint: `python examples/train_digits.py`, about three minutes on one core.

Writes models/checkpoints/digits_resnet.safetensors and, beside it, a JSON file that says how it was made.
"""

import argparse
import hashlib
import json
import platform
from pathlib import Path

import torch
from torch.nn import functional as F

from l0prune import models
from l0prune.sources.augmentation import Augmentation
from l0prune.sources.batches import make_batches
from l0prune.sources.datasets import load_data
from l0prune.sources.model_spec import load_model
from l0prune.sources.weights import save_weights
from l0prune.tasks.provided.classification import Classification

NAME = "digits_resnet"


def train(*, epochs: int, batch_size: int, lr: float, seed: int) -> tuple[torch.nn.Module, float]:
    """Train from scratch with SGD under a one-cycle schedule; returns the network and its test accuracy in per cent."""
    torch.manual_seed(seed)
    data = load_data("digits")
    loaded = load_model(NAME, seed=seed)
    batches = make_batches(
        loaded,
        data.x_train,
        data.y_train,
        batch_size=batch_size,
        augment=Augmentation(pad=4, flip=False),
        shuffle=True,
        seed=seed,
        drop_last=True,
    )
    test_batches = make_batches(loaded, data.x_test, data.y_test, batch_size=120)
    model = loaded.model
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * len(batches))
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        model.train()
        for inputs, targets in batches:
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(
            f"epoch {epoch + 1}/{epochs}  loss {loss.item():.4f}  test {Classification().evaluate(model, test_batches):.2f} %"
        )
    return model, Classification().evaluate(model, test_batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="results repeat exactly for the same number of threads")
    parser.add_argument("--out", type=Path, default=models.entry(NAME).checkpoint)
    options = vars(parser.parse_args())
    out, threads = options.pop("out"), options.pop("threads")
    torch.set_num_threads(threads)
    model, test_accuracy = train(**options)
    model.eval()
    save_weights(model, out)
    provenance = {
        "model": NAME,
        "data": "digits",
        "script": "examples/train_digits.py",
        **options,
        "test_accuracy": round(test_accuracy, 2),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "license": "Apache-2.0",
    }
    out.with_suffix(".json").write_text(json.dumps(provenance, indent=2) + "\n")
    print(f"{out}: {test_accuracy:.2f} % on the test images")


if __name__ == "__main__":
    main()
