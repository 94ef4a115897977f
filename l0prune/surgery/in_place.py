"""Cut a copy of the user's own modules, so that the compact model keeps its class.

Layer types torch-pruning knows are cut with its pruning functions, which keep `out_channels`, `num_features` and the like
right; the weights are then set from the plan, which also folds the gate values in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from l0prune.flow.trace import aliases_of
from l0prune.look.kept_by_forward import empty_caches_
from l0prune.model_call import copy_of
from l0prune.surgery.attention_layers import measure_attention_, measure_transformer_
from l0prune.surgery.calls import apply_calls_
from l0prune.surgery.cuts import TensorCut, to_indices
from l0prune.surgery.dropped import Constant, apply_drops_
from l0prune.surgery.plan import AttributeChange, SurgeryPlan, named_tensors

__all__ = ["apply_attributes_", "apply_plan_", "cut_", "cut_in_place"]

Cutter = Callable[[nn.Module, list[int]], nn.Module]


def _cut_group_norm(norm: nn.Module, removed: list[int]) -> nn.Module:
    """Also one without a bias, which torch-pruning does not expect."""
    assert isinstance(norm, nn.GroupNorm)
    norm.num_channels -= len(removed)
    return norm


_OUT: list[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Cutter]] = [
    (nn.Linear, tp.prune_linear_out_channels),
    (
        (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        tp.prune_conv_out_channels,
    ),
    (nn.modules.batchnorm._BatchNorm, tp.prune_batchnorm_out_channels),
    (nn.LayerNorm, tp.prune_layernorm_out_channels),
    (nn.GroupNorm, _cut_group_norm),
    (nn.modules.instancenorm._InstanceNorm, tp.prune_instancenorm_out_channels),
    (nn.PReLU, tp.prune_prelu_out_channels),
    ((nn.Embedding, nn.EmbeddingBag), tp.prune_embedding_out_channels),
]
"""Module type -> torch-pruning function for its output (or only) dimension."""

_IN: list[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Cutter]] = [
    (nn.Linear, tp.prune_linear_in_channels),
    (
        (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        tp.prune_conv_in_channels,
    ),
]
"""Module type -> torch-pruning function for its input dimension."""


def cut_in_place(model: nn.Module, plan: SurgeryPlan, constants: Mapping[str, Constant] | None = None) -> nn.Module:
    """A compact copy of `model`, of the same class.

    Args:
        model: The dense model; it is not changed.
        plan: What stays of each tensor, what is folded into it, the modules to drop, and the integers of modules and sizes
            of calls to change.
        constants: What dropped modules return, by name; None where the weights are still to be read.

    Returns:
        The copy. Whether it computes the right thing is for the caller to verify.
    """
    compact = copy_of(model)
    empty_caches_(compact)
    cut_(compact, plan, constants or {})
    return compact


def cut_(model: nn.Module, plan: SurgeryPlan, constants: Mapping[str, Constant]) -> None:
    """As `cut_in_place`, of the model itself."""
    apply_drops_(model, plan.drops, constants)
    apply_plan_(model, plan)
    apply_attributes_(model, plan.attributes)
    apply_calls_(model, plan.calls)


def apply_plan_(model: nn.Module, plan: SurgeryPlan) -> None:
    """Cut the modules of `model`: their own integers first, then every tensor as the plan says.

    Tensors that modules share stay shared, and frozen parameters stay frozen.
    """
    aliases = aliases_of(model)
    plan = _by_first_name(plan, aliases)
    cut: dict[str, Tensor] = {}
    for name, tensor in named_tensors(model).items():
        if name not in aliases and _touched(name, plan):
            value = plan.compact_tensor(name, tensor)
            is_parameter = isinstance(tensor, nn.Parameter)
            cut[name] = nn.Parameter(value, requires_grad=tensor.requires_grad) if is_parameter else value
    head_widths = {m: m.head_dim for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    for path, module in model.named_modules():
        _cut_module(module, dict(_cuts_of(path, module, plan, aliases)))
    for name in [*cut, *(name for name, known in aliases.items() if known in cut)]:
        _set_tensor(model, name, cut[aliases.get(name, name)])
    for module in model.modules():
        _measure(module)
    for attention, head_width in head_widths.items():
        measure_attention_(attention, head_width=head_width)
    for module in model.modules():
        measure_transformer_(module)


def apply_attributes_(model: nn.Module, changes: tuple[AttributeChange, ...]) -> None:
    """Set the integers of modules that the cut changes; a `config` that several modules share becomes the module's own."""
    own: set[str] = set()
    for change in changes:
        holder: Any = model.get_submodule(change.module)
        inner, _, attribute = change.attribute.rpartition(".")
        if inner:
            if change.module not in own:
                setattr(holder, inner, copy.copy(getattr(holder, inner)))
                own.add(change.module)
            holder = getattr(holder, inner)
        value = change.compact
        setattr(holder, attribute, list(value) if isinstance(getattr(holder, attribute), list) else value)  # type: ignore[arg-type]


def _by_first_name(plan: SurgeryPlan, aliases: dict[str, str]) -> SurgeryPlan:
    """The plan with the first name of every tensor; one that was made for a graph may use another."""
    return replace(plan, tensors={aliases.get(name, name): cut for name, cut in plan.tensors.items()})


def _touched(name: str, plan: SurgeryPlan) -> bool:
    return name in plan.tensors or any(parameter == name for parameter, _ in plan.folds)


def _cuts_of(path: str, module: nn.Module, plan: SurgeryPlan, aliases: dict[str, str]) -> list[tuple[str, TensorCut]]:
    """The cuts of a module's own tensors, and of those that it makes its weight of."""
    cuts = []
    made_from = [name for name, _ in module.named_parameters() if name.startswith("parametrizations.")]
    for leaf in [
        *module._parameters.keys(),
        *module._buffers.keys(),
        *made_from,
    ]:  # those of TorchScript have keys alone
        name = f"{path}.{leaf}" if path else leaf
        cut = plan.tensors.get(aliases.get(name, name))
        if cut is not None:
            cuts.append((leaf, cut))
    return cuts


def _removed(cut: TensorCut | None, dim: int) -> list[int]:
    if cut is None or dim not in cut.kept:
        return []
    kept = torch.zeros(cut.dense_shape[dim], dtype=torch.bool)
    kept[torch.from_numpy(to_indices(cut.kept[dim]))] = True
    return [int(i) for i in (~kept).nonzero().flatten()]


def _cut_module(module: nn.Module, cuts: dict[str, TensorCut]) -> None:
    """Bring the integers of one module up to date."""
    weight = next((cuts[name] for name in _WEIGHTS if name in cuts), None)
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
        if weight is not None:
            _cut_grouped(module, weight)
        return
    cut = weight or cuts.get("bias") or cuts.get("running_mean")
    if cut is None or _has_computed_tensor(module):
        return
    out_dim, in_dim = (1, 0) if getattr(module, "transposed", False) else (0, 1)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        out_dim = 1
    out = _removed(weight, out_dim) if weight is not None else _removed(cut, 0)
    for kinds, cutter in _OUT:
        if out and isinstance(module, kinds) and type(module).forward is not nn.Module.forward:
            cutter(module, out)
            break
    for kinds, cutter in _IN:
        removed = _removed(weight, in_dim)
        if removed and isinstance(module, kinds):
            cutter(module, removed)
            break


_WEIGHTS = (
    "weight",
    "parametrizations.weight.original",
    "parametrizations.weight.original1",
    "weight_orig",
    "weight_v",
)
"""A layer's weight, or the parameter of its shape that it is made of: by spectral norm, a mask and the like, or weight norm."""


def _has_computed_tensor(module: nn.Module) -> bool:
    """Whether a layer makes its weight or bias when it is used: by a norm of them, or a mask."""
    return isinstance(module, tuple(kinds for kinds, _ in _SIZES)) and any(
        leaf not in module._parameters and hasattr(module, leaf) for leaf in ("weight", "bias")
    )


_SIZES: list[tuple[type[nn.Module], tuple[str, ...]]] = [
    (nn.Linear, ("out_features", "in_features")),
    (nn.modules.conv._ConvNd, ("out_channels", "in_channels")),
    (nn.modules.batchnorm._NormBase, ("num_features",)),
    (nn.GroupNorm, ("num_channels",)),
    (nn.LayerNorm, ("normalized_shape",)),
    (nn.Bilinear, ("out_features", "in1_features", "in2_features")),
]
"""Integers of layers, for each dimension of their weight."""


def _measure(module: nn.Module) -> None:
    """Bring the integers of a layer with a computed weight or bias up to date, and those of a kind that no cutter knows."""
    if not (_has_computed_tensor(module) or isinstance(module, nn.Bilinear)) or getattr(module, "groups", 1) != 1:
        return
    held = dict(module.named_parameters())
    shape = next((held[name].shape for name in _WEIGHTS if name in held), None)
    if shape is not None:
        sizes = shape[:2][::-1] if getattr(module, "transposed", False) else shape
        names = next(names for kinds, names in _SIZES if isinstance(module, kinds))
        for name, size in zip(names, sizes, strict=False):
            setattr(module, name, (size,) if name == "normalized_shape" else size)


def _cut_grouped(module: nn.modules.conv._ConvNd, weight: TensorCut) -> None:
    """Grouped and depthwise convolutions lose whole groups, or the same places of every group."""
    kept = torch.ones(weight.dense_shape[0], dtype=torch.bool)
    kept[_removed(weight, 0)] = False
    module.groups = int(kept.view(module.groups, -1).any(1).sum())
    first, second = weight.shape[0], weight.shape[1] * module.groups
    module.in_channels, module.out_channels = (first, second) if module.transposed else (second, first)


def _set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(value, nn.Parameter):
        owner._parameters[leaf] = value
    else:
        owner._buffers[leaf] = value
