"""The part of the check `language` that reads function bodies: statements, expressions, and the names that they use."""

from __future__ import annotations

import ast

from poise_core.verification.language import bounds, scopes, vocabulary
from poise_core.verification.language.aliasing import Texts, Tuples

_ADVICE = {
    "While": "a while loop may never end; use torch operations or a for loop over a range",
    "Try": "an error must not be hidden; make the computation well-defined with clamp or torch.where",
    "Raise": "a candidate handles every batch; remove it",
    "Assert": "a candidate handles every batch; remove it, or mask with torch.where what must not happen",
    "Lambda": "define a function at module level instead",
    "Global": "a candidate keeps no state between calls; use update_controller",
    "Nonlocal": "a candidate keeps no state between calls; use update_controller",
    "JoinedStr": "write names of metrics as plain strings",
    "Yield": "build a list or use torch operations",
    "Starred": "write the arguments out: zip(first, second) instead of zip(*pairs)",
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


class BodyReader:
    """A reader of statements and expressions that knows the names in scope and collects findings."""

    def __init__(self) -> None:
        self.findings: list[tuple[int, str]] = []
        self.modules: dict[str, str] = {}  # name in the file -> dotted module
        self.members: dict[str, str] = {}  # imported functions and results -> the module that they are from
        self.original: dict[str, str] = {}  # the same -> their names in that module
        self.callee: ast.expr | None = None  # the function of the call that is being read
        self.types: set[str] = set()  # imported names for annotations
        self.constants: set[str] = set()
        self.functions: dict[str, ast.FunctionDef] = {}  # those defined above the current line
        self.classes: set[str] = set()
        self.fields: frozenset[str] = frozenset()  # of Hyperparameters
        self.parameters: frozenset[str] = frozenset()  # of the function that is being read
        self.locals: frozenset[str] = frozenset()
        self.returning_arguments: frozenset[str] = frozenset()  # functions that may return one of their arguments
        self.aliases: frozenset[str] = frozenset()  # locals that may refer to an argument
        self.texts = Texts()
        self.tuples = Tuples()

    def refuse(self, node: ast.AST, message: str) -> None:
        """Record that a node is outside the language."""
        self.findings.append((getattr(node, "lineno", 1), message))

    def refuse_construct(self, node: ast.AST) -> None:
        """Record that a whole construct is outside the language, with the alternative."""
        name = type(node).__name__
        advice = _ADVICE.get(name, "the candidate language has no such construct")
        self.refuse(node, f"{name} is not allowed: {advice}")

    def is_free(self, node: ast.AST, name: str) -> bool:
        """Refuse a name that hides an import, a function or a built-in, so that every name has one meaning."""
        self.identifier(node, name)
        if any(name in taken for taken in (self.modules, self.members, self.types, self.functions, self.classes)):
            self.refuse(node, f"{name} already names something else in this file; choose another name")
        elif name in self.constants:
            self.refuse(node, f"{name} is a constant of this file; choose another name")
        elif name in scopes.BUILTIN_NAMES:
            self.refuse(node, scopes.hides_builtin(name))
        else:
            return True
        return False

    def identifier(self, node: ast.AST, name: str) -> None:
        """Refuse a name that could reach an internal of Python."""
        if name.startswith("__"):
            self.refuse(node, f"{name}: names that begin with two underscores are not allowed")

    # ---- statements

    def statement(self, node: ast.stmt) -> None:
        """Read one statement of a function."""
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
                self.findings.extend(bounds.tuple_findings(node, self.tuples))
                if self.texts.holds(value) or self.texts.holds(target):
                    self.refuse(node, "operators on strings are not allowed; write texts out")
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
                if name not in self.locals - self.parameters - self.aliases:
                    self.refuse(
                        node, f"{name}.{attr} changes what this function did not make; copy it first: dict({name})"
                    )
                self.expression(call, changing=True)
            case ast.Pass() | ast.Break() | ast.Continue():
                pass
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr=attr))) if attr.endswith("_") and attr[0] != "_":
                plain = attr.rstrip("_")
                self.refuse(node, f".{attr} changes its tensor in place; write x = x.{plain}(...)")
            case ast.Expr():
                self.refuse(node, "the value of this line is not used; assign it or remove it")
            case _:
                self.refuse_construct(node)

    def block(self, statements: list[ast.stmt]) -> None:
        """Read the statements of a branch or loop."""
        for statement in statements:
            self.statement(statement)

    def target(self, node: ast.expr, augmented: bool = False) -> None:
        """Read the target of an assignment: a name, or an element of an object that this function made."""
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
        """Read an annotation, which may name types and nothing else."""
        for part in () if node is None else ast.walk(node):
            if isinstance(part, ast.Name):
                imported = (self.types, self.members, self.classes, self.modules)
                listed = part.id in vocabulary.BUILTINS | vocabulary.ANNOTATIONS
                if not listed and not any(part.id in names for names in imported):
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
        """Read an expression; ``changing`` allows a method that changes its object."""
        if not isinstance(node, _EXPRESSIONS):
            self.refuse_construct(node)
            return
        self.findings.extend(bounds.size_findings(node))
        self.findings.extend(bounds.tuple_findings(node, self.tuples))
        match node:
            case ast.Name(id=name):
                self.name(node, name)
            case ast.Attribute():
                self.attribute(node, changing)
            case ast.Call():
                self.call(node, changing)
            case ast.BinOp(left=left, right=right) if self.texts.holds(left) or self.texts.holds(right):
                self.refuse(node, "operators on strings are not allowed; write texts out")
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
        """Refuse an operator that is not listed."""
        if not isinstance(op, _OPERATORS):
            self.refuse(node, f"{type(op).__name__} is not allowed: {_ADVICE.get(type(op).__name__, 'use arithmetic')}")

    def name(self, node: ast.Name, name: str) -> None:
        """Read a name, which must refer to something that is allowed as a value."""
        self.identifier(node, name)
        if name == "MECHANISMS":
            self.refuse(node, "MECHANISMS describes the candidate and may not be read by it")
        if name in scopes.BUILTIN_NAMES - vocabulary.BUILTINS:
            self.refuse(node, scopes.not_defined(name))
            return
        if self.members.get(name) == "dataclasses":
            self.refuse(node, f"{name} may only decorate Hyperparameters")
            return
        self.only_called(node, self.members.get(name, ""), self.original.get(name, ""))
        if name in self.locals or name in self.constants or name in self.members or name in vocabulary.BUILTINS:
            return
        if name in self.modules:
            self.refuse(node, f"the module {name} may only be used as {name}.function(...)")
        elif name in self.functions:
            self.refuse(node, f"{name} may only be called, not passed on")
        elif name in self.types:
            self.refuse(node, f"{name} may only stand in annotations")
        else:
            self.refuse(node, scopes.not_defined(name))

    def attribute(self, node: ast.Attribute, changing: bool = False) -> None:
        """Read ``a.b``: a listed member of a module, a field of hp, or a listed method or field."""
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
            self.only_called(node, module.rpartition(".")[0], path[-1])
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
        """Read a call: the function and its arguments."""
        parameters: frozenset[str] = frozenset()
        if isinstance(node.func, ast.Name) and node.func.id in self.functions and node.func.id not in self.locals:
            arguments = self.functions[node.func.id].args
            positional = [a.arg for a in [*arguments.posonlyargs, *arguments.args]]
            parameters = frozenset([*positional, *(a.arg for a in arguments.kwonlyargs)])
            self.hands_on_hyperparameters(node, positional)
        elif isinstance(node.func, ast.Name | ast.Attribute):
            self.callee = node.func
            self.expression(node.func, changing)
        else:
            self.refuse(node, "only functions and methods may be called")
        self.in_place_by_position(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "to" and any(map(self.texts.holds, node.args)):
            self.refuse(node, "a device is that of a tensor: write .to(x.device)")
        for argument in node.args:
            self.expression(argument)
        for keyword in node.keywords:
            if keyword.arg is None:
                self.refuse(node, "unpacking with ** is not allowed: write the arguments out")
            elif keyword.arg not in vocabulary.KEYWORDS and keyword.arg not in parameters:
                self.refuse(node, f"the argument {keyword.arg}= is not allowed")
            elif keyword.arg == "device" and self.texts.holds(keyword.value):
                self.refuse(node, "a device is that of a tensor: write device=x.device")
            self.expression(keyword.value)

    def hands_on_hyperparameters(self, node: ast.Call, positional: list[str]) -> None:
        """Refuse an argument for a parameter called hp that is not hp itself: any field may be read from it."""
        given = dict(zip(positional, node.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        value = given.get("hp")
        if value is not None and not (isinstance(value, ast.Name) and value.id == "hp" and "hp" in self.parameters):
            self.refuse(node, "a parameter called hp takes the hyperparameters: pass hp itself")

    def in_place_by_position(self, node: ast.Call) -> None:
        """Refuse ``relu(x, True)``: the argument that makes a function change its input, given without its name."""
        name = getattr(node.func, "id", "")
        module, name = self.members.get(name, ""), self.original.get(name, "")
        if isinstance(node.func, ast.Attribute):
            module, name = self.modules.get(_dotted(node.func)[0], ""), node.func.attr
        limit = vocabulary.INPLACE_POSITION.get(name) if module.startswith("torch") else None
        if limit is not None and len(node.args) > limit:
            self.refuse(
                node, f"{name} takes {limit} arguments by position; the next one would change an argument in place"
            )

    def only_called(self, node: ast.expr, module: str, name: str) -> None:
        """Refuse a function that can work in place as a value: under another name, nobody would see how it is called."""
        if module == "torch" and name == "no_grad":
            self.refuse(node, "no_grad stands in the line with torch.no_grad(): and nowhere else")
        if node is not self.callee and module.startswith("torch") and name in vocabulary.INPLACE_POSITION:
            self.refuse(node, f"{name} may only be called, not passed on")

    def comprehension(self, node: ast.ListComp | ast.DictComp | ast.GeneratorExp) -> None:
        """Read a comprehension, whose targets are names only inside it."""
        around = self.locals
        for generator in node.generators:
            if generator.is_async:
                self.refuse(node, "a candidate is synchronous")
            self.expression(generator.iter)
            self.target(generator.target)
            for name in sorted(scopes.target_names(generator.target)):
                self.is_free(generator.target, name)
            self.locals = self.locals | scopes.target_names(generator.target)
            for condition in generator.ifs:
                self.expression(condition)
        for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            self.expression(part)
        self.locals = around


def _dotted(node: ast.expr) -> tuple[str, list[str]]:
    """Return the root name and the attributes of ``a.b.c``; the root is empty where the chain starts from an expression."""
    path: list[str] = []
    while isinstance(node, ast.Attribute):
        path.append(node.attr)
        node = node.value
    return (node.id if isinstance(node, ast.Name) else ""), path[::-1]
