"""A graph of a model that torch.export refuses: recorded while the model runs, on every path that inputs are found to take.

A condition on numbers is followed as the numbers have it. Several inputs are tried, all paths that differ are recorded one
behind the other in one graph with the same parameters, and every tensor that the model reads a number from is pinned.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._export.verifier import TrainingIRVerifier
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.func import functional_call
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree

from l0prune.errors import TraceError, first_line
from l0prune.look.capture import Captured, NormCalls, RecordNorms, sealed_modules
from l0prune.look.free_sizes import FreeSizes, shares_batch
from l0prune.look.kept_by_forward import without_caches
from l0prune.look.watching import Path, Watch, current_tracer
from l0prune.model_call import ModelCall, evaluation_mode, output_tensors

__all__ = ["number_of_paths", "path_of", "record", "variations"]

_SCALES = ((0.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (0.0, 5.0), (0.0, 0.1), (3.0, 0.3), (-3.0, 0.3))
"""Mean and standard deviation of the noise that floating-point inputs are replaced by."""

_PATH = "l0prune_path"


def variations(call: ModelCall) -> Iterator[ModelCall]:
    """The call, and others of its shapes: noise of several means and widths; tokens in other orders."""
    yield call
    for seed, (mean, deviation) in enumerate(_SCALES):
        generator = torch.Generator().manual_seed(seed)

        def redraw(
            value: Any, generator: torch.Generator = generator, mean: float = mean, deviation: float = deviation
        ) -> Any:
            if not isinstance(value, Tensor) or not value.numel():
                return value
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                return (mean + deviation * noise).to(value)
            order = torch.randint(value.numel(), value.shape, generator=generator).to(value.device)
            return value.flatten()[order]

        yield ModelCall(*pytree.tree_map(redraw, (call.args, call.kwargs)))


def record(model: nn.Module, call: ModelCall) -> Captured:
    """Run `model` in evaluation mode on the call and on variations of it, and write down the ops; the model stays as it is.

    Args:
        model: Any module that runs, with numbers in its parameters.
        call: Example inputs.

    Returns:
        A program of all paths, none of which has free sizes; `path_of` says which path a node belongs to. It is made to be
        read, not to be run.

    Raises:
        TraceError: the ops cannot be recorded.
    """
    with evaluation_mode(model), without_caches(model), torch.no_grad(), _nothing_compiled(), _quiet():
        try:
            paths, norms = _paths(model, call)
            program = _program(model, paths)
        except Exception as error:
            raise TraceError(
                f"{type(model).__name__} cannot be recorded while it runs: {first_line(error, named=True)}"
            ) from error
    rows = call.batch_size if shares_batch(call) else None
    free = FreeSizes((), frozenset(), {}, {})
    return Captured(program, call.args, call.kwargs, rows or 1, free, norms, sealed_modules(model))


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Compiled parts, which would not show their ops, run as they are written."""
    with torch.compiler.set_stance("force_eager"), torch._dynamo.config.patch(error_on_nested_fx_trace=False):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def path_of(node: Node) -> int:
    """Number of the path that a node of a recorded program belongs to; the example's is 0, as in every other program."""
    return int(node.meta.get(_PATH, 0))


def number_of_paths(program: ExportedProgram) -> int:
    """How many paths a recorded program holds; 1 for every other program."""
    return 1 + max((path_of(node) for node in program.graph.nodes), default=0)


def _paths(model: nn.Module, call: ModelCall) -> tuple[list[ModelCall], NormCalls]:
    """Inputs for every path, the example first, and the norms that are called on all of them together."""
    found: dict[tuple[Any, ...], ModelCall] = {}
    weights: frozenset[str] = frozenset()
    n_others: dict[str, int] = {}
    for position, variation in enumerate(variations(call)):
        path, recorded = Path(model), RecordNorms()
        try:
            with recorded, path:
                variation(model)
        except Exception:  # noise may be no input that the model is made for; what the model then raises is its own
            if position == 0:
                raise
            continue
        if tuple(path.steps) not in found:
            norms = recorded.calls(model)
            found[tuple(path.steps)] = variation
            weights |= norms.weights
            n_others = norms.n_others if len(found) == 1 else {}  # their order is another on each path
    return list(found.values()), NormCalls(weights, n_others)


def _program(model: nn.Module, paths: list[ModelCall]) -> ExportedProgram:
    """All paths in one graph: parameters and buffers are its first inputs, the tensors of the calls the others."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    leaves, shape = pytree.tree_flatten([(path.args, path.kwargs) for path in paths])
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def run(weights: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        known = dict(zip(tensors, weights, strict=True))
        given = list(leaves)
        for place, tensor in zip(places, inputs, strict=True):
            given[place] = tensor
        outputs = []
        for number, (args, kwargs) in enumerate(pytree.tree_unflatten(given, shape)):
            with _owners(model), Watch(model):
                results = output_tensors(functional_call(model, known, args, kwargs))
            outputs += [torch.ops.aten.alias.default(result) for result in results]
            for node in current_tracer().graph.nodes:
                if node.op == "call_function":
                    node.meta.setdefault(_PATH, number)
        return outputs

    trace = make_fx(run, tracing_mode="real", pre_dispatch=True, _error_on_data_dependent_ops=False)
    module = trace(list(tensors.values()), [leaves[place] for place in places])
    return _exported(module, tensors, frozenset(dict(model.named_parameters())))


@contextmanager
def _owners(model: nn.Module) -> Iterator[None]:
    """Nodes that are recorded carry the modules whose forward pass makes them, as those of torch.export do."""
    tracer, outside = current_tracer(), OrderedDict(current_tracer().module_stack)
    names = {module: name for name, module in reversed(list(model.named_modules()))}
    entered: list[OrderedDict[str, tuple[str, Any]]] = []

    def enter(module: nn.Module, _: Any) -> None:
        if module in names:
            entered.append(tracer.module_stack)
            path = names[module]
            tracer.module_stack = OrderedDict(tracer.module_stack) | {path or "root": (path, type(module))}

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        if module in names:
            tracer.module_stack = entered.pop()

    hooks = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        tracer.module_stack = outside
        for hook in hooks:
            hook.remove()


def _exported(module: GraphModule, tensors: dict[str, Tensor], parameters: frozenset[str]) -> ExportedProgram:
    """The recorded graph in the form of an exported one, with its constants among the inputs."""
    graph = module.graph
    placeholders = graph.find_nodes(op="placeholder")
    own, inputs = placeholders[: len(tensors)], placeholders[len(tensors) :]
    specs = [
        InputSpec(
            InputKind.PARAMETER if name in parameters else InputKind.BUFFER,
            TensorArgument(name=node.name),
            name,
            None if name in parameters else True,
        )
        for name, node in zip(tensors, own, strict=True)
    ]
    constants: dict[str, Any] = {}
    for node in graph.find_nodes(op="get_attr"):
        value = getattr(module, node.target)
        with graph.inserting_before(inputs[0]):
            placeholder = graph.placeholder(f"constant{node.name}")
        placeholder.meta["val"] = value
        node.replace_all_uses_with(placeholder)
        graph.erase_node(node)
        constants[placeholder.name] = value
        specs.append(InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name=placeholder.name), placeholder.name))
    for node in graph.nodes:
        value = node.meta.get("val", 0)  # 0 stands for a number that was read
        node.meta["val"] = pytree.tree_map(_without_numbers, value)
    specs += [InputSpec(InputKind.USER_INPUT, TensorArgument(name=node.name), None) for node in inputs]
    outputs: Any = graph.output_node().args[0]
    specs_out = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None) for node in outputs]
    return ExportedProgram(
        root=module,
        graph=graph,
        graph_signature=ExportGraphSignature(specs, specs_out),
        state_dict=dict(tensors),
        range_constraints={},
        module_call_graph=[],
        constants=constants,
        verifiers=[TrainingIRVerifier],
    )


def _without_numbers(value: Any) -> Any:
    """A tensor as its shape and type; torch gives each node a fake mode of its own, which no program may mix."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
