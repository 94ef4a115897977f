"""What the layers of an ONNX graph are called: after the modules whose weights they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import onnx

from l0prune.profiling.outline import CONTRACTIONS
from l0prune.profiling.parts import START, owners

__all__ = ["BEFORE", "layer_names"]

BEFORE = "before the first layer"


def layer_names(nodes: Sequence[onnx.NodeProto], weights: Collection[str]) -> dict[str, str]:
    """Output of a contraction -> name of its layer, one of its own; `START` is what comes before all of them.

    That is the module whose weight it reads, or whose bias is added to it. A product of activations is named after what the
    modules of both have in common, with its number among such products; what has no name of a module keeps its own.

    Args:
        nodes: Of the graph, in order.
        weights: Names of its initializers.
    """
    owner, made_by = owners(nodes), {name: node for node in nodes for name in node.output}
    biases: dict[str, str] = {}
    for node in nodes:
        if node.op_type == "Add":
            named = [module for name in node.input if (module := _module(name, weights))]
            for name in node.input:
                if named and owner.get(name) == name:
                    biases.setdefault(name, named[0])
    found = {START: ""}
    for node in nodes:
        if node.op_type in CONTRACTIONS:
            part = node.output[0]
            read = [made_by[name].input[0] if _is_dequantised(made_by.get(name)) else name for name in node.input[1:]]
            known = [module for name in read if (module := _module(name, weights))]
            has_weight = any(name in weights for name in read)
            if known or part in biases:
                found[part] = known[0] if known else biases[part]
            elif not has_weight:
                sources = [found[owner[name]].partition(",")[0] for name in node.input if name in owner]
                found[part] = _common(sources) and f"{_common(sources)}, product"
            found.setdefault(part, part)
            found[part] = found[part] or part
    found[START] = BEFORE
    return _told_apart(found)


def _module(name: str, weights: Collection[str]) -> str:
    """The module that a tensor belongs to; empty where the name does not say."""
    return name.rpartition(".")[0] if name in weights else ""


def _is_dequantised(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


def _common(names: Sequence[str]) -> str:
    """The parts that dotted names begin with in common."""
    if not names:
        return ""
    split = [name.split(".") for name in names]
    length = 0
    while all(len(parts) > length and parts[length] == split[0][length] for parts in split):
        length += 1
    return ".".join(split[0][:length])


def _told_apart(names: dict[str, str]) -> dict[str, str]:
    """The same with numbers after names that occur more than once, as those of a module that is called again."""
    total, seen = Counter(names.values()), Counter[str]()
    told = {}
    for part, name in names.items():
        seen[name] += 1
        told[part] = f"{name} {seen[name]}" if total[name] > 1 else name
    return told
