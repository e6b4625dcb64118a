"""Check 1: the file is written in the small language that candidates need, judged from its syntax tree alone.

Nothing is executed. Every syntax node, module member, attribute, keyword and built-in has to be listed in
:mod:`poise_core.verification.vocabulary` or below; what is not listed is refused with its line and, where there is
one, the alternative. The file that passes is run as it stands: no rewriting stands between what was checked and what
trains.
"""

from __future__ import annotations

import ast

from poise_core.verification import bounds, vocabulary
from poise_core.verification.aliasing import find_aliases
from poise_core.verification.vocabulary import LanguageError

MAX_BYTES = 64 * 1024
MAX_NODES = 6000
MAX_DEPTH = 60
MAX_FINDINGS = 3

_ADVICE = {
    "While": "a while loop may never end; use torch operations or a for loop over a range",
    "Try": "an error must not be hidden; make the computation well-defined with clamp or torch.where",
    "Raise": "a candidate handles every batch; remove it",
    "Assert": "a candidate handles every batch; remove it",
    "Lambda": "define a function at module level instead",
    "Global": "a candidate keeps no state between calls; use update_controller",
    "Nonlocal": "a candidate keeps no state between calls; use update_controller",
    "JoinedStr": "write names of metrics as plain strings",
    "Yield": "build a list or use torch operations",
    "Starred": "write the arguments out",
    "LShift": "use multiplication",
    "RShift": "use //",
    "NamedExpr": "assign on a line of its own",
    "FunctionDef": "define functions at module level",
}
_EXPRESSIONS = (
    ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.IfExp, ast.Compare, ast.Call, ast.Constant, ast.Attribute, ast.Subscript, ast.Slice,
    ast.Name, ast.Dict, ast.List, ast.Tuple, ast.ListComp, ast.DictComp, ast.GeneratorExp,
)  # fmt: skip
_OPERATORS = (
    ast.And, ast.Or, ast.Not, ast.Invert, ast.USub, ast.UAdd, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow,
    ast.MatMult, ast.BitAnd, ast.BitOr, ast.BitXor, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Is,
    ast.IsNot,
)  # fmt: skip


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
        raise LanguageError(f"the file does not parse: {str(error) or 'it nests too deeply'}") from error
    count = 0
    pending: list[tuple[ast.AST, int]] = [(tree, 0)]
    while pending:
        node, depth = pending.pop()
        count += 1
        if count > MAX_NODES:
            raise LanguageError(f"the file has more than {MAX_NODES} syntax nodes; shorten it")
        if depth > MAX_DEPTH:
            raise LanguageError(
                f"line {getattr(node, 'lineno', 1)}: more than {MAX_DEPTH} levels of nesting; use names"
            )
        pending.extend((child, depth + 1) for child in ast.iter_child_nodes(node))
    return tree


def check_language(source: str) -> ast.Module:
    """Parse the source and refuse what lies outside the language.

    Raises:
        LanguageError: the first findings, each with its line.
    """
    tree = parse_source(source)
    reader = _Reader()
    reader.module(tree)
    if reader.findings:
        found = sorted(set(reader.findings))[:MAX_FINDINGS]
        raise LanguageError("; ".join(f"line {line}: {message}" for line, message in found))
    return tree


class _Reader:
    """Walks a module with the names that are in scope, collecting findings."""

    def __init__(self) -> None:
        self.findings: list[tuple[int, str]] = []
        self.modules: dict[str, str] = {}  # name in the file -> dotted module
        self.members: set[str] = set()  # imported functions and results
        self.types: set[str] = set()  # imported names for annotations
        self.constants: set[str] = set()
        self.functions: dict[str, ast.FunctionDef] = {}  # those defined above the current line
        self.classes: set[str] = set()
        self.fields: frozenset[str] = frozenset()  # of Hyperparameters
        self.parameters: frozenset[str] = frozenset()  # of the function that is being read
        self.locals: frozenset[str] = frozenset()
        self.aliases: frozenset[str] = frozenset()  # locals that may be another name for something it was given

    def refuse(self, node: ast.AST, message: str) -> None:
        self.findings.append((getattr(node, "lineno", 1), message))

    def refuse_construct(self, node: ast.AST) -> None:
        name = type(node).__name__
        advice = _ADVICE.get(name, "the candidate language has no such construct")
        self.refuse(node, f"{name} is not allowed: {advice}")

    # ---- module level

    def module(self, tree: ast.Module) -> None:
        self.fields = frozenset(
            line.target.id
            for node in tree.body
            if isinstance(node, ast.ClassDef)
            for line in node.body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        )
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
                        (self.types if alias.name in vocabulary.TYPES else self.members).add(name)
            elif alias.name not in vocabulary.MODULES or alias.name == "__future__":
                self.refuse(node, f"importing {alias.name} is not allowed; importable are {allowed}")
            elif alias.asname is None and "." in alias.name:  # binds the top-level name
                top = alias.name.partition(".")[0]
                if top != "torch":
                    self.refuse(node, f"write from {alias.name} import ... instead of import {alias.name}")
                else:
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
        if any(isinstance(part, ast.Name) and part.id in self.modules and self.modules[part.id].startswith("torch")
               for part in ast.walk(node.value)):  # fmt: skip
            self.refuse(node, f"{name} would be a tensor that lives between calls; build it inside the function")
        self.expression(node.value)
        if self.is_free(node, name):
            self.constants.add(name)

    def hyperparameters(self, node: ast.ClassDef) -> None:
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        if node.name != "Hyperparameters" or node.bases or node.keywords or node.name in self.classes:
            self.refuse(node, f"class {node.name} is not allowed: the only class is Hyperparameters, without bases")
        elif decorators != ["dataclass(frozen=True)"] or "dataclass" not in self.members:
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
            if line.target.id.startswith("_"):
                self.refuse(line, f"{line.target.id} begins with an underscore; rename it")
            if not isinstance(line.annotation, ast.Name) or line.annotation.id not in ("float", "int", "bool", "str"):
                self.refuse(line, f"{line.target.id} must be annotated with float, int, bool or str")
            if line.value is None or not _is_number_or_text(line.value):
                self.refuse(
                    line, f"{line.target.id} needs a default written as a plain number, True, False or a string"
                )
            elif line.value is not None:
                self.expression(line.value)
        self.classes.add(node.name)

    def function(self, node: ast.FunctionDef) -> None:
        self.identifier(node, node.name)
        if node.decorator_list:
            self.refuse(node, f"{node.name} has a decorator; remove it")
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
        assigned = {
            part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
        }
        self.locals, self.aliases = self.parameters | assigned, find_aliases(node)
        for name in sorted(assigned):
            self.is_free(node, name)
        for position, statement in enumerate(node.body):
            if not (position == 0 and _is_docstring(statement)):
                self.statement(statement)
        self.findings.extend(bounds.loop_findings(node))
        self.parameters, self.locals, self.aliases = frozenset(), frozenset(), frozenset()
        if self.is_free(node, node.name):
            self.functions[node.name] = node  # only now: a function cannot call itself

    def is_free(self, node: ast.AST, name: str) -> bool:
        """Refuse a name that hides an import, a function or a built-in, so that every name means one thing."""
        self.identifier(node, name)
        if any(name in taken for taken in (self.modules, self.members, self.types, self.functions, self.classes)):
            self.refuse(node, f"{name} already names something else in this file; choose another name")
        elif name in self.constants:
            self.refuse(node, f"{name} is a constant of this file; choose another name")
        elif name in vocabulary.BUILTINS:
            self.refuse(node, f"{name} is a built-in function; choose another name")
        else:
            return True
        return False

    def identifier(self, node: ast.AST, name: str) -> None:
        if name.startswith("__"):
            self.refuse(node, f"{name}: names that begin with two underscores are not allowed")

    # ---- statements

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Return(value=value):
                if value is not None:
                    self.expression(value)
            case ast.Assign(targets=targets, value=value):
                self.expression(value)
                for target in targets:
                    self.target(target)
            case ast.AnnAssign(target=target, annotation=annotation, value=value):
                self.annotation(annotation)
                if value is not None:
                    self.expression(value)
                self.target(target)
            case ast.AugAssign(target=target, op=op, value=value):
                self.operator(node, op)
                self.expression(value)
                self.target(target, augmented=True)
            case ast.If(test=test, body=body, orelse=orelse):
                self.expression(test)
                self.block([*body, *orelse])
            case ast.For(target=target, iter=iterated, body=body, orelse=orelse):
                self.expression(iterated)
                self.target(target)
                self.block([*body, *orelse])
            case ast.With(items=[ast.withitem(context_expr=context, optional_vars=None)], body=body):
                if ast.unparse(context) != "torch.no_grad()" or self.modules.get("torch") != "torch":
                    self.refuse(node, "with is only allowed for torch.no_grad()")
                self.block(body)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr)) as call) if (
                attr in vocabulary.CHANGING_MEMBERS
            ):
                if name in self.parameters | self.aliases:
                    self.refuse(
                        node, f"{name}.{attr} changes what this function did not make; copy it first: dict({name})"
                    )
                self.expression(call, changing=True)
            case ast.Pass() | ast.Break() | ast.Continue():
                pass
            case ast.Expr():
                self.refuse(node, "the value of this line is not used; assign it or remove it")
            case _:
                self.refuse_construct(node)

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def target(self, node: ast.expr, augmented: bool = False) -> None:
        match node:
            case ast.Name(id=name):
                self.identifier(node, name)
                if name == "hp":
                    self.refuse(node, "hp always means the hyperparameters; choose another name")
                elif augmented and name in self.parameters | self.aliases:
                    self.refuse(
                        node, f"this changes {name} in place, which this function did not make; write x = {name} + ..."
                    )
            case ast.Tuple(elts=elements) if not augmented:
                for element in elements:
                    self.target(element)
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                if name not in self.locals or name in self.parameters | self.aliases:
                    self.refuse(
                        node, f"assigning into {name} changes something that this function did not make; copy it first"
                    )
                self.expression(index)
            case ast.Attribute():
                self.refuse(node, "assigning to an attribute changes an input or a module; make a new value instead")
            case _:
                self.refuse(node, "assign to a name, or to an element of a list or dict that this function made")

    # ---- expressions

    def annotation(self, node: ast.expr | None) -> None:
        for part in () if node is None else ast.walk(node):
            if isinstance(part, ast.Name):
                known = part.id in self.types | self.members | self.classes | set(
                    self.modules
                ) | vocabulary.BUILTINS | {
                    "str",
                    "object",
                }
                if not known:
                    self.refuse(part, f"the annotation names {part.id}, which is not imported; leave it out")
            elif isinstance(part, ast.Attribute):
                if ast.unparse(part) != "torch.Tensor":
                    self.refuse(
                        part, f"the annotation {ast.unparse(part)} is not allowed; use torch.Tensor or leave it out"
                    )
            elif not isinstance(part, ast.Subscript | ast.Tuple | ast.BinOp | ast.BitOr | ast.Load | ast.Constant):
                self.refuse(part, "this annotation is not allowed; leave it out")
            elif isinstance(part, ast.Constant) and part.value not in (None, ...):
                self.refuse(part, "an annotation in quotes is not allowed; leave it out")

    def expression(self, node: ast.expr, changing: bool = False) -> None:
        if not isinstance(node, _EXPRESSIONS):
            self.refuse_construct(node)
            return
        self.findings.extend(bounds.size_findings(node))
        match node:
            case ast.Name(id=name):
                self.name(node, name)
            case ast.Attribute():
                self.attribute(node, changing)
            case ast.Call():
                self.call(node, changing)
            case ast.Constant(value=value):
                if isinstance(value, bytes | complex):
                    self.refuse(node, f"{type(value).__name__} constants are not allowed")
            case ast.ListComp() | ast.DictComp() | ast.GeneratorExp():
                self.comprehension(node)
            case _:
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self.expression(child)
                    elif isinstance(child, ast.operator | ast.unaryop | ast.boolop | ast.cmpop):
                        self.operator(node, child)

    def operator(self, node: ast.AST, op: ast.AST) -> None:
        if not isinstance(op, _OPERATORS):
            self.refuse(node, f"{type(op).__name__} is not allowed: {_ADVICE.get(type(op).__name__, 'use arithmetic')}")

    def name(self, node: ast.Name, name: str) -> None:
        self.identifier(node, name)
        if name == "MECHANISMS":
            self.refuse(node, "MECHANISMS describes the candidate and may not be read by it")
        if name in self.locals or name in self.constants or name in self.members or name in vocabulary.BUILTINS:
            return
        if name in self.modules:
            self.refuse(node, f"the module {name} may only be used as {name}.function(...)")
        elif name in self.functions:
            self.refuse(node, f"{name} may only be called, not passed on")
        elif name in self.types:
            self.refuse(node, f"{name} may only stand in annotations")
        else:
            self.refuse(node, f"{name} is not defined above this line, or not allowed in a candidate")

    def attribute(self, node: ast.Attribute, changing: bool = False) -> None:
        root, path = _dotted(node)
        if root in self.modules and root not in self.locals:
            module = self.modules[root]
            for position, part in enumerate(path):
                if part not in vocabulary.MODULES.get(module, frozenset()):
                    self.refuse(node, f"{module}.{part} is not among the functions that a candidate may use")
                    return
                module = f"{module}.{part}"
                if module not in vocabulary.MODULES and position + 1 < len(path):
                    self.refuse(node, f"{'.'.join([root, *path])} is not among the functions that a candidate may use")
                    return
            if path[-1] in vocabulary.TYPES:
                self.refuse(node, f"{module} may only stand in annotations")
            elif module in vocabulary.MODULES:
                self.refuse(node, f"the module {module} may only be used as {module}.function(...)")
            return
        if root == "hp" and "hp" in self.parameters and len(path) == 1:
            if path[0] not in self.fields:
                self.refuse(node, f"Hyperparameters has no field {path[0]}")
            return
        if node.attr in vocabulary.CHANGING_MEMBERS and not changing:
            self.refuse(
                node, f".{node.attr} changes its object; call it on a line of its own, on something this function made"
            )
        elif node.attr not in vocabulary.MEMBERS and node.attr not in vocabulary.CHANGING_MEMBERS:
            self.refuse(
                node, f".{node.attr} is not among the tensor methods and contract fields that a candidate may use"
            )
        self.expression(node.value)

    def call(self, node: ast.Call, changing: bool) -> None:
        parameters: frozenset[str] = frozenset()
        if isinstance(node.func, ast.Name) and node.func.id in self.functions and node.func.id not in self.locals:
            arguments = self.functions[node.func.id].args
            positional = [a.arg for a in [*arguments.posonlyargs, *arguments.args]]
            parameters = frozenset([*positional, *(a.arg for a in arguments.kwonlyargs)])
            self.hands_on_hyperparameters(node, positional)
        elif isinstance(node.func, ast.Name | ast.Attribute):
            self.expression(node.func, changing)
        else:
            self.refuse(node, "only functions and methods may be called")
        for argument in node.args:
            self.expression(argument)
        for keyword in node.keywords:
            if keyword.arg is None:
                self.refuse(node, "unpacking with ** is not allowed: write the arguments out")
            elif keyword.arg not in vocabulary.KEYWORDS and keyword.arg not in parameters:
                self.refuse(node, f"the argument {keyword.arg}= is not allowed")
            self.expression(keyword.value)

    def hands_on_hyperparameters(self, node: ast.Call, positional: list[str]) -> None:
        """A parameter called hp gets the hyperparameters and nothing else: any field name may be read from it."""
        given = dict(zip(positional, node.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        value = given.get("hp")
        if value is not None and not (isinstance(value, ast.Name) and value.id == "hp" and "hp" in self.parameters):
            self.refuse(node, "a parameter called hp takes the hyperparameters: pass hp itself")

    def comprehension(self, node: ast.ListComp | ast.DictComp | ast.GeneratorExp) -> None:
        for generator in node.generators:
            if generator.is_async:
                self.refuse(node, "a candidate is synchronous")
            self.expression(generator.iter)
            self.target(generator.target)
            for condition in generator.ifs:
                self.expression(condition)
        for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            self.expression(part)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_number_or_text(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None)


def _dotted(node: ast.expr) -> tuple[str, list[str]]:
    """The root name and the attributes of ``a.b.c``; an empty root where the chain starts from an expression."""
    path: list[str] = []
    while isinstance(node, ast.Attribute):
        path.append(node.attr)
        node = node.value
    return (node.id if isinstance(node, ast.Name) else ""), path[::-1]
