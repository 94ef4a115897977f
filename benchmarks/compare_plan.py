"""Which rows the comparison has."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compare_case import Case

__all__ = ["BEST", "CHECK", "EVERY", "GATES", "STEPS_100", "STUDIES", "Block", "best_baselines", "rows"]

GATES, BEST, EVERY = "gates", "best", "all"
CHECK = "check"
STEPS_100 = 0.2565  # epochs of CIFAR-10 in batches of 128


@dataclass(frozen=True)
class Block:
    """All combinations of some values on one network.

    Attributes:
        network: A name of `compare_case.NETWORKS`.
        methods: "gates", criteria, "all" for each one there is, "best" for the best criterion at each budget.
        macs: Budgets, shares of the dense MACs.
        epochs: Lengths of the run.
        seeds: Of the run.
    """

    network: str
    methods: tuple[str, ...]
    macs: tuple[float, ...] = (0.5,)
    epochs: tuple[float, ...] = (6.0,)
    seeds: tuple[int, ...] = (0,)


FEW = (GATES, "magnitude", "taylor")
LENGTHS = (0.0, STEPS_100, 1.0, 2.0, 6.0, 12.0)
STUDIES: dict[str, tuple[Block, ...]] = {
    "criteria": (Block("resnet20", (EVERY,), (0.5, 0.35, 0.2)),),
    "seeds": (Block("resnet20", (GATES, BEST), (0.5, 0.35, 0.2), seeds=(0, 1, 2)),),
    "deeper": (Block("resnet56", (GATES, "magnitude"), (0.5, 0.3), (8.0,)),),
    "networks": (
        Block("lenet5", FEW, epochs=(4.0,)),
        Block("mobilenetv2_small", FEW, epochs=(6.0,)),
        Block("vit_small", FEW, epochs=(2.0,)),
        Block("minilm_sst2", FEW, epochs=(2.0,)),
    ),
    "lengths": tuple(Block(name, FEW, epochs=LENGTHS) for name in ("resnet20", "resnet20_1x1", "mobilenetv2_small")),
    CHECK: (Block("digits", FEW, epochs=(4.0,)),),
}
"""The rows by what they are to show; "check" is the harness on the bundled network, in a minute or two."""


def rows(
    studies: Iterable[str],
    *,
    networks: Sequence[str] = (),
    methods: Sequence[str] = (),
    macs: Sequence[float] = (),
    epochs: Sequence[float] = (),
    seeds: Sequence[int] = (),
    every: Sequence[str] = (),
    best: Mapping[tuple[str, float, float], str] | None = None,
) -> list[Case]:
    """The rows of some studies, without learning rates; each once, in order.

    Args:
        studies: Names of `STUDIES`.
        networks: Blocks of these alone; all if empty.
        methods: In place of each block's, as are `macs`, `epochs` and `seeds`, where they are not empty.
        macs: See `methods`.
        epochs: See `methods`.
        seeds: See `methods`.
        every: What "all" stands for.
        best: What "best" stands for, by network, budget and epochs; rows where that is not known are left out.
    """
    given = {"methods": tuple(methods), "macs": tuple(macs), "epochs": tuple(epochs), "seeds": tuple(seeds)}
    changes: dict[str, Any] = {name: values for name, values in given.items() if values}
    blocks = [replace(block, **changes) for study in studies for block in STUDIES[study]]
    found = [
        case for block in blocks if not networks or block.network in networks for case in _cases(block, every, best)
    ]
    return list(dict.fromkeys(found))


def _cases(block: Block, every: Sequence[str], best: Mapping[tuple[str, float, float], str] | None) -> Iterable[Case]:
    for macs, epochs, name, seed in itertools.product(block.macs, block.epochs, block.methods, block.seeds):
        known = (best or {}).get((block.network, macs, epochs))
        meant = {EVERY: tuple(every), BEST: (known,) if known else ()}.get(name, (name,))
        for method in meant:
            if epochs or method != GATES:  # which have to be trained
                yield Case(block.network, method, macs, epochs, seed)


def best_baselines(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, float, float], str]:
    """The criterion with the best score of the first seed, by network, budget and epochs."""
    best: dict[tuple[str, float, float], tuple[float, str]] = {}
    for record in records:
        case = record["case"]
        if "error" in record or case["held_out"] or case["method"] == GATES or case["seed"] != 0:
            continue
        place = (case["network"], case["macs"], case["epochs"])
        score = record["final"] if record["higher_is_better"] else -record["final"]
        best[place] = max(best.get(place, (score, case["method"])), (score, case["method"]))
    return {place: method for place, (_, method) in best.items()}
