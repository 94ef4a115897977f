"""What is pinned in a recorded program beside what its ops pin: there is no graph to cut, and it may not show every path."""

from __future__ import annotations

from collections.abc import Iterable

from l0prune.flow.follow import Followed
from l0prune.look.capture import Captured, lies_in
from l0prune.look.recording import number_of_paths, path_of
from l0prune.look.watching import fixed_dimensions
from l0prune.ops.operation import operation_of

__all__ = ["restrict_to_recorded"]

UNREACHED = "as wide as a layer that the example inputs do not reach"


def restrict_to_recorded(followed: Followed, captured: Captured, ignore: Iterable[str] = ()) -> None:
    """Pin what cannot be cut in place, what may meet layers on paths unseen, and what several paths normalise in another order.

    The multiplications of the example's path alone are counted.

    Args:
        followed: The labels; pins are added to its tracker.
        captured: The recorded program they belong to.
        ignore: Module or parameter names; layers of these names are known not to be reached.
    """
    tracker, program = followed.tracker, captured.program
    tracker.op = ""
    names = program.graph_signature.inputs_to_parameters
    ignored = tuple(ignore)
    for constant in program.constants:
        tracker.pin_all(followed.tensors[constant], "a constant of the code, which cannot be cut in place")
    unreached: set[int] = set()
    for node in program.graph.nodes:
        if node.op == "call_function" and operation_of(node.target).makers:
            for dim in fixed_dimensions(node):
                tracker.pin(followed.nodes[node][dim], "made at full size by the code")  # type: ignore[arg-type]
        name = names.get(node.name) if node.op == "placeholder" else None
        if name is not None and not node.users and not any(lies_in(name, n) for n in ignored):
            unreached |= set(node.meta["val"].shape[:2]) - {0, 1}
    for labels in followed.tensors.values():
        for ids in labels:
            if ids is not None and len(ids) in unreached:
                tracker.pin(ids, UNREACHED)
    if number_of_paths(program) > 1:
        for norm in tracker.norms:
            if norm.weight is None:
                tracker.pin(norm.ids, "normalised without a weight, in another order on each path")
    of_example = {node.name for node in program.graph.nodes if path_of(node) == 0}
    tracker.multiplications[:] = [m for m in tracker.multiplications if m.node in of_example]
