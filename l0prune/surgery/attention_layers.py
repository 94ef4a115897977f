"""Attention layers of torch after a cut: `nn.MultiheadAttention` where it can be, else a class of it that asks for less.

torch's layer wants its heads together to be as wide as the stream that it reads and writes. A cut takes heads and stream apart.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NarrowAttention", "measure_attention_", "measure_transformer_"]


class NarrowAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose heads together need not be as wide as its inputs and outputs; all else is the same."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As that of `nn.MultiheadAttention`."""
        is_batched, is_self, is_pair = query.dim() == 3, query is key and key is value, key is value
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, which has to be given with it")
        if not is_batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in self._projected(query, key, value, is_self=is_self, is_pair=is_pair)
        )
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            attended = weights @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(attended.transpose(1, 2).flatten(-2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not is_batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _projected(
        self, query: Tensor, key: Tensor, value: Tensor, *, is_self: bool, is_pair: bool
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values of all heads, in one product where they are made of one tensor."""
        bias = self.in_proj_bias
        if self.in_proj_weight is not None:
            if is_self:
                return F.linear(query, self.in_proj_weight, bias).chunk(3, -1)
            weights = self.in_proj_weight.chunk(3)
            if is_pair:
                rows = len(weights[0])
                q = F.linear(query, self.in_proj_weight[:rows], None if bias is None else bias[:rows])
                both = F.linear(key, self.in_proj_weight[rows:], None if bias is None else bias[rows:])
                return q, *both.chunk(2, -1)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if bias is None else bias.split([len(weight) for weight in weights])
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as numbers to add to the scores of queries (N, heads, L, width); None without any."""
        mask = _added(attn_mask, q)
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (-1, self.num_heads))
        padding = _added(key_padding_mask, q)
        if padding is None:
            return mask
        padding = padding[:, None, None, :]
        return padding if mask is None else mask + padding


def _added(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask as numbers: minus infinity where one of truth values forbids."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))


def measure_attention_(module: nn.MultiheadAttention, *, head_width: int) -> None:
    """Bring a layer's integers up to date with its tensors, and its class where torch's own code does not take these sizes.

    Args:
        module: The layer, whose tensors are cut.
        head_width: Of a head's queries, which a cut takes or leaves as a whole.
    """
    if type(module) not in (nn.MultiheadAttention, NarrowAttention):
        return
    packed = module.in_proj_weight
    rows = [len(packed) // 3] * 3 if packed is not None else [len(w) for w in _separate(module)]
    widths = [packed.shape[1]] * 3 if packed is not None else [w.shape[1] for w in _separate(module)]
    stream = module.out_proj.weight.shape[0]
    module.embed_dim, module.kdim, module.vdim = stream, widths[1], widths[2]
    module.num_heads, module.head_dim = rows[0] // head_width, head_width
    has_own_rows = module.bias_k is not None or module.bias_v is not None or module.add_zero_attn
    if {*rows, widths[0], stream} == {stream} or has_own_rows:
        return
    module.__class__ = NarrowAttention
    module._qkv_same_embed_dim = False  # what keeps callers from torch's fused kernels


def measure_transformer_(module: nn.Module) -> None:
    """Bring what torch's stacks of layers know of their layers up to date: a width, and whether a fused kernel takes them."""
    if isinstance(module, nn.Transformer):
        widths = {m.embed_dim for m in module.modules() if isinstance(m, nn.MultiheadAttention)}
        module.d_model = widths.pop() if len(widths) == 1 else module.d_model
    if isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor:
        inner = [m for m in module.modules() if isinstance(m, nn.MultiheadAttention)]
        module.use_nested_tensor = all(type(m) is nn.MultiheadAttention and m.num_heads % 2 == 0 for m in inner)


def _separate(module: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor]:
    return module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
