"""A U-Net with a loss of one's own, on folders of images and their masks; the pictures are made up.

    cd examples && python unet.py
    l0prune finetune unet:network --weights unet.pt --data unet:folders --task unet:task --budget macs=0.5 --out R
    l0prune shrink R --output-names mask
    l0prune bench R

The first line trains the dense network, and then does in Python what the others do by the command line.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import l0prune
from l0prune.tasks.provided.pixels import PixelClassification

SIZE, CLASSES = 64, 3


def twice(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions with norms."""
    layers: list[nn.Module] = []
    for a, b in ((inputs, outputs), (outputs, outputs)):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Down by pooling, up by transposed convolutions, with what was there at each size on the way down."""

    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(twice(a, b) for a, b in zip([3, *widths], widths, strict=False))
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.join = nn.ModuleList(twice(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the classes (N, C, H, W)."""
        passed, x = [], self.down[0](image)
        for down in self.down[1:]:
            passed.append(x)
            x = down(F.max_pool2d(x, 2))
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat((passed.pop(), up(x)), 1))
        return self.head(x)


class Folder(Dataset):
    """`images/NAME.png` beside `masks/NAME.png`, whose pixels are numbers of classes."""

    def __init__(self, root: Path) -> None:
        self.images = sorted((root / "images").glob("*.png"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.images[index]
        image, mask = (np.asarray(Image.open(file)) for file in (path, path.parents[1] / "masks" / path.name))
        return torch.from_numpy(image / np.float32(255)).permute(2, 0, 1), torch.from_numpy(mask.astype(np.int64))


def draw(root: Path, n: int) -> None:
    """Make up a folder for training and one for testing, unless they are there: a small disc and a large one on noise."""
    random, (y, x) = np.random.default_rng(0), np.mgrid[:SIZE, :SIZE]
    for part, count in (("train", n), ("test", n // 4)):
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            mask = np.zeros((SIZE, SIZE), np.uint8)
            for label, radius in ((2, 14), (1, 7)):
                column, row = random.integers(radius, SIZE - radius, 2)
                mask[(x - column) ** 2 + (y - row) ** 2 < radius**2] = label
            image = random.normal(90, 40, (SIZE, SIZE, 3)) + 60 * (mask[..., None] > 0)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / part / "images" / f"{number:04}.png")
            Image.fromarray(mask).save(root / part / "masks" / f"{number:04}.png")


def folders(root: str = "shapes", n: int = 320, batch_size: int = 16) -> dict[str, DataLoader]:
    """Loaders to train and to test on."""
    if not Path(root).exists():
        draw(Path(root), n)
    parts = {part: Folder(Path(root) / part) for part in ("train", "test")}
    return {part: DataLoader(data, batch_size, shuffle=part == "train") for part, data in parts.items()}


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy, and 1 - the overlap of each class."""
    found, wanted = logits.softmax(1), F.one_hot(mask, CLASSES).movedim(3, 1)
    both, either = (found * wanted).sum((0, 2, 3)), (found + wanted).sum((0, 2, 3))
    return F.cross_entropy(logits, mask) + (1 - 2 * both / either.clamp_min(1)).mean()


class Masks(PixelClassification):
    """One class for each pixel, learned by a loss of its own."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Dice and cross-entropy."""
        return dice_loss(outputs, targets)


def network(width: int = 16) -> tuple[nn.Module, Tensor]:
    """The U-Net, and an example of its input."""
    return UNet(width), torch.zeros(2, 3, SIZE, SIZE)


def task() -> l0prune.Task:
    """What it is for."""
    return Masks()


def train(model: nn.Module, loader: DataLoader, epochs: int) -> nn.Module:
    """The dense network."""
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * len(loader))
    for _ in range(epochs):
        for images, masks in loader:
            dice_loss(model(images), masks).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval()


def main() -> None:
    """Train, prune, export, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="Of the dense network; half as many go into pruning.")
    parser.add_argument("--images", type=int, default=320)
    options = parser.parse_args()
    torch.manual_seed(0)
    loaders = folders(n=options.images)
    model, example = network()
    train(model, loaders["train"], options.epochs)
    torch.save(model.state_dict(), "unet.pt")
    dense = Masks().evaluate(model, loaders["test"])
    l0prune.export_onnx(model, example, "dense.onnx", output_names=["mask"])
    config = l0prune.FinetuneConfig(epochs=options.epochs / 2, optimizer="adamw", lr=2e-3)
    result = l0prune.finetune(
        model,
        loaders["train"],
        loss=dice_loss,
        budget=l0prune.Budget("macs", 0.5),
        config=config,
        evaluate=lambda found: {"miou": Masks().evaluate(found, loaders["test"])},
    )
    l0prune.export_onnx(result.compact, example, "compact.onnx", output_names=["mask"])
    kept = f"{result.hard_cost:.3f} of the MACs"
    print(f"{type(result.compact).__name__}: miou {dense:.1f}, {result.evaluation['miou']:.1f} at {kept}")
    print(l0prune.benchmark({"dense": "dense.onnx", "compact": "compact.onnx"}, min_seconds=1.0).speedup["compact"])


if __name__ == "__main__":
    main()
