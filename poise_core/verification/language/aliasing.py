"""The part of check 1 that keeps a candidate's hands off what it was given: which locals may be aliases.

A local is the function's own when every assignment to it makes a new object: a literal, a list or dict display, a
comprehension, arithmetic, or a call. Some tensor methods return their own tensor (``.float()`` of a float tensor), so a
call is no proof; check 4 finds what slips through here by looking at the inputs afterwards.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator


def find_aliases(function: ast.FunctionDef) -> frozenset[str]:
    """Names of locals that, by some assignment or loop, may be another name for something the function was given."""
    return frozenset(name for part in ast.walk(function) for name in _bound_to_given(part))


def _bound_to_given(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Assign(targets=targets, value=value) if not _is_new(value):
            for target in targets:
                yield from _names(target)
        case ast.AnnAssign(target=target, value=value) if value is not None and not _is_new(value):
            yield from _names(target)
        case ast.For(target=target) | ast.comprehension(target=target):
            yield from _names(target)  # a row of a tensor is a view of it


def _is_new(value: ast.expr) -> bool:
    match value:
        case ast.IfExp(body=body, orelse=orelse):
            return _is_new(body) and _is_new(orelse)
        case ast.BoolOp(values=values):
            return all(_is_new(part) for part in values)
        case ast.Name() | ast.Attribute() | ast.Subscript() | ast.Tuple():
            return False
        case _:
            return True


def _names(target: ast.expr) -> Iterator[str]:
    for part in ast.walk(target):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id
