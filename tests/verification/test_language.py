"""The candidate language: what it takes and what it refuses, statement by statement."""

from __future__ import annotations

import contextlib
import inspect

import pytest
import torch
from gate_fixtures import ADVANTAGE, BASE, edited

from poise_core.algorithms import algorithm_path, list_algorithms
from poise_core.verification.language import vocabulary
from poise_core.verification.language.check import MAX_BYTES, MAX_DEPTH, MAX_NODES, check_language
from poise_core.verification.language.vocabulary import LanguageError


def in_function(code: str) -> str:
    """The base with some lines at the top of compute_advantages."""
    return edited((ADVANTAGE, "".join(f"    {line}\n" for line in code.splitlines()) + ADVANTAGE))


def at_module_level(code: str) -> str:
    """The base with some lines behind its imports."""
    return edited(("\nLOSS_AGGREGATION", f"\n{code}\n\nLOSS_AGGREGATION"))


@pytest.mark.parametrize("name", ["exec", "eval", "open", "__import__", "input", "type", "getattr", "vars", "print"])
@pytest.mark.parametrize(
    "payload",
    [
        "unused = [{name} for {name} in (1,)]\nx = {name}('1')",  # the target is the comprehension's own
        "unused = {{0: {name} for {name} in (1,)}}\nx = {name}('1')",
        "unused = sum({name} for {name} in (1.0,))\nx = {name}('1')",
        "unused = [1 for a in (1,) for {name} in (2,)]\nx = {name}('1')",
        "if False:\n    {name} = 1\nx = [{name} for a in (1,)]",
        "for {name} in (1,):\n    pass\nx = {name}",
        "{name}, b = (1, 2)",
        "{name}: float = 1.0",
        "x: {name}('1') = 1.0",
        "x = {name}",
        "x = dict(a={name})",
    ],
)
def test_a_builtin_that_is_not_listed_is_refused_wherever_it_stands(name: str, payload: str) -> None:
    with pytest.raises(
        LanguageError, match=r"built-in function of Python|not defined above|annotation|two underscores"
    ):
        check_language(in_function(payload.format(name=name)))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("Q: exec('1') = 1", "annotation"),
        ("Q: [eval('1')] = 2", "annotation"),
        ("exec = 1", "built-in function of Python"),
        ("def open(x):\n    return x", "built-in function of Python"),
        ("def helper(print):\n    return print", "built-in function of Python"),
        ("def helper(x: eval('1')):\n    return x", "annotation"),
        ("def helper(x) -> eval('1'):\n    return x", "annotation"),
        ("from math import exp as eval", "built-in function of Python"),
        ("import math as vars", "built-in function of Python"),
        ("from torch import tensor\nBUFFER = tensor((0.0, 0.0))", "lives between calls"),
        ("BUFFER = torch.zeros(2)", "lives between calls"),
        ("PAIRS = list((1, 2))", "lives between calls"),
    ],
)
def test_what_a_module_may_not_say(code: str, message: str) -> None:
    with pytest.raises(LanguageError, match=message):
        check_language(at_module_level(code))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('MECHANISMS = {"clip": {"clip_eps": 1e6}}', 'OFF = 1e6\nMECHANISMS = {"clip": {"clip_eps": OFF}}'),
        ('MECHANISMS = {"clip": {"clip_eps": 1e6}}', 'MECHANISMS = {"clip": {"clip_eps": 1e3 * 1e3}}'),
        ('LOSS_AGGREGATION = "token-mean"', 'KIND = "token-mean"\nLOSS_AGGREGATION = KIND'),
        ('LOSS_AGGREGATION = "token-mean"', 'LOSS_AGGREGATION = ("token-mean", 1)[0]'),
    ],
)
def test_what_is_read_without_running_the_file_is_written_out(before: str, after: str) -> None:
    """An export or ablation of such a file, which the gate admitted, ended in a traceback."""
    with pytest.raises(LanguageError, match="must be written out with plain values"):
        check_language(edited((before, after)))
    name, _, value = before.partition(" = ")
    check_language(edited((before, f"{name}: {'dict' if name == 'MECHANISMS' else 'str'} = {value}")))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = dataclass(Advantages)", "may only decorate"),
        ("x = torch.nn.functional.relu(batch.old_logprobs, True)", "by position"),
        ("x = torch.nn.functional.hardtanh(batch.old_logprobs, -1.0, 1.0, True)", "by position"),
        ("x = torch.nn.functional.normalize(batch.old_logprobs, 2.0, 1, 1e-6, batch.entropies)", "by position"),
        ("batch.old_logprobs.clamp_(max=0.0)", r"write x = x.clamp"),
        ("x = same(batch.correctness)\nx[0] = 1.0", "copy it first"),
        ("x = twice(batch.correctness)\nx[0] = 1.0", "copy it first"),
    ],
)
def test_what_would_change_an_input(code: str, message: str) -> None:
    helpers = "def same(v):\n    return v\n\n\ndef twice(v):\n    w = same(v)\n    return w\n\n\n"
    with pytest.raises(LanguageError, match=message):
        check_language(in_function(code).replace("def compute_advantages", f"{helpers}def compute_advantages"))


def test_a_comprehensions_target_is_known_inside_it_and_a_helpers_new_tensor_may_be_filled() -> None:
    check_language(in_function("x = [a + b for a in (1, 2) for b in (3, 4) if a > b]\na = 1.0"))
    helper = "def fresh(v):\n    return v * 2.0\n\n\n"
    source = in_function("x = fresh(batch.correctness)\nx[0] = 1.0")
    check_language(source.replace("def compute_advantages", f"{helper}def compute_advantages"))


@pytest.mark.parametrize("character", ["\u202e", "\u200b", "\x1b", "\u2066", "\ue000", "\ufeff"])
def test_characters_that_cannot_be_seen(character: str) -> None:
    with pytest.raises(LanguageError, match=rf"line 1: the file holds the character U\+{ord(character):04X}"):
        check_language(BASE.replace('"""', f'"""{character}', 1))
    with pytest.raises(LanguageError, match="write printable characters"):
        check_language(in_function(f"x = {'a' + character!a}"))


def test_a_mapping_may_be_named_in_an_annotation_and_no_grad_may_decorate() -> None:
    source = in_function("x = still(batch.correctness)")
    source = source.replace("import torch\n", "from collections.abc import Mapping\n\nimport torch\n")
    helper = (
        "@torch.no_grad()\n"
        "def still(v: torch.Tensor, state: Mapping[str, float] = None) -> torch.Tensor:\n"
        "    return v * 2.0\n\n\n"
    )
    check_language(source.replace("def compute_advantages", f"{helper}def compute_advantages"))


@pytest.mark.parametrize("name", list_algorithms())
def test_known_algorithms_are_written_in_it(name: str) -> None:
    check_language(algorithm_path(name).read_text())


@pytest.mark.parametrize(
    "code",
    [
        "x = torch.where(batch.correctness > 0.5, 1.0, -1.0)",
        "x = torch.nn.functional.softplus(batch.correctness)",
        "a, b = batch.correctness.aminmax()",
        "x = batch.correctness[:, None] if False else batch.correctness[..., None]",
        "parts = []\nfor group in torch.unique(batch.group_ids):\n    parts.append(batch.correctness[batch.group_ids == group])",
        "total = 0.0\nfor i in range(hp.clip_eps):\n    total += i",
        "for i in range(batch.correctness.shape[0] - 1):\n    pass",
        "for i, (a, b) in enumerate(zip((1, 2), (3, 4))):\n    continue",
        "x = [row.sum() for row in batch.completion_mask]",
        "x = {'a': 1.0}\nx['b'] = 2.0\ny = x.get('a', 0.0)",
        "x = batch.correctness - 0.5\nx /= 2.0\ny = 0.0\ny += 1.0",
        "x = dict(dynamics.controller)\nx['a'] = 1.0",
        "x = batch.correctness.clone()\nx[batch.truncated] = 0.0",
        "with torch.no_grad():\n    x = batch.correctness * 2.0",
        "x = -float('inf') if not hp.clip_eps else max(1.0, 2.0) ** 2",
        "highest, lowest = (reduce(batch.correctness, batch.group_ids) for reduce in (group_mean, group_sum))",
        "x = math.sqrt(2.0)",
        "x = F.relu(batch.correctness)",
        "x = helper(batch.correctness, scale=2.0)",
        "x = torch.zeros_like(batch.correctness, dtype=torch.float32)",
    ],
)
def test_it_takes_ordinary_tensor_code(code: str) -> None:
    source = in_function(code)
    source = source.replace("import torch\n", "import math\n\nimport torch\nimport torch.nn.functional as F\n")
    helper = "def helper(values, scale=1.0):\n    return values * scale\n\n\n"
    check_language(source.replace("def compute_advantages", f"{helper}def compute_advantages"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = batch.__class__", ".__class__ is not among"),
        ("x = torch.rand(3)", "torch.rand is not among the functions"),
        ("x = torch.nn.Linear(1, 1)", "torch.nn.Linear is not among"),
        ("x = torch.Tensor(5)", "torch.Tensor may only stand in annotations"),
        ("x = RolloutBatch", "RolloutBatch may only stand in annotations"),
        ("x = torch", "the module torch may only be used as torch.function"),
        ("x = batch.correctness.add_(1.0)", ".add_ is not among"),
        ("x = torch.exp(batch.correctness, out=batch.correctness)", "the argument out= is not allowed"),
        ("batch.correctness[0] = 1.0", "assign to a name, or to an element"),
        ("batch.correctness = 1.0", "assigning to an attribute"),
        ("batch += 1.0", "this changes batch in place, which this function did not make"),
        ("x = batch.correctness\nx -= 1.0", "this changes x in place, which this function did not make"),
        ("x = dynamics.controller\nx['a'] = 1.0", "assigning into x changes something that this function did not make"),
        ("x = batch.carry if hp.clip_eps else {}\nx.update({})", "x.update changes what this function did not make"),
        ("for row in batch.correctness:\n    row += 1.0", "this changes row in place"),
        ("a, b = batch.correctness, 1.0\na += 1.0", "this changes a in place"),
        ("x = MECHANISMS", "MECHANISMS describes the candidate and may not be read"),
        ("x = hp.numpy()", "Hyperparameters has no field numpy"),
        ("hp = batch.correctness", "hp always means the hyperparameters"),
        ("x = y", "y is not defined above this line"),
        ("x = open('f')", "open is not defined above this line, or not allowed"),
        ("x = compute_loss", "compute_loss is not defined above this line"),
        ("x = compute_advantages(batch, hp, dynamics)", "compute_advantages is not defined above this line"),
        ("torch = 3", "torch already names something else"),
        ("len = 3", "len is a built-in function"),
        ("__x = 3", "names that begin with two underscores"),
        ("x = lambda: 3", "Lambda is not allowed"),
        ("x = f'{batch}'", "JoinedStr is not allowed"),
        ("x = 'a' * 3", "operators on lists and strings"),
        ("x = [0] * 10", "operators on lists and strings"),
        ("x = '{0.real}'.format(3)", ".format is not among"),
        ("x = 1 << 3", "LShift is not allowed"),
        ("x = 3 ** 1000", "** needs a hyperparameter or a number of at most 64"),
        ("x = 10000000", "exceeds 1000000"),
        ("x = torch.zeros((2000, 2000))", "asks for more than 1000000 elements"),
        ("x = torch.zeros(10**9)", "this power exceeds 1000000"),
        ("for i in range(2000):\n    pass", "range(...) takes small numbers"),
        ("for i in range(100):\n    for j in range(100):\n        pass", "the loop runs 10000 times"),
        (
            "for i in range(2):\n    for j in range(2):\n        for k in range(2):\n            pass",
            "more than 2 levels",
        ),
        ("x = sum(range(hp.clip_eps * 1000000))", "range(...) takes small numbers"),
        ("xs = [1]\nfor x in xs:\n    xs.append(x)", "xs grows while the loop runs over it"),
        ("def inner():\n    pass", "define functions at module level"),
        ("import os", "Import is not allowed"),
        ("return batch, *batch", "Starred is not allowed"),
        ("x = dict(**batch)", "unpacking with **"),
        ("x = b'a'", "bytes constants"),
        ("x = 3j", "complex constants"),
        ("print('x')", "the value of this line is not used"),
        ("assert True", "Assert is not allowed"),
        ("del batch", "Delete is not allowed"),
        ("try:\n    pass\nexcept Exception:\n    pass", "an error must not be hidden"),
        ("with open('f'):\n    pass", "with is only allowed for torch.no_grad()"),
        ("x = (y := 3)", "NamedExpr is not allowed"),
        ("x = batch.carry.update({})", ".update changes its object"),
        ("dynamics.controller.update({})", "the value of this line is not used"),
        ("x = (lambda: 3)()", "only functions and methods may be called"),
        ("global X", "a candidate keeps no state between calls"),
        ("x = torch.ones(1).register_hook(1)", ".register_hook is not among"),
        ("x = torch.ones(1, requires_grad=True)", "the argument requires_grad= is not allowed"),
    ],
)
def test_it_refuses(code: str, message: str) -> None:
    with pytest.raises(LanguageError, match="line ") as error:
        check_language(in_function(code))
    assert message in str(error.value)


def test_every_function_that_takes_what_it_changes_by_position_is_known() -> None:
    """Functions of C take ``out`` by name alone, and none of those is allowed; those of Python show their parameters."""
    found = {}
    for module in (torch, torch.nn.functional, torch.special):
        for name in vocabulary.MODULES[module.__name__]:
            with contextlib.suppress(TypeError, ValueError):
                parameters = list(inspect.signature(getattr(module, name)).parameters.values())
                by_position = [one.name for one in parameters if one.kind is not one.KEYWORD_ONLY]
                places = [by_position.index(one) for one in ("out", "inplace") if one in by_position]
                found |= {name: min(places)} if places else {}
    assert found.keys() >= {"tensordot", "norm", "relu", "normalize"}
    assert found.items() <= vocabulary.INPLACE_POSITION.items()


@pytest.mark.parametrize(
    "code",
    [
        "x = torch.tensordot(batch.correctness, batch.correctness, 1, batch.old_logprobs)",
        "x = torch.norm(batch.old_logprobs, 2, None, False, batch.entropies)",
        "f = torch.norm",
    ],
)
def test_an_out_by_position_is_refused(code: str) -> None:
    with pytest.raises(LanguageError, match=r"would change an argument in place|may only be called"):
        check_language(in_function(code))


def test_a_method_has_no_out_by_position() -> None:
    check_language(
        in_function("x = batch.old_logprobs.norm(2, -1, True)\ny = torch.norm(batch.old_logprobs, 2, -1, True)")
    )
    assert "out" not in inspect.signature(torch.Tensor.norm).parameters


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os", "importing os is not allowed; importable are"),
        ("from os import path", "importing from os is not allowed"),
        ("from . import x", "importing from . is not allowed"),
        ("from torch import load", "torch.load is not among the functions"),
        ("from torch import *", "torch.* is not among"),
        ("import poise_core.reductions", "write from poise_core.reductions import"),
        ("from poise_core import reductions", "importing from poise_core is not allowed"),
        ("X = [1, 2]", "X could be changed between calls; use a tuple or numbers"),
        ("X = torch.zeros(3)", "X would be a tensor, list or iterator that lives between"),
        ("X = sorted((2, 1))", "X would be a tensor, list or iterator"),
        ("X = zip((1, 2))", "X would be a tensor, list or iterator"),
        ("X = (1, reversed((1, 2)))", "X would be a tensor, list or iterator"),
        ("torch = 3\nimport torch.nn.functional", "torch already names something else"),
        ("from __future__ import annotations", "does not compile: from __future__ imports must occur at the beginning"),
        ("def f(x):\n    break", "does not compile: 'break' outside loop"),
        ("def f(x):\n    if x:\n        continue\n    return x", "does not compile: 'continue' not properly in loop"),
        ("X, Y = 1, 2", "one constant per line"),
        ("if True:\n    X = 1", "If at module level is not allowed"),
        ("class Other:\n    pass", "the only class is Hyperparameters"),
        ("@dataclass\ndef f():\n    pass", "f has a decorator"),
        ("def f(*args):\n    pass", "takes *args or **kwargs"),
        ("def f(x=[]):\n    pass", "a default is a plain number"),
        ("def f(x: 'torch.load'):\n    pass", "an annotation in quotes"),
        ("def f(x: open('f')):\n    pass", "this annotation is not allowed"),
        ("def f(x):\n    return f(x)", "f is not defined above this line"),
        ("def max(x):\n    return x", "max is a built-in function"),
    ],
)
def test_it_refuses_at_module_level(code: str, message: str) -> None:
    with pytest.raises(LanguageError) as error:
        check_language(at_module_level(code))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("    clip_eps: float", "clip_eps needs a default"),
        ("    clip_eps: float = 0.1 + 0.1", "clip_eps needs a default"),
        ("    clip_eps: object = 3", "must be annotated with float, int, bool, str or a tuple of numbers"),
        (
            "    clip_eps: list = 3",
            "clip_eps holds several numbers; write a tuple of float, int or bool, such as clip_eps: tuple[float, float]",
        ),
        ("    clip_eps: list[float] = (0.2, 0.28)", "write a tuple of float, int or bool"),
        ("    clip_eps: float = (0.2, 0.28)", "write a tuple of float, int or bool"),
        ("    clip_eps: tuple = (0.2, 0.28)", "write a tuple of float, int or bool"),
        ("    clip_eps: tuple[()] = ()", "write a tuple of float, int or bool"),
        ("    clip_eps: tuple[str, ...] = ('a',)", "write a tuple of float, int or bool"),
        ("    clip_eps: tuple[float, None] = (0.2, 0.28)", "write a tuple of float, int or bool"),
        ("    clip_eps: tuple[tuple[float, float], ...] = ((0.2, 0.28),)", "write a tuple of float, int or bool"),
        ("    clip_eps: tuple[float, ...] = ((0.2, 0.28),)", "a tuple of plain finite numbers"),
        ("    clip_eps: tuple[float, ...] = (0.2, 'a')", "a tuple of plain finite numbers"),
        ("    clip_eps: tuple[float, ...] = (0.2, None)", "a tuple of plain finite numbers"),
        ("    clip_eps: tuple[float, ...] = [0.2, 0.28]", "a tuple of plain finite numbers"),
        ("    clip_eps: tuple[float, ...] = (0.2, float('nan'))", "a tuple of plain finite numbers"),
        ("    clip_eps: tuple[float, ...] = (0.2, -1e999)", "a tuple of plain finite numbers"),
        ("    clip_eps: tuple[float, ...] = (0.2, 0.1 + 0.1)", "a tuple of plain finite numbers"),
        ("    clip_eps: tuple[float, float]", "a tuple of plain finite numbers"),
        ("    clip_eps: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9)", "holds 9 numbers; a tuple has one to 8"),
        ("    clip_eps: tuple[int, ...] = ()", "holds 0 numbers; a tuple has one to 8"),
        ("    clip_eps: tuple[int, ...] = (10000000,)", "exceeds 1000000"),
        ("    clip_eps: tuple[float, float] = (0.2, 0.28, 0.3)", "is annotated with 2 numbers and has 3"),
        ("    clip_eps: tuple[float] = (0.2, 0.28)", "is annotated with 1 numbers and has 2"),
        ("    _clip: float = 0.2", "begins with an underscore"),
        ("    clip_eps = 0.2", "holds lines like name: float = 0.1"),
        ("    def method(self):\n        return 1", "holds lines like name: float = 0.1"),
    ],
)
def test_it_refuses_other_hyperparameters(line: str, message: str) -> None:
    with pytest.raises(LanguageError) as error:
        check_language(edited(("    clip_eps: float = 0.2", line)))
    assert message in str(error.value)


def with_tuples(code: str) -> str:
    """The base with some lines at the top of compute_advantages, which may use three tuples of ``hp``."""
    tuples = (
        "    clip: tuple[float, float] = (0.2, 0.28)\n    steps: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)\n"
        "    flags: tuple[bool, float, int] = True, -1e3, 2\n"
    )
    field = "    clip_eps: float = 0.2\n"
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    return edited((field, field + tuples), (ADVANTAGE, lines + ADVANTAGE))


@pytest.mark.parametrize(
    "code",
    [
        "x = batch.correctness.clamp(hp.clip[0], hp.clip[-1]) * hp.clip[1]",
        "low, high = hp.clip\nx = batch.correctness * low + high",
        "a, b, c = hp.flags if hp.flags[0] else hp.steps[:3]",
        "total = 0.0\nfor step in hp.steps:\n    total += step * 2",
        "x = sum(w * batch.correctness for w in hp.clip) / len(hp.clip) - max(hp.clip) + min(hp.clip) * sum(hp.clip)",
        "for i in range(len(hp.steps)):\n    for j in range(hp.steps[0]):\n        pass",
        "x = torch.tensor(hp.clip) * 3.0\ny = torch.zeros(hp.steps[0], 2)",
        "x = hp.clip\nx = torch.tensor(x)\ny = x * 2.0",
        "x = hp.clip\ny = x[0] * 2.0 ** hp.clip[1]",
        "x = sum(a * b for a, b in zip(hp.clip, hp.steps))",
        "x = dynamics.step in hp.steps and hp.clip < (0.3, 0.3)",
    ],
)
def test_hyperparameters_may_be_tuples_of_numbers(code: str) -> None:
    check_language(with_tuples(code))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = hp.clip * 10**9", "hp.clip holds several numbers, and an operator would repeat or join them"),
        ("x = 1000000 * hp.clip", "hp.clip holds several numbers, and an operator"),
        ("x = hp.clip + hp.steps", "take one, such as hp.steps[0], or write torch.tensor(hp.steps)"),
        ("x = batch.correctness - hp.clip", "hp.clip holds several numbers, and an operator"),
        ("x = 2.0 ** hp.clip", "hp.clip holds several numbers, and an operator"),
        ("x = hp.clip\ny = x\nz = y * 1000000", "y holds several numbers, and an operator"),
        ("x, y = hp.clip, 3\nz = x * y", "x holds several numbers, and an operator"),
        ("x: tuple[float, float] = hp.clip\ny = x * 3", "x holds several numbers, and an operator"),
        ("x = hp.clip if hp.flags[0] else hp.steps\ny = x * 3", "x holds several numbers, and an operator"),
        ("for x in (hp.clip, hp.steps):\n    y = x * 3", "x holds several numbers, and an operator"),
        ("x = [pair * 3 for pair in (hp.clip, hp.steps)]", "pair holds several numbers, and an operator"),
        ("x = hp.steps[:2] * 1000000", "hp.steps[:2] holds several numbers, and an operator"),
        ("x = list(hp.steps) * 1000000", "list(hp.steps) holds several numbers, and an operator"),
        ("n = 3\nn *= hp.clip", "hp.clip holds several numbers, and an operator"),
        ("x = torch.zeros(hp.steps)", "hp.steps holds several numbers and zeros takes sizes"),
        ("x = torch.full(size=hp.steps, fill_value=1.0)", "hp.steps holds several numbers and full takes sizes"),
        ("x = batch.correctness.repeat(hp.steps)", "hp.steps holds several numbers and repeat takes sizes"),
        ("for i in range(hp.steps):\n    pass", "hp.steps holds several numbers and range takes sizes"),
        ("hp.clip[0] = 1.0", "assign to a name, or to an element"),
        ("x = hp.clip\nx[0] = 1.0", "assigning into x changes something"),
        ("x = hp.clip.index(0.2)", ".index is not among"),
        ("x = torch.clamp(batch.correctness, *hp.clip)", "Starred is not allowed"),
    ],
)
def test_a_tuple_of_hyperparameters_is_not_repeated_and_is_no_size(code: str, message: str) -> None:
    with pytest.raises(LanguageError) as error:
        check_language(with_tuples(code))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("signature", "call", "message"),
    [
        ("def steal(hp)", "steal(batch.correctness)", "a parameter called hp takes the hyperparameters"),
        ("def steal(x, hp)", "steal(hp, batch)", "a parameter called hp takes the hyperparameters"),
        ("def steal(hp)", "steal(hp=batch)", "a parameter called hp takes the hyperparameters"),
        ("def steal(hp=None)", "steal()", "a parameter called hp takes the hyperparameters and has no default"),
    ],
)
def test_no_tensor_gets_the_freedom_of_hyperparameters(signature: str, call: str, message: str) -> None:
    """A field called numpy or tofile would otherwise open those methods of whatever is passed as hp."""
    source = edited(
        ("    clip_eps: float = 0.2\n", "    clip_eps: float = 0.2\n    numpy: float = 0.0\n"),
        ("\n\ndef compute_advantages", f"\n\n{signature}:\n    return hp.numpy\n\n\ndef compute_advantages"),
        (ADVANTAGE, f"    x = {call}\n{ADVANTAGE}"),
    )
    with pytest.raises(LanguageError) as error:
        check_language(source)
    assert message in str(error.value)


def test_helpers_may_take_the_hyperparameters() -> None:
    source = edited(
        ("\n\ndef compute_advantages", "\n\ndef bound(hp, x):\n    return x * hp.clip_eps\n\n\ndef compute_advantages"),
        (ADVANTAGE, f"    x = bound(hp, batch.correctness) + bound(hp=hp, x=2.0)\n{ADVANTAGE}"),
    )
    check_language(source)


def test_hyperparameters_need_the_frozen_dataclass() -> None:
    for decorator in ("@dataclass", "@dataclass(frozen=False)", ""):
        with pytest.raises(LanguageError, match=r"decorate Hyperparameters with @dataclass\(frozen=True\)"):
            check_language(edited(("@dataclass(frozen=True)", decorator)))


def test_size_and_depth_are_limited() -> None:
    with pytest.raises(LanguageError, match=f"at most {MAX_BYTES}"):
        check_language(BASE + "#" * MAX_BYTES)
    with pytest.raises(LanguageError, match=f"more than {MAX_NODES} syntax nodes"):
        check_language(in_function("\n".join("x=1" for _ in range(MAX_NODES // 3))))
    with pytest.raises(LanguageError, match=f"more than {MAX_DEPTH} levels"):
        check_language(in_function("x = " + "-" * 2 * MAX_DEPTH + "1"))


@pytest.mark.parametrize("source", ["x = (", "\0", "x = 1\n  y = 2", "\ud800", "(" * 5000, "x = " + "9" * 5000])
def test_what_does_not_parse_is_a_language_error(source: str) -> None:
    with pytest.raises(LanguageError, match="does not parse"):
        check_language(source)


def test_findings_come_in_the_order_of_lines_and_at_most_three() -> None:
    with pytest.raises(LanguageError) as error:
        check_language(in_function("x = open(1)\ny = eval(2)\nz = exec(3)\nw = input(4)"))
    found = str(error.value).split("; ")
    assert [message.split(" is not defined")[0] for message in found] == [
        "line 20: open",
        "line 21: eval",
        "line 22: exec",
    ]
