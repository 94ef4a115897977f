"""Shapes of networks that no library of the coverage table holds, in small: detectors, U-Nets, speech, mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from coverage_models import Case
from torch import Tensor, nn

__all__ = ["OWN_CASES"]


class Conv(nn.Sequential):
    """Convolution, norm, activation."""

    def __init__(self, n_in: int, n_out: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        layers = [
            nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(n_out),
            nn.SiLU(),
        ]
        super().__init__(*layers)


class Split(nn.Module):
    """C2f of YOLOv8 and, with `attention`, C2PSA of YOLO11: half of the channels goes on, every step is kept and joined."""

    def __init__(self, width: int, steps: int = 2, *, attention: bool = False):
        super().__init__()
        self.part = width // 2
        self.cv1, self.cv2 = Conv(width, width), Conv((2 + steps) * self.part, width)
        self.m = nn.ModuleList(
            Attention(self.part)
            if attention
            else nn.Sequential(Conv(self.part, self.part, 3), Conv(self.part, self.part, 3))
            for _ in range(steps)
        )

    def forward(self, x: Tensor) -> Tensor:
        """As in ultralytics."""
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Attention(nn.Module):
    """Attention over positions, with a depthwise convolution of the values."""

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads, self.head_dim, self.key_dim = heads, width // heads, width // heads // 2
        self.qkv = nn.Conv2d(width, width + 2 * self.key_dim * heads, 1)
        self.pe, self.proj = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """As in YOLO11."""
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.heads, self.key_dim * 2 + self.head_dim, h * w)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        scores = (q.transpose(-2, -1) @ k * self.key_dim**-0.5).softmax(-1)
        return x + self.proj((v @ scores.transpose(-2, -1)).view(b, c, h, w) + self.pe(v.reshape(b, c, h, w)))


class Pyramid(nn.Module):
    """Pooling in several sizes."""

    def __init__(self, width: int):
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width // 2), Conv(width * 2, width)

    def forward(self, x: Tensor) -> Tensor:
        """SPPF."""
        y = [self.cv1(x)]
        y.extend(F.max_pool2d(y[-1], 5, 1, 2) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Detector(nn.Module):
    """Backbone, path aggregation and heads for three strides, with boxes as distributions (v8 to v11) or anchors (v5)."""

    def __init__(self, *, anchors: bool, attention: bool = False, width: int = 16, n_classes: int = 3):
        super().__init__()
        self.anchors, self.n_classes, self.bins = anchors, n_classes, 4
        self.stem = nn.Sequential(Conv(3, width, 3, 2), Conv(width, width, 3, 2), Split(width))
        self.down = nn.ModuleList([Conv(width, width, 3, 2), Conv(width, width, 3, 2)])
        self.top = Split(width, attention=True) if attention else Pyramid(width)
        self.up, self.back = Reduction(2 * width, width), Conv(width, width, 3, 2)
        n_out = 3 * (5 + n_classes) if anchors else 4 * self.bins
        self.box = nn.ModuleList(nn.Sequential(Conv(width, width, 3), nn.Conv2d(width, n_out, 1)) for _ in range(3))
        self.cls = nn.ModuleList(
            nn.Sequential(Conv(width, width, 3, groups=width), nn.Conv2d(width, n_classes, 1)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Boxes and classes of all places, one behind the other."""
        a = self.stem(x)
        b = self.down[0](a)
        c = self.top(self.down[1](b))
        b = self.up(torch.cat([F.interpolate(c, scale_factor=2.0, mode="nearest"), b], 1))
        features = [a, b, self.back(b) + c]
        return self._anchored(features) if self.anchors else self._distributed(features)

    def _anchored(self, features: list[Tensor]) -> Tensor:
        found = []
        for x, box in zip(features, self.box, strict=True):
            y = box(x)
            n, _, h, w = y.shape
            y = y.view(n, 3, 5 + self.n_classes, h, w).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
            rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            xy = (y[..., :2] * 2 + torch.stack((columns, rows), 2) - 0.5) * 8
            found.append(torch.cat((xy, (y[..., 2:4] * 2) ** 2, y[..., 4:]), 4).view(n, -1, 5 + self.n_classes))
        return torch.cat(found, 1)

    def _distributed(self, features: list[Tensor]) -> Tensor:
        parts = [torch.cat((b(x), c(x)), 1).flatten(2) for x, b, c in zip(features, self.box, self.cls, strict=True)]
        boxes, classes = torch.cat(parts, 2).split((4 * self.bins, self.n_classes), 1)
        n, _, places = boxes.shape
        shares = boxes.view(n, 4, self.bins, places).transpose(1, 2).softmax(1)
        distance = (shares * torch.arange(self.bins, dtype=boxes.dtype).view(1, -1, 1, 1)).sum(1)
        low, high = distance.chunk(2, 1)
        return torch.cat(((low + high) / 2, high - low, classes.sigmoid()), 1)


class Reduction(nn.Sequential):
    """A reduction, and the block behind it."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(Conv(n_in, n_out), Split(n_out))


class ResBlock(nn.Module):
    """Residual block of a diffusion U-Net, shifted and scaled by the time."""

    def __init__(self, n_in: int, n_out: int, n_time: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, n_in), nn.Conv2d(n_in, n_out, 3, padding=1)
        self.time, self.norm2 = nn.Linear(n_time, 2 * n_out), nn.GroupNorm(4, n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """As in diffusers."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, 1)
        return self.skip(x) + self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))


class CrossAttention(nn.Module):
    """Transformer block between resolutions: self-attention, attention to a text, gated feed-forward."""

    def __init__(self, width: int, n_text: int, heads: int = 2):
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.q = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.kv = nn.ModuleList([nn.Linear(width, 2 * width, bias=False), nn.Linear(n_text, 2 * width, bias=False)])
        self.out, self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(2)), nn.Linear(width, 4 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """As in diffusers, with GEGLU."""
        n, c, h, w = x.shape
        y = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
        for i in range(2):
            z = self.norms[i](y)
            k, v = self.kv[i](text if i else z).chunk(2, -1)
            q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q[i](z), k, v))
            y = y + self.out[i](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        a, b = self.up(self.norms[2](y)).chunk(2, -1)
        return x + (y + self.down(a * F.gelu(b))).reshape(n, h, w, c).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """Two resolutions with skip connections, a time and a text."""

    def __init__(self, width: int = 16, n_text: int = 12):
        super().__init__()
        self.width, self.time = (
            width,
            nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width)),
        )
        self.inp, self.down = nn.Conv2d(4, width, 3, padding=1), nn.Conv2d(width, width, 3, 2, 1)
        self.a, self.b = ResBlock(width, width, 4 * width), ResBlock(width, 2 * width, 4 * width)
        self.attention, self.mid = CrossAttention(2 * width, n_text), ResBlock(2 * width, 2 * width, 4 * width)
        self.up, self.c = nn.Conv2d(2 * width, 2 * width, 3, padding=1), ResBlock(3 * width, width, 4 * width)
        self.norm, self.out = nn.GroupNorm(4, width), nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor, steps: Tensor, text: Tensor) -> Tensor:
        """The noise in a picture."""
        frequencies = torch.exp(-torch.arange(self.width // 2, dtype=x.dtype) * 0.5)
        angles = steps[:, None] * frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        a = self.a(self.inp(x), time)
        b = self.mid(self.attention(self.b(self.down(a), time), text), time)
        b = self.up(F.interpolate(b, scale_factor=2.0, mode="nearest"))
        return self.out(F.silu(self.norm(self.c(torch.cat([b, a], 1), time))))


class Conformer(nn.Module):
    """Subsampling, relative attention, gated convolution, two half feed-forwards."""

    def __init__(self, width: int = 16, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.sub = nn.Sequential(nn.Conv2d(1, width, 3, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2), nn.ReLU())
        self.inp = nn.Linear(width * 4, width)
        self.ff = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.pos, self.out = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width, bias=False),
            nn.Linear(width, width),
        )
        self.u = nn.Parameter(torch.zeros(heads, width // heads))
        self.v = nn.Parameter(torch.zeros(heads, width // heads))
        self.up, self.down = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.depthwise, self.bn = nn.Conv1d(width, width, 5, padding=2, groups=width), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities of letters for each frame."""
        x = self.sub(x[:, None])
        n, c, t, f = x.shape
        x = self.inp(x.transpose(1, 2).reshape(n, t, c * f))
        x = x + 0.5 * self.ff[0](x)
        x = x + self._attention(self.norms[0](x))
        y = F.glu(self.up(self.norms[1](x).transpose(1, 2)), 1)
        x = x + self.down(F.silu(self.bn(self.depthwise(y)))).transpose(1, 2)
        x = self.norms[2](x + 0.5 * self.ff[1](x))
        return self.head(x).log_softmax(-1)

    def _attention(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).unbind(2)
        angles = torch.arange(2 * t - 1, dtype=x.dtype)[:, None] * torch.arange(1, c // 2 + 1, dtype=x.dtype)
        p = self.pos(torch.cat([angles.sin(), angles.cos()], -1)).view(1, 2 * t - 1, self.heads, -1)
        content = (q + self.u).transpose(1, 2) @ k.permute(0, 2, 3, 1)
        places = (q + self.v).transpose(1, 2) @ p.permute(0, 2, 3, 1)
        places = (
            F.pad(places, (1, 0)).view(n, self.heads, 2 * t, t)[:, :, 1:].reshape(n, self.heads, t, 2 * t - 1)[..., :t]
        )
        scores = ((content + places) * (c // self.heads) ** -0.5).softmax(-1)
        return self.out((scores @ v.transpose(1, 2)).transpose(1, 2).reshape(n, t, c))


class Experts(nn.Module):
    """A mixture of experts of which each token takes the best two."""

    def __init__(self, width: int = 16, n_experts: int = 4):
        super().__init__()
        self.up, self.router, self.head = nn.Linear(6, width), nn.Linear(width, n_experts), nn.Linear(width, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width)) for _ in range(n_experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens."""
        x = self.up(x)
        tokens = x.reshape(-1, x.shape[-1])
        shares, chosen = self.router(tokens).softmax(-1).topk(2, -1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            out = out.index_add(0, rows, expert(tokens[rows]) * shares[rows, place, None])
        return self.head(x + out.view_as(x))


class Recurrent(nn.Module):
    """A recogniser of text in pictures: convolutions, two recurrent layers."""

    def __init__(self, width: int = 12):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.lstm, self.gru = (
            nn.LSTM(width * 4, 10, batch_first=True, bidirectional=True),
            nn.GRU(20, 10, batch_first=True),
        )
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Letters along the width."""
        y = self.conv(x).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.gru(self.lstm(y)[0])[0])


class Unpooling(nn.Module):
    """SegNet: what was pooled goes back to its place."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
            nn.Conv2d(width, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Classes of pixels."""
        y, places = F.max_pool2d(self.a(x).relu(), 2, return_indices=True)
        return self.c(F.max_unpool2d(self.b(y).relu(), places, (2, 2)))


class Tables(nn.Module):
    """A recommender: bags of embeddings, their products."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(20, width, mode=mode) for mode in ("mean", "sum"))
        self.product, self.head = nn.Bilinear(width, width, 6), nn.Linear(6, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """A score."""
        return self.head(self.product(self.bags[0](a), self.bags[1](b)).relu())


def _case(name: str, build: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Case:
    def make(model: nn.Module) -> Any:
        generator = torch.Generator().manual_seed(0)
        return tuple(torch.randn(2, *shape, generator=generator) for shape in shapes)

    return Case(name, lambda: build().eval(), make)


def _tables(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(20, (2, 5), generator=generator) for _ in range(2))


OWN_CASES = (
    _case("yolov5", lambda: Detector(anchors=True), (3, 64, 64)),
    _case("yolov8", lambda: Detector(anchors=False), (3, 64, 64)),
    _case("yolo11", lambda: Detector(anchors=False, attention=True), (3, 64, 64)),
    _case("diffusion-unet", UNet, (4, 8, 8), (), (5, 12)),
    _case("conformer", Conformer, (32, 19)),
    _case("experts", Experts, (5, 6)),
    _case("text-recogniser", Recurrent, (1, 8, 12)),
    _case("segnet", Unpooling, (3, 8, 8)),
    Case("tables", lambda: Tables().eval(), _tables),
)
"""Built in a moment, traced and cut by tests."""
