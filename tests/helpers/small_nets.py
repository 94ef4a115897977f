"""Random small networks: blocks of every kind, composed. `small_nets()` is a hypothesis strategy."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from flow_case import inputs, ready
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

N_CLASSES = 3


def conv(
    n_in: int, n_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU
) -> nn.Module:
    """Convolution, batch norm, activation."""
    layer = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(n_out), act())


class Block(nn.Module):
    """A part of a network; `width` says how many channels or features it gives out of `n`."""

    def __init__(self, n: int):
        super().__init__()
        self.width = n


# ---------------------------------------------------------------------------------------------- of pictures (N, C, H, W)


class Plain(Block):
    def __init__(self, n: int):
        super().__init__(6)
        self.a, self.b = conv(n, 8), conv(8, 6, 1, act=nn.Hardswish)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class OtherNorms(Block):
    def __init__(self, n: int):
        super().__init__(n)
        self.a, self.one = nn.Conv2d(n, 6, 3, padding=1), nn.GroupNorm(1, 6)
        self.b, self.three = nn.Conv2d(6, 6, 1), nn.GroupNorm(3, 6)
        self.c, self.each = nn.Conv2d(6, n, 1), nn.InstanceNorm2d(n, affine=True, track_running_stats=True)
        self.act = nn.PReLU(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.one(self.a(x)))
        return self.each(self.c(F.gelu(self.three(self.b(x)))))


class Residual(Block):
    def __init__(self, n: int):
        super().__init__(n)
        self.a, self.b = conv(n, 6), conv(6, n, act=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.b(self.a(x)))


class ResidualInPlace(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        y += x
        return F.relu(y, inplace=True)


class Projection(Block):
    def __init__(self, n: int):
        super().__init__(10)
        self.a, self.b, self.short = (
            conv(n, 6, stride=2),
            conv(6, 10, act=nn.Identity),
            conv(n, 10, 1, 2, act=nn.Identity),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.a(x)) + self.short(x))


class OptionA(Block):
    """Shortcut without parameters: every other position, zeros for new channels."""

    def __init__(self, n: int):
        super().__init__(n + 4)
        self.a, self.b = conv(n, 6, stride=2), conv(6, n + 4, act=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.a(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


class Dense(Block):
    def __init__(self, n: int):
        super().__init__(n + 6)
        self.a = nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 4, 3, padding=1))
        self.b = nn.Sequential(nn.BatchNorm2d(n + 4), nn.ReLU(), nn.Conv2d(n + 4, 2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.a(x)], 1)
        return torch.cat([x, self.b(x)], 1)


class Inception(Block):
    def __init__(self, n: int):
        super().__init__(10)
        self.a, self.b, self.c = conv(n, 4, 1), nn.Sequential(conv(n, 4, 1), conv(4, 4)), conv(n, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x), self.c(F.max_pool2d(x, 3, 1, 1))], 1)


class Shuffle(Block):
    def __init__(self, n: int):
        super().__init__(n)
        half = n // 2
        self.a, self.b = conv(half, half, 1), conv(half, half, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.b(self.a(right))], 1)
        batch, n, height, width = x.shape
        return x.view(batch, 2, n // 2, height, width).transpose(1, 2).reshape(batch, n, height, width)


class Ghost(Block):
    def __init__(self, n: int):
        super().__init__(7)
        self.a, self.b = conv(n, 4, 1), conv(4, 4, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return torch.cat([x, self.b(x)], 1)[:, :7]


class Multiplied(Block):
    def __init__(self, n: int):
        super().__init__(2 * n)
        self.a = nn.Sequential(nn.Conv2d(n, 2 * n, 3, padding=1, groups=n), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


class Grouped(Block):
    def __init__(self, n: int):
        super().__init__(6)
        self.a, self.b, self.c = conv(n, 8, 1), conv(8, 12, groups=4), conv(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


class Excited(Block):
    def __init__(self, n: int):
        super().__init__(n)
        self.a, self.b = nn.Conv2d(n, 3, 1), nn.Conv2d(3, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.b(F.silu(self.a(x.mean((2, 3), keepdim=True)))))


class InvertedResidual(Block):
    def __init__(self, n: int):
        super().__init__(n)
        self.a, self.b, self.c = (
            conv(n, 8, 1, act=nn.SiLU),
            conv(8, 8, groups=8, act=nn.SiLU),
            conv(8, n, 1, act=nn.Identity),
        )
        self.excite = Excited(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(self.excite(self.b(self.a(x))))


class Transposed(Block):
    """Space grows fourfold and shrinks to what it was, so that any block can follow."""

    def __init__(self, n: int):
        super().__init__(6)
        self.a, self.b = nn.ConvTranspose2d(n, 6, 2, 2), nn.ConvTranspose2d(6, 6, 3, 2, 1, 1, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.b(torch.relu(self.a(x))), 4)


class UNet(Block):
    def __init__(self, n: int):
        super().__init__(n + 9)
        self.deep, self.up = conv(n, 5), nn.ConvTranspose2d(5, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        deep = self.deep(F.max_pool2d(x, 2))
        return torch.cat([x, self.up(deep), F.interpolate(deep, scale_factor=2.0)], 1)


class UsedTwice(Block):
    def __init__(self, n: int):
        super().__init__(n)
        self.a = nn.Conv2d(n, n, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(torch.relu(self.a(x))))


class Tables(Block):
    """Buffers along channels, saved and not; a parameter; a constant of the code."""

    def __init__(self, n: int):
        super().__init__(n)
        self.scale = nn.Parameter(torch.empty(1, n, 1, 1))
        self.register_buffer("kept", torch.empty(n, 1, 1))
        self.register_buffer("made", torch.empty(1, n, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale + self.kept) * self.made + x.new_full((1, self.width, 1, 1), 0.3)


class Listed(Block):
    """A table that is written in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tensor([[0.1 * i] for i in range(self.width)], dtype=x.dtype)[..., None]


class Hierarchy(Block):
    """Parts of equal width, each seeing the one before."""

    def __init__(self, n: int):
        super().__init__(8)
        self.a, self.b, self.c = conv(n, 8, 1), conv(2, 2), conv(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, fourth = self.a(x).split(2, 1)
        third = self.b(second + third)
        return torch.cat([first, second, third, self.c(third + fourth)], 1)


class Written(Block):
    def __init__(self, n: int):
        super().__init__(n)
        self.a = nn.Conv2d(n, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, :4].add_(self.a(x))
        return torch.relu(y)


class Attended(Block):
    """One map for all channels, from their mean and maximum: pins what comes in."""

    def __init__(self, n: int):
        super().__init__(n)
        self.a = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.a(seen))


class Turned(Block):
    """With an op that has no rule."""

    def __init__(self, n: int):
        super().__init__(6)
        self.a = conv(n, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x.rot90(2, (2, 3)))


class Patches(Block):
    """Space becomes channels and space again."""

    def __init__(self, n: int):
        super().__init__(n)
        self.a, self.b = conv(4 * n, 8, 1), nn.Linear(8 * 4, n * 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pixel_shuffle(torch.cat([self.a(F.pixel_unshuffle(x, 2))] * 4, 1), 2)
        y = F.unfold(y, 2, stride=2)
        return F.fold(self.b(y.mT).mT, x.shape[2:], 2, stride=2)


class Halves(Block):
    """Gated linear units on normed weights."""

    def __init__(self, n: int):
        super().__init__(6)
        self.a = parametrizations.weight_norm(nn.Conv2d(n, 12, 3, padding=1))
        self.b = parametrizations.weight_norm(nn.Conv2d(6, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.glu(self.a(x), 1))


class Named(Block):
    """Products written as equations, without gradients or automatic precision around some of them."""

    def __init__(self, n: int):
        super().__init__(n)
        self.up, self.down = nn.Parameter(torch.empty(n, 2, 5)), nn.Parameter(torch.empty(2, 5, n))
        self.scale = nn.Parameter(torch.empty(5))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("nchw,cgd->ngdhw", x, self.up)
        with torch.autocast("cpu", enabled=False):
            y = y.relu() * torch.outer(torch.ones(2, dtype=y.dtype), self.scale)[:, :, None, None]
        return x + torch.einsum("ngdhw,gdc->nchw", y, self.down)


class Put(Block):
    """Written by place: channels over channels, and positions chosen by a list."""

    def __init__(self, n: int):
        super().__init__(n)
        self.a, self.b = conv(n, n), conv(n, n // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).clone()
        y[:, : self.width // 2] = self.b(x)
        y[:, :, [0, 1]] = x[:, :, 1:3]
        return y.index_fill(3, torch.tensor([0]), 0.5)


class Dropped(Block):
    def __init__(self, n: int):
        super().__init__(n)
        self.a = nn.Sequential(
            nn.Conv2d(n, n, 1), nn.ReLU(inplace=True), nn.Dropout2d(0.2), nn.Dropout(0.2, inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


class ConvNext(Block):
    def __init__(self, n: int):
        super().__init__(n)
        self.depthwise, self.norm = nn.Conv2d(n, n, 3, padding=1, groups=n), nn.LayerNorm(n)
        self.up, self.down, self.scale = nn.Linear(n, 8), nn.Linear(8, n), nn.Parameter(torch.empty(n))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


# ----------------------------------------------------------------------------------------------- of sequences (N, T, C)


class Mlp(Block):
    norm_type: Callable[[int], nn.Module] = nn.LayerNorm

    def __init__(self, n: int):
        super().__init__(n)
        self.norm, self.up, self.down = type(self).norm_type(n), nn.Linear(n, 10), nn.Linear(10, n)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class MlpWithoutAffine(Mlp):
    norm_type = staticmethod(lambda n: nn.LayerNorm(n, elementwise_affine=False))


class MlpRms(Mlp):
    norm_type = nn.RMSNorm


class GatedMlp(Block):
    def __init__(self, n: int):
        super().__init__(n)
        self.up, self.down = nn.Linear(n, 12), nn.Linear(6, n)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


class FusedAttention(Block):
    def __init__(self, n: int):
        super().__init__(n)
        self.n_heads = 3
        self.norm, self.qkv, self.out = nn.LayerNorm(n), nn.Linear(n, 18), nn.Linear(6, n)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, length, 3, self.n_heads, 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, -1)
        return x + self.out(y)


class SeparateAttention(Block):
    def __init__(self, n: int):
        super().__init__(n)
        self.q, self.k, self.v, self.out = nn.Linear(n, 4), nn.Linear(n, 4), nn.Linear(n, 6), nn.Linear(6, n)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return x + self.out((scores @ v).transpose(1, 2).flatten(2))


class SharedKeys(Block):
    def __init__(self, n: int):
        super().__init__(n)
        self.q, self.k, self.v, self.out = nn.Linear(n, 8), nn.Linear(n, 4), nn.Linear(n, 4), nn.Linear(8, n)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 2)).transpose(1, 2)
        k, v = (layer(x).unflatten(-1, (2, 2)).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for t in (k, v))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mixer(Block):
    """Mixes the four positions."""

    def __init__(self, n: int):
        super().__init__(n)
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x.transpose(1, 2)))).transpose(1, 2)


class Places(Block):
    def __init__(self, n: int):
        super().__init__(n)
        self.places = nn.Parameter(torch.empty(1, 4, n))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.places


class Matrices(Block):
    """Bare parameters; a transposed one."""

    def __init__(self, n: int):
        super().__init__(6)
        self.weights = nn.ParameterList([nn.Parameter(torch.empty(n, 8)), nn.Parameter(torch.empty(6, 8))])
        self.bias = nn.Parameter(torch.empty(8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.addmm(self.bias, x.flatten(0, 1), self.weights[0]).view(*x.shape[:2], -1)
        return torch.relu(hidden) @ self.weights[1].t()


PICTURE_BLOCKS = {
    kind.__name__: kind
    for kind in (Plain, OtherNorms, Residual, ResidualInPlace, Projection, OptionA, Dense, Inception, Shuffle, Ghost,
                 Multiplied, Grouped, Excited, InvertedResidual, Transposed, UNet, UsedTwice, Tables, Listed, Hierarchy,
                 Written, Attended, Turned, Dropped, ConvNext, Patches, Halves, Named, Put)
}  # fmt: skip
SEQUENCE_BLOCKS = {
    kind.__name__: kind
    for kind in (Mlp, MlpWithoutAffine, MlpRms, GatedMlp, FusedAttention, SeparateAttention, SharedKeys, Mixer, Places,
                 Matrices)
}  # fmt: skip
HEADS = ("pooled", "flat", "map")


class SmallNet(nn.Module):
    """A stem, blocks of pictures, perhaps blocks of sequences of four positions, a head."""

    def __init__(self, width: int, pictures: tuple[str, ...], sequences: tuple[str, ...], head: str):
        super().__init__()
        self.stem = conv(3, width)
        blocks, n = [], width
        for name in pictures:
            blocks.append(PICTURE_BLOCKS[name](n + n % 2))
            if n % 2:
                blocks.insert(-1, conv(n, n + 1, 1))
            n = blocks[-1].width
        self.pictures = nn.Sequential(*blocks)
        steps = []
        for name in sequences:
            steps.append(SEQUENCE_BLOCKS[name](n))
            n = steps[-1].width
        self.sequences = nn.Sequential(*steps)
        self.kind = head
        if head == "map" and not sequences:
            self.head = nn.Conv2d(n, N_CLASSES, 1)
        else:
            self.head = nn.Linear(4 * n if head == "flat" else n, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pictures(self.stem(x))
        if isinstance(self.head, nn.Conv2d):
            return self.head(x)
        x = F.adaptive_avg_pool2d(x, 2).flatten(2).transpose(1, 2)
        x = self.sequences(x)
        return self.head(x.flatten(1) if self.kind == "flat" else x.mean(1))


@dataclass(frozen=True)
class Recipe:
    """What a small network is made of; the same recipe makes the same network."""

    width: int
    pictures: tuple[str, ...]
    sequences: tuple[str, ...]
    head: str
    seed: int

    def build(self) -> nn.Module:
        """A new network in float64, every tensor random."""
        return ready(SmallNet(self.width, self.pictures, self.sequences, self.head), self.seed)

    @cached_property
    def example(self) -> Tensor:
        """Inputs, shape (2, 3, 8, 8)."""
        return inputs(2, 3, 8, 8, seed=self.seed)


def small_nets(max_blocks: int = 3) -> st.SearchStrategy[Recipe]:
    """Recipes of networks of up to `max_blocks` blocks of each kind."""
    return st.builds(
        Recipe,
        width=st.sampled_from([4, 6, 8]),
        pictures=st.lists(st.sampled_from(sorted(PICTURE_BLOCKS)), max_size=max_blocks).map(tuple),
        sequences=st.lists(st.sampled_from(sorted(SEQUENCE_BLOCKS)), max_size=max_blocks - 1).map(tuple),
        head=st.sampled_from(HEADS),
        seed=st.integers(0, 2**16),
    )


class TwoHeads(nn.Module):
    """One hidden layer that two others read."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 6)
        self.heads = nn.ModuleDict({"first": nn.Linear(6, 3), "second": nn.Linear(6, 7)})

    def forward(self, x):
        hidden = torch.relu(self.body(x))
        return self.heads["first"](hidden), self.heads["second"](hidden)
