"""A small network, data it can learn in a second, and a run: shared by the tests of fine-tuning and their subprocesses."""

import copy
import itertools
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import l0prune
from l0prune.finetuning.config import FinetuneConfig
from l0prune.finetuning.metrics import read_metrics

N_CLASSES = 4
BUDGET = l0prune.Budget("macs", 0.5)
QUICK = FinetuneConfig(
    epochs=5, warmup_epochs=0.5, gate_epochs=2, settle_epochs=1, log_every=3, align=1, lr=0.05, recovery_lr=0.05
)


class SmallNet(nn.Module):
    """Two convolutions with batch norm, dropout, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(12)
        self.dropout = nn.Dropout(0.1)
        self.linear = nn.Linear(12, N_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(self.dropout(x.mean((2, 3))))


class SmallBatches:
    """Noisy pictures of four patterns; the noise and the order follow from the epoch alone."""

    def __init__(self, n_batches: int = 6, batch_size: int = 16) -> None:
        self.n_batches, self.batch_size, self.epoch = n_batches, batch_size, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self):
        patterns = torch.randn(N_CLASSES, 3, 6, 6, generator=torch.Generator().manual_seed(99))
        generator = torch.Generator().manual_seed(self.epoch)
        for _ in range(self.n_batches):
            targets = torch.randint(0, N_CLASSES, (self.batch_size,), generator=generator)
            noise = torch.randn(self.batch_size, 3, 6, 6, generator=generator)
            yield patterns[targets] + 0.7 * noise, targets


class Stopping(SmallBatches):
    """Breaks off before a given step, as Ctrl-C would."""

    def __init__(self, before_step: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.before_step, self.error = before_step, error

    def __iter__(self):
        for index, batch in enumerate(super().__iter__()):
            if self.epoch * self.n_batches + index == self.before_step:
                raise self.error
            yield batch


@cache
def trained_weights() -> dict[str, torch.Tensor]:
    """Weights of a `SmallNet` after some training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, batches = SmallNet(), SmallBatches(40)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for inputs, targets in batches:
            F.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    return net.state_dict()


@cache
def traced() -> tuple[nn.Module, l0prune.ChannelFlow]:
    """The network as it was traced, and its flow."""
    net = SmallNet()
    net.load_state_dict(trained_weights())
    return net, l0prune.trace(net.eval(), (torch.randn(2, 3, 6, 6),))


def dense_net() -> SmallNet:
    """A trained network of its own."""
    net = SmallNet()
    net.load_state_dict(trained_weights())
    return net.eval()


def gated_net(seed: int = 0) -> l0prune.GatedModel:
    """A freshly injected trained network; the flow holds for every copy of it."""
    return l0prune.inject(dense_net(), traced()[1], seed=seed)


def accuracy(model: nn.Module) -> dict[str, float]:
    """Share of right answers on unseen pictures."""
    batches = SmallBatches(4, 64)
    batches.set_epoch(12345)
    right = [(model(inputs).argmax(1) == targets).float().mean() for inputs, targets in batches]
    return {"accuracy": float(torch.stack(right).mean())}


def run(gated=None, batches=None, **kwargs):
    """A quick run; keyword arguments override its parts."""
    arguments = {"loss": F.cross_entropy, "budget": BUDGET, "config": QUICK, **kwargs}
    return l0prune.finetune(
        gated_net() if gated is None else gated, SmallBatches() if batches is None else batches, **arguments
    )


def untimed(path: Path) -> list[dict]:
    """Lines of a metrics file without what a clock measured."""
    return [{key: value for key, value in line.items() if key != "seconds_per_step"} for line in read_metrics(path)]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's state."""
    return copy.deepcopy(dict(model.state_dict()))


def assert_same_state(found, expected):
    """Bit by bit."""
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def stop_at(n, original):
    """A function that is interrupted as by Ctrl-C at its n-th call, and else does what the original does."""
    calls = itertools.count(1)

    def stopping(*args, **kwargs):
        if next(calls) == n:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    return stopping
