"""All that l0prune knows of operations: one file per family, one entry per operation. Importing this package registers them."""

from l0prune.ops import (
    contractions,
    convolution,
    einsum,
    indexing,
    joining,
    layout,
    linear,
    norms,
    numbers,
    pointwise,
    recurrent,
    reductions,
    slicing,
    spatial,
    views,
)

__all__ = ["contractions", "convolution", "einsum", "indexing", "joining", "layout", "linear", "norms", "numbers", "pointwise",
           "recurrent", "reductions", "slicing", "spatial", "views"]  # fmt: skip
