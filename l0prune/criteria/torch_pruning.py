"""What the criteria of torch-pruning have in common: its own importance classes, shown the units that l0prune found."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch_pruning as tp
from torch import Tensor, nn

from l0prune.criteria.criterion import Criterion, Evidence
from l0prune.errors import ConfigError, first_line
from l0prune.gated.model import GatedModel

__all__ = ["TorchPruningCriterion"]

_REMEDY = "choose another criterion, such as magnitude"


class TorchPruningCriterion(Criterion):
    """An importance of torch-pruning, which scores the units of one width and then brings widths to one scale.

    Its classes read a group: layers, whether outputs, inputs or the scale of a norm are cut, and at which indices. That is what
    a flow knows, so they are shown the very units that are gated and cut here.

    Source: Fang et al. (2023), DepGraph, arXiv:2301.12900; `torch_pruning.pruner.importance`.
    """

    squares_gradients: ClassVar[bool] = False
    """Whether the gradients it reads are means of squares over batches, instead of sums."""

    @abstractmethod
    def importance(self) -> Any:
        """The object of torch-pruning that is asked."""

    def check(self, gated: GatedModel) -> None:
        """See that torch-pruning knows a layer of every unit.

        Raises:
            ConfigError: it does not; names the first.
        """
        known = torch.zeros(gated.n_gates + 1, dtype=torch.bool)
        for place in _places(gated):
            known[place.gates] = True
        missing = (~known[:-1]).nonzero().flatten().tolist()
        if missing:
            raise ConfigError(
                f"criterion {self.name!r} does not fit this network: {len(missing)} of {gated.n_gates} units are in none of the"
                " linear layers, convolutions and norms that torch-pruning scores, the first in"
                f" {gated.flow.gate_names[missing[0]]!r}; {_REMEDY}"
            )

    def scores(self, gated: GatedModel, evidence: Evidence) -> Tensor:
        """Shape `(n_gates,)`, compared all with all.

        Raises:
            ConfigError: torch-pruning does not score a unit; names it.
        """
        self.check(gated)
        places, width_of = list(_places(gated)), torch.from_numpy(gated.flow.gate_group)
        scores = torch.zeros(gated.n_gates, dtype=torch.float64)
        with _gradients(gated, evidence, squared=self.squares_gradients) if self.needs_examples else _nothing():
            for width in width_of.unique().tolist():
                members = (width_of == width).nonzero().flatten()
                scores[members] = self._of_width(gated, members, places)
        return scores

    def _of_width(self, gated: GatedModel, members: Tensor, places: list[_Place]) -> Tensor:
        position = torch.full((gated.n_gates + 1,), -1)  # the last is for -1, not gated
        position[members] = torch.arange(len(members))
        group = [item for place in places if (item := place.within(position)) is not None]
        importance = self.importance()
        normalizer, importance.normalizer = importance.normalizer, None
        try:
            found = importance(group)
            scores = importance._normalize(found[: len(members)], normalizer).detach().cpu().double()
        except Exception as error:
            raise ConfigError(
                f"criterion {self.name!r} does not fit this network: torch-pruning cannot score the units of"
                f" {gated.flow.gate_names[int(members[0])]!r} ({first_line(error, named=True)}); {_REMEDY}"
            ) from error
        return torch.as_tensor(scores)


@dataclass(frozen=True, eq=False)
class _Place:
    """A dimension of a layer in torch-pruning's terms.

    Args:
        module: The layer.
        function: Of torch-pruning: what would cut it.
        gates: Gate of every index of the dimension, -1 where it has none, shape `(size,)`.
    """

    module: nn.Module
    function: Any
    gates: Tensor

    def within(self, position: Tensor) -> _Item | None:
        """What a width has here.

        Args:
            position: Place of every gate in the width, -1 for those of others, and -1 at the end, shape `(n_gates + 1,)`.
        """
        place = position[self.gates]
        idxs = (place >= 0).nonzero().flatten()
        return _Item(self.module, self.function, idxs.tolist(), place[idxs].tolist()) if len(idxs) else None


class _Item(tuple[Any, list[int]]):
    """An entry of a group: (dependency, indices), as torch-pruning's classes unpack it, and the places in the width.

    Attributes:
        root_idxs: Of each index.
    """

    root_idxs: list[int]

    def __new__(cls, module: nn.Module, function: Any, idxs: list[int], root_idxs: list[int]) -> _Item:
        """Both names that torch-pruning has for a layer and for what cuts it."""
        dependency = SimpleNamespace(
            layer=module, target=SimpleNamespace(module=module), pruning_fn=function, handler=function
        )
        item = super().__new__(cls, (dependency, idxs))
        item.root_idxs = root_idxs
        return item


def _places(gated: GatedModel) -> Iterator[_Place]:
    """Where units are in layers that torch-pruning scores; outputs before inputs, in the order of the modules."""
    flow = gated.flow
    for path, module in gated.model.named_modules():
        name = f"{path}.weight" if path else "weight"
        dimensions = flow.tensors.get(flow.aliases.get(name, name), ())
        for dim, function in _functions(module):
            gates = dimensions[dim] if dim < len(dimensions) else None
            if gates is not None:
                yield _Place(module, function, torch.from_numpy(gates))


def _functions(module: nn.Module) -> tuple[tuple[int, Any], ...]:
    """(dimension of the weight, what torch-pruning cuts it by) of a layer; empty where it scores none."""
    if isinstance(module, nn.Linear):
        return (0, tp.prune_linear_out_channels), (1, tp.prune_linear_in_channels)
    if isinstance(module, nn.modules.conv._ConvNd):
        outputs = (1 if module.transposed else 0, tp.prune_conv_out_channels)
        inputs = (0 if module.transposed else 1, tp.prune_conv_in_channels)
        return (outputs, inputs) if module.groups == 1 else (outputs,) * (module.groups < module.in_channels)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return ((0, tp.prune_batchnorm_out_channels),)
    return ((0, tp.prune_layernorm_out_channels),) if isinstance(module, nn.LayerNorm) else ()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _gradients(gated: GatedModel, evidence: Evidence, *, squared: bool) -> Iterator[None]:
    """Let the weights have their gradients over the examples, also those that are not trained; then what they had."""
    parameters = [parameter for parameter in gated.model.parameters() if parameter.is_floating_point()]
    before = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        for inputs, targets in evidence.examples:
            gated.model.zero_grad(set_to_none=True)
            evidence.objective(inputs, targets).backward()
            for total, parameter in zip(totals, parameters, strict=True):
                if parameter.grad is not None:
                    total.add_(parameter.grad.square() if squared else parameter.grad)
        for total, parameter in zip(totals, parameters, strict=True):
            parameter.grad = total
        yield
    finally:
        for parameter, (requires_grad, gradient) in zip(parameters, before, strict=True):
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
