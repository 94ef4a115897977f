"""Other weights for a network to be compared at: trained ones may be zero or small where a cut is wrong, and hide it.

The output projection of a block that starts as the identity is zero until it is trained; whatever is computed before it, no
output shows it. At weights drawn anew every layer counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l0prune.flow.channel_flow import Consumer
from l0prune.gated.model import GatedModel
from l0prune.kept import Kept
from l0prune.model_call import ModelCall
from l0prune.surgery.dropped import CONSTANT, Dropped
from l0prune.surgery.in_graph import branch_constants, cut_in_graph, has_dropped_branches
from l0prune.surgery.plan import SurgeryPlan
from l0prune.surgery.reaction import holding, own_modules, with_values

__all__ = ["DrawnWeights", "numbers_for", "redrawn_weights"]

_COMMON = 0.8
"""Share of the common part that is taken out: with all of it, a wrong constant for all units would not show."""


def redrawn_weights(
    gated: GatedModel, *, seed: int, dtype: torch.dtype | None = None, negative: float = 0.0
) -> dict[str, Tensor]:
    """Random numbers for every parameter and norm statistic, so that the signal neither dies out nor grows beyond bounds.

    Matrices and kernels keep the variance of what they are applied to. What they make of a value that all open units have in
    common is taken out, but for a fifth, and vectors (biases, weights of norms, scales) are positive unless `negative` says
    otherwise: so hardly a unit is shut by its activation function. Buffers that are no statistics are tables and masks, and stay.

    Args:
        gated: The gated network, its gates at their test-time values; it is not changed.
        seed: Of the numbers.
        dtype: Of all that is floating-point; None leaves each tensor its own.
        negative: Share of the entries of vectors that are negative, so that activation functions shut some units.

    Returns:
        Dotted name -> tensor, for every place in a module where a floating-point tensor is held; shared ones stay shared.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = torch.cat([gated.gate_values().double().cpu(), torch.ones(1, dtype=torch.float64)])
    consumers = {consumer.parameter: consumer for consumer in gated.flow.consumers}
    drawn: dict[int, Tensor] = {}
    placed: dict[str, Tensor] = {}
    for path, module in own_modules(gated.model):
        statistics = set(module._buffers) if "running_var" in module._buffers else set()
        for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            name = f"{path}.{leaf}" if path else leaf
            if id(tensor) not in drawn:
                value = tensor.detach()
                if leaf in module._parameters or leaf in statistics:
                    value = numbers_for(leaf, tensor, generator, negative)
                    if name in consumers:
                        _take_out_common_(value, consumers[name], factors)
                drawn[id(tensor)] = value.to(device=tensor.device, dtype=_type_of(tensor, dtype))
            placed[name] = drawn[id(tensor)]
    return placed


def _type_of(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return tensor.dtype
    return dtype.to_complex() if tensor.is_complex() else dtype


def numbers_for(leaf: str, tensor: Tensor, generator: torch.Generator, negative: float) -> Tensor:
    """New numbers for one tensor, in single precision on the CPU."""
    if tensor.is_complex():
        parts = [numbers_for(leaf, tensor.real, generator, negative) for _ in range(2)]
        return torch.complex(*parts) / 2**0.5
    noise = torch.rand(tensor.shape, generator=generator)
    if leaf == "running_mean":
        return noise.sub_(0.5).mul_(0.2)
    if tensor.dim() > 1 and tensor.numel() > tensor.shape[0]:
        return noise.sub_(0.5).mul_((12 * tensor.shape[0] / tensor.numel()) ** 0.5)
    if leaf == "running_var":
        return noise.add_(0.5)
    return noise.add_(0.5).mul_(1 - 2 * (torch.rand(tensor.shape, generator=generator) < negative).float())


def _take_out_common_(weight: Tensor, consumer: Consumer, factors: Tensor) -> None:
    """Most of what a consumer makes of a value that is the same for all units, under their gates."""
    shape = [1] * weight.dim()
    shape[consumer.dim] = -1
    gates = factors[torch.from_numpy(consumer.gates)].to(weight).view(shape)
    common = (weight * gates).sum(consumer.dim, keepdim=True) / gates.square().sum().clamp_min(1e-12)
    weight.sub_(common * gates, alpha=_COMMON)


class DrawnWeights:
    """Re-drawn weights of a dense network, and what a compact one holds then.

    Args:
        gated: The gated network.
        plan: The cut.
        kept: Units that stay.
        seed: Of the numbers.
        dtype: Of all that is floating-point; None leaves each tensor its own.
        negative: Share of the entries of vectors that are negative.
    """

    def __init__(
        self,
        gated: GatedModel,
        plan: SurgeryPlan,
        kept: Kept,
        *,
        seed: int,
        dtype: torch.dtype | None,
        negative: float = 0.0,
    ) -> None:
        self.dtype = dtype
        self._plan, self._kept = plan, kept
        self._gated = with_values(gated, gated.gate_values().double().cpu().numpy())
        if dtype is not None:
            self._gated.gates.to(dtype)
        self._dense = redrawn_weights(gated, seed=seed, dtype=dtype, negative=negative)
        self._cut: dict[str, Tensor] = {}

    @contextmanager
    def in_gated(self) -> Iterator[GatedModel]:
        """The gated network with these weights."""
        with holding(self._gated.model, self._dense):
            yield self._gated

    @contextmanager
    def in_compact(self, compact: nn.Module) -> Iterator[nn.Module]:
        """A compact network with these weights; one that holds constants made of its weights is cut again."""
        if has_dropped_branches(compact):
            yield self._cut_again
            return
        with holding(compact, self._placed(compact)):
            yield compact

    def inputs(self, call: ModelCall) -> ModelCall:
        """A call with its floating-point tensors in the dtype of the weights."""
        if self.dtype is None:
            return call

        def converted(leaf: Any) -> Any:
            is_number = isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
            return leaf.to(_type_of(leaf, self.dtype)) if is_number else leaf

        return ModelCall(*pytree.tree_map(converted, (call.args, call.kwargs)))

    def _placed(self, compact: nn.Module) -> dict[str, Tensor]:
        placed = {}
        for path, module in own_modules(compact):
            for leaf in [*module._parameters, *module._buffers]:
                name = f"{path}.{leaf}" if path else leaf
                known = self._gated.flow.aliases.get(name, name)
                if known in self._dense:
                    if known not in self._cut:
                        self._cut[known] = self._plan.compact_tensor(known, self._dense[known])
                    placed[name] = self._cut[known]
            if isinstance(module, Dropped) and module.source:
                placed[f"{path}.{CONSTANT}"] = self._constants[module.source].flatten()
        return placed

    @cached_property
    def _constants(self) -> dict[str, Tensor]:
        """What is left of the branches that closed, by the node that computes it."""
        return branch_constants(self._gated.flow, self._dense, self._plan, self._kept)

    @cached_property
    def _cut_again(self) -> nn.Module:
        return cut_in_graph(self._gated.flow, self._dense, self._plan, self._kept)
