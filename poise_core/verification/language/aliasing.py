"""The part of the check `language` that follows values into names: aliases of a function's arguments, strings, tuples of ``hp``.

A local is no alias where every assignment to it makes a new object: a literal, a list or dict display, a
comprehension, arithmetic, or a call, except of a function of the file that may return one of its arguments. Some tensor methods
return their own tensor (``.float()`` of a float tensor), so a call of torch proves nothing; the check `pure` finds the remaining
cases on the probes, and the gate and the trainer pass copies.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Texts:
    """What may hold a string, as far as a file shows: written strings, and names that are bound to one."""

    names: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()  # of Hyperparameters

    def holds(self, node: ast.expr) -> bool:
        """Whether the value may be a string, or a container of strings."""
        match node:
            case ast.Constant(value=value):
                return isinstance(value, str)
            case ast.Name(id=name):
                return name in self.names
            case ast.Attribute(value=ast.Name(id="hp"), attr=name):
                return name in self.fields
            case (
                ast.Subscript(value=value)
                | ast.ListComp(elt=value)
                | ast.GeneratorExp(elt=value)
                | ast.Starred(value=value)
            ):
                return self.holds(value)
            case ast.IfExp(body=body, orelse=orelse):
                return self.holds(body) or self.holds(orelse)
            case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Dict(values=parts):
                return any(map(self.holds, parts))
            case ast.BinOp(left=left, right=right):
                return self.holds(left) or self.holds(right)
            case ast.Call(func=ast.Name(id="max" | "min" | "sorted" | "list" | "tuple" | "reversed"), args=parts):
                return any(map(self.holds, parts))
            case _:
                return False

    def within(self, function: ast.FunctionDef) -> Texts:
        """With the names of a function that are bound to strings by an assignment, a loop or a default."""
        found = self
        while True:
            names = found.names | frozenset(name for part in ast.walk(function) for name in _bound_to_text(part, found))
            if names == found.names:
                return found
            found = Texts(names, self.fields)


def _bound_to_text(node: ast.AST, texts: Texts) -> Iterator[str]:
    match node:
        case ast.Assign(targets=targets, value=value) if texts.holds(value):
            for target in targets:
                yield from _names(target)
        case ast.AnnAssign(target=target, value=value) if value is not None and texts.holds(value):
            yield from _names(target)
        case ast.For(target=target, iter=iterated) | ast.comprehension(target=target, iter=iterated) if texts.holds(
            iterated
        ):
            yield from _names(target)
        case ast.arguments(posonlyargs=first, args=args, kwonlyargs=named, defaults=defaults, kw_defaults=others):
            positional = [*first, *args][::-1]
            pairs = [*zip(positional, defaults[::-1], strict=False), *zip(named, others, strict=True)]
            yield from (one.arg for one, default in pairs if default is not None and texts.holds(default))


@dataclass(frozen=True)
class Tuples:
    """What is a whole tuple of ``hp``, as far as a file shows; an element of one is a number."""

    fields: frozenset[str] = frozenset()  # of Hyperparameters
    names: frozenset[str] = frozenset()

    def holds(self, node: ast.expr) -> bool:
        """Whether the value is all of a tuple of ``hp``, a slice of it, or a list of its elements."""
        match node:
            case ast.Name(id=name):
                return name in self.names
            case ast.Attribute(value=ast.Name(id="hp"), attr=name):
                return name in self.fields
            case ast.Subscript(value=value, slice=ast.Slice()):
                return self.holds(value)
            case ast.IfExp(body=body, orelse=orelse):
                return self.holds(body) or self.holds(orelse)
            case ast.BoolOp(values=parts) | ast.Call(func=ast.Name(id="tuple" | "list" | "sorted"), args=parts):
                return any(map(self.holds, parts))
            case _:
                return False

    def within(self, function: ast.FunctionDef) -> Tuples:
        """With the names of a function that are bound once, to such a tuple; a name that is bound again may hold a tensor then."""
        stores = Counter(
            part.id for part in ast.walk(function) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
        )
        found = self
        while True:
            names = found.names | {
                name for part in ast.walk(function) for name in _bound_to_tuple(part, found) if stores[name] == 1
            }
            if names == found.names:
                return found
            found = Tuples(self.fields, names)


def _bound_to_tuple(node: ast.AST, tuples: Tuples) -> Iterator[str]:
    match node:
        case ast.Assign(targets=targets, value=value) if tuples.holds(value):
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
            for target, value in zip(targets, values, strict=False):
                if isinstance(target, ast.Name) and tuples.holds(value):
                    yield target.id
        case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None and tuples.holds(value):
            yield name
        case (
            ast.For(target=ast.Name(id=name), iter=ast.Tuple(elts=values))
            | ast.comprehension(target=ast.Name(id=name), iter=ast.Tuple(elts=values))
        ) if any(map(tuples.holds, values)):
            yield name
