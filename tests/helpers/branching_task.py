"""Networks with conditions on numbers in their code, which torch.export refuses, for the flow and the command line."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 8


class Branching(nn.Module):
    """Dark pictures take another layer than bright ones; TorchScript can compile that."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.bright = nn.Conv2d(16, 16, 3, padding=1)
        self.dark = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        y = self.norm(self.stem(x)).relu()
        if x.mean() > 0:
            y = self.bright(y)
        else:
            y = self.dark(y)
        return self.head(y.relu().mean((2, 3)))


class Routed(nn.Module):
    """Takes one of two ways, by what the input is: torch.export cannot capture that."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.wide, self.narrow = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 12, 1)
        self.mix = nn.Conv2d(12, 12, 3, groups=12)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x)).relu()
        y = self.wide(y) if x.mean() > 0 else self.narrow(y)
        return self.head(F.adaptive_avg_pool2d(self.mix(y).relu(), 2).flatten(1))


class Unscriptable(Branching):
    """The same in Python that TorchScript cannot compile."""

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        layer = [self.dark, self.bright][int(x.mean() > 0)]
        return self.head(layer(self.norm(self.stem(x)).relu()).relu().mean((2, 3)))


class Guarded(Branching):
    """A condition that no finite input changes, in such Python."""

    def __init__(self) -> None:
        super().__init__()
        self.dark = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        layer = {True: self.bright}[bool(x.isfinite().all())]
        return self.head(layer(self.norm(self.stem(x)).relu()).relu().mean((2, 3)))


def branching() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Branching(), torch.randn(2, 1, SIDE, SIDE)


def unscriptable() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Unscriptable(), torch.randn(2, 1, SIDE, SIDE)


def guarded() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Guarded(), torch.randn(2, 1, SIDE, SIDE)
