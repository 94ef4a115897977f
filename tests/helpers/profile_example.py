"""A profile written by hand: two convolutions with a residual branch between them, in blocks of four."""

import itertools

from l0prune.latency.profile import Axis, Check, Piece, Profile, ProfiledLayer, Table, Where, network_fingerprint
from l0prune.measuring.hardware import Environment, processor

__all__ = ["BLOCK", "branching_net", "hand_made_profile", "times_of"]

BLOCK = 4
WIDTH = 16


def branching_net():
    """3 -> 16 channels, a branch 16 -> 16 -> 16 beside a shortcut, 16 -> 5."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
            self.first = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
            self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
            self.head = nn.Linear(WIDTH, 5)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            x = torch.relu(x + self.second(torch.relu(self.first(x))))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    return Net(), torch.randn(2, 3, 6, 6)


def times_of(n_in: int, n_out: int) -> float:
    """Microseconds of a 3x3 convolution: whole blocks, and twice that off the multiples of two, from a block on."""
    blocks = -(-n_in // BLOCK) * -(-n_out // BLOCK)
    return (10.0 + 30.0 * blocks) * (2.0 if n_in >= BLOCK and n_in % 2 else 1.0)


def hand_made_profile(flow, *, noise=0.01) -> Profile:
    """Of `branching_net`; a dropped branch leaves 3 us and 0.5 us a channel."""
    knots = {"small": tuple(range(1, BLOCK)), "whole": tuple(range(4, 17, 4)), "odd": (5, 8, 9, 12, 13, 16)}

    def axis(region):
        return Axis(region, BLOCK if region == "whole" else 1, knots[region])

    def time(region, n_in, n_out):
        """At the end of a block, the time of odd counts is that of those before it."""
        return times_of(n_in - 1 if region == "odd" and n_in % BLOCK == 0 else n_in, n_out)

    pieces = [
        Piece((axis(one), axis(other)), tuple(time(one, a, b) for a, b in itertools.product(knots[one], knots[other])))
        for one, other in itertools.product(knots, knots)
    ]
    closed = Piece((Axis("whole", 1, (1, WIDTH)),), (3.5, 3.0 + 0.5 * WIDTH))
    linear = Piece((Axis("whole", 1, (1, WIDTH)),), (2.0, 4.0))
    plain = Table("Conv 3x3", tuple(pieces))
    after = Table("Conv 3x3, Add", tuple(pieces), closed)
    inner, stream = (Where(f"{name}.weight", (0,), WIDTH) for name in ("first", "second"))
    layers = (
        ProfiledLayer("stem", 0, (Where("", (), 3), stream)),
        ProfiledLayer("first", 0, (stream, inner)),
        ProfiledLayer("second", 1, (inner, stream)),
        ProfiledLayer("head", 2, (stream,)),
    )
    environment = Environment.here(threads=1, batch_size=1)
    return Profile(
        fingerprint=network_fingerprint(flow),
        model="branching",
        processor=processor().key,
        environment=environment,
        provider="CPUExecutionProvider",
        inputs={"x": (1, 3, 6, 6)},
        block=BLOCK,
        multiple=2,
        dense_ms=1.0,
        dense_interval_ms=(1.0 - noise / 2, 1.0 + noise / 2),
        fixed_us=7.0,
        tables=(plain, after, Table("Gemm", (linear,))),
        layers=layers,
        checks=(Check(1.0, 1.02),),
        seconds=1.0,
    )
