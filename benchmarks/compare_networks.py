"""Networks of the comparison that the package has no name for, and its text data, as the command line takes them.

PYTHONPATH=benchmarks l0prune finetune compare_networks:vit_small ...
SST2_NPZ=sst2.npz PYTHONPATH=benchmarks l0prune finetune hf:minilm_sst2 --data compare_networks:sst2 ...
"""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["TransformerClassifier", "sst2", "vit_small"]


class PatchEmbed(nn.Module):
    """Square patches to tokens, (N, C, S, S) to (N, T, width)."""

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """One token a patch."""
        return self.proj(x).flatten(2).transpose(1, 2)


class TransformerClassifier(nn.Module):
    """A vision transformer of torch's own encoder layers, norms after the residuals, read at the class token.

    Args:
        num_classes: Outputs of the last layer.
        width: Width of the residual stream, a multiple of `n_heads`.
        depth: Encoder layers.
        n_heads: Attention heads of a layer.
        mlp_width: Hidden units of a layer's perceptron.
        patch_size: Side of a patch; images are 32x32.
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 128,
        depth: int = 6,
        n_heads: int = 8,
        mlp_width: int = 256,
        patch_size: int = 4,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(3, width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (32 // patch_size) ** 2 + 1, width))
        layer = nn.TransformerEncoderLayer(width, n_heads, mlp_width, dropout=0.0, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.mlp_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) to logits (N, num_classes)."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.mlp_head(self.transformer(x)[:, 0])


def vit_small(**arguments: Any) -> tuple[nn.Module, Tensor]:
    """The ViT of 0.81 million parameters whose CIFAR-10 checkpoint reaches 73.73 %; `TransformerClassifier`'s arguments."""
    return TransformerClassifier(**arguments), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def sst2() -> dict[str, Any]:
    """SST-2 as token ids, from the file that `dense_networks.py` wrote and SST2_NPZ names."""
    with np.load(os.environ["SST2_NPZ"], allow_pickle=False) as file:
        return {
            **{
                f"x_{part}": {name: file[f"{name}_{part}"] for name in ("input_ids", "attention_mask")}
                for part in ("train", "test")
            },
            "y_train": file["y_train"],
            "y_test": file["y_test"],
            "n_classes": 2,
        }
