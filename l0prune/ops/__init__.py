"""All that l0prune knows of operations: a family a file, an entry for every operation. Importing this package registers them."""

from l0prune.ops import (
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
    weights,
)

__all__ = ["convolution", "einsum", "indexing", "joining", "layout", "linear", "norms", "numbers", "pointwise",
           "recurrent", "reductions", "slicing", "spatial", "views", "weights"]  # fmt: skip
