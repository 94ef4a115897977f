"""Two small U-Nets as diffusion models have them: output projections that start at zero, attention scaled by its width."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all parameters at zero, as blocks that start as the identity end."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class SingleGroupNorm(nn.GroupNorm):
    """In single precision at least."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.dtype == torch.float64 else x.float()).type(x.dtype)


def norm(width: int) -> nn.Module:
    return SingleGroupNorm(4, width)


def embedded(steps: Tensor, width: int) -> Tensor:
    """Sine and cosine of timesteps, shape `(N, width)`."""
    rates = torch.exp(-math.log(10000) * torch.arange(width // 2, device=steps.device) / (width // 2))
    angles = steps[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1)


class Conditioned(nn.Module):
    """Residual block, shifted and scaled by the timestep."""

    def __init__(self, n_in: int, n_out: int, n_step: int):
        super().__init__()
        self.n_out = n_out
        self.first = nn.Sequential(norm(n_in), nn.SiLU(), nn.Conv2d(n_in, n_out, 3, padding=1))
        self.step = nn.Sequential(nn.SiLU(), nn.Linear(n_step, 2 * n_out))
        self.norm = norm(n_out)
        self.last = nn.Sequential(nn.SiLU(), nn.Dropout(0.1), zeroed(nn.Conv2d(n_out, n_out, 3, padding=1)))
        self.skip = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        scale, shift = self.step(step)[..., None, None].chunk(2, 1)
        y = self.norm(self.first(x)) * (1 + scale) + shift
        return self.skip(x) + self.last(y)


class HeadsByNumber(nn.Module):
    """Queries, keys and values in one, heads by number; their scale is that of the width at hand."""

    def __init__(self, width: int, n_heads: int = 2):
        super().__init__()
        self.n_heads = n_heads
        self.norm, self.qkv, self.out = norm(width), nn.Conv1d(width, 3 * width, 1), zeroed(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, *space = x.shape
        x = x.reshape(b, c, -1)
        qkv = self.qkv(self.norm(x))
        qkv = qkv.reshape(b * self.n_heads, -1, qkv.shape[2])
        ch = qkv.shape[1] // 3
        q, k, v = torch.split(qkv, ch, dim=1)
        scale = 1 / math.sqrt(math.sqrt(c // self.n_heads))
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale), -1)
        y = torch.einsum("bts,bcs->bct", weight, v).reshape(b, -1, x.shape[-1])
        return (x + self.out(y)).reshape(b, c, *space)


class OneHead(nn.Module):
    """Queries, keys and values by three 1x1 convolutions; scores over the root of the width."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v = (nn.Conv2d(width, width, 1) for _ in range(3))
        self.out = zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        b, c, h, w = x.shape
        q, k, v = (layer(y).flatten(2) for layer in (self.q, self.k, self.v))
        scores = torch.bmm(q.transpose(1, 2), k) * (int(c) ** (-0.5))
        y = torch.bmm(v, F.softmax(scores, 2).transpose(1, 2)).reshape(b, -1, h, w)
        return x + self.out(y)


class UNet(nn.Module):
    """One level down and up; `attention` in the middle."""

    def __init__(self, attention: type[nn.Module], width: int = 16):
        super().__init__()
        self.width = width
        self.step = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down, self.shrink = Conditioned(width, width, 2 * width), nn.Conv2d(width, width, 3, 2, 1)
        self.middle, self.attention = Conditioned(width, 2 * width, 2 * width), attention(2 * width)
        self.up = Conditioned(3 * width, width, 2 * width)
        self.head = nn.Sequential(norm(width), nn.SiLU(), zeroed(nn.Conv2d(width, 3, 3, padding=1)))

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        step = self.step(embedded(steps, self.width).to(x.dtype))
        first = self.down(self.stem(x), step)
        y = self.attention(self.middle(self.shrink(first), step))
        y = F.interpolate(y, scale_factor=2.0)
        return self.head(self.up(torch.cat([y, first], 1), step))
