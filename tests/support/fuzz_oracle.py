"""What a program that the language check lets through must not do, seen without the check's own code; and a long run of it.

Five witnesses, none of which reads a syntax tree:

- the bytecode that Python makes of the file: its instructions, its global names, its attributes, its imports;
- the built-ins, in a dictionary that notes what is asked of it, with harmless stand-ins for what is forbidden;
- what the file's own frames call, function by function, as the interpreter reports it to a profiler;
- Python's audit events while the file runs: files, programs, sockets, imports, compiled code;
- what was there before: the values of the module, and torch's and Python's global state.

``python tests/support/fuzz_oracle.py --minutes 60 --seed 1`` writes programs for an hour of processor time and prints the finds.
"""

from __future__ import annotations
import __future__

import argparse
import builtins
import contextlib
import dis
import random
import resource
import sys
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._subclasses.schema_check_mode  # torch imports it late, which would look like an import by a candidate
from fuzz_grammar import FORBIDDEN, Writer

from poise_core import contract
from poise_core.candidate import budget, identity, loading
from poise_core.verification.checks.purity import GlobalState
from poise_core.verification.harness import run_candidate
from poise_core.verification.language import vocabulary
from poise_core.verification.language.check import check_language
from poise_core.verification.language.vocabulary import LanguageError
from poise_core.verification.probes import Probe, ordinary

ALLOWED = frozenset(identity.BUILTINS)
ATTRIBUTES = (
    vocabulary.MEMBERS | vocabulary.CHANGING_MEMBERS | frozenset().union(*vocabulary.MODULES.values()) | {"functional", "nn"}
)  # fmt: skip
REFUSED_INSTRUCTIONS = frozenset({
    "STORE_ATTR", "DELETE_ATTR", "DELETE_SUBSCR", "DELETE_FAST", "DELETE_NAME", "DELETE_GLOBAL", "STORE_GLOBAL", "DELETE_DEREF",
    "SETUP_FINALLY", "RAISE_VARARGS", "CHECK_EXC_MATCH", "CHECK_EG_MATCH", "YIELD_FROM", "SEND", "GET_AWAITABLE", "GET_AITER",
    "FORMAT_VALUE", "FORMAT_SIMPLE", "BUILD_STRING", "BUILD_SET", "SET_ADD", "SET_UPDATE", "UNPACK_EX", "IMPORT_STAR",
    "CALL_FUNCTION_EX", "MATCH_CLASS", "MATCH_MAPPING", "MATCH_SEQUENCE", "LOAD_ASSERTION_ERROR", "LIST_TO_TUPLE",
    "LOAD_CLASSDEREF",
})  # fmt: skip
QUIET_EVENTS = (
    "object.__getattr__",
    "sys._getframe",
    "builtins.id",
    "array.__new__",
    "sys.settrace",
    "sys.setprofile",
    "gc.",
)


class Watched(dict[str, Any]):
    """Built-ins that remember what was asked of them; the forbidden ones are there, as harmless stand-ins."""

    def __init__(self) -> None:
        super().__init__({name: getattr(builtins, name) for name in ALLOWED})
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        if name in FORBIDDEN and name != "__build_class__":  # the interpreter asks for that one at a class statement
            return lambda *_, **__: 1.0
        return super().__getitem__(name)


# ---- the bytecode


def code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and all within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_objects(constant)


def bytecode_findings(source: str) -> set[str]:
    """What the compiled file holds that the language does not list."""
    flags = __future__.annotations.compiler_flag
    try:
        whole = compile(source, "<fuzz>", "exec", flags=flags, dont_inherit=True)
    except SyntaxError as error:
        return {f"no code: {error.msg}"}
    codes = list(code_objects(whole))
    fields = {name for code in codes if code.co_name == "Hyperparameters" for name in code.co_names}
    defined = {one.argval for one in dis.get_instructions(whole) if one.opname == "STORE_NAME"} | ALLOWED
    found: set[str] = set()
    for code in codes:
        in_class = code.co_name == "Hyperparameters"
        if code.co_flags & 0x2A0 and code.co_name != "<genexpr>":  # a generator, a coroutine, an asynchronous generator
            found.add(f"{code.co_name} is no plain function")
        if code.co_flags & 0xC or (code.co_freevars and not code.co_name.startswith("<")):
            found.add(f"{code.co_name} takes *args or **kwargs, or is a closure")
        counted = Counter(one.opname for one in dis.get_instructions(code))
        if counted["PUSH_EXC_INFO"] != counted["WITH_EXCEPT_START"]:
            found.add("a try statement")
        if counted["LOAD_BUILD_CLASS"] and code is not whole:
            found.add("a class in a function")
        if counted["MAKE_FUNCTION"] and code is not whole and not _of_comprehensions(code):
            found.add(f"a function in {code.co_name}")
        for one in dis.get_instructions(code):
            found |= _instruction_findings(one.opname, one.argval, in_class, fields, defined)
    return found


def _instruction_findings(kind: str, name: Any, in_class: bool, fields: set[str], defined: set[str]) -> set[str]:
    if kind in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_NAME") and not (
        in_class and name in ("__name__", "__module__", "__qualname__")
    ):
        known = name in fields | {"__doc__"} if in_class else name in defined
        if not known and not (in_class and kind == "LOAD_NAME" and name in defined):
            return {f"the name {name}"}
        if name in FORBIDDEN:
            return {f"the name {name}"}
    if kind in ("LOAD_ATTR", "LOAD_METHOD") and name not in ATTRIBUTES | fields | {"abc"}:
        return {f"the attribute {name}"}
    if kind == "IMPORT_NAME" and name not in vocabulary.MODULES:
        return {f"the import of {name}"}
    if kind == "IMPORT_FROM" and name not in ATTRIBUTES | {"annotations", "reductions", "contract", "abc"}:
        return {f"the import of a member {name}"}
    return {f"the instruction {kind}"} if kind in REFUSED_INSTRUCTIONS else set()


def _of_comprehensions(code: types.CodeType) -> bool:
    within = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return all(one.co_name in ("<listcomp>", "<dictcomp>", "<genexpr>") for one in within)


# ---- what is called


def _listed_callables() -> frozenset[int]:
    """The identities of all that a candidate may call: members of its modules, and the code of those written in Python."""
    found: set[int] = set()
    for module, members in vocabulary.MODULES.items():
        space = __import__(module, fromlist=["x"])
        for name in members:
            found |= _identities(getattr(space, name, None))
    for name in vocabulary.TENSOR_MEMBERS:
        found |= _identities(getattr(torch.Tensor, name, None))
    for one in (contract.Advantages, contract.LossOutputs):
        found |= _identities(one.__init__)
    return frozenset(found)


def _identities(value: Any) -> set[int]:
    found = {id(value)}
    while value is not None:
        if code := getattr(value, "__code__", None):
            found.add(id(code))
        for part in ("__init__", "__new__", "__enter__", "__exit__"):
            if isinstance(value, type) and (code := getattr(getattr(value, part, None), "__code__", None)):
                found.add(id(code))
        value = getattr(value, "__wrapped__", None)
    return found


_SHOWS_WARNINGS = warnings._showwarnmsg.__code__  # type: ignore[attr-defined]


@dataclass
class Calls:
    """A profiler that notes what is called from a candidate's frame and not listed."""

    listed: frozenset[int] = field(default_factory=_listed_callables)
    found: set[str] = field(default_factory=set)

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and frame.f_code.co_filename.startswith("<candidate"):
            owner = getattr(argument, "__self__", None)
            name = argument.__name__
            if id(argument) in self.listed or (owner is builtins and name in ALLOWED):
                return
            if isinstance(owner, torch.Tensor) and name in vocabulary.TENSOR_MEMBERS:
                return
            if isinstance(owner, dict | list) and name in vocabulary.CONTAINER_MEMBERS | vocabulary.CHANGING_MEMBERS:
                return
            plain = owner is None or isinstance(owner, tuple | float | int | str | torch.dtype | types.ModuleType)
            if plain and name in ATTRIBUTES and owner not in (builtins, sys):
                return
            self.found.add(f"a call of {name} of {type(owner).__name__}")
        elif event == "call" and (back := frame.f_back) and back.f_code.co_filename.startswith("<candidate"):
            code = frame.f_code
            if frame.f_locals.get("inplace") is True:
                self.found.add(f"a call of {code.co_name} in place")
            if code.co_filename.startswith("<candidate") or id(code) in self.listed:
                return
            if code.co_name in ATTRIBUTES | {"wrapped", "__init__", "fn", "<lambda>"} or code.co_filename == __file__:
                return
            if code.co_name.startswith("__") or code.co_name == "_":  # an operator that torch writes in Python
                return
            if code is _SHOWS_WARNINGS:  # torch warns of how a tensor is indexed, in words of its own
                return
            self.found.add(f"a call of {code.co_name} of {code.co_filename}")


# ---- audit events

_audited: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _audited is not None and not event.startswith(QUIET_EVENTS):
        _audited.append(f"{event} {ascii(arguments)[:120]}")


_hooked = False


@contextlib.contextmanager
def audited() -> Iterator[list[str]]:
    """The audit events of the block."""
    global _audited, _hooked
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    events: list[str] = []
    _audited = events
    try:
        yield events
    finally:
        _audited = None


# ---- all together


@dataclass(frozen=True)
class Verdict:
    """What became of one program."""

    admitted: bool
    executed: bool  # loaded, and both of its functions came to their end
    findings: tuple[str, ...] = ()
    refusal: str = ""


def judged(source: str, probe: Probe, calls: Calls, check: Callable[[str], Any] = check_language) -> Verdict:
    """The verdict on a program: whether the check lets it through, and what the witnesses then see."""
    try:
        check(source)
    except LanguageError as error:
        return Verdict(False, False, refusal=str(error))
    if found := bytecode_findings(source):
        return Verdict(True, False, tuple(sorted(found)))
    watched, original = Watched(), loading.candidate_builtins
    before = GlobalState.capture()
    calls.found.clear()
    executed, found = False, set[str]()
    events: list[str] = []
    loading.candidate_builtins = lambda: watched
    try:
        with contextlib.suppress(Exception):
            candidate = loading.load_candidate_source(source, "fuzz")
            space = candidate.advantages_function.__globals__
            values = module_values(space)
            found |= {f"the module value {name} can change" for name, value in space.items() if _changes(name, value)}
            with audited() as events:
                sys.setprofile(calls)
                try:
                    run_candidate(candidate, probe)
                    executed = True
                finally:
                    sys.setprofile(None)
                    found |= {"a module value has changed"} if module_values(space) != values else set()
    finally:
        loading.candidate_builtins = original
    found |= {f"the built-in {name}" for name in watched.asked - ALLOWED - {"__import__", "__build_class__"}}
    found |= set(calls.found) | {f"the event {event}" for event in events}
    found |= {f"a change of {what}" for what in before.differences()}
    return Verdict(True, executed, tuple(sorted(found)))


def module_values(space: dict[str, Any]) -> dict[str, str]:
    """The plain values of a module, as text."""
    return {name: repr(value) for name, value in space.items() if name[:2] != "__" and not callable(value)}


def _changes(name: str, value: Any) -> bool:
    if name.startswith("__") or name == "MECHANISMS" or isinstance(value, types.ModuleType) or callable(value):
        return False
    if isinstance(value, tuple):
        return any(_changes("", part) for part in value)
    return not isinstance(value, int | float | str | range | torch.dtype | None | type(...))


@dataclass
class Campaign:
    """What a long run has written, and what it found."""

    seed: int
    written: int = 0
    admitted: int = 0
    executed: int = 0
    finds: list[tuple[int, tuple[str, ...], str]] = field(
        default_factory=list
    )  # the program's number, what was seen, the program

    def go_on(self, seconds: float, most: int | None = None) -> None:
        """Write programs for so long; each is drawn from (seed, its number) alone."""
        probe, calls, end = ordinary(), Calls(), time.process_time() + seconds
        while time.process_time() < end and (most is None or self.written < most):
            source = numbered_program(self.seed, self.written)
            verdict = judged(source, probe, calls)
            if verdict.findings:
                self.finds.append((self.written, verdict.findings, source))
            self.written += 1
            self.admitted += verdict.admitted
            self.executed += verdict.executed

    def __str__(self) -> str:
        counts = f"{self.written} programs written, {self.admitted} admitted, {self.executed} run to their end"
        lines = [f"seed {self.seed}: {counts}, {len(self.finds)} finds"]
        for kind, count in Counter(kind for _, kinds, _ in self.finds for kind in kinds).most_common():
            lines.append(f"  {count} times {kind}")
        return "\n".join(lines)


def numbered_program(seed: int, number: int) -> str:
    """One program of a campaign."""
    draw = random.Random(f"{seed}/{number}")
    return Writer(draw.choice, calm=draw.choice((7, 8, 9, 9, 9, 10))).program()


def main() -> None:
    """Write programs for some minutes and print what was found; status 1 after a find.

    In a process of its own, since global state and audit events are those of all threads: what a library's
    thread does beside a program would be put down to the program.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="of processor time, so that a busy machine gives no less"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=3, help="finds to print in full")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    budget.CALL_SECONDS = 2.0
    campaign, started = Campaign(given.seed), time.process_time()
    for _ in range(max(1, round(given.minutes))):
        campaign.go_on(60.0 * given.minutes / max(1, round(given.minutes)))
        print(f"{time.process_time() - started:.0f} s of processor time; {campaign}", flush=True)
    for number, kinds, source in campaign.finds[: given.show]:
        print(f"--- program {number}: {'; '.join(kinds)}\n{source}")
    if campaign.admitted <= campaign.written / 50:
        sys.exit("too few of the programs pass the check for the witnesses to see anything")
    sys.exit(bool(campaign.finds))


if __name__ == "__main__":
    main()
