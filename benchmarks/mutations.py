"""Broken versions of the rules of the channel flow: every one has a single change in a single rule."""

import ast
import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import l0prune.ops
from l0prune.ops import operation

__all__ = ["RULES", "UNCHANGED", "Mutant", "mutants", "put_in_place", "rule_files"]

_MACHINERY = {"__init__", "node", "operation", "sizes", "tracker"}
RULES = Path(l0prune.ops.__file__).parent
_HELPERS = """
def _l0_rotated(result):
    turned = lambda labels: [*labels[1:], *labels[:1]]
    return [turned(r) for r in result] if result and isinstance(result[0], list) else turned(result)
"""


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        file: Name of the file in `l0prune/ops`.
        rule: Function that is broken.
        lines: First and last line that the change touches.
        kind: What is done, in words.
        code: What it is done to, as source.
        occurrence: Position among the equal changes of the same rule.
        position: Position among all changes of the file.
    """

    file: str
    rule: str
    lines: tuple[int, int]
    kind: str
    code: str
    occurrence: int
    position: int

    @property
    def key(self) -> str:
        """Name that stays the same when other lines of the file change."""
        again = f" #{self.occurrence + 1}" if self.occurrence else ""
        return f"{self.file[:-3]}.{self.rule}: {self.kind}: {self.code}{again}"


UNCHANGED = Mutant("*.py", "*", (0, sys.maxsize), "nothing changed", "", 0, -1)
"""Puts every sound file in place once more: no test may fail."""


def rule_files() -> list[Path]:
    """Files with rules, and with what several of them share."""
    return [path for path in sorted(RULES.glob("*.py")) if path.stem not in _MACHINERY]


def mutants(path: Path) -> Iterator[Mutant]:
    """All changes of a file, in its order."""
    seen: dict[tuple[str, str, str], int] = {}
    tree = ast.parse(path.read_text())
    for position, (function, node, kind, _) in enumerate(_changes(tree)):
        code = ast.unparse(node).splitlines()[0]
        same = (function.name, kind, code)
        seen[same] = seen.get(same, -1) + 1
        # A condition is more than its test: only what runs when the test is evaluated counts.
        span = node.test if isinstance(node, (ast.If, ast.IfExp)) else node
        lines = (span.lineno, span.end_lineno or span.lineno)
        yield Mutant(path.name, function.name, lines, kind, code, seen[same], position)


def put_in_place(mutant: Mutant) -> None:
    """Run the changed source in the module of the file, in this process, and register its rules instead of the sound ones."""
    for path in rule_files():
        if not fnmatch(path.name, mutant.file):
            continue
        tree = ast.parse(path.read_text())
        for position, (_, node, _, replacement) in enumerate(_changes(tree)):
            if position == mutant.position:
                tree = ast.fix_missing_locations(_Replace(node, replacement).visit(tree))
                break
        _run(tree, path)


def _run(tree: ast.Module, path: Path) -> None:
    module = sys.modules[f"{l0prune.ops.__name__}.{path.stem}"]
    sound = {name: value for name, value in vars(module).items() if _is_own(module, value)}
    name_of = {id(value): name for name, value in sound.items()}
    for name in [name for name, known in operation.operations() if known.rule.__module__ == module.__name__]:
        del operation._BY_NAME[name]
    exec(compile(_HELPERS, "helpers", "exec"), vars(module))
    exec(compile(tree, str(path), "exec"), vars(module))
    for other in [m for name, m in sys.modules.items() if name.startswith(l0prune.ops.__name__)]:
        for name, value in list(vars(other).items()):
            if id(value) in name_of:
                setattr(other, name, vars(module)[name_of[id(value)]])
    for name, known in list(operation.operations()):  # parts that are shared by families
        parts = {part: getattr(known, part) for part in vars(known)}
        broken = {part: vars(module)[name_of[id(value)]] for part, value in parts.items() if id(value) in name_of}
        if broken:
            operation._BY_NAME[name] = replace(known, **broken)


def _is_own(module: ModuleType, value: Any) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


class _Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, replacement: ast.AST) -> None:
        self.target, self.replacement = target, replacement

    def visit(self, node: ast.AST) -> Any:
        return self.replacement if node is self.target else super().visit(node)


def _changes(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, Any, str, ast.AST]]:
    """(function, node, kind, replacement) of every change; the order is that of the source."""
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef) or _is_of_cuts(function):
            continue
        is_rule = any("Operation(" in ast.unparse(decorator) for decorator in function.decorator_list)
        nodes = [node for statement in function.body for node in ast.walk(statement)]
        whole = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            for kind, replacement in _of(node, is_rule=is_rule):
                if not (kind == "tie left out" and id(node) in whole):  # left out as a statement already
                    yield function, node, kind, replacement


def _is_of_cuts(function: ast.FunctionDef) -> bool:
    """Whether a function has nothing to do with rules: it works on what stays after a cut, or on tensors over open units."""
    types = [argument.annotation for argument in function.args.args] + [function.returns]
    return not {"Rewriter", "Cut", "Mask", "Callable[..., Any]", "Contraction", "Normalisation"}.isdisjoint(
        ast.unparse(annotation) for annotation in types if annotation is not None
    )


def _of(node: ast.AST, *, is_rule: bool) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "left out", ast.Pass()
    elif isinstance(node, ast.Raise):
        yield "refusal left out", ast.Pass()
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        yield "assignment left out", ast.Pass()
    elif isinstance(node, (ast.If, ast.IfExp)):
        yield "condition reversed", _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Return) and is_rule and node.value is not None and ast.unparse(node.value) != "[]":
        yield "axes of the result rotated", ast.Return(_call("_l0_rotated", node.value))
    elif isinstance(node, ast.Subscript) and (index := _constant(node.slice)) is not None:
        other = {0: 1, 1: 0, -1: -2, -2: -1}.get(index, index - 1)
        yield "next axis", _with(node, slice=ast.Constant(other))
    elif isinstance(node, ast.Call):
        yield from _of_call(node)


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name == "tie":
        a, b = node.args[:2]
        is_none = ast.Compare(a, [ast.Is()], [ast.Constant(None)])
        yield "tie left out", ast.IfExp(is_none, b, a)
    elif name == "tie_rows":
        yield "rows and columns exchanged", _with(node, args=[ast.Attribute(node.args[0], "T", ast.Load())])
    elif name in ("consume", "contract"):
        at = {"consume": 1, "contract": 3}[name]
        other = ast.BinOp(ast.Constant(1), ast.Sub(), node.args[at])
        yield "other axis", _with(node, args=[*node.args[:at], other, *node.args[at + 1 :]])
    elif name == "set_origin":
        backwards = _call("list", _call("reversed", _call("list", node.args[1])))
        yield "axes backwards", _with(node, args=[node.args[0], backwards])


def _constant(node: ast.AST) -> int | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -node.operand.value  # type: ignore[operator, return-value]
    return node.value if isinstance(node, ast.Constant) and type(node.value) is int else None


def _call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(args), [])


def _with(node: Any, **fields: Any) -> Any:
    """The same node with some parts exchanged."""
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed
