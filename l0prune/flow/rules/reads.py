"""Numbers that Python code reads from a tensor, such as that of a condition."""

from l0prune.flow.op import Op, register
from l0prune.flow.tracker import Labels

__all__: list[str] = []


@register("item", "_local_scalar_dense", "is_nonzero", "equal")
def read(op: Op) -> Labels:
    """What the number is used for is not in the graph."""
    for tensor in op.tensor_args():
        op.tracker.pin_all(op.labels(tensor), "a condition, or other code, reads it")
    return []
