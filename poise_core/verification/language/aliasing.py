"""The part of the check `language` that finds local names which may be aliases of a function's arguments.

A local is no alias where every assignment to it makes a new object: a literal, a list or dict display, a
comprehension, arithmetic, or a call, except of a function of the file that may return one of its arguments. Some tensor methods
return their own tensor (``.float()`` of a float tensor), so a call of torch proves nothing; the check `pure` finds the remaining
cases on the probes, and the gate and the trainer pass copies.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

_RETURNING = frozenset({"max", "min"})
"""Built-in functions that return one of their arguments, or an element of it."""


def find_aliases(function: ast.FunctionDef, returning: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the names of locals that, by some assignment or loop, may refer to an argument or a part of one.

    Args:
        function: the function to read.
        returning: functions of the file that may return one of their arguments, see ``returns_given``.
    """
    return frozenset(name for part in ast.walk(function) for name in _bound_to_given(part, returning))


def returns_given(function: ast.FunctionDef, returning: frozenset[str] = frozenset()) -> bool:
    """Whether a function may return one of its arguments, or a part of one."""
    aliases = find_aliases(function, returning)
    arguments = function.args
    given = {one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)} | aliases
    results = [part.value for part in ast.walk(function) if isinstance(part, ast.Return) and part.value is not None]
    return any(
        isinstance(name, ast.Name) and name.id in given
        for value in results
        if not _is_new(value, returning)
        for name in ast.walk(value)
    )


def _bound_to_given(node: ast.AST, returning: frozenset[str]) -> Iterator[str]:
    match node:
        case ast.Assign(targets=targets, value=value) if not _is_new(value, returning):
            for target in targets:
                yield from _names(target)
        case ast.AnnAssign(target=target, value=value) if value is not None and not _is_new(value, returning):
            yield from _names(target)
        case ast.For(target=target) | ast.comprehension(target=target):
            yield from _names(target)  # a row of a tensor is a view of it


def _is_new(value: ast.expr, returning: frozenset[str]) -> bool:
    match value:
        case ast.IfExp(body=body, orelse=orelse):
            return _is_new(body, returning) and _is_new(orelse, returning)
        case ast.BoolOp(values=values):
            return all(_is_new(part, returning) for part in values)
        case ast.Call(func=ast.Name(id=name)) if name in returning | _RETURNING:
            return False
        case ast.Call(func=ast.Attribute(attr="get")):
            return False
        case ast.Name() | ast.Attribute() | ast.Subscript() | ast.Tuple():
            return False
        case _:
            return True


def _names(target: ast.expr) -> Iterator[str]:
    for part in ast.walk(target):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id
