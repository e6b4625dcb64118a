"""The part of check 1 that decides what every name means, as Python itself decides it.

Two readings that share no code. ``assigned_names`` serves the reader of the syntax tree: what a function binds in its own
scope, which a comprehension's target is not part of. ``scope_findings`` asks the compiler's symbol table afterwards,
for every scope of the file (module, class, functions, comprehensions), and refuses what the first reading should have
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
"""Everything that Python calls by a name without an import; what is not in ``vocabulary.BUILTINS`` is out of reach."""

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def assigned_names(node: ast.AST) -> Iterator[str]:
    """The names that the statements below a function or module bind in its own scope, comprehensions left out.

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
    """The names that a target binds."""
    return frozenset(
        part.id for part in ast.walk(target) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    )


def _walrus_names(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.NamedExpr):
            yield part.target.id


def scope_findings(source: str, tree: ast.Module) -> list[Finding]:
    """What the compiler's own view of the names of a file says against it."""
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
    """The sentence for a name that belongs to Python."""
    return f"{name} is a built-in function of Python; choose another name"


def not_defined(name: str) -> str:
    """The sentence for a name that means nothing in a candidate."""
    return f"{name} is not defined above this line, or not allowed in a candidate"
