"""What each family of ATen ops does to unit ids: one file a family; importing this package registers them all."""

from l0prune.flow.rules import (
    attention,
    convolution,
    einsum,
    indexing,
    joining,
    layout,
    linear,
    norms,
    patches,
    pointwise,
    recurrent,
    reductions,
    reparametrised,
    spatial,
    views,
    writes,
)

__all__ = [
    "attention",
    "convolution",
    "einsum",
    "indexing",
    "joining",
    "layout",
    "linear",
    "norms",
    "patches",
    "pointwise",
    "recurrent",
    "reductions",
    "reparametrised",
    "spatial",
    "views",
    "writes",
]
