"""Gradient clipping: by a fixed norm, and by what has been usual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GradientClip"]

_MEMORY = 50
"""Steps whose norms are remembered."""


class GradientClip:
    """Shortens gradients whose L2 norm is above `largest`, or above `spike` times the median of the last 50 norms.

    Without norms in the network, one long step at a large learning rate starts a divergence that later steps do not repair;
    such steps are rare, and several times longer than the others, whatever the scale of the loss.

    Args:
        largest: Norm that no gradient exceeds, >= 0; 0 sets no bound.
        spike: How many times the median a norm may be, >= 1; 0 sets no bound.

    Source: clipping by the history of norms, Seetharaman et al. (2020), AutoClip, arXiv:2007.14469, section 2, with a window.
    """

    def __init__(self, largest: float, spike: float) -> None:
        self._largest, self._spike = largest, spike
        self._norms = torch.full((_MEMORY,), math.nan)
        self._steps = 0

    @torch.no_grad()
    def __call__(self, parameters: Sequence[Tensor]) -> None:
        """Shorten the gradients of one step, which are not scaled; nothing waits for the device."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients or not (self._largest or self._spike):
            return
        norm = nn.utils.get_total_norm(gradients)
        limit = torch.full_like(norm, self._largest or math.inf)
        if self._spike:
            self._norms = self._norms.to(norm)
            bound = self._spike * self._norms.nanmedian()
            limit = torch.where(bound > 0, torch.minimum(limit, bound), limit)  # not so before anything is known
            self._norms[self._steps % _MEMORY] = torch.where(norm.isfinite(), norm, math.nan)
            self._steps += 1
        shorter = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(shorter.to(gradient.device))

    def state_dict(self) -> dict[str, Any]:
        """Norms that are remembered, and how many steps there were."""
        return {"norms": self._norms.clone(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._norms, self._steps = state["norms"].clone(), state["steps"]
