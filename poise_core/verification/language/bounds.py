"""The part of the check `language` that bounds work: bounded loops, sizes and integers within limits, no text arithmetic."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator

from poise_core.verification.language.aliasing import Tuples
from poise_core.verification.language.vocabulary import names

MAX_INTEGER = 1_000_000
MAX_ELEMENTS = 1_000_000  # product of the integers written in the arguments of a function that makes tensors
MAX_EXPONENT = 64
MAX_ITERATIONS = 1000
MAX_NESTING = 2
MAX_STRING = 8000

_SIZED = names(
    "zeros ones full arange eye linspace new_zeros new_ones new_full repeat tile expand repeat_interleave pad one_hot "
    "broadcast_to range bincount reshape view histc vander mvlgamma multigammaln"
)
_BOUNDED_CALLS = names(
    "len numel size dim min int tolist unique unbind split items keys values reversed sorted nonzero list tuple"
)

Finding = tuple[int, str]


def size_findings(node: ast.expr) -> Iterator[Finding]:
    """Yield the integers, powers, sizes and text operations of one expression node that exceed a limit."""
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() as value) if abs(value) > MAX_INTEGER:
            yield (
                node.lineno,
                f"the integer {str(value)[:20]} exceeds {MAX_INTEGER}; write large numbers as floats, for example 1e6",
            )
        case ast.Constant(value=str() as text) if len(text) > MAX_STRING:
            yield node.lineno, f"the string has {len(text)} characters; at most {MAX_STRING} are allowed"
        case ast.BinOp(left=left, op=op, right=right):
            if isinstance(op, ast.Pow) and not _small_exponent(right):
                yield (
                    node.lineno,
                    "** needs a hyperparameter or a number of at most 64 as its exponent; use torch.pow for tensors",
                )
            if isinstance(op, ast.Pow) and _power_of_literals(left, right) > MAX_INTEGER:
                yield node.lineno, f"this power exceeds {MAX_INTEGER}; write large numbers as floats, for example 1e6"
            for side in (left, right):
                if isinstance(side, ast.List | ast.Tuple | ast.Dict | ast.ListComp) or _is_text(side):
                    yield node.lineno, "operators on lists and strings are not allowed; use torch.cat or append"
        case ast.Call(func=function, args=arguments, keywords=keywords):
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name == "range" and not all(_is_bounded_number(argument) for argument in arguments):
                yield (
                    node.lineno,
                    "range(...) takes small numbers, hyperparameters, shapes and their sums and differences",
                )
            if name in _SIZED:
                values = [*arguments, *(keyword.value for keyword in keywords)]
                written = [part.value for value in values for part in ast.walk(value)
                           if isinstance(part, ast.Constant) and isinstance(part.value, int) and abs(part.value) > 1]  # fmt: skip
                if math.prod(abs(number) for number in written) > MAX_ELEMENTS:
                    yield node.lineno, f"{name} asks for more than {MAX_ELEMENTS} elements; derive sizes from the batch"


def tuple_findings(node: ast.AST, tuples: Tuples) -> Iterator[Finding]:
    """Yield the operators that would repeat or join a tuple of ``hp``, and the sizes that are a whole one."""
    match node:
        case ast.BinOp(left=left, right=right) | ast.AugAssign(target=left, value=right):
            for side in filter(tuples.holds, (left, right)):
                text = ast.unparse(side)
                yield (
                    node.lineno,
                    f"{text} holds several numbers, and an operator would repeat or join them, not compute with them; "
                    f"take one, such as {text}[0], or write torch.tensor({text})",
                )
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=arguments, keywords=keywords):
            values = [*arguments, *(keyword.value for keyword in keywords)]
            for value in values if name in _SIZED else ():
                if tuples.holds(value):
                    yield (
                        node.lineno,
                        f"{ast.unparse(value)} holds several numbers and {name} takes sizes; take one of them, such as "
                        f"{ast.unparse(value)}[0], or a size from the batch",
                    )


def loop_findings(function: ast.FunctionDef) -> Iterator[Finding]:
    """Yield the loops and comprehensions of a function that are unbounded, too long or nested too deeply."""
    yield from _loops(function, 0, 1)


def _loops(node: ast.AST, depth: int, repeats: int) -> Iterator[Finding]:
    generators: list[tuple[ast.expr, ast.AST]] = []
    if isinstance(node, ast.For):
        generators = [(node.iter, node)]
        yield from _growing(node)
    elif isinstance(node, ast.ListComp | ast.DictComp | ast.GeneratorExp):
        generators = [(generator.iter, node) for generator in node.generators]
    for iterated, owner in generators:
        line = getattr(owner, "lineno", 1)
        depth += 1
        count = _written_count(iterated)
        repeats *= count or 1
        if not _is_bounded(iterated):
            yield (
                line,
                (
                    "the loop's length is not bounded: iterate over range(...) of a small number, a hyperparameter or a shape, "
                    "over a tensor, or over a list"
                ),
            )
        elif repeats > MAX_ITERATIONS:
            yield line, f"the loop runs {repeats} times; at most {MAX_ITERATIONS} are allowed, use torch operations"
        if depth > MAX_NESTING:
            yield line, f"loops nest more than {MAX_NESTING} levels deep; use torch operations"
    for child in ast.iter_child_nodes(node):
        yield from _loops(child, depth, repeats)


def _growing(loop: ast.For) -> Iterator[Finding]:
    """Yield the lists that grow while the loop runs over them, which never ends."""
    iterated = {part.id for part in ast.walk(loop.iter) if isinstance(part, ast.Name)}
    for part in ast.walk(loop):
        match part:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="append" | "extend" | "update" | "setdefault")
            ) if name in iterated:
                yield part.lineno, f"{name} grows while the loop runs over it; collect into another list"


def _is_bounded(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="range"), args=arguments):
            return all(_is_bounded_number(argument) for argument in arguments)
        case ast.Call(func=ast.Name(id="zip" | "enumerate"), args=arguments):
            return all(_is_bounded(argument) for argument in arguments)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in _BOUNDED_CALLS
        case ast.Name() | ast.Attribute() | ast.Subscript() | ast.Tuple() | ast.List() | ast.ListComp() | ast.Dict():
            return True
        case _:
            return False


def _is_bounded_number(node: ast.expr) -> bool:
    """Whether a number is a literal, hyperparameter, shape, length, name, or a sum or difference of them; no product is."""
    match node:
        case ast.Constant(value=int() as value):
            return abs(value) <= MAX_ITERATIONS
        case ast.Name() | ast.Attribute() | ast.Subscript():
            return True
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_bounded_number(operand)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.FloorDiv(), right=right):
            return _is_bounded_number(left) and _is_bounded_number(right)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in _BOUNDED_CALLS
        case _:
            return False


def _written_count(node: ast.expr) -> int:
    """Return how often a range over literals or a written-out sequence repeats; 0 where the file does not tell."""
    match node:
        case ast.Call(func=ast.Name(id="range"), args=arguments):
            numbers = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
            whole = [number for number in numbers if isinstance(number, int)]
            return len(range(*whole)) if len(whole) == len(arguments) and 0 not in whole[2:] and whole else 0
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return len(elements)
        case _:
            return 0


def _small_exponent(node: ast.expr) -> bool:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _small_exponent(operand)
        case ast.Constant(value=int() | float() as value):
            return abs(value) <= MAX_EXPONENT
        case ast.Attribute() | ast.Name() | ast.Subscript(value=ast.Attribute(value=ast.Name(id="hp"))):
            return True
        case _:
            return False


def _power_of_literals(base: ast.expr, exponent: ast.expr) -> int:
    """Return the power of two integers that are literals; 0 for anything else."""
    match base, exponent:
        case ast.Constant(value=int() as number), ast.Constant(value=int() as power) if (
            abs(number) <= MAX_INTEGER and 0 <= power <= 64
        ):
            return int(abs(number) ** power)
        case _:
            return 0


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
