"""What each family of ATen ops does to unit ids: one file a family; importing this package registers them all."""

from l0prune.flow.rules import (
    attention,
    convolution,
    indexing,
    joining,
    layout,
    linear,
    norms,
    pointwise,
    recurrent,
    reductions,
    spatial,
    views,
)

__all__ = [
    "attention",
    "convolution",
    "indexing",
    "joining",
    "layout",
    "linear",
    "norms",
    "pointwise",
    "recurrent",
    "reductions",
    "spatial",
    "views",
]
