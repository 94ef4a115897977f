"""A one-stage detector in the manner of FastestDet, boxes as COCO has them, and a task of one's own; on made-up pictures.

    cd examples && python detector.py
    l0prune finetune detector:network --weights detector.pt --data detector:loaders --task detector:task --budget macs=0.5 --out R
    l0prune shrink R --output-names objectness,boxes,classes
    l0prune bench R

The first line trains the dense network, and then does in Python what the others do by the command line.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import l0prune
from l0prune.tasks.task import Metric

SIZE, CLASSES = 64, 2
NAMES = ("objectness", "boxes", "classes")


def block(inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, norm and activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Shuffle(nn.Module):
    """A unit of ShuffleNet v2: one half of the channels passes by, and both are shuffled in the next unit."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, half, first = stride, outputs // 2, inputs if stride > 1 else inputs // 2
        deep = nn.Sequential(nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False), nn.BatchNorm2d(half))
        self.main = nn.Sequential(block(first, half), deep, block(half, half))
        if stride > 1:
            deep = nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs)
            )
            self.side = nn.Sequential(deep, block(inputs, half))

    def forward(self, x: Tensor) -> Tensor:
        """With a stride, half the size."""
        if self.stride > 1:
            return torch.cat((self.side(x), self.main(x)), 1)
        n, channels, height, width = x.shape
        pairs = x.reshape(n, channels // 2, 2, height, width)
        return torch.cat((pairs[:, :, 0], self.main(pairs[:, :, 1])), 1)


class Detector(nn.Module):
    """Three scales of a ShuffleNet meet on the grid of the middle one, each cell of which predicts a box."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = block(3, width // 2, 3, stride=2)
        self.fine = nn.Sequential(Shuffle(width // 2, width, 2), Shuffle(width, width, 1))
        self.middle = nn.Sequential(Shuffle(width, 2 * width, 2), Shuffle(2 * width, 2 * width, 1))
        self.coarse = nn.Sequential(Shuffle(2 * width, 4 * width, 2), Shuffle(4 * width, 4 * width, 1))
        self.reduce = block(7 * width, 2 * width)
        self.around = nn.ModuleList(block(2 * width, 2 * width, kernel, groups=2 * width) for kernel in (1, 3, 5))
        self.mix = block(6 * width, 2 * width)
        heads = (nn.Sequential(block(2 * width, width, 3), nn.Conv2d(width, n, 1)) for n in (1, 4, CLASSES))
        self.heads = nn.ModuleList(heads)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Logits of objectness (N, 1, h, w), raw boxes (N, 4, h, w), logits of classes (N, C, h, w)."""
        fine = self.fine(self.stem(image))
        middle = self.middle(fine)
        coarse = F.interpolate(self.coarse(middle), scale_factor=2)
        x = self.reduce(torch.cat((F.avg_pool2d(fine, 2), middle, coarse), 1))
        x = self.mix(torch.cat([around(x) for around in self.around], 1))
        return tuple(head(x) for head in self.heads)


class Rectangles(Dataset):
    """Bright rectangles, lying or upright, one to three in a picture; boxes are x, y, width, height in pixels."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        random = torch.Generator().manual_seed(self.seed + index)
        image, boxes, labels = 0.3 * torch.randn(3, SIZE, SIZE, generator=random), [], []
        for _ in range(int(torch.randint(1, 4, (), generator=random))):
            label = int(torch.randint(CLASSES, (), generator=random))
            width, height = (24, 12) if label else (12, 24)
            x, y = (int(torch.randint(SIZE - side, (), generator=random)) for side in (width, height))
            image[:, y : y + height, x : x + width] += 1
            boxes.append([x, y, width, height])
            labels.append(label)
        return image, {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)}


def collate(entries: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """A batch of images, and what is in each of them."""
    return torch.stack([image for image, _ in entries]), [target for _, target in entries]


def loaders(n: int = 640, batch_size: int = 32) -> tuple[DataLoader, DataLoader]:
    """To train and to test on."""
    train = DataLoader(Rectangles(n, 0), batch_size, shuffle=True, collate_fn=collate, drop_last=True)
    return train, DataLoader(Rectangles(n // 4, 1 << 20), batch_size, collate_fn=collate)


def decoded(boxes: Tensor) -> Tensor:
    """Left, top, right and bottom (N, 4, h, w) in units of the image; a centre is near its cell."""
    height, width = boxes.shape[2:]
    x = (boxes[:, 0].tanh() + torch.arange(width, device=boxes.device) + 0.5) / width
    y = (boxes[:, 1].tanh() + torch.arange(height, device=boxes.device)[:, None] + 0.5) / height
    half = boxes[:, 2:].sigmoid() / 2
    return torch.stack((x - half[:, 0], y - half[:, 1], x + half[:, 0], y + half[:, 1]), 1)


def corners(target: dict[str, Tensor]) -> Tensor:
    """Boxes of COCO as (n, 4): left, top, right, bottom in units of the image."""
    boxes = target["boxes"] / SIZE
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4)."""
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0)
    both, one, other = sides.prod(-1), (a[..., 2:] - a[..., :2]).prod(-1), (b[..., 2:] - b[..., :2]).prod(-1)
    return both / (one + other - both)


class Boxes(l0prune.Task):
    """Which rectangles are found."""

    metric = Metric("found", higher_is_better=True, unit="%")

    def n_rows(self, inputs: Tensor, targets: list[dict[str, Tensor]]) -> int:
        """Images."""
        return len(targets)

    def loss(self, outputs: tuple[Tensor, ...], targets: list[dict[str, Tensor]]) -> Tensor:
        """Of objectness in all cells; of box and class where the centre of a rectangle is."""
        objectness, boxes, classes = outputs
        height, width = objectness.shape[2:]
        wanted = torch.cat([corners(target) for target in targets])
        image = torch.cat([torch.full_like(target["labels"], i) for i, target in enumerate(targets)])
        column = ((wanted[:, 0] + wanted[:, 2]) / 2 * width).long().clamp_max(width - 1)
        row = ((wanted[:, 1] + wanted[:, 3]) / 2 * height).long().clamp_max(height - 1)
        is_there = torch.zeros_like(objectness[:, 0])
        is_there[image, row, column] = 1
        found = F.binary_cross_entropy_with_logits(objectness[:, 0], is_there, pos_weight=is_there.new_tensor(8.0))
        iou = overlap(decoded(boxes)[image, :, row, column], wanted)
        labels = torch.cat([target["labels"] for target in targets])
        return found + (1 - iou).mean() + F.cross_entropy(classes[image, :, row, column], labels)

    def teach(
        self, outputs: tuple[Tensor, ...], taught: tuple[Tensor, ...], targets: object, *, temperature: float
    ) -> Tensor:
        """Objectness everywhere, the rest where the dense network sees something."""
        seen = taught[0].sigmoid()
        maps = zip((outputs[0].sigmoid(), *outputs[1:]), (seen, *taught[1:]), (1.0, seen, seen), strict=True)
        return sum(((found - wanted).square() * weight).mean() for found, wanted, weight in maps)

    def score(self, answers: object) -> float:
        """Share of the rectangles that are among the boxes of as many of the surest cells, with their class and an IoU of 0.5."""
        found = total = 0
        for answer in answers:
            objectness, boxes, classes = answer.outputs
            boxes, classes = decoded(boxes).flatten(2), classes.argmax(1).flatten(1)
            for i, target in enumerate(answer.targets):
                surest = objectness[i].flatten().topk(len(target["labels"])).indices
                iou = overlap(boxes[i][:, surest].T[:, None], corners(target)[None])
                same = classes[i][surest][:, None] == target["labels"][None]
                found += int(((iou >= 0.5) & same).any(0).sum())
                total += len(target["labels"])
        return 100 * found / total


def network(width: int = 48) -> tuple[nn.Module, Tensor]:
    """The detector, and an example of its input."""
    return Detector(width), torch.zeros(2, 3, SIZE, SIZE)


def task() -> l0prune.Task:
    """What it is for."""
    return Boxes()


def train(model: nn.Module, loader: DataLoader, epochs: int) -> nn.Module:
    """The dense network."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs * len(loader))
    for _ in range(epochs):
        for images, targets in loader:
            Boxes().loss(model(images), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval()


def main() -> None:
    """Train, prune, export, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12, help="Of the dense network; half as many go into pruning.")
    parser.add_argument("--images", type=int, default=640)
    options = parser.parse_args()
    torch.manual_seed(0)
    train_loader, test_loader = loaders(options.images)
    model, example = network()
    train(model, train_loader, options.epochs)
    torch.save(model.state_dict(), "detector.pt")
    dense = Boxes().evaluate(model, test_loader)
    l0prune.export_onnx(model, example, "dense.onnx", output_names=NAMES)
    config = l0prune.FinetuneConfig(epochs=options.epochs / 2, optimizer="adamw", lr=2e-3)
    budget = l0prune.Budget("macs", 0.5)
    result = l0prune.finetune(model, train_loader, task=Boxes(), budget=budget, config=config, evaluate=test_loader)
    l0prune.export_onnx(result.compact, example, "compact.onnx", output_names=NAMES)
    kept = f"{result.hard_cost:.3f} of the MACs"
    print(f"{type(result.compact).__name__}: {dense:.1f} % found, {result.evaluation['found']:.1f} % at {kept}")
    print(l0prune.benchmark({"dense": "dense.onnx", "compact": "compact.onnx"}, min_seconds=1.0).speedup["compact"])


if __name__ == "__main__":
    main()
