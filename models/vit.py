"""A small plain vision transformer for 32x32 images: pre-norm blocks, fused qkv, a class token."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l0prune.models.registry import register

__all__ = ["Attention", "Block", "VisionTransformer", "vit_cifar"]


class Attention(nn.Module):
    """Multi-head self-attention whose head count is read from the weights, so that heads can be removed.

    Args:
        width: Width of the residual stream.
        n_heads: Heads; `width` is a multiple of it.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.head_dim = width // n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T, width) to (N, T, width)."""
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(n, t, -1))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm and inside a residual."""

    def __init__(self, width: int, n_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, n_heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T, width) to (N, T, width)."""
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patch embedding, class token, learned positions, blocks, final norm and a linear layer on the class token.

    Args:
        num_classes: Outputs of the last layer.
        in_channels: Channels of an image.
        image_size: Side of the square image in pixels, a multiple of `patch_size`.
        patch_size: Side of a patch in pixels.
        width: Width of the residual stream, a multiple of `n_heads`.
        depth: Blocks.
        n_heads: Attention heads of a block.
        mlp_width: Hidden units of a block's perceptron.

    Source: Dosovitskiy et al. (2021), arXiv:2010.11929, section 3.1.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        patch_size: int = 4,
        width: int = 128,
        depth: int = 6,
        n_heads: int = 4,
        mlp_width: int = 256,
    ) -> None:
        super().__init__()
        n_tokens = (image_size // patch_size) ** 2 + 1
        self.patch_embed = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, n_tokens, width))
        self.blocks = nn.Sequential(*(Block(width, n_heads, mlp_width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, S, S) to logits (N, num_classes)."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])


@register(input_shape=(3, 32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
def vit_cifar(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    patch_size: int = 4,
    width: int = 128,
    depth: int = 6,
    n_heads: int = 4,
    mlp_width: int = 256,
) -> nn.Module:
    """Vision transformer for 32x32 images, patch 4, 6 blocks of width 128 with 4 heads."""
    return VisionTransformer(
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        depth=depth,
        n_heads=n_heads,
        mlp_width=mlp_width,
    )
