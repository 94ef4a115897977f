"""A network and a data set that train in a second; named by commands under test as `tiny_task:network`, `tiny_task:data`."""

import numpy as np
import torch
from torch import nn

CLASSES = 4


def network(width: int = 8) -> tuple[nn.Module, torch.Tensor]:
    """Two convolutions on 1x8x8 images."""
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, CLASSES),
    )
    return model, torch.zeros(2, 1, 8, 8)


def data(n_train: int = 96, n_test: int = 40) -> dict[str, np.ndarray]:
    """Noise with one bright quadrant; which one is the class."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", n_train), ("test", n_test)):
        labels = rng.integers(0, CLASSES, n)
        images = rng.integers(0, 60, (n, 8, 8))
        for image, label in zip(images, labels, strict=True):
            top, left = 4 * (label // 2), 4 * (label % 2)
            image[top : top + 4, left : left + 4] += 150
        arrays |= {f"x_{part}": images.astype(np.uint8), f"y_{part}": labels.astype(np.int64)}
    return arrays
