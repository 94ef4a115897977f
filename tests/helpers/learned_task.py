"""The tiny task with a network that can do it: trained for a moment, on rows of its own; and data that tell who looks."""

import numpy as np
import torch
from tiny_task import CLASSES, network
from torch import nn
from torch.nn import functional as F


def trained(width: int = 8) -> tuple[nn.Module, torch.Tensor]:
    """The tiny network, right on nearly all rows; it has seen none of those of `arrays`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, example = network(width)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        images, labels = drawn(256, seed=1)
        inputs = torch.from_numpy(images).float().div(255).unsqueeze(1)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), torch.from_numpy(labels)).backward()
            optimizer.step()
    return model.eval(), example


def drawn(n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    images = rng.integers(0, 120, (n, 8, 8))
    for image, label in zip(images, labels, strict=True):
        top, left = 4 * (label // 2), 4 * (label % 2)
        image[top : top + 4, left : left + 4] += 60
    return images.astype(np.uint8), labels.astype(np.int64)


def arrays() -> dict[str, np.ndarray]:
    """400 rows to train on, 400 to test on."""
    (x_train, y_train), (x_test, y_test) = drawn(400, seed=2), drawn(400, seed=3)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def wrong_tests() -> dict[str, np.ndarray]:
    """The same with test labels that say nothing."""
    made = arrays()
    return {**made, "y_test": np.random.default_rng(4).permutation(made["y_test"])}


def seen() -> dict[str, np.ndarray]:
    """Test data that are much harder than what the network was trained on."""
    made = arrays()
    rng = np.random.default_rng(5)
    wrong = rng.random(400) < 0.15
    labels = np.where(wrong, rng.integers(0, CLASSES, 400), made["y_test"])
    x_train, y_train = drawn(256, seed=1)
    return {"x_train": x_train, "y_train": y_train, "x_test": made["x_test"], "y_test": labels}
