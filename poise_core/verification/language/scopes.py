"""The part of the check `language` that resolves names to scopes, as Python does.

There are two ways, which share no code. ``assigned_names`` tells the reader of the syntax tree which names a function binds in
its own scope; the targets of comprehensions do not belong to it. ``scope_findings`` asks the compiler's symbol table afterwards,
for every scope of the file (module, class, functions, comprehensions), and refuses what the reader should have
refused: a global that the file does not define and the language does not list, and a binding that hides a built-in.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterator

from poise_core.verification.language import vocabulary

Finding = tuple[int, str]

BUILTIN_NAMES = frozenset(dir(builtins))
"""All names that Python defines without an import; a candidate may use only those in ``vocabulary.BUILTINS``."""

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def assigned_names(node: ast.AST) -> Iterator[str]:
    """Yield the names that the statements of a function or module bind in its own scope, without comprehensions.

    The target of an assignment expression inside a comprehension belongs to the function (PEP 572), so it is included.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _COMPREHENSIONS):
            yield from _walrus_names(child)
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store | ast.Del):
            yield child.id
        else:
            yield from assigned_names(child)


def target_names(target: ast.expr) -> frozenset[str]:
    """Return the names that a target binds."""
    return frozenset(
        part.id for part in ast.walk(target) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    )


def _walrus_names(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.NamedExpr):
            yield part.target.id


def scope_findings(source: str, tree: ast.Module) -> list[Finding]:
    """Return the findings from the compiler's symbol table of a file."""
    table = symtable.symtable(source, "<candidate>", "exec")
    defined = frozenset(symbol.get_name() for symbol in table.get_symbols() if _binds(symbol))
    lines: dict[str, int] = {}
    for part in ast.walk(tree):
        if isinstance(part, ast.Name):
            lines.setdefault(part.id, part.lineno)
    return [(lines.get(name, 1), message) for name, message in _table_findings(table, defined)]


def _table_findings(table: symtable.SymbolTable, defined: frozenset[str]) -> Iterator[tuple[str, str]]:
    if table.get_type() in ("annotation", "type parameters", "type alias", "TypeVar bound"):
        return  # annotations are never evaluated; the reader refuses the rest
    for symbol in table.get_symbols():
        name = symbol.get_name()
        if _binds(symbol) and name in BUILTIN_NAMES:
            yield name, hides_builtin(name)
        outer = symbol.is_global() or (table.get_type() == "module" and not _binds(symbol))
        if symbol.is_referenced() and outer and name not in defined | vocabulary.BUILTINS | vocabulary.ANNOTATIONS:
            yield name, not_defined(name)
    for child in table.get_children():
        yield from _table_findings(child, defined)


def _binds(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported() or symbol.is_parameter() or symbol.is_namespace()


def hides_builtin(name: str) -> str:
    """Return the message for a name that belongs to Python."""
    return f"{name} is a built-in function of Python; choose another name"


def not_defined(name: str) -> str:
    """Return the message for a name that is undefined in a candidate."""
    return f"{name} is not defined above this line, or not allowed in a candidate"
