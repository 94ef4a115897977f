"""Layers fitted one after another, while the network that is cut and the dense one run side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from l0prune.gated.model import GatedModel
from l0prune.kept import Kept
from l0prune.ops.node import argument_of, op_name
from l0prune.surgery.after_layer import channel_statistics, has_statistics, norm_after, sum_after
from l0prune.surgery.graph_model import GraphModel
from l0prune.surgery.layer_rows import Layer, layer_of
from l0prune.surgery.least_squares import Affine, Moments, fitted
from l0prune.surgery.lockstep import Walk

__all__ = ["Compensation", "Fitting"]

HELD_OUT = 0.25
"""Share of the inputs that says which fit is one: the last batches; of few batches, the last inputs of each."""
ROWS_PER_COLUMN, LEAST_ROWS = 16, 4096
"""Positions of a layer's output that are fitted, drawn at random where there are more."""
MOST_COLUMNS = 8192
"""Weights of one output, beyond which a layer is left as it is: the memory for its sums grows with their square."""
_MASK = "attention_mask"
"""What models of text call the input (batch, tokens) that says which positions are no padding."""
_FLAT = 1e-2
"""Share of the mean gain of a batch norm, below which a channel is too flat to make up for anything."""
_CHUNK = 1 << 24
"""Numbers of a layer's rows that are held at once."""


@dataclass(frozen=True)
class Compensation:
    """What closed-form recovery did.

    Attributes:
        n_fitted: Layers that changed.
        n_left: Layers that stayed, because nothing predicted the held-out inputs better.
        skipped: Reason -> layers that were not tried.
        missed: Name of a weight -> share of the dense layer's outputs, in squares about their mean, that the cut layer missed
            before, and misses now.
    """

    n_fitted: int = 0
    n_left: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    missed: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line for people."""
        parts = [f"{self.n_fitted} layers fitted to those of the dense network"]
        if self.n_left:
            parts.append(f"{self.n_left} left as they were, since no fit held on the inputs held out")
        parts += [f"{count} not tried: {reason}" for reason, count in self.skipped.items()]
        return "; ".join(parts)


class Fitting:
    """The two networks on their way, and what has become of the layers behind them.

    Attributes:
        changed: Name of a tensor of the cut network -> the tensor, changed in place.
    """

    def __init__(
        self,
        gated: GatedModel,
        kept: Kept,
        dense: GraphModel,
        compact: GraphModel,
        batches: list[list[Any]],
        seed: int,
    ) -> None:
        self.changed: dict[str, Tensor] = {}
        self._flow, self._kept = gated.flow, kept
        self._dense, self._compact = dense, compact
        self._teacher, self._student = Walk(dense, batches), Walk(compact, batches)
        self._generator = torch.Generator().manual_seed(seed)
        self._consuming = {consumer.parameter for consumer in gated.flow.consumers}
        self._uses = Counter(
            self._known(node) for node in compact.graph.nodes if node.op == "get_attr" for _ in node.users
        )
        self._n_fitted = self._n_left = 0
        self._skipped: Counter[str] = Counter()
        self._missed: dict[str, tuple[float, float]] = {}
        names = [node.name for node in compact.graph.nodes if node.op == "placeholder"]
        place = names.index(_MASK) if _MASK in names else None
        self._masks = [None if place is None else batch[place] for batch in batches]

    def run(self) -> Compensation:
        """Fit every layer as it is reached."""
        while (node := self._student.upcoming) is not None:
            layer = layer_of(node)
            if layer is not None and self._known(layer.weight) in self._consuming:
                self._consuming.discard(self._known(layer.weight))
                self._fit(layer)
            elif node.op == "call_function" and op_name(node.target) == "batch_norm":
                self._move_statistics(node)
            self._student.step()
        return Compensation(self._n_fitted, self._n_left, dict(self._skipped), self._missed)

    def _known(self, node: Node) -> str:
        name = str(node.target)
        return self._flow.aliases.get(name, name)

    def _tensor(self, node: Node) -> Tensor:
        path, _, leaf = str(node.target).rpartition(".")
        tensor: Tensor = getattr(self._compact.get_submodule(path), leaf)
        return tensor

    def _of_dense(self, node: Node) -> Tensor:
        """The kept part of the dense network's own tensor."""
        path, _, leaf = str(node.target).rpartition(".")
        tensor: Tensor = getattr(self._dense.get_submodule(path), leaf)
        for dim, gates in enumerate(self._flow.tensors.get(self._known(node), ())):
            if gates is not None:
                kept = torch.from_numpy(np.flatnonzero(self._kept[gates]))
                tensor = tensor.index_select(dim, kept.to(tensor.device))
        return tensor

    def _fit(self, layer: Layer) -> None:
        name, weight = self._known(layer.weight), self._tensor(layer.weight)
        bias = None if layer.bias is None else self._tensor(layer.bias)
        shared = layer.bias is not None and self._uses[self._known(layer.bias)] > 1
        if self._uses[name] > 1 or shared:
            self._skipped["shared by several layers"] += 1
            return
        if layer.n_columns(weight) > MOST_COLUMNS:
            self._skipped[f"more than {MOST_COLUMNS} weights an output"] += 1
            return
        train, held_out = self._moments(layer, weight)
        if not train or not held_out or not train[0].n or not held_out[0].n:
            self._skipped["too few inputs"] += 1
            return
        is_normed = bias is None and norm_after(layer.node) is not None
        if is_normed:  # the norm takes the mean away
            train, held_out = [part.centred() for part in train], [part.centred() for part in held_out]
        matrices = [matrix.double() for matrix in layer.matrices(weight)]
        shifts: Sequence[Tensor | None] = [None] * len(matrices) if bias is None else bias.double().chunk(len(matrices))
        starts = [Affine(matrix, shift) for matrix, shift in zip(matrices, shifts, strict=True)]
        found = [fitted(a, b, start) for a, b, start in zip(train, held_out, starts, strict=True)]
        if all(part is None for part in found):
            self._n_left += 1
            return
        now = [start if part is None else part for part, start in zip(found, starts, strict=True)]
        rows = [a + b for a, b in zip(train, held_out, strict=True)]
        spread = max(sum(float(part.centred().yy) for part in rows), torch.finfo(torch.float64).tiny)
        before, after = (
            sum(part.error(used) for part, used in zip(rows, maps, strict=True)) / spread for maps in (starts, now)
        )
        self._missed[name] = before, after
        self._n_fitted += 1
        weight.copy_(layer.weight_of([part.weight for part in now], weight))
        self.changed[str(layer.weight.target)] = weight
        if layer.bias is not None and bias is not None:
            bias.copy_(torch.cat([part.shift for part in now if part.shift is not None]))
            self.changed[str(layer.bias.target)] = bias

    def _moments(self, layer: Layer, weight: Tensor) -> tuple[list[Moments], list[Moments]]:
        """Sums over the rows to fit and over the rows held out, of each group."""
        given = self._student.values(layer.activation.name)
        wanted = [self._kept_part(layer.node.name, y) for y in self._teacher.run_to(layer.node.name)]
        owed = self._owed(layer)
        n_rows = max(LEAST_ROWS, ROWS_PER_COLUMN * layer.n_columns(weight))
        share = math.ceil(n_rows / len(given))
        sums: list[list[Moments]] = [[], []]
        for number, (x, y) in enumerate(zip(given, wanted, strict=True)):
            target = y if owed is None else y + owed[number]
            places = self._positions(layer.n_positions(y), share, self._mask_of(number, x))
            split = int((places < self._end_of_fit(number, layer.n_positions(y))).sum())
            for part, chosen in zip(sums, (places[:split], places[split:]), strict=True):
                for some in chosen.to(x.device).split(max(1, _CHUNK // layer.n_columns(weight))):
                    rows = layer.rows_at(x, target, weight, some)
                    made = [Moments.of(*pair) for pair in zip(rows, layer.outputs_at(target, some), strict=True)]
                    part[:] = [a + b for a, b in zip(part, made, strict=True)] if part else made
        return sums[0], sums[1]

    def _end_of_fit(self, number: int, total: int) -> int:
        """The first position of a batch that is held out."""
        n_batches = len(self._masks)
        if n_batches * HELD_OUT < 1:
            return math.floor((1 - HELD_OUT) * total)
        return total if number < math.floor((1 - HELD_OUT) * n_batches) else 0

    def _positions(self, total: int, share: int, mask: Tensor | None) -> Tensor:
        """Some positions of a batch in ascending order, drawn at random from those that are no padding."""
        places = torch.arange(total) if mask is None else mask.flatten().nonzero().flatten().cpu()
        if len(places) <= share:
            return places
        return places[torch.randperm(len(places), generator=self._generator)[:share].sort().values]

    def _mask_of(self, number: int, x: Tensor) -> Tensor | None:
        """Which positions of an activation (batch, tokens, features) hold tokens; None where nobody says."""
        mask = self._masks[number]
        return mask if isinstance(mask, Tensor) and mask.dim() == 2 and x.shape[:-1] == mask.shape else None

    def _kept_part(self, name: str, value: Tensor) -> Tensor:
        """Of what a node of the dense graph gives, the part that the cut one gives."""
        for dim, gates in enumerate(self._flow.nodes[name]):
            if isinstance(gates, np.ndarray):
                kept = torch.from_numpy(np.flatnonzero(self._kept[gates]))
                value = value.index_select(dim, kept.to(value.device))
        return value

    def _owed(self, layer: Layer) -> list[Tensor] | None:
        """What the other operand of the sum that a layer goes into lacks, in each batch, as outputs of the layer.

        The layer makes up for the other branch as well, so that errors do not add up from block to block.
        """
        found = sum_after(layer.node)
        if found is None:
            return None
        total, other, norm = found
        if other.meta["val"].shape != layer.node.meta["val"].shape:
            return None
        theirs = self._teacher.looked_ahead(other.name, total.name)
        ours = self._student.looked_ahead(other.name, total.name)
        if theirs is None or ours is None:
            return None
        owed = [self._kept_part(other.name, a) - b for a, b in zip(theirs, ours, strict=True)]
        if norm is None:
            return owed
        gain = (self._tensor(argument_of(norm, "running_var")) + argument_of(norm, "eps")).rsqrt()
        scale = argument_of(norm, "weight")
        if scale is not None:
            gain = gain * self._tensor(scale)
        inverse = torch.where(gain.abs() > _FLAT * gain.abs().mean(), 1 / gain, 0)
        shape = [1] * layer.node.meta["val"].dim()
        shape[layer.channel] = -1
        return [part * inverse.view(shape) for part in owed]

    def _move_statistics(self, norm: Node) -> None:
        """Give a batch norm the running statistics with which its outputs have the dense norm's mean and variance.

        Statistics of the calibration inputs alone would be noise where nothing has changed.
        """
        if not has_statistics(norm):
            return
        mean, variance = argument_of(norm, "running_mean"), argument_of(norm, "running_var")
        if self._uses[self._known(mean)] > 1:
            return
        source = argument_of(norm, "input").name
        theirs = channel_statistics([self._kept_part(source, value) for value in self._teacher.run_to(source)])
        ours = channel_statistics(self._student.values(source))
        if torch.equal(theirs[0], ours[0]) and torch.equal(theirs[1], ours[1]):
            return
        means, variances, eps = self._tensor(mean), self._tensor(variance), argument_of(norm, "eps")
        dense_means, dense_variances = self._of_dense(mean).double(), self._of_dense(variance).double()
        ratio = torch.where((theirs[1] > 0) & (ours[1] > 0), ours[1] / theirs[1], 1)
        means.copy_(ours[0] + (dense_means - theirs[0]) * ratio.sqrt())
        variances.copy_(((dense_variances + eps) * ratio - eps).clamp_min(0))
        self.changed |= {str(mean.target): means, str(variance.target): variances}
