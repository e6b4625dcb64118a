"""Loading a candidate file into an object that the trainer and the gate can call.

Loading executes the file: do it only in a process that may run candidate code (see ``poise_core.verification``).
"""

from __future__ import annotations
import __future__

import ast
import builtins
import dataclasses
import importlib
import linecache
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from poise_core.candidate.budget import CallTimedOut, Expired, within_budget
from poise_core.candidate.identity import BUILTINS, UnreadableCandidate, read_candidate, source_digest
from poise_core.contract import LOSS_AGGREGATIONS, Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch

__all__ = ["CallTimedOut", "Candidate", "CandidateError", "load_candidate", "load_candidate_source", "source_digest"]


class CandidateError(ValueError):
    """The file is not a candidate; the message tells its author what to change."""


@dataclass(frozen=True)
class Candidate:
    """A loaded candidate: its functions bound to one value of its hyperparameters."""

    name: str
    source: str
    loss_aggregation: str
    mechanisms: Mapping[str, Mapping[str, Any]]
    hyperparameters: Any
    advantages_function: Callable[..., Advantages]
    loss_function: Callable[..., LossOutputs]
    controller_function: Callable[..., dict[str, float]] | None
    reads: frozenset[str]  # attribute names that the source reads, for the costs that only some candidates need

    @cached_property
    def tree(self) -> ast.Module:
        """Of the source; not to be changed."""
        return ast.parse(self.source)

    @property
    def reads_reference(self) -> bool:
        """Whether the frozen policy's log-probabilities have to be computed."""
        return "ref_logprobs" in self.reads

    @property
    def reads_entropies(self) -> bool:
        """Whether the current policy's entropies have to be computed with gradient."""
        return "entropies" in self.reads

    def compute_advantages(self, batch: RolloutBatch, dynamics: Dynamics) -> Advantages:
        """Whole-batch advantages, see ``poise_core.contract``."""
        return self.advantages_function(batch, self.hyperparameters, dynamics)

    def compute_loss(self, inputs: LossInputs, dynamics: Dynamics) -> LossOutputs:
        """Per-token loss of one micro-batch, see ``poise_core.contract``."""
        return self.loss_function(inputs, self.hyperparameters, dynamics)

    def update_controller(self, state: Mapping[str, float], dynamics: Dynamics) -> dict[str, float]:
        """The controller state of the next step; empty where the candidate has no controller."""
        if self.controller_function is None:
            return {}
        return dict(self.controller_function(state, dynamics, self.hyperparameters))

    def with_overrides(self, **overrides: Any) -> Candidate:
        """The same candidate with some hyperparameters replaced; unknown names raise ``TypeError``."""
        return dataclasses.replace(self, hyperparameters=dataclasses.replace(self.hyperparameters, **overrides))


def load_candidate(path: Path | str, name: str | None = None) -> Candidate:
    """Load a candidate file; ``name`` defaults to the file's stem.

    Raises:
        CandidateError: the file does not parse or lacks a part of the contract.
        CallTimedOut: it takes too long.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        source = read_candidate(path)
    except UnreadableCandidate as error:
        raise CandidateError(str(error)) from error
    return load_candidate_source(source, name or path.stem)


IMPORTABLE = (
    "math",
    "dataclasses",
    "torch",
    "poise_core.contract",
    "poise_core.reductions",
    "collections.abc",
    "__future__",
)
"""Modules that a candidate may import; of torch, its submodules too."""


MAX_RANGE = 100_000


def _execute(tree: ast.Module, source: str, name: str, wall: bool) -> dict[str, Any]:
    """The names that the file defines, executed with the built-ins of the candidate language and no others.

    This is the second wall behind the language check: a file that got something past it finds a NameError where ``exec``
    or ``open`` would be. Imports, those that torch's own C++ code makes while the candidate runs included, are resolved by
    a function that knows the listed modules; what makes classes is gone when the file has been executed. Annotations are
    never evaluated.
    """
    filename = f"<candidate {name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)  # for tracebacks
    # dataclasses makes methods in the module that sys.modules names, so that module is not the candidate's namespace
    standing_in = types.ModuleType(f"poise_candidate_{source_digest(source)[:16]}")
    sys.modules[standing_in.__name__] = standing_in
    allowed = candidate_builtins() if wall else vars(builtins).copy()
    members: dict[str, Any] = {"__name__": standing_in.__name__, "__builtins__": allowed}
    loading = {"__import__": _import if wall else builtins.__import__, "__build_class__": builtins.__build_class__}
    allowed.update(loading)
    flags = __future__.annotations.compiler_flag
    try:
        exec(compile(tree, filename, "exec", flags=flags, dont_inherit=True), members)
    except (Expired, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # a file that exits must not end the process that loads it
        raise CandidateError(f"the file fails when it is imported: {type(error).__name__}: {error}") from error
    finally:
        sys.modules.pop(standing_in.__name__, None)
        if wall:
            del allowed["__build_class__"]
    return members


def candidate_builtins() -> dict[str, Any]:
    """The built-ins of the candidate language, in a dictionary of its own for every file; its ranges are bounded."""
    return {**{one: getattr(builtins, one) for one in BUILTINS}, "range": bounded_range}


def bounded_range(*arguments: Any) -> range:
    """``range``, of at most ``MAX_RANGE`` numbers: what a built-in such as ``sum`` does with more, no alarm interrupts.

    Raises:
        ValueError: it would be longer.
    """
    numbers = range(*arguments)
    if numbers[MAX_RANGE:]:
        raise ValueError(f"this range has more than {MAX_RANGE} numbers; use torch operations")
    return numbers


MAX_COUNTED = 1000
"""Of what ``math.comb``, ``math.perm`` and ``math.factorial`` count: no operator of Python makes larger integers faster."""


def _counting(name: str) -> Callable[..., int]:
    """The function of ``math`` of this name, of numbers up to ``MAX_COUNTED``."""
    exact: Callable[..., int] = getattr(math, name)

    def bounded(*numbers: int) -> int:
        if any(number > MAX_COUNTED for number in numbers if isinstance(number, int)):
            raise ValueError(f"math.{name} takes numbers up to {MAX_COUNTED}; use math.lgamma or torch.lgamma beyond")
        return exact(*numbers)

    bounded.__name__ = name
    return bounded


def _bounded_math() -> types.ModuleType:
    """``math`` as candidates import it: what counts arrangements is bounded, because nothing interrupts it."""
    module = types.ModuleType("math")
    vars(module).update({one: value for one, value in vars(math).items() if not one.startswith("__")})
    vars(module).update({one: _counting(one) for one in ("comb", "perm", "factorial")})
    return module


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> types.ModuleType:
    """What an import statement of a candidate calls."""
    if level or not (name in IMPORTABLE or name.startswith("torch.")):
        raise ImportError(f"a candidate cannot import {name}; importable are {', '.join(IMPORTABLE)}")
    if name == "math":
        return _bounded_math()
    return importlib.__import__(name, None, None, tuple(fromlist or ()), 0)


def load_candidate_source(source: str, name: str, *, wall: bool = True) -> Candidate:
    """Load a candidate from its text.

    Args:
        source: text of the file.
        name: how messages call it.
        wall: whether the file sees the built-ins of the candidate language only; False is for tests of what stands behind.

    Raises:
        CandidateError: the text does not parse or lacks a part of the contract.
        CallTimedOut: what stands at its top level takes longer than a call may.
        MemoryError: it needs more memory than there is.
    """
    tree = _parse(source)
    members: dict[str, Any] = within_budget("loading the file", lambda: _execute(tree, source, name, wall))
    _require_contract(members)
    try:
        hyperparameters = within_budget("Hyperparameters()", members["Hyperparameters"])
    except (CallTimedOut, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        raise CandidateError(f"Hyperparameters() fails: {error}; give every field a default") from error
    reads = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return Candidate(
        name=name,
        source=source,
        loss_aggregation=members["LOSS_AGGREGATION"],
        mechanisms=members["MECHANISMS"],
        hyperparameters=hyperparameters,
        advantages_function=members["compute_advantages"],
        loss_function=members["compute_loss"],
        controller_function=members.get("update_controller"),
        reads=frozenset(reads),
    )


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        place = f"line {error.lineno}: " if error.lineno else ""
        raise CandidateError(f"{place}{error.msg}") from error
    except (MemoryError, RecursionError) as error:
        raise CandidateError("the file nests expressions too deeply to be parsed") from error
    except ValueError as error:  # a null byte or half of a surrogate pair
        raise CandidateError(f"the file does not parse: {error}") from error


def _require_contract(members: Mapping[str, Any]) -> None:
    for required in ("Hyperparameters", "LOSS_AGGREGATION", "MECHANISMS", "compute_advantages", "compute_loss"):
        if required not in members:
            raise CandidateError(f"{required} is missing; every candidate defines it at module level")
    for function in ("compute_advantages", "compute_loss"):
        if not callable(members[function]):
            raise CandidateError(f"{function} is {members[function]!r}; it must be a function")
    if not isinstance(members["MECHANISMS"], Mapping):
        raise CandidateError(
            "MECHANISMS must be a dict from the name of a mechanism to the overrides that switch it off"
        )
    if not isinstance(members["LOSS_AGGREGATION"], str) or members["LOSS_AGGREGATION"] not in LOSS_AGGREGATIONS:
        raise CandidateError(
            f"LOSS_AGGREGATION is {members['LOSS_AGGREGATION']!r}; use one of {', '.join(LOSS_AGGREGATIONS)}"
        )
