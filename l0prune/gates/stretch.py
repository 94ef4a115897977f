"""What stretched and clipped gates share: the check of the stretch, and quadrature over [0, 1]."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from l0prune.errors import ConfigError

__all__ = ["require_stretch", "unit_legendre"]

_QUADRATURE_POINTS = 64


def require_stretch(stretch: tuple[float, float]) -> None:
    """Refuse a stretch that does not hold [0, 1] in its interior.

    Raises:
        ConfigError: says what was given.
    """
    try:
        gamma, zeta = (float(end) for end in stretch)
    except (TypeError, ValueError):
        gamma = zeta = math.nan
    if not (-math.inf < gamma < 0 and 1 < zeta < math.inf):
        raise ConfigError(
            f"stretch is {stretch!r}; expected (gamma, zeta) with gamma < 0 and zeta > 1, (-0.1, 1.1) by default"
        )


def unit_legendre(like: Tensor) -> tuple[Tensor, Tensor]:
    """64 Gauss-Legendre nodes on [0, 1] and their weights, with the dtype and device of `like`."""
    nodes, weights = _points()
    return torch.as_tensor(nodes).to(like), torch.as_tensor(weights).to(like)


@lru_cache(maxsize=1)
def _points() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(_QUADRATURE_POINTS)
    return (nodes + 1) / 2, weights / 2
