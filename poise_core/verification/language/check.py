"""The check `language`: a file is written in the small language that candidates need, judged from its syntax tree alone.

Nothing is executed. Every syntax node, module member, attribute, keyword and built-in must be listed in
``poise_core.verification.language.vocabulary`` or below; anything else is refused with its line and, where there is
one, the alternative. A file that passes is run unchanged.
"""

from __future__ import annotations

import ast
import math
import unicodedata

from poise_core.candidate.identity import MAX_TUPLE
from poise_core.candidate.switches import literal
from poise_core.escaping import is_printable
from poise_core.verification.language import bounds, scopes, vocabulary
from poise_core.verification.language.aliasing import Texts, Tuples, find_aliases, returns_given
from poise_core.verification.language.body import BodyReader
from poise_core.verification.language.vocabulary import LanguageError

MAX_BYTES = 64 * 1024
MAX_NODES = 6000
MAX_DEPTH = 60
MAX_FINDINGS = 3

_PLAIN = vocabulary.names("abs all any bool float int len max min range round sum tuple")
"""Built-in functions that return numbers, tuples and ranges; the others make lists, or iterators that are used up."""


def parse_source(source: str) -> ast.Module:
    """Parse a candidate within limits on its size and depth.

    Raises:
        LanguageError: the source is too large, too deep, or no valid Python.
    """
    size = len(source.encode("utf-8", "replace"))
    if size > MAX_BYTES:
        raise LanguageError(f"the file has {size} bytes; at most {MAX_BYTES} are allowed")
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise LanguageError(f"line {error.lineno or 1}: the file does not parse: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise LanguageError(f"the file does not parse: {str(error) or 'it nests too deeply'}") from error
    for number, line in enumerate(source.splitlines(), start=1):
        if odd := unprintable(line):
            raise LanguageError(f"line {number}: the file holds the character {odd}, which cannot be seen; remove it")
    count = 0
    pending: list[tuple[ast.AST, int]] = [(tree, 0)]
    while pending:
        node, depth = pending.pop()
        count += 1
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (odd := unprintable(node.value)):
            raise LanguageError(f"line {node.lineno}: this text holds the character {odd}; write printable characters")
        if count > MAX_NODES:
            raise LanguageError(f"the file has more than {MAX_NODES} syntax nodes; shorten it")
        if depth > MAX_DEPTH:
            raise LanguageError(
                f"line {getattr(node, 'lineno', 1)}: more than {MAX_DEPTH} levels of nesting; use names"
            )
        pending.extend((child, depth + 1) for child in ast.iter_child_nodes(node))
    return tree


def check_language(source: str) -> ast.Module:
    """Parse the source and refuse everything that is outside the language.

    Raises:
        LanguageError: the first findings, each with its line.
    """
    tree = parse_source(source)
    reader = _ModuleReader()
    reader.module(tree)
    if not reader.findings:  # the compiler's symbol table is a second opinion on what the reader accepts
        try:
            compile(tree, "<candidate>", "exec", dont_inherit=True)
            reader.findings.extend(scopes.scope_findings(source, tree))
        except (
            SyntaxError
        ) as error:  # what the grammar allows and the compiler does not: a late __future__, a break without a loop
            reader.findings.append((error.lineno or 1, f"the file does not compile: {error.msg}"))
    if reader.findings:
        found = sorted(set(reader.findings))[:MAX_FINDINGS]
        raise LanguageError("; ".join(f"line {line}: {message}" for line, message in found))
    return tree


def unprintable(text: str) -> str:
    """Return the first character of a text that a terminal or page would not show, or "".

    These are the characters that ``poise_core.escaping.printable`` replaces, and private ones; line ends and tabs are allowed.
    """
    if text.isascii() and is_printable(text.replace("\r", "")):  # as nearly every text, by one search
        return ""
    for character in text:
        if (character != "\r" and not is_printable(character)) or unicodedata.category(character) == "Co":
            return f"U+{ord(character):04X}"
    return ""


class _ModuleReader(BodyReader):
    """A reader of a whole file: imports, constants, hyperparameters and functions, in their order."""

    def module(self, tree: ast.Module) -> None:
        fields = {
            line.target.id: line.value
            for node in tree.body
            if isinstance(node, ast.ClassDef)
            for line in node.body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        }
        self.fields = frozenset(fields)
        self.tuples = Tuples(frozenset(name for name, value in fields.items() if isinstance(value, ast.Tuple)))
        for position, node in enumerate(tree.body):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                self.constant(node)
            elif isinstance(node, ast.FunctionDef):
                self.function(node)
            elif isinstance(node, ast.ClassDef):
                self.hyperparameters(node)
            elif not (position == 0 and _is_docstring(node)):
                name = type(node).__name__
                self.refuse(
                    node,
                    f"{name} at module level is not allowed: only imports, constants, Hyperparameters and functions",
                )

    def imports(self, node: ast.Import | ast.ImportFrom) -> None:
        allowed = ", ".join(sorted(set(vocabulary.MODULES) - {"torch.nn", "__future__"}))
        for alias in node.names:
            name = alias.asname or alias.name
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                if node.level or module not in vocabulary.MODULES:
                    self.refuse(
                        node, f"importing from {'.' * node.level}{module} is not allowed; importable are {allowed}"
                    )
                elif alias.name not in vocabulary.MODULES[module]:
                    self.refuse(node, f"{module}.{alias.name} is not among the functions that a candidate may use")
                elif self.is_free(node, name):
                    dotted = f"{module}.{alias.name}"
                    if dotted in vocabulary.MODULES:
                        self.modules[name] = dotted
                    else:
                        if alias.name in vocabulary.TYPES:
                            self.types.add(name)
                        else:
                            self.members[name] = module
                            self.original[name] = alias.name
            elif alias.name not in vocabulary.MODULES or alias.name == "__future__":
                self.refuse(node, f"importing {alias.name} is not allowed; importable are {allowed}")
            elif alias.asname is None and "." in alias.name:  # binds the top-level name
                top = alias.name.partition(".")[0]
                if top != "torch":
                    self.refuse(node, f"write from {alias.name} import ... instead of import {alias.name}")
                elif self.modules.get(top) == top or self.is_free(node, top):
                    self.modules[top] = top
            elif name in self.modules and self.modules[name] == alias.name:
                continue
            elif self.is_free(node, name):
                self.modules[name] = alias.name

    def constant(self, node: ast.Assign | ast.AnnAssign) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if len(targets) != 1 or not isinstance(targets[0], ast.Name) or node.value is None:
            self.refuse(node, "module level takes one constant per line: NAME = value")
            return
        name = targets[0].id
        if name != "MECHANISMS" and any(isinstance(part, ast.Dict | ast.List) for part in ast.walk(node.value)):
            self.refuse(node, f"{name} could be changed between calls; use a tuple or numbers")
        if any(isinstance(part, ast.ListComp | ast.DictComp | ast.GeneratorExp) for part in ast.walk(node.value)):
            self.refuse(node, f"{name} must be written out, not computed by a comprehension")
        if name in ("MECHANISMS", "LOSS_AGGREGATION") and not _is_written_out(node.value):
            self.refuse(node, f"{name} must be written out with plain values, without names, sums or calls")
        if isinstance(node, ast.AnnAssign):
            self.annotation(node.annotation)
        if any(not self.is_plain_call(part) for part in ast.walk(node.value) if isinstance(part, ast.Call)):
            self.refuse(
                node,
                f"{name} would be a tensor, list or iterator that lives between calls; build it inside the function",
            )
        self.expression(node.value)
        if self.texts.holds(node.value):
            self.texts = Texts(self.texts.names | {name}, self.texts.fields)
        if self.is_free(node, name):
            self.constants.add(name)

    def is_plain_call(self, call: ast.Call) -> bool:
        """Whether a call at module level is of a built-in or of ``math``, which return numbers and tuples."""
        match call.func:
            case ast.Name(id=name):
                return name in _PLAIN or self.members.get(name) == "math"
            case ast.Attribute(value=ast.Name(id=name)):
                return self.modules.get(name) == "math"
            case _:
                return False

    def hyperparameters(self, node: ast.ClassDef) -> None:
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        if node.name != "Hyperparameters" or node.bases or node.keywords or node.name in self.classes:
            self.refuse(node, f"class {node.name} is not allowed: the only class is Hyperparameters, without bases")
        elif decorators != ["dataclass(frozen=True)"] or self.members.get("dataclass") != "dataclasses":
            self.refuse(
                node, "decorate Hyperparameters with @dataclass(frozen=True) from dataclasses, and nothing else"
            )
        for position, line in enumerate(node.body):
            if position == 0 and _is_docstring(line):
                continue
            if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
                self.refuse(line, "Hyperparameters holds lines like name: float = 0.1 and nothing else")
                continue
            self.identifier(line, line.target.id)
            if line.target.id in scopes.BUILTIN_NAMES:
                self.refuse(line, scopes.hides_builtin(line.target.id))
            if line.target.id.startswith("_"):
                self.refuse(line, f"{line.target.id} begins with an underscore; rename it")
            if isinstance(line.value, ast.Tuple | ast.List) or _is_several(line.annotation):
                if fault := _tuple_fault(line.target.id, line.annotation, line.value):
                    self.refuse(line, fault)
                elif line.value is not None:
                    self.expression(line.value)
                continue
            if not isinstance(line.annotation, ast.Name) or line.annotation.id not in ("float", "int", "bool", "str"):
                self.refuse(
                    line, f"{line.target.id} must be annotated with float, int, bool, str or a tuple of numbers"
                )
            if line.value is None or not _is_number_or_text(line.value):
                self.refuse(
                    line, f"{line.target.id} needs a default written as a plain number, True, False or a string"
                )
            elif line.value is not None:
                self.expression(line.value)
                if self.texts.holds(line.value):
                    self.texts = Texts(self.texts.names, self.texts.fields | {line.target.id})
        self.classes.add(node.name)

    def function(self, node: ast.FunctionDef) -> None:
        self.identifier(node, node.name)
        for decorator in node.decorator_list:
            if ast.unparse(decorator) != "torch.no_grad()" or self.modules.get("torch") != "torch":
                self.refuse(node, f"{node.name} has a decorator; remove it (@torch.no_grad() alone is allowed)")
        if getattr(node, "type_params", ()):  # since Python 3.12
            self.refuse(node, f"{node.name} has type parameters; remove them")
        arguments = node.args
        if arguments.vararg or arguments.kwarg:
            self.refuse(node, f"{node.name} takes *args or **kwargs; name its parameters")
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        for argument in parameters:
            self.annotation(argument.annotation)
            self.is_free(argument, argument.arg)
        optional = [*arguments.posonlyargs, *arguments.args][::-1][: len(arguments.defaults)]
        optional += [
            argument for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value
        ]
        if any(argument.arg == "hp" for argument in optional):
            self.refuse(node, "a parameter called hp takes the hyperparameters and has no default")
        for default in [*arguments.defaults, *(value for value in arguments.kw_defaults if value is not None)]:
            if not _is_number_or_text(default):
                self.refuse(default, "a default is a plain number, True, False, None or a string")
        self.annotation(node.returns)
        self.parameters = frozenset(argument.arg for argument in parameters)
        assigned = frozenset(scopes.assigned_names(node))
        self.locals, self.aliases = self.parameters | assigned, find_aliases(node, self.returning_arguments)
        around, self.texts = self.texts, self.texts.within(node)
        whole, self.tuples = self.tuples, self.tuples.within(node)
        for name in sorted(assigned):
            self.is_free(node, name)
        for position, statement in enumerate(node.body):
            if not (position == 0 and _is_docstring(statement)):
                self.statement(statement)
        self.findings.extend(bounds.loop_findings(node))
        self.parameters, self.locals, self.aliases = frozenset(), frozenset(), frozenset()
        self.texts, self.tuples = around, whole
        if self.is_free(node, node.name):
            self.functions[node.name] = node  # only now: a function cannot call itself
            if returns_given(node, self.returning_arguments):
                self.returning_arguments |= {node.name}


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_written_out(value: ast.expr) -> bool:
    try:
        literal("it", value)
    except ValueError:
        return False
    return True


def _is_several(annotation: ast.expr) -> bool:
    named = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    return isinstance(named, ast.Name) and named.id in ("tuple", "list", "dict", "set")


def _tuple_fault(name: str, annotation: ast.expr, value: ast.expr | None) -> str:
    """What is wrong with a field that holds several numbers; "" for ``tuple[float, float] = (0.1, 0.2)`` and its like."""
    form = f"such as {name}: tuple[float, float] = (0.1, 0.2), or tuple[float, ...] for any length"
    match annotation:
        case ast.Subscript(
            value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[ast.Name(id=kind), ast.Constant(value=end)])
        ):
            kinds, count = [kind], 0 if end is ... else -1
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[*parts]) | parts):
            parts = parts if isinstance(parts, list) else [parts]
            kinds, count = [getattr(part, "id", "") for part in parts], len(parts)
        case _:
            kinds, count = [], -1
    if count < 0 or not kinds or not all(kind in ("float", "int", "bool") for kind in kinds):
        return f"{name} holds several numbers; write a tuple of float, int or bool, {form}"
    if not isinstance(value, ast.Tuple) or not all(_is_finite_number(part) for part in value.elts):
        return f"{name} needs a default written as a tuple of plain finite numbers, {form}"
    if not 1 <= len(value.elts) <= MAX_TUPLE:
        return f"{name} holds {len(value.elts)} numbers; a tuple has one to {MAX_TUPLE} of them"
    if count and count != len(value.elts):
        return f"{name} is annotated with {count} numbers and has {len(value.elts)}; make them agree, {form}"
    return ""


def _is_finite_number(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    if not isinstance(node, ast.Constant) or not isinstance(node.value, bool | int | float):
        return False
    return not isinstance(node.value, float) or math.isfinite(node.value)


def _is_number_or_text(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None)
