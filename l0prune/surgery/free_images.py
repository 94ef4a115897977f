"""Do the sizes of images matter to a graph? It was captured with fixed ones, and most networks compute the right thing at any."""

from __future__ import annotations

import math

from torch import nn

from l0prune.input_sizes import check_inputs_, input_sizes_of
from l0prune.look.free_sizes import image_dimensions, other_images
from l0prune.model_call import ModelCall
from l0prune.surgery.equivalence import compare

__all__ = ["free_images_"]

_ENOUGH = 2
"""Other sizes at which a graph is right before it is said to take any."""


def free_images_(graph: nn.Module, reference: nn.Module, call: ModelCall, *, tolerance: float) -> None:
    """Let a graph take images of any size, if it is right at two others at least, and at all that are tried.

    Args:
        graph: As it was cut; the sizes that it takes are changed.
        reference: What it has to compute; it may refuse sizes.
        call: Inputs that the graph was captured with.
        tolerance: Largest relative difference.
    """
    sizes = input_sizes_of(graph)
    dims = {dim for found in image_dimensions(call).values() for dim in found}
    others = [other for other in other_images(call) if other.runs_in(reference)]
    if sizes is None or len(others) < _ENOUGH:
        return
    check_inputs_(graph, sizes.without(dims))
    for other in others:
        try:
            found = compare(reference, graph, other.args, other.kwargs).max_rel
        except Exception:  # noqa: BLE001 - whatever fails inside a graph
            found = math.inf
        if not found <= tolerance:
            check_inputs_(graph, sizes)
            return
