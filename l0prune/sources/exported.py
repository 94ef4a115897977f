"""Exported programs (`.pt2`), loaded without running anything that the file brings along.

`torch.export.load` unpickles weights, constants and sample inputs where the file asks for it, evaluates symbolic
expressions, and generates Python code from names in the graph. So nothing of a file reaches it unseen: the archive is
taken apart, every string in it is checked against what an exported network needs, and torch is given a new archive
made of the checked parts only.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l0prune.errors import ModelSpecError
from l0prune.input_sizes import InputSizes, check_inputs_
from l0prune.reading import reading
from l0prune.sources.exported_archive import checked_archive, checked_inputs, refusal
from l0prune.sources.exported_graph import forbidden

__all__ = ["load_example_inputs", "load_exported", "load_exported_program", "module_of", "plain_inputs"]

KIND = "exported program"
MODES = {"training", "train", "use_input_stats"}  # arguments that say whether an op is in training mode


def load_exported(path: str | Path) -> tuple[nn.Module, tuple[Tensor, ...] | dict[str, Tensor] | None]:
    """The module of an exported program, and the inputs it was exported with.

    Args:
        path: A `.pt2` file written by torch.export.save.

    Returns:
        The module, for evaluation: batch norm takes its running statistics and dropout does nothing, also where the
        network was exported in training mode. And its example inputs as a tuple of positional or a dict of keyword
        tensors, or None where the file has none of that form.

    Raises:
        ModelSpecError: if the file is missing or damaged, or holds what an exported network does not need.
    """
    with _reading(path):
        program = _load(Path(path))
        module = module_of(program)
        _evaluate_(module)
        inputs = plain_inputs(program.example_inputs)
    for method in ("train", "eval"):  # torch forbids both on this module; here they set the flags and nothing else
        module.__dict__.pop(method, None)
    return module, inputs


def module_of(program: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """The module of a program; in place of the code that a file may bring for it, it looks at the sizes of its inputs."""
    module: torch.fx.GraphModule = program.module(check_guards=False)  # type: ignore[assignment]
    check_inputs_(module, InputSizes.of(program, module))
    return module


def load_exported_program(path: str | Path) -> torch.export.ExportedProgram:
    """Load a `.pt2` file after checking every part of it.

    Raises:
        ModelSpecError: if the file is missing or damaged, or holds what an exported network does not need.
    """
    with _reading(path):
        return _load(Path(path))


def _reading(path: str | Path) -> AbstractContextManager[Path]:
    return reading(
        path, KIND, error=ModelSpecError, remedy=f"write it with torch.export.save of torch {torch.__version__}"
    )


def _load(path: Path) -> torch.export.ExportedProgram:
    program = torch.export.load(checked_archive(path))
    what = forbidden(program)
    if what:
        raise refusal(path, what)
    return program


def load_example_inputs(path: str | Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword inputs that a `.pt2` file was exported with; none where it says nothing of them.

    Raises:
        ModelSpecError: if the file is missing or damaged, or its inputs need code to load.
    """
    with _reading(path) as file:
        args, kwargs = checked_inputs(file) or ((), {})
        return tuple(args), dict(kwargs)


def _evaluate_(module: torch.fx.GraphModule) -> None:
    """Take every op out of training mode, but norms that have no running statistics."""
    for node in list(module.graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target is torch.ops.aten.add_.Tensor and str(node.args[0]).endswith("num_batches_tracked"):
            module.graph.erase_node(node)
            continue
        positions = {argument.name: position for position, argument in enumerate(node.target._schema.arguments)}
        has_statistics = "running_mean" not in positions or node.args[positions["running_mean"]] is not None
        for name in MODES & positions.keys():
            if has_statistics and positions[name] < len(node.args):
                node.update_arg(positions[name], False)
    module.recompile()


def plain_inputs(example: Any) -> tuple[Tensor, ...] | dict[str, Tensor] | None:
    """Positional and keyword example inputs as a tuple or a dict of tensors; None where they are neither."""
    args, kwargs = example if example is not None else ((), {})
    if args and not kwargs and all(isinstance(value, Tensor) for value in args):
        return tuple(args)
    if kwargs and not args and all(isinstance(value, Tensor) for value in kwargs.values()):
        return dict(kwargs)
    return None
