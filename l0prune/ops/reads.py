"""Numbers that Python code reads from a tensor, such as that of a condition."""

from torch.fx import Node

from l0prune.ops.op import Op, op_name, register
from l0prune.ops.tracker import Labels

__all__: list[str] = []


@register("item", "_local_scalar_dense", "is_nonzero", "equal")
def read(op: Op) -> Labels:
    """What the number is used for is not in the graph."""
    for tensor in op.tensor_args():
        op.tracker.pin_all(op.labels(tensor), "a condition, or other code, reads it")
    return []


@register("sym_storage_offset", "sym_stride")
def place(op: Op) -> Labels:
    """Where a tensor lies in memory: what is only asserted of it holds after a cut as well."""
    if not _is_only_asserted(op.node):
        op.tracker.pin_all(op.labels(op.arg("self")), "its place in memory is used as a number")
    return []


def _is_only_asserted(number: Node) -> bool:
    """Whether a number goes into comparisons with zero alone, and these into assertions."""
    comparisons = list(number.users)
    return all(
        op_name(node.target) == "ge"
        and node.args[1] == 0
        and all(op_name(user.target) in _ASSERTIONS for user in node.users)
        for node in comparisons
    )


_ASSERTIONS = {"_assert_scalar", "_assert_async"}
