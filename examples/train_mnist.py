"""Train LeNet-5-Caffe (or LeNet-300-100) on MNIST, as a checkpoint to prune.

    python examples/train_mnist.py npz:mnist.npz --out lenet5.safetensors
    l0prune finetune lenet5 --weights lenet5.safetensors --data npz:mnist.npz --budget macs=0.1 --out runs/lenet5

Adam, cosine schedule, random shifts by up to two pixels.
"""

import argparse

import torch
from torch.nn import functional as F

from l0prune.sources.augmentation import Augmentation
from l0prune.sources.batches import make_batches
from l0prune.sources.datasets import load_data
from l0prune.sources.model_spec import load_model
from l0prune.sources.weights import save_weights
from l0prune.tasks.provided.classification import Classification


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="npz:FILE or mnist:DIR")
    parser.add_argument("--model", default="lenet5", choices=["lenet5", "lenet300"])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="lenet5.safetensors")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    loaded, data = load_model(options.model), load_data(options.data)
    model = loaded.model
    shifts = Augmentation(pad=2, flip=False)
    train = make_batches(
        loaded, data.x_train, data.y_train, batch_size=128, augment=shifts, shuffle=True, seed=options.seed
    )
    test = make_batches(loaded, data.x_test, data.y_test, batch_size=1000)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(train))
    for epoch in range(options.epochs):
        train.set_epoch(epoch)
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: test accuracy {Classification().evaluate(model, test):.2f} %", flush=True)
    save_weights(model, options.out)


if __name__ == "__main__":
    main()
