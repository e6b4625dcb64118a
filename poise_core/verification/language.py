"""Check 1: the file is written in the small language that candidates need, judged from its syntax tree alone.

Nothing is executed. Every syntax node, module member, attribute, keyword and built-in has to be listed in
:mod:`poise_core.verification.vocabulary` or below; what is not listed is refused with its line and the alternative. The
file that passes is run as it stands, so there is no difference between what was checked and what is trained.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from poise_core.verification import vocabulary

MAX_BYTES = 64 * 1024
MAX_NODES = 6000
MAX_DEPTH = 60
MAX_INTEGER = 1_000_000
MAX_SIZE = 4096
MAX_ITERATIONS = 1000
MAX_STRING = 4000

_NODE_NAMES = """
        Module FunctionDef ClassDef Import ImportFrom alias arguments arg keyword Return Assign AugAssign AnnAssign
        For If Expr Pass Break Continue With withitem BoolOp BinOp UnaryOp IfExp Compare Call Constant Attribute
        Subscript Slice Name Dict List Tuple ListComp DictComp GeneratorExp comprehension Load Store And Or Not
        Invert USub UAdd Add Sub Mult Div FloorDiv Mod Pow MatMult BitAnd BitOr BitXor Eq NotEq Lt LtE Gt GtE In
        NotIn Is IsNot
"""
_ALLOWED_NODES = tuple(getattr(ast, name) for name in _NODE_NAMES.split())

_INSTEAD = {
    ast.While: "a while loop may never end; use torch operations or a for loop over a range",
    ast.Try: "an error must not be hidden; make the computation well-defined with clamp or where",
    ast.Raise: "a candidate handles every batch; remove the raise",
    ast.Assert: "a candidate handles every batch; remove the assert",
    ast.Lambda: "define a function at module level instead of a lambda",
    ast.Global: "a candidate keeps no state between calls; use update_controller",
    ast.Nonlocal: "a candidate keeps no state between calls; use update_controller",
    ast.JoinedStr: "f-strings are not needed; write names of metrics as plain strings",
    ast.Yield: "generators are not needed; build a list or use torch operations",
    ast.Delete: "nothing needs to be deleted",
    ast.NamedExpr: "assign on a line of its own instead of :=",
    ast.Starred: "write the arguments out instead of unpacking with *",
    ast.LShift: "use multiplication instead of a shift",
    ast.RShift: "use // instead of a shift",
    ast.AsyncFunctionDef: "a candidate is synchronous",
    ast.Await: "a candidate is synchronous",
}


class LanguageError(Exception):
    """The source uses something outside the candidate language; the message names the line and what to do."""


@dataclass(frozen=True)
class LanguageFinding:
    """One use of something outside the language."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


def parse_source(source: str) -> ast.Module:
    """Parse a candidate within limits on its size and depth.

    Raises:
        LanguageError: too large, too deep, or no valid Python.
    """
    size = len(source.encode("utf-8", "replace"))
    if size > MAX_BYTES:
        raise LanguageError(f"the file has {size} bytes; at most {MAX_BYTES} are allowed")
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise LanguageError(f"line {error.lineno or 1}: the file does not parse: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise LanguageError(f"the file does not parse: {error or 'too deeply nested'}") from error
    count, level = 0, [(tree, 0)]
    while level:
        node, depth = level.pop()
        count += 1
        if count > MAX_NODES:
            raise LanguageError(f"the file is too long: more than {MAX_NODES} syntax nodes")
        if depth > MAX_DEPTH:
            raise LanguageError(
                f"line {getattr(node, 'lineno', 1)}: expressions nest more than {MAX_DEPTH} levels deep; use names"
            )
        level.extend((child, depth + 1) for child in ast.iter_child_nodes(node))  # type: ignore[misc]
    return tree


def check_language(source: str) -> ast.Module:
    """Parse the source and refuse what lies outside the language.

    Raises:
        LanguageError: with the first few findings.
    """
    tree = parse_source(source)
    findings: list[LanguageFinding] = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 1)
        if not isinstance(node, _ALLOWED_NODES):
            advice = _INSTEAD.get(type(node), "the candidate language has no such construct")
            findings.append(LanguageFinding(line, f"{type(node).__name__} is not allowed: {advice}"))
        if isinstance(node, ast.Import):
            findings.extend(
                LanguageFinding(line, f"import {alias.name} is not allowed")
                for alias in node.names
                if alias.name not in vocabulary.MODULES
            )
        if isinstance(node, ast.ImportFrom) and node.module not in vocabulary.MODULES:
            findings.append(LanguageFinding(line, f"import from {node.module} is not allowed"))
    if findings:
        raise LanguageError("; ".join(str(finding) for finding in findings[:3]))
    return tree
