"""Programs written at random around what is not allowed: whatever the language check lets through finds none of it.

The oracle is the file's own dictionary of built-ins, which notes every name that is asked of it. A program that passes the
check and asks for a name outside the language is a hole, whether or not the wall of built-ins would have stopped it.
"""

from __future__ import annotations

import builtins
import contextlib
from typing import Any

import pytest
from gate_fixtures import ADVANTAGE, edited
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poise_core.candidate import identity, loading
from poise_core.verification.harness import run_candidate
from poise_core.verification.language import vocabulary
from poise_core.verification.language.check import check_language
from poise_core.verification.language.vocabulary import LanguageError
from poise_core.verification.probes import ordinary

FORBIDDEN = (
    "exec", "eval", "open", "compile", "__import__", "getattr", "setattr", "type", "vars", "globals", "object", "print", "input",
    "super", "__builtins__", "breakpoint", "memoryview",
)  # fmt: skip
ALLOWED = frozenset(identity.BUILTINS)


class Watched(dict[str, Any]):
    """Built-ins that remember what was asked of them; the forbidden ones are there, as harmless stand-ins."""

    def __init__(self) -> None:
        super().__init__({name: getattr(builtins, name) for name in ALLOWED})
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        if name in FORBIDDEN:
            return lambda *_, **__: 1.0
        return super().__getitem__(name)


names = st.sampled_from([*FORBIDDEN, "a", "b", "batch", "hp", "torch", "len", "Advantages", "group_mean", "helper"])


def _binding(name: str, other: str) -> list[str]:
    """Statements that bind a name, or seem to."""
    return [
        f"{name} = 1",
        f"{name}: float = 1.0",
        f"{name}, {other} = (1, 2)",
        f"for {name} in (1, 2):\n    pass",
        f"if False:\n    {name} = 1",
        f"if hp.clip_eps < 0:\n    for {name} in (1,):\n        pass",
        f"z = [{name} for {name} in (1,)]",
        f"z = [{other} for {other} in (1,) for {name} in (2,)]",
        f"z = {{1: {name} for {name} in (1,)}}",
        f"z = sum({name} for {name} in (1.0,))",
        f"z = [[{name} for {name} in (1,)] for {other} in (2,)]",
        f"z = ({name} := 1)",
        f"z = [({name} := {other}) for {other} in (1,)]",
        f"{name} += 1",
        f"del {name}",
        f"global {name}",
        f"import math as {name}",
        f"from math import pi as {name}",
        f"def {name}():\n    return 1",
        f"class {name}:\n    pass",
        f"with torch.no_grad() as {name}:\n    pass",
        f"try:\n    pass\nexcept Exception as {name}:\n    pass",
        f"match 1:\n    case {name}:\n        pass",
        f"z = lambda {name}: 1",
        f"z: {name} = 1.0",
        "pass",
    ]


def _use(name: str, other: str) -> list[str]:
    """Statements that ask for a name."""
    return [
        f"y = {name}('1')",
        f"y = {name}",
        f"y = ({name},)",
        f"y = [{name}(1) for {other} in (1,)]",
        f"y = [1 for {other} in ({name},)]",
        f"y = [1 for {other} in (1,) if {name}]",
        f"y = {{{name}: 1}}",
        f"y = {name} if hp.clip_eps else 1",
        f"y = torch.where(batch.truncated, {name}, 1.0)",
        f"y = batch.correctness.to({name})",
        f"y = helper({name})",
        f"y = {name}.values",
        f"y = max({name}, 1)",
        f"{other} = {name}",
        f"{name}[0] = 1",
        f"y = f'{{{name}}}'",
        f"y = batch[{name}]",
        f"y: {name} = 1.0",
        f"return {name}",
    ]


@st.composite
def bodies(draw: st.DrawFn) -> str:
    """Up to four statements, in a function or below an if, that bind and use some names."""
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 4))):
        name, other = draw(names), draw(names)
        statement = draw(st.sampled_from(_binding(name, other) + _use(name, other)))
        if draw(st.booleans()):
            statement = "if hp.clip_eps > 0:\n" + "".join(f"    {line}\n" for line in statement.splitlines())
        lines.append(statement)
    return "\n".join(lines)


def program(body: str, module: str, where: str) -> str:
    """A sound candidate with the statements at the top of a function, and a line at module level."""
    code = "".join(f"    {line}\n" for line in body.splitlines())
    source = edited((ADVANTAGE, (code if where == "advantages" else "") + ADVANTAGE))
    helper = "def helper(v):\n" + (code if where == "helper" else "") + "    return v\n\n\n"
    source = source.replace("def compute_advantages", f"{helper}def compute_advantages", 1)
    return source.replace("\nLOSS_AGGREGATION", f"\n{module}\n\nLOSS_AGGREGATION", 1)


def asked_for(source: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names outside the language that a program asks for when it is loaded and run, if the check lets it through."""
    try:
        check_language(source)
    except LanguageError:
        return set()
    watched = Watched()
    monkeypatch.setattr(loading, "candidate_builtins", lambda: watched)
    with contextlib.suppress(Exception):
        run_candidate(loading.load_candidate_source(source, "fuzz"), ordinary())
    return watched.asked - ALLOWED - {"__import__", "__build_class__"}


def modules() -> st.SearchStrategy[str]:
    lines = st.builds(lambda a, b: _binding(a, b) + _use(a, b), names, names)
    return st.one_of(st.just(""), lines.flatmap(st.sampled_from))


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(body=bodies(), module=modules(), where=st.sampled_from(["advantages", "helper"]))
def test_no_program_that_passes_asks_for_what_is_not_allowed(body: str, module: str, where: str) -> None:
    source = program(body, module, where)
    with pytest.MonkeyPatch.context() as patch:
        assert asked_for(source, patch) == set(), source


def test_the_oracle_sees_what_the_check_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check, the program that once came through is seen by the built-ins that it asks for."""
    source = program("z = [eval for eval in (1,)]\ny = eval('1')", "", "advantages")
    assert asked_for(source, monkeypatch) == set()
    monkeypatch.setitem(globals(), "check_language", lambda source: None)
    assert asked_for(source, monkeypatch) == {"eval"}


def test_check_and_loader_know_the_same_modules() -> None:
    assert {name for name in vocabulary.MODULES if not name.startswith("torch.")} == set(loading.IMPORTABLE)


def test_what_gets_past_the_check_finds_a_name_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for payload in ("open('x', 'w')", "exec('1')", "type(batch)", "__import__('os')"):
        candidate = loading.load_candidate_source(program(f"y = {payload}", "", "advantages"), "hostile")
        with pytest.raises(Exception, match=r"NameError|cannot import os"):
            run_candidate(candidate, ordinary())
    with pytest.raises(loading.CandidateError, match="a candidate cannot import os"):
        loading.load_candidate_source(program("pass", "import os", "advantages"), "hostile")
