"""Units of a model that torch.export refuses, from the dependency graph of torch-pruning, which follows autograd instead.

It sees the path that the example inputs take, so several inputs are followed and everything found is put together. What
it treats as elementwise without knowing, it may group wrongly: only ops known to leave channels alone are let through,
the rest pins, and the cut is compared with the gated model as always, on all of these inputs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from l0prune.errors import TraceError, first_line
from l0prune.flow.follow import Followed
from l0prune.look.capture import lies_in
from l0prune.look.recording import variations
from l0prune.model_call import ModelCall, evaluation_mode, output_tensors
from l0prune.ops.tracker import NO_UNIT, IdArray, Multiplication, Tracker

__all__ = ["follow_modules"]

_TYPE = tp.ops.OPTYPE
_PASSING = {_TYPE.CONCAT, _TYPE.RESHAPE}
_ELEMENTWISE = frozenset(["Abs", "Add", "Addmm", "Alias", "Clamp", "Clone", "Div", "Elu", "Exp", "Gelu", "Hardsigmoid",
                          "Hardswish", "Hardtanh", "LeakyRelu", "Log", "Mish", "Mul", "NativeDropout", "Neg", "Pow", "Relu",
                          "Rsqrt", "Rsub", "Sigmoid", "Silu", "Softplus", "Sqrt", "Sub", "T", "Tanh", "Threshold", "ToCopy",
                          "AdaptiveAvgPool2D", "AdaptiveMaxPool2D", "AvgPool2D", "MaxPool2DWithIndices",
                          "UpsampleBilinear2D", "UpsampleNearest2D"])  # fmt: skip
"""Autograd functions (without `Backward0`) that keep the channels of their input where they are, one by one."""

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_READERS = frozenset({Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__})


def follow_modules(
    model: nn.Module, call: ModelCall, *, aliases: dict[str, str], ignore: Iterable[str] = ()
) -> Followed:
    """Ties, pins, consumers and costs of the layers of `model`, as torch-pruning connects them.

    Args:
        model: Any module that runs and whose outputs depend differentiably on its parameters.
        call: Example inputs, and the place where variations of them start.
        aliases: Other names of a shared tensor -> the one name it is known by.
        ignore: Module or parameter names whose units are pinned.

    Returns:
        Labels of all parameters and buffers, and what was recorded; there are no graph nodes.

    Raises:
        TraceError: torch-pruning cannot follow the model either.
    """
    modules = _Modules(Followed(Tracker()), model, aliases)
    modules.place(tuple(ignore))
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    with evaluation_mode(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parameter in frozen:
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        try:
            modules.count(call)
            modules.tie_groups(call)
            for other in list(variations(call))[1:]:
                try:
                    with torch.no_grad():
                        other(model)
                except Exception:  # noqa: BLE001 - noise may be no input that the model is made for
                    continue
                modules.tie_groups(other)
        except Exception as error:
            raise TraceError(
                f"torch-pruning cannot follow {type(model).__name__} either: {first_line(error, named=True)}"
            ) from error
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
    modules.pin_unseen(tuple(ignore))
    return modules.followed


class _Reads(TorchFunctionMode):
    """Inside this block, tensors are kept that something reads which autograd does not follow: a condition, an argmax."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Make the call; look where its result comes from."""
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.grad_fn is not None]
        result = func(*args, **(kwargs or {}))
        made = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
        if given and (func in _READERS or (made and not any(t.requires_grad for t in made))):
            self.tensors += given
        return result


@dataclass(eq=False)
class _Modules:
    followed: Followed
    model: nn.Module
    aliases: dict[str, str]
    fed: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    called: set[nn.Module] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names = {module: name for name, module in self.model.named_modules()}

    @property
    def tracker(self) -> Tracker:
        """Where everything is recorded."""
        return self.followed.tracker

    def place(self, ignore: tuple[str, ...]) -> None:
        """Fresh ids for every tensor, and the ties inside of each layer."""
        for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            labels = self.tracker.fresh_labels(tuple(tensor.shape))
            self.followed.tensors[name] = labels
            for kernel in labels[2:]:
                self.tracker.pin(kernel, NO_UNIT)
            if any(lies_in(name, module) for module in ignore):
                self.tracker.pin_all(labels, "ignored by name")
        for module in self.names:
            known = [ids for ids in self.outputs(module) if ids is not None]
            for ids in known[1:]:
                self.tracker.tie(known[0], ids)

    def labels(self, module: nn.Module, leaf: str, dim: int) -> IdArray | None:
        """Ids of one dimension of a layer's tensor."""
        name = f"{self.names[module]}.{leaf}" if self.names[module] else leaf
        found = self.followed.tensors.get(self.aliases.get(name, name))
        return found[dim] if found is not None and dim < len(found) else None

    def outputs(self, module: nn.Module) -> list[IdArray | None]:
        """Ids of a layer's outputs, in each of its tensors."""
        if isinstance(module, _WEIGHTED):
            return [self.labels(module, "weight", 0), self.labels(module, "bias", 0)]
        if isinstance(module, nn.Embedding):
            return [self.labels(module, "weight", 1)]
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return [self.labels(module, leaf, 0) for leaf in ("weight", "bias", "running_mean", "running_var")]
        return []

    def count(self, call: ModelCall) -> None:
        """Multiply-accumulates of every layer, from the shapes of its outputs."""
        rows = call.batch_size or 1

        def record(module: nn.Module, _: Any, output: Any) -> None:
            weight, name = module.get_parameter("weight"), self.names[module]
            work = output.numel() / rows / weight.shape[0] * math.prod(weight.shape[2:])
            sides = [self.labels(module, "weight", dim) for dim in (0, 1)]
            sizes = [size for size, ids in zip(weight.shape[:2], sides, strict=True) if ids is None]
            known = tuple(ids for ids in sides if ids is not None)
            self.tracker.multiplications.append(Multiplication(name, name, work * math.prod(sizes), known))

        def remember(module: nn.Module, *_: Any) -> None:
            self.called.add(module)

        hooks = [m.register_forward_hook(record) for m in self.names if isinstance(m, _WEIGHTED)]
        hooks += [m.register_forward_hook(remember) for m in self.names]
        try:
            call(self.model)
        finally:
            for hook in hooks:
                hook.remove()

    def tie_groups(self, call: ModelCall) -> None:
        """Ask torch-pruning what goes with the outputs of every layer on the path of these inputs."""
        reads = _Reads()

        def run(model: nn.Module, _: Any) -> list[Tensor]:
            with reads:
                output = call(model)
            followed = [t * 1 for t in (*output_tensors(output), *reads.tensors) if t.grad_fn is not None]
            if not followed:
                raise ValueError("autograd reaches none of its outputs")
            return followed

        graph = tp.DependencyGraph().build_dependency(self.model, call.args, forward_fn=run, verbose=False)
        self.called |= {module for module in graph.module2node if module in self.names}
        for module in list(graph.module2node):
            root = next(iter(self.outputs(module)), None) if module in self.names else None
            if root is not None and not isinstance(module, nn.modules.batchnorm._BatchNorm):
                pruner = graph.get_pruner_of_module(module)
                group = graph.get_pruning_group(module, pruner.prune_out_channels, list(range(len(root))))
                for item in group.items:
                    self.tie_item(graph, item, root)

    def tie_item(self, graph: Any, item: Any, root: IdArray) -> None:
        """One layer or op that the units `root` reach."""
        node, module = item.dep.target, item.dep.target.module
        kind = tp.ops.module2type(module)
        if kind in _PASSING or (
            kind == _TYPE.ELEMENTWISE and module not in self.names and _is_elementwise(node.grad_fn)
        ):
            return
        if kind == _TYPE.ELEMENTWISE and isinstance(module, nn.Module) and module in self.names:
            return  # a module without weights of its own, whose ops are nodes too
        consumes = isinstance(module, _WEIGHTED) and graph.is_in_channel_pruning_fn(item.dep.handler)
        grouped = isinstance(module, _WEIGHTED[1:]) and module.groups > 1
        depthwise = grouped and module.groups == module.in_channels == module.out_channels
        ids = self.labels(module, "weight", 1) if consumes and not grouped else None
        if (
            ids is None
            and isinstance(module, nn.Module)
            and module in self.names
            and (depthwise or not (grouped or consumes))
        ):
            ids = next((part for part in self.outputs(module) if part is not None), None)
        if ids is None or not item.idxs or max(item.idxs) >= len(ids):
            self.tracker.pin(root, _reason(kind, module, node))
            return
        places = torch.tensor(item.idxs).numpy()
        self.tracker.ties.append((ids[places], root[torch.tensor(item.root_idxs).numpy()]))
        if consumes and not grouped:
            name = self.aliases.get(f"{self.names[module]}.weight", f"{self.names[module]}.weight")
            if (name, 1) not in self.fed:
                self.tracker.consume(name, 1, ids)
                self.fed[name, 1] = torch.zeros(len(ids), dtype=torch.bool)
            self.fed[name, 1][item.idxs] = True

    def pin_unseen(self, ignore: tuple[str, ...]) -> None:
        """Inputs that no layer feeds; and every width of a layer that was never called, because it might meet them."""
        for module, name in self.names.items():
            if not isinstance(module, _WEIGHTED):
                continue
            for dim in (0, 1):
                ids = self.labels(module, "weight", dim)
                key = f"{name}.weight" if name else "weight"
                seen = self.fed.get((self.aliases.get(key, key), 1)) if dim == 1 else None
                if ids is not None and dim == 1:
                    self.tracker.pin(ids if seen is None else ids[~seen.numpy()], "no layer feeds it")
            if module not in self.called and not any(lies_in(name, n) for n in ignore):
                self.pin_widths(set(module.get_parameter("weight").shape[:2]))

    def pin_widths(self, widths: set[int]) -> None:
        """Pin the outputs of every layer that has one of these widths."""
        for module in self.names:
            for ids in self.outputs(module):
                if ids is not None and len(ids) in widths:
                    self.tracker.pin(ids, "as wide as a layer that the example inputs do not reach")


def _is_elementwise(grad_fn: Any) -> bool:
    name = grad_fn.name().removeprefix("torch::autograd::") if grad_fn is not None and hasattr(grad_fn, "name") else ""
    if name.startswith("MeanBackward1"):
        sizes = grad_fn._saved_self_sym_sizes
        return len(sizes) == 4 and {d % 4 if d < 4 else d - 2**64 + 4 for d in grad_fn._saved_dim} <= {2, 3}
    return name.partition("Backward")[0] in _ELEMENTWISE


def _reason(kind: Any, module: Any, node: Any) -> str:
    if kind == _TYPE.OUTPUT:
        return "model output, or read by a condition"
    if kind == _TYPE.ELEMENTWISE and node.grad_fn is not None:
        return f"no rule for {node.grad_fn.name()} (torch-pruning)"
    return f"no rule for {type(module).__name__} (torch-pruning)"
