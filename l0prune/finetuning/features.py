"""Feature distillation: every block of the small network is taught by the channels that it kept of the dense one's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.gated.model import GatedModel
from l0prune.kept import DimensionGates, Kept
from l0prune.model_call import ModelCall, evaluation_mode
from l0prune.surgery.graph_model import GraphModel
from l0prune.surgery.shrink import inputs_for

__all__ = ["FeatureReader", "FeatureSite", "block_names", "feature_loss", "feature_sites"]

_CLOSE = 1e-3
_CONTAINERS = (nn.Sequential, nn.ModuleList)

Features = Mapping[str, Tensor]
"""Output of a module by its dotted name."""


@dataclass(frozen=True, eq=False)
class FeatureSite:
    """A module that the dense and the compact network share.

    Attributes:
        module: Its dotted name.
        node: Name of the graph node that computes its output.
        kept: For each dimension of its output: indices of the dense output that the compact one kept, int64, or None for
            all of them.
    """

    module: str
    node: str
    kept: tuple[Tensor | None, ...]

    def select(self, dense: Tensor) -> Tensor:
        """The part of the dense output that the compact module computes."""
        for dim, indices in enumerate(self.kept):
            if indices is not None:
                dense = _index_select(dense, dim, indices.to(dense.device))
        return dense


def block_names(model: nn.Module) -> list[str]:
    """The blocks a network is made of: what its sequences and lists of modules hold, containers and single layers aside.

    Of blocks that hold sequences of blocks themselves (the stages of a Swin transformer) these inner ones.
    """

    def within(module: nn.Module, path: str) -> list[str]:
        names = []
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            held = isinstance(module, _CONTAINERS) and not isinstance(child, _CONTAINERS)
            is_block = held and next(child.children(), None) is not None
            names += within(child, inner) or ([inner] if is_block else [])
        return names

    return within(model, "")


@torch.no_grad()
def feature_sites(gated: GatedModel, compact: nn.Module) -> tuple[FeatureSite, ...]:
    """The blocks whose output in the compact network is that of the gated one at the kept channels.

    Each is found in the traced graph and then compared on the inputs that the model was traced with, so that a block that
    returns something else than its last operation, runs more than once, or is gone is left out.

    Args:
        gated: Its gates frozen.
        compact: Cut from it, not trained since, on the same device.

    Returns:
        One site for each such block, in the order of the modules.
    """
    kept = Kept((gated.gate_values() != 0).cpu().numpy())
    nodes = _last_nodes(gated.flow)
    sites = [
        FeatureSite(name, nodes[name], _indices(gated.flow.nodes[nodes[name]], kept))
        for name in block_names(gated.model)
        if name in nodes
    ]
    call = ModelCall(*inputs_for(gated, None))
    with evaluation_mode(gated):
        _, dense = FeatureReader(gated, sites, within=gated.model)(call)
    with evaluation_mode(compact):
        _, small = FeatureReader(compact, sites)(call)
    return tuple(site for site in sites if _agrees(site, dense.get(site.module), small.get(site.module)))


class FeatureReader:
    """Calls a model and reads the outputs of its blocks on the way.

    Args:
        model: What is called; its tensors are used, not copied. In graph form it keeps the mode that it has now.
        sites: The blocks.
        within: The module that the blocks are named in; None takes `model`.
    """

    def __init__(self, model: nn.Module, sites: Sequence[FeatureSite], *, within: nn.Module | None = None) -> None:
        self._model = model
        self._found: dict[str, Tensor] = {}
        self._modules: dict[str, nn.Module] = {}
        self._records = False
        if isinstance(model, GraphModel) and sites:
            self._model = model.reporting({site.node: site.module for site in sites}, self._found)
        else:
            modules = dict((model if within is None else within).named_modules())
            self._modules = {site.module: modules[site.module] for site in sites if site.module in modules}

    def __call__(self, call: Callable[[nn.Module], Any]) -> tuple[Any, dict[str, Tensor]]:
        """What `call` returns, which is given the model to call, and the outputs of its blocks by name.

        A block that returns no tensor, runs twice in a call, or is not there is missing; and so is one that a reentrant
        checkpoint runs, through whose output no gradient would flow.
        """
        with self.recording() as found:
            output = call(self._model)
        return output, dict(found)

    @contextmanager
    def recording(self) -> Iterator[Features]:
        """While this is open, one call of the model leaves the outputs of its blocks here."""
        self._found.clear()
        seen: set[str] = set()
        self._records = torch.is_grad_enabled()
        with ExitStack() as stack:
            for name, module in self._modules.items():
                stack.callback(module.register_forward_hook(partial(self._keep, name, seen)).remove)
            yield self._found

    def _keep(self, name: str, seen: set[str], _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._found.pop(name, None)
        if name not in seen and isinstance(output, Tensor) and torch.is_grad_enabled() == self._records:
            self._found[name] = output
        seen.add(name)


def feature_loss(sites: Sequence[FeatureSite], student: Features, teacher: Features) -> Tensor:
    """How far the blocks are from what the dense network has at their channels.

    Args:
        sites: The blocks compared, at least one.
        student: Outputs of the compact network; gradients flow.
        teacher: Outputs of the dense network for the same inputs.

    Returns:
        Mean over the sites of |student - teacher|^2 / |teacher|^2, a scalar >= 0 in float32 or wider.

    Source: hints, Romero et al. (2015), FitNets, arXiv:1412.6550, section 2.2, equation 3, without a regressor: a kept
        channel has its counterpart.
    """
    losses = [
        _RelativeError.apply(student[site.module], site.select(teacher[site.module].detach()))  # type: ignore[no-untyped-call]
        for site in sites
    ]
    return torch.stack(losses).mean()


class _RelativeError(torch.autograd.Function):
    """|student - wanted|^2 / |wanted|^2, summed in float32 or wider; the difference has the dtype of the features.

    One pass over memory each for the difference, the two norms and the gradient; composed of torch's own operations it is
    three times that.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, wanted: Tensor) -> Tensor:
        if student.dtype == torch.float16:  # its range is too small for what the gradient is scaled by
            student = student.float()
        error = student - wanted
        wide = torch.promote_types(error.dtype, torch.float32)
        scale = _square_norm(wanted, wide).clamp_min(torch.finfo(wide).tiny).reciprocal()
        ctx.save_for_backward(error, scale)
        return _square_norm(error, wide) * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        error, scale = ctx.saved_tensors
        return error * (2 * grad * scale), None


def _index_select(x: Tensor, dim: int, indices: Tensor) -> Tensor:
    """`x.index_select(dim, indices)` with its dimensions in memory as those of `x` are; torch's makes maps channels-first."""
    strides = x.stride()
    order = sorted(range(x.dim()), key=lambda d: -strides[d])
    moved = x.permute(order).index_select(order.index(dim), indices)
    return moved.permute([order.index(d) for d in range(x.dim())])


def _square_norm(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=dtype).square()


def _last_nodes(flow: ChannelFlow) -> dict[str, str]:
    """Module name -> name of the last tensor that is computed in it."""
    found: dict[str, str] = {}
    for node in flow.captured.program.graph.nodes:
        if flow.nodes.get(node.name) is not None and isinstance(node.meta.get("val"), Tensor):
            found |= {path: node.name for path, _ in (node.meta.get("nn_module_stack") or {}).values()}
    return found


def _indices(gates: Sequence[DimensionGates], kept: Kept) -> tuple[Tensor | None, ...]:
    return tuple(None if g is None or kept[g].all() else torch.from_numpy(np.flatnonzero(kept[g])) for g in gates)


def _agrees(site: FeatureSite, dense: Tensor | None, small: Tensor | None) -> bool:
    """Whether the compact module computes the kept part of what the dense one does."""
    if dense is None or small is None or dense.dim() != len(site.kept) or not dense.is_floating_point():
        return False
    for size, indices in zip(dense.shape, site.kept, strict=True):
        if indices is not None and (not len(indices) or int(indices.max()) >= size):
            return False
    wanted = site.select(dense)
    if wanted.shape != small.shape or not wanted.numel():
        return False
    return bool((small - wanted).abs().max() <= _CLOSE * wanted.abs().max())
