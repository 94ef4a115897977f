"""Sizes as an exported program writes them: arithmetic that is known to be small before sympy sees it."""

import ast
import re

__all__ = ["is_small_arithmetic"]

LONGEST = 20_000  # characters
MOST_BITS = 1024  # of a result, where each symbol has 64
SYMBOL_BITS = 64
LARGEST_POWER = 16

SUMS = {"Add", "Max", "Min", "And", "Or", "Not", "Where", "Equality", "Unequality", "StrictLessThan", "LessThan"}
SUMS |= {"StrictGreaterThan", "GreaterThan", "FloorDiv", "CleanDiv", "Mod", "PythonMod", "ModularIndexing", "CeilDiv"}
SUMS |= {"IntTrueDiv", "FloatTrueDiv", "ToFloat", "CeilToInt", "FloorToInt", "TruncToInt", "Identity"}
PRODUCTS = {"Mul", "Rational"}
POWERS = {"Pow", "PowByNatural"}
SYMBOL = re.compile(r"[A-Za-z_]\w{0,80}")
NAME = re.compile(r"[a-z]+\d+|True|False")
FLOAT = re.compile(r"-?\d{1,30}(\.\d{0,60})?(e[+-]?\d{1,2})?|-?\.\d{1,60}")


class _TooMuchError(ValueError):
    """What this grammar does not have, or has no room for."""


def is_small_arithmetic(text: str) -> bool:
    """Whether sympy, evaluating the text, meets numbers, symbols and a few functions only, and results that it can hold.

    Sympy computes what it can at once: the eleven characters `Pow(10,Pow(10,10))` keep it busy until memory ends.
    """
    if len(text) > LONGEST:
        return False
    try:
        return _bits(ast.parse(text, mode="eval").body) <= MOST_BITS
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False


def _bits(node: ast.expr) -> int:
    """Bits that a value can have at most; never fewer than it has.

    Raises:
        _TooMuchError: it is not part of this arithmetic.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return max(1, int(node.value).bit_length() if isinstance(node.value, int) else SYMBOL_BITS)
    if isinstance(node, ast.Name) and NAME.fullmatch(node.id):
        return SYMBOL_BITS
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _bits(node.operand)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _checked(_bits_of_call(node.func.id, node.args, node.keywords))
    raise _TooMuchError(ast.dump(node)[:60])


def _bits_of_call(name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> int:
    if not all(isinstance(word.value, ast.Constant) and _is_flag(word.value.value) for word in keywords):
        raise _TooMuchError(name)
    if name in {"Symbol", "Float"}:
        pattern = SYMBOL if name == "Symbol" else FLOAT
        values = [arg.value for arg in args if isinstance(arg, ast.Constant)]
        if len(values) == len(args) == 1 and isinstance(values[0], str) and pattern.fullmatch(values[0]):
            return SYMBOL_BITS if name == "Symbol" else 512
        raise _TooMuchError(name)
    if name == "Integer" and len(args) == 1:
        return _bits(args[0])
    bits = [_bits(arg) for arg in args]
    if name in PRODUCTS:
        return sum(bits)
    if name in SUMS:
        return max(bits, default=0) + len(bits)
    if name in POWERS and len(args) == 2:
        return bits[0] * _power(args[1])
    raise _TooMuchError(name)


def _power(node: ast.expr) -> int:
    """Size of an exponent, which is a small number that stands there as one."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _power(node.operand)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        if node.func.id == "Integer" and len(node.args) == 1:
            return _power(node.args[0])
        if node.func.id == "Rational":
            return max(_power(arg) for arg in node.args)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and 0 <= node.value <= LARGEST_POWER:
        return max(1, int(node.value))
    raise _TooMuchError("exponent")


def _is_flag(value: object) -> bool:
    """An assumption about a symbol, or the precision of a number."""
    return isinstance(value, bool) or (isinstance(value, int) and 0 <= value <= 100)


def _checked(bits: int) -> int:
    if bits > MOST_BITS:
        raise _TooMuchError("size")
    return bits
