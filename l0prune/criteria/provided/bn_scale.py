"""How large the norm in front of a unit's consumers makes it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from l0prune.criteria.criterion import Criterion, Evidence
from l0prune.criteria.weights import per_unit, weights_of_units
from l0prune.errors import ConfigError
from l0prune.gated.model import GatedModel

__all__ = ["BNScale"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class BNScale(Criterion):
    """The mean |gamma| of the norms that scale a unit, compared all with all.

    Units that no norm scales stay as long as the budget can be met by others.

    Source: Liu et al. (2017), Network Slimming, arXiv:1708.06519, section 3.
    """

    name: ClassVar[str] = "bn-scale"

    def check(self, gated: GatedModel) -> None:
        """See that some unit is scaled by a norm.

        Raises:
            ConfigError: none is.
        """
        _, counts = _scales(gated)
        if gated.n_gates and not counts.any():
            raise ConfigError(
                f"criterion {self.name!r} ranks units by the scale of their norm, and none of the {gated.n_gates} units has one:"
                " choose another, such as magnitude"
            )

    def scores(self, gated: GatedModel, evidence: Evidence) -> Tensor:
        """Shape `(n_gates,)`."""
        sums, counts = _scales(gated)
        means = sums / counts.clamp_min(1)
        return torch.where(counts > 0, means, 2 * means.max() + 1)


def _scales(gated: GatedModel) -> tuple[Tensor, Tensor]:
    """Sum of |gamma| and number of gammas of every unit, each of shape `(n_gates,)`."""
    names = _norm_weights(gated)
    sums = torch.zeros(gated.n_gates, dtype=torch.float64, device=gated.gates.log_alpha.device)
    counts = torch.zeros_like(sums)
    for name, weight, _, gates in weights_of_units(gated):
        if name in names and weight.dim() == 1:
            sums += per_unit(weight.abs(), gates, gated.n_gates)
            counts += per_unit(torch.ones_like(weight), gates, gated.n_gates)
    return sums, counts


def _norm_weights(gated: GatedModel) -> set[str]:
    """Names of the scales of norms: of torch's modules, of others that keep running statistics, and of those seen in calls."""
    names = set(gated.flow.captured.norms.weights)
    for path, module in gated.model.named_modules():
        if isinstance(module, _NORMS) or "running_mean" in module._buffers:
            names.add(f"{path}.weight" if path else "weight")
    return {gated.flow.aliases.get(name, name) for name in names}
