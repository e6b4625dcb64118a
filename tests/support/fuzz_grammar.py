"""Programs written at random around what a candidate may not use, for the fuzzer of the language check.

Everything is drawn through one function, ``choose``, so that hypothesis and a seeded generator write from the same grammar. A
program is a sound candidate with statements at the top of one of its functions and lines at module level. Most of its parts are
in the language, so that many programs pass the check; the others, the bait, are what has to be kept out: names, attributes,
constructs and calls, each written in many ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gate_fixtures import ADVANTAGE, RATIO, edited

Choose = Callable[[Sequence[str]], str]

FORBIDDEN = (
    "exec", "eval", "open", "compile", "__import__", "getattr", "setattr", "type", "vars", "globals", "object", "print", "input",
    "super", "__builtins__", "breakpoint", "memoryview", "locals", "delattr", "hasattr", "iter", "next", "map",
    "filter", "property",
    "classmethod", "dir", "format", "repr", "str", "bytes", "id", "callable", "isinstance", "BaseException", "__build_class__",
    "__loader__", "__spec__", "__name__", "__debug__", "Ellipsis", "staticmethod", "help", "exit",
)  # fmt: skip

MODULE_BAIT = (
    "torch.load", "torch.save", "torch.hub.load", "torch.ops.load_library", "torch.jit.load", "torch.jit.script", "torch.compile",
    "torch.utils.data.DataLoader", "torch.utils.cpp_extension.load", "torch.serialization.os.getpid", "torch.os.getpid",
    "torch.sys.modules", "torch.builtins.open", "torch.__builtins__", "torch.nn.functional.__builtins__", "torch.__dict__",
    "torch.nn.functional.torch.os", "torch.nn.Module", "torch.nn.Parameter", "torch.nn.init.normal_", "torch.rand", "torch.empty",
    "torch.from_file", "torch.manual_seed", "torch.set_default_dtype", "torch.set_num_threads", "torch.Tensor", "torch.autograd",
    "torch.multiprocessing", "torch.distributed", "torch.classes", "torch.library.Library", "torch.fx.symbolic_trace",
    "torch.importlib.import_module", "torch._C._jit_clear_class_registry", "torch.package.PackageImporter", "torch.cuda.init",
    "torch.finfo.__class__", "torch.pi.__class__", "torch.float32.to_complex", "torch.no_grad.__call__", "math.__loader__",
    "math.sumprod", "F.dropout", "F.torch", "F.relu.__globals__", "F.handle_torch_function", "torch.functional", "torch.typename",
)  # fmt: skip

TENSOR_BAIT = (
    "numpy", "data_ptr", "register_hook", "backward", "__reduce__", "__class__", "__dict__", "data", "grad", "grad_fn",
    "requires_grad_", "add_", "mul_", "fill_", "storage", "untyped_storage", "set_", "share_memory_", "apply_", "map_", "uniform_",
    "retain_grad", "__array__", "__dlpack__", "tofile", "bernoulli", "multinomial", "new_empty", "resize_", "requires_grad",
    "format", "join", "encode", "__getattribute__", "_typed_storage", "_backward_hooks", "gi_frame", "f_globals", "fromhex",
    "from_bytes", "hex", "fromkeys", "pop", "clear", "sort_", "detach_", "to_sparse", "names", "_replace", "__setitem__", "mro",
)  # fmt: skip

ALIASES = (
    "from torch.nn.functional import relu as r", "from torch.nn.functional import hardtanh", "from torch import clip as dataclass",
    "from torch import zeros as z", "import torch.nn.functional", "import torch.nn.functional as F", "from torch import nn as n",
    "from torch.nn import functional as G", "import math as m", "from math import pi as p", "from torch import tensor",
    "from dataclasses import dataclass as d", "from dataclasses import field", "from dataclasses import replace",
    "from dataclasses import make_dataclass", "from collections import namedtuple", "from collections.abc import Mapping as M",
    "from collections.abc import Callable", "from poise_core import contract", "import poise_core.reductions as red",
    "from poise_core.reductions import torch", "from poise_core.contract import Tensor",
    "from poise_core.contract import dataclass",
    "from torch import os", "from torch import *", "from torch.utils import data", "import torch.os as o", "from . import x",
    "from __future__ import annotations", "from __future__ import annotations as later", "from builtins import open",
    "import os", "import sys as math", "import torch as math", "import torch, math", "from torch import ops", "import torch._C",
    "from torch import Tensor as T", "from torch import relu", "from poise_core.contract import Advantages as A",
)  # fmt: skip

NAMES = ("a", "b", "c", "f", "x", "y")
SOUND_NAMES = (
    "batch",
    "hp",
    "dynamics",
    "torch",
    "len",
    "dict",
    "list",
    "max",
    "Advantages",
    "group_mean",
    "helper",
    "LIMIT",
    "math",
)
TENSORS = (
    "batch.correctness", "batch.old_logprobs", "batch.completion_mask", "batch.group_ids", "batch.entropies", "batch.truncated",
)  # fmt: skip
METHODS = (
    "abs",
    "exp",
    "sum",
    "mean",
    "float",
    "clone",
    "detach",
    "flatten",
    "sqrt",
    "long",
    "bool",
    "tolist",
    "size",
    "numel",
    "item",
)
FUNCTIONS = (
    "exp",
    "log1p",
    "abs",
    "zeros_like",
    "ones_like",
    "sigmoid",
    "tanh",
    "relu",
    "sort",
    "cumsum",
    "unique",
    "isfinite",
)
BUILT_IN = (
    "abs",
    "bool",
    "dict",
    "enumerate",
    "float",
    "int",
    "len",
    "list",
    "max",
    "min",
    "reversed",
    "sorted",
    "sum",
    "tuple",
    "zip",
)
OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "@", "&", "|", "^", "<", "==", "is", "in", "not in", "and", "or")
TEXTS = ("'1'", "'x'", "'os'", "'%s'", "'{0.__class__}'", "'cpu'", "'mean'", "'meta'", "''", "'__builtins__'", "'fro'")
NUMBERS = (
    "0",
    "1",
    "2",
    "0.5",
    "-1.0",
    "True",
    "None",
    "hp.clip_eps",
    "dynamics.progress",
    "...",
    "3",
    "1e6",
    "hp.pair[0]",
    "hp.pair",
)
PAIR = "pair: tuple[float, float] = (0.1, 0.3)"


@dataclass
class Writer:
    """A writer of one program; ``calm`` of ten choices stay in the language."""

    choose: Choose
    calm: int = 9
    tenths: Sequence[str] = field(default=tuple("0123456789"))

    def bait(self) -> bool:
        """Whether to write something that is not allowed."""
        return int(self.choose(self.tenths)) >= self.calm

    def name(self) -> str:
        """A name to read or bind."""
        if self.bait():
            return self.choose(FORBIDDEN)
        return self.choose(NAMES + SOUND_NAMES) if self.bait() else self.choose(NAMES)

    # ---- expressions

    def atom(self) -> str:
        """A name, a number, a text or a tensor."""
        kind = self.choose(("tensor", "tensor", "number", "text", "name", "module"))
        if kind == "module" and self.bait():
            return self.choose(MODULE_BAIT)
        if kind == "name":
            return self.name()
        return self.choose(
            {"tensor": TENSORS, "number": NUMBERS, "text": TEXTS, "module": ("torch.float32", "torch.pi")}[kind]
        )

    def attribute(self) -> str:
        """The name of a method or field."""
        return self.choose(TENSOR_BAIT) if self.bait() else self.choose(METHODS)

    def expression(self, depth: int = 2) -> str:
        """An expression of some depth."""
        if depth <= 0:
            return self.atom()
        one, two, name = self.expression(depth - 1), self.expression(depth - 1), self.name()
        sound = (
            f"torch.{self.choose(FUNCTIONS)}({one})",
            f"{self.choose(BUILT_IN)}({one})",
            f"({one}).{self.attribute()}()",
            f"({one}).{self.attribute()}",
            f"({one} {self.choose(OPERATORS)} {two})",
            f"[{one} for {name} in ({two}, {name})]",
            f"[{one} for {name} in [{two}] if {name}]",
            f"{{{self.choose(TEXTS)}: {one} for {name} in ({two},)}}",
            f"sum({one} for {name} in range(2) for {self.name()} in ({two},))",
            f"[[{name} for {name} in ({one},)] for {self.name()} in ({two},)]",
            f"[{name}, {one}]",
            f"({one}, {two})",
            f"{{'x': {one}, **{{'y': {two}}}}}",
            f"({one})[{two}]",
            f"({one})[:, 0]",
            f"{one} if {two} else {name}",
            f"{name}({one})",
            f"{name}({one}, True)",
            f"helper({one})",
            f"Advantages({one})",
            f"torch.where({one}, {two}, 1.0)",
            f"-{one}",
            f"group_mean({one}, batch.group_ids)",
            f"({one}).to({two})",
            f"max(({one},))",
            f"hp.pair[{one}]",
            f"hp.pair[{self.choose(('0', '1', '-1', ':1', '::-1'))}]",
            f"[{one} for {name} in hp.pair]",
            f"{self.choose(BUILT_IN)}(hp.pair)",
            f"tuple({name} * 2.0 for {name} in hp.pair)",
            "helper(hp.pair)",
        )  # fmt: skip
        return self.choose(self.odd(one, two, name)) if self.bait() else self.choose(sound)

    def odd(self, one: str, two: str, name: str) -> Sequence[str]:
        """Expressions that the language does not have."""
        return (
            f"(lambda {name}: {one})({two})",
            f"(lambda {name}={one}: {name})()",
            f"({name} := {one})",
            f"[({name} := {one}) for {self.name()} in (1,)]",
            f"f'{{{one}}}'",
            f"f'{{{one}!r:{{{two}}}}}'",
            f"'{{0.{self.attribute()}}}'.format({one})",
            f"'%s' % ({one},)",
            f"{{{one}, {two}}}",
            f"{{{one} for {name} in (1,)}}",
            f"helper(*[{one}])",
            f"helper(**{{'v': {one}}})",
            f"helper({one}, hp={two})",
            f"[*{one}]",
            f"{self.choose(MODULE_BAIT)}({one})",
            f"{self.choose(MODULE_BAIT)}.{self.attribute()}({one})",
            f"{self.choose(FORBIDDEN)}({one}, {self.choose(TEXTS)})",
            f"{one}.{self.choose(TENSOR_BAIT)}.{self.choose(TENSOR_BAIT)}",
            f"torch.exp({one}, out={two})",
            f"torch.nn.functional.relu({one}, {two})",
            f"torch.nn.functional.relu({one}, inplace=True)",
            f"sorted({one}, key={name})",
            f"({one})({two})",
            f"[{one}][0]({two})",
            f"(yield {one})",
            f"await_({one})",
            f"[{one} async for {name} in {two}]",
            f"{one} << {two}",
            f"hp.{self.attribute()}",
            f"torch.zeros(3).{self.attribute()}({one})",
            f"{name}.{self.attribute()}.{self.attribute()}",
            f"dict.{self.choose(('update', 'fromkeys', 'get', 'copy'))}({one}, {two})",
            f"list.append({one}, {two})",
            f"{name}.__class__.__base__.__subclasses__()",
            f"b'{one[:1]}'",
            f"2j * {one}",
            f"hp.pair {self.choose(OPERATORS)} {one}",
            f"{one} {self.choose(OPERATORS)} hp.pair",
            f"hp.pair[:1] {self.choose(OPERATORS)} {one}",
            f"({one}).{self.choose(('reshape', 'expand', 'repeat', 'new_zeros', 'view'))}(hp.pair)",
            f"torch.{self.choose(('zeros', 'ones', 'full'))}(hp.pair)",
            f"hp.pair.{self.choose(('index', 'count', '__add__', '__class__', '_replace'))}({one})",
        )  # fmt: skip

    # ---- statements

    def statement(self, depth: int = 1) -> str:
        """One statement; a compound one while ``depth`` allows."""
        name, other, value = self.name(), self.name(), self.expression()
        simple = (
            f"{name} = {value}",
            f"{name} = {value}",
            f"{name}: float = {value}",
            f"{name}, {other} = ({value}, {self.atom()})",
            f"{name} = {other} = {value}",
            f"{name} += {value}",
            f"{name}[0] = {value}",
            f"{name}[{self.atom()}]: float = {value}",
            f"{name}.append({value})",
            f"{name}.update({value})",
            f"({name}, ({other}, c)) = {value}",
            f"{name}, {other} = hp.pair",
            "pass",
        )  # fmt: skip
        compound = (
            "if {test}:\n{body}", "if False:\n{body}", "for {name} in {test}:\n{body}", "for {name} in (1, 2):\n{body}",
            "for {name}, {other} in enumerate(({test},)):\n{body}", "for {name} in range(2):\n{body}\nelse:\n    pass",
            "with torch.no_grad():\n{body}", "if {test}:\n    pass\nelse:\n{body}",
        )  # fmt: skip
        if depth > 0 and self.choose(("simple", "simple", "compound")) == "compound":
            body = indented(self.statement(depth - 1))
            template = self.choose(self.odd_compound()) if self.bait() else self.choose(compound)
            return template.format(name=name, other=other, test=self.expression(1), body=body)
        return self.choose(self.odd_simple(name, other, value)) if self.bait() else self.choose(simple)

    def odd_simple(self, name: str, other: str, value: str) -> Sequence[str]:
        """Statements that the language does not have, and some that only look so."""
        return (
            f"del {name}", f"global {name}", f"nonlocal {name}", f"import math as {name}", f"from math import pi as {name}",
            f"import {name}", f"global {name}; {name} = {value}", f"assert {value}", f"raise {value}", f"return {value}", value,
            f"{name}.{self.attribute()} = {value}", f"{name}.{self.attribute()} += 1", f"*{name}, {other} = {value}",
            f"{name}: {value} = 1.0", f"{name}: '{other}' = 1.0", f"{name}[0]: {value} = 1", f"{name}: {value}",
            f"{name}.{self.attribute()}({value})", f"dict.update({name}, {value})", f"batch.correctness[0] = {value}",
            f"type {name} = {value}", f"torch.exp = {name}", f"dynamics.controller.update({value})", f"({name}) = {value}",
            f"dynamics.controller['x'] = {value}", f"{name} @= {value}", f"{name} = yield {value}", "raise", f"lambda: {value}",
        )  # fmt: skip

    @staticmethod
    def odd_compound() -> Sequence[str]:
        """Blocks that the language does not have."""
        return (
            "while {test}:\n{body}\n    break", "try:\n{body}\nexcept Exception as {name}:\n    pass",
            "try:\n{body}\nfinally:\n    pass",
            "try:\n    1 / 0\nexcept {test}:\n{body}", "try:\n{body}\nexcept* ValueError:\n    pass",
            "with torch.no_grad() as {name}:\n{body}", "with {test}:\n{body}", "with {test} as {name}, {test} as {other}:\n{body}",
            "def {name}({other}={test}):\n{body}", "def {name}(*{other}, **c):\n{body}",
            "def {name}({other}: {test}) -> {test}:\n{body}",
            "@{test}\ndef {name}():\n{body}", "class {name}:\n{body}", "class {name}({test}):\n{body}",
            "class {name}(metaclass={other}):\n{body}", "@{test}\nclass {name}:\n{body}", "async def {name}():\n{body}",
            "match {test}:\n    case {name}:\n        pass", "match {test}:\n    case dict({name}={other}):\n        pass",
            "match {test}:\n    case [{name}, *{other}]:\n        pass\n    case _:\n        pass",
            "async for {name} in {test}:\n{body}",
            "def {name}[{other}: {test}]():\n{body}", "for {name}.data in {test}:\n{body}", "for {name}[0] in {test}:\n{body}",
            "for *{name}, {other} in {test}:\n{body}",
        )  # fmt: skip

    # ---- programs

    def module_line(self) -> str:
        """A line, or a definition, at module level."""
        name, other, value = self.name(), self.name(), self.expression(1)
        sound = (
            "", "LIMIT = (1.0, 2.0)", "BOUND = 3", f"{name.upper()}_ = {self.choose(NUMBERS[:6])}", "import math",
            "LIMIT = math.sqrt(2.0)",
            "LIMIT = sorted((2, 1))", "BOUND = enumerate((1, 2))", "BOUND = 0.5", "EDGE = min(1, 2) - 0.5",
            "EDGE = tuple(range(3))", "TOP = max((1.0, 2.0))", f"USED = {self.choose(BUILT_IN)}((1, 2))",
            f"def more(v, hp):\n    return {value}", f"def more(v: float = 1.0):\n    {name} = v\n    return {name}",
        )  # fmt: skip
        odd = (
            self.choose(ALIASES), self.choose(ALIASES), f"{name} = {value}", f"{name}: {value} = 1", f"{value}", f"{name} = [1]",
            f"def {name}(v={value}):\n    return v", f"@{value}\ndef {name}(v):\n    return v", f"class {name}({other}):\n    pass",
            f"def {name}(v: {value}) -> {value}:\n    return v", f"if True:\n    {name} = {value}", f"{name}, {other} = 1, 2",
            f"@dataclass(frozen=True)\nclass {name}:\n    a: {value} = {other}", f"{name} = dataclass({other})", f"del {name}",
            f"for {name} in (1,):\n    pass", f"def {name}[T: {value}](v):\n    return v",
            f"{name} = [{other} for {other} in (1,)]",
            f"LIMIT = {value}", f"async def {name}():\n    pass", f"def {name}():\n    yield {value}", f"global {name}",
            f"try:\n    pass\nexcept Exception as {name}:\n    pass", f"import torch as {name}", f"{name} += 1",
            f"LIMIT: '{value}' = 1",
            f"with torch.no_grad():\n    {name} = {value}", f"def more({name}):\n    {other} = {name}\n    return {other}",
            f"def more(v, /, hp, *, {name}=1):\n    return hp.{self.attribute()}", f"def torch():\n    return {value}",
        )  # fmt: skip
        return self.choose(odd) if self.bait() else self.choose(sound)

    def several(self) -> str:
        """A field that holds several numbers."""
        value = self.expression(1)
        odd = (
            f"pair: tuple[{value}, ...] = (0.1, 0.3)", f"pair: tuple[float, float] = ({value}, 0.3)",
            f"pair: tuple[float] = {value}",
            "pair: list[float] = [0.1, 0.3]", f"pair: {self.choose(FORBIDDEN)}[float, float] = (0.1, 0.3)",
            "pair: tuple[float, ...] = (0.1,) * 3", f"pair: tuple[float, ...] = tuple({value})", "pair: tuple = (0.1, 0.3)",
            "pair: tuple[float, ...] = (*(0.1,), 0.3)", "pair: tuple[float, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8)",
            "pair: tuple[tuple[float], float] = ((0.1,), 0.3)", f"pair: 'tuple[{value}, float]' = (0.1, 0.3)",
            "pair: tuple[str, float] = ('x', 0.3)", "pair: tuple[float, float] = (1e400, 0.3)", "pair: tuple[()] = ()",
        )  # fmt: skip
        sound = (
            PAIR, PAIR, "pair: tuple[float, ...] = (0.1, -0.3)", "pair: tuple[int, bool, float] = (2, True, 0.3)",
            "pair: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)", "pair: tuple[float] = (0.1,)",
        )  # fmt: skip
        return self.choose(odd) if self.bait() else self.choose(sound)

    def program(self) -> str:
        """A whole file."""
        bound = [f"{name} = {self.choose(TENSORS + NUMBERS[:6])}" for name in NAMES]
        statements = [self.statement() for _ in range(int(self.choose("1234")))]
        body = "\n".join((bound if self.choose("0111") == "1" else []) + statements)
        lines = [self.module_line() for _ in range(int(self.choose("0012")))]
        imports = (
            self.choose(ALIASES) if self.bait() else self.choose(("", "import math", "import torch.nn.functional as F"))
        )
        where = self.choose(("advantages", "advantages", "helper", "loss"))
        hyper = self.attribute() if self.bait() else "width"
        return program(
            body, "\n\n".join(lines), where, imports=imports, fields=(f"{hyper}: float = 0.5", self.several())
        )


def indented(code: str) -> str:
    """The code one level deeper."""
    return "\n".join(f"    {line}" for line in code.splitlines())


def program(
    body: str, module: str, where: str, *, imports: str = "", fields: Sequence[str] = ("width: float = 0.5", PAIR)
) -> str:
    """A sound candidate with the statements at the top of one function, and lines at module level."""
    code = indented(body) + "\n"
    if where == "helper":
        code = code.replace("batch.", "v.").replace("batch", "v")
    at = {"advantages": (ADVANTAGE, code + ADVANTAGE), "loss": (RATIO, code.replace("batch.", "inputs.") + RATIO)}
    edits = [at[where]] if where in at else []
    helper = "def helper(v):\n" + (code if where == "helper" else "") + "    return v\n\n\n"
    source = edited(
        ("import torch\n", f"import torch\n{imports}\n"),
        ("    clip_eps: float = 0.2\n", "".join(f"    {field}\n" for field in ("clip_eps: float = 0.2", *fields))),
        ("\nLOSS_AGGREGATION", f"\n{module}\n\nLOSS_AGGREGATION"),
        ("\n\ndef compute_advantages", f"\n\n{helper}def compute_advantages"),
        *edits,
    )
    called = "    helper(batch)\n" if where == "helper" else ""
    return source.replace(
        "    return Advantages(", f"    kept = helper(hp.clip_eps)\n{called}    return Advantages(", 1
    )
