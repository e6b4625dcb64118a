"""The checks `interface` and `switches`: all parts of the contract are well-formed, and every off-switch has an effect."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from types import UnionType
from typing import Generic, TypeVar

from poise_core.candidate.calls import ContractViolation
from poise_core.candidate.identity import MAX_TUPLE, name_fault
from poise_core.candidate.loading import Candidate
from poise_core.verification.drawn import Draw
from poise_core.verification.fingerprint import differs, observe_one_by_one
from poise_core.verification.probes import Probe

_SIGNATURES = {
    "compute_advantages": ("batch", "hp", "dynamics"),
    "compute_loss": ("inputs", "hp", "dynamics"),
    "update_controller": ("state", "dynamics", "hp"),
}
SCENARIOS = 6  # at most, each drawn by itself; a mechanism that acts seldom shows on one of them
EFFECT = 1e-6  # relative change of loss, advantages or gradient that counts as an effect of a switch


def check_interface(candidate: Candidate) -> None:
    """Check docstring, signatures, hyperparameters and the table of mechanisms, without running the algorithm.

    Raises:
        ContractViolation: with the message for the author.
    """
    if not (ast.get_docstring(candidate.tree) or "").strip():
        raise ContractViolation("the file has no docstring; begin it with the idea, its source and the equations")
    functions = {
        "compute_advantages": candidate.advantages_function,
        "compute_loss": candidate.loss_function,
        "update_controller": candidate.controller_function,
    }
    for name, function in functions.items():
        if function is not None:
            _check_signature(name, function)
    _check_hyperparameters(candidate)
    _check_mechanisms(candidate)


def check_switches(candidate: Candidate, draw: Draw) -> tuple[list[str], list[str]]:
    """Check that every entry of ``MECHANISMS`` is there to be switched off, and look for a probe on which that shows.

    Returns:
        A sentence for every mechanism that shows on no ordinary probe: where it does, or that it was not reached. And the names of
        those that a training under these conditions does not reach.

    Raises:
        ContractViolation: with the message for the author.
    """
    notes: list[str] = []
    unreached: list[str] = []
    if not candidate.mechanisms:
        return notes, unreached
    live = live_hyperparameters(candidate.tree)

    # what the mechanisms share, drawn and observed when the first of them asks
    scenarios = _Kept(_Observed(candidate, draw.scenario(number)) for number in range(SCENARIOS))
    far = _Kept(_far_from_ordinary(candidate, draw))
    for name, overrides in candidate.mechanisms.items():
        _require_switch(candidate, name, overrides, live)
        try:
            if any(_changes(candidate, overrides, own) for own in scenarios):
                continue
            inside, where = _where_it_shows(candidate, overrides, far)
            notes.append(f"mechanism {name!r} {where}")
            unreached += [] if inside else [name]
        except ContractViolation as violation:
            raise ContractViolation(f"with mechanism {name!r} switched off: {violation}") from violation
    return notes, unreached


def hidden_from(candidate: Candidate, probes: Sequence[Probe]) -> list[str]:
    """The mechanisms whose switch shows on none of these probes."""
    own = _Observed(candidate, probes)
    return [name for name, overrides in candidate.mechanisms.items() if not _changes(candidate, overrides, own)]


def _require_switch(candidate: Candidate, name: str, overrides: Mapping[str, object], live: set[str]) -> None:
    """Refuse a switch that sets the defaults, or hyperparameters on which no result depends: those that are not ``live``."""
    changed = {key for key, value in overrides.items() if value != getattr(candidate.hyperparameters, key)}
    if not changed & live:
        why = "no result depends on these hyperparameters" if changed else "these are the defaults"
        raise ContractViolation(
            f"switching mechanism {name!r} off ({_overrides(overrides)}) changes nothing: {why}; remove it from "
            "MECHANISMS, or make the code depend on those hyperparameters"
        )


def _far_from_ordinary(candidate: Candidate, draw: Draw) -> Iterator[tuple[bool, _Observed]]:
    """Probes far from the ordinary ones, those within the conditions first, each with whether it lies within them."""
    for inside, drawn in sorted(draw.reach(_numbers(candidate)), key=lambda pair: not pair[0]):
        yield inside, _Observed(candidate, [drawn()])


def _where_it_shows(
    candidate: Candidate, overrides: Mapping[str, object], far: Iterable[tuple[bool, _Observed]]
) -> tuple[bool, str]:
    """Whether the conditions reach a probe on which a switch has an effect, and which."""
    for inside, own in far:
        if _changes(candidate, overrides, own):
            (probe,) = own.probes
            beyond = "" if inside else ", which this training does not reach"
            return inside, f"acts seldom: shown at {probe.name}{beyond}"
    return False, "was not reached on any probe, so nothing shows yet that it acts"


def live_hyperparameters(tree: ast.Module) -> set[str]:
    """The fields of ``hp`` that may reach what a function of the file returns, by the names through which they pass.

    The order of statements is not looked at, and what an ``if`` or a loop asks for is taken to reach the result.
    """
    found: set[str] = set()
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        flows: list[tuple[set[str], set[str]]] = []  # names that are assigned, and what stands in the value
        live: set[str] = set()
        for node in ast.walk(function):
            match node:
                case ast.Return(value=ast.expr() as value):
                    live |= _names(value)
                case ast.If(test=value) | ast.For(iter=value):
                    live |= _names(value)
                case ast.Assign(targets=written, value=value):
                    flows.append(({name for one in written for name in _names(one)}, _names(value)))
                case (
                    ast.AugAssign(target=target, value=value) | ast.AnnAssign(target=target, value=ast.expr() as value)
                ):
                    flows.append((_names(target), _names(value)))
                case ast.Expr(value=ast.Call(func=ast.Attribute(value=owner)) as call):  # rows.append(x)
                    flows.append((_names(owner), _names(call)))
                case ast.NamedExpr(target=target, value=value):
                    flows.append((_names(target), _names(value)))
        reached = -1
        while reached != len(live):
            reached = len(live)
            for targets, values in flows:
                if targets & live:
                    live |= values | targets
        found |= {name.removeprefix("hp.") for name in live if name.startswith("hp.")}
    return found


def _names(node: ast.expr) -> set[str]:
    """The names in an expression, and those of fields of hp as ``hp.field``."""
    return {
        f"hp.{part.attr}" if isinstance(part, ast.Attribute) else part.id
        for part in ast.walk(node)
        if isinstance(part, ast.Name)
        or (isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "hp")
    }


def _numbers(candidate: Candidate) -> list[float]:
    """The numbers that a file names: its hyperparameters' and those in its code, the former first."""
    own = [getattr(candidate.hyperparameters, f.name) for f in dataclasses.fields(candidate.hyperparameters)]
    written = [node.value for node in ast.walk(candidate.tree) if isinstance(node, ast.Constant)]
    flat = [one for value in own for one in (value if isinstance(value, tuple) else (value,))]
    return [
        float(value) for value in (*flat, *written) if isinstance(value, int | float) and not isinstance(value, bool)
    ]


_T = TypeVar("_T")


class _Kept(Generic[_T]):
    """What an iterator yields, each asked of it when it is first needed, and kept for who iterates next."""

    def __init__(self, source: Iterable[_T]) -> None:
        self._source, self._kept = iter(source), list[_T]()

    def __iter__(self) -> Iterator[_T]:
        for index in count():
            if index == len(self._kept):
                try:
                    self._kept.append(next(self._source))
                except StopIteration:
                    return
            yield self._kept[index]


class _Observed:
    """What a candidate does on some probes."""

    def __init__(self, candidate: Candidate, probes: Iterable[Probe]) -> None:
        self.probes = _Kept(probes)
        self.observations = _Kept(observe_one_by_one(candidate, self.probes))


def _changes(candidate: Candidate, overrides: Mapping[str, object], own: _Observed) -> bool:
    others = observe_one_by_one(candidate.with_overrides(**overrides), own.probes)
    return any(differs(one, other, EFFECT) for one, other in zip(own.observations, others, strict=True))


def _overrides(overrides: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in overrides.items())


def _check_signature(name: str, function: object) -> None:
    wanted = _SIGNATURES[name]
    if not inspect.isfunction(function):
        raise ContractViolation(f"{name} is not a function; write def {name}({', '.join(wanted)})")
    parameters = inspect.signature(function).parameters.values()
    names = tuple(parameter.name for parameter in parameters)
    if names != wanted or any(parameter.kind != parameter.POSITIONAL_OR_KEYWORD for parameter in parameters):
        raise ContractViolation(
            f"{name}({', '.join(names)}) has the wrong parameters; write def {name}({', '.join(wanted)})"
        )


def _check_hyperparameters(candidate: Candidate) -> None:
    cls = type(candidate.hyperparameters)
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ContractViolation("Hyperparameters is not a frozen dataclass; decorate it with @dataclass(frozen=True)")
    for field in dataclasses.fields(cls):
        value = getattr(candidate.hyperparameters, field.name)
        if isinstance(value, tuple):
            if fault := _tuple_fault(value):
                raise ContractViolation(f"Hyperparameters.{field.name} {fault}")
            continue
        if not isinstance(value, bool | int | float | str):
            raise ContractViolation(
                f"Hyperparameters.{field.name} is a {type(value).__name__}; use a bool, int, float, str or a tuple of numbers"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ContractViolation(f"Hyperparameters.{field.name} is {value}; use a finite number such as 1e6")


def _tuple_fault(value: tuple[object, ...]) -> str:
    """What is wrong with the tuple of a hyperparameter, after its name; "" where nothing is."""
    if not 1 <= len(value) <= MAX_TUPLE:
        return f"has {len(value)} numbers; a tuple has one to {MAX_TUPLE} of them"
    for one in value:
        if not isinstance(one, bool | int | float):
            return f"holds a {type(one).__name__}; a tuple holds bools, ints and floats alone"
        if isinstance(one, float) and not math.isfinite(one):
            return f"holds {one}; use a finite number such as 1e6"
    return ""


def _check_mechanisms(candidate: Candidate) -> None:
    mechanisms = candidate.mechanisms
    if not isinstance(mechanisms, dict):
        raise ContractViolation("MECHANISMS is not a dict; map each mechanism to the overrides that switch it off")
    defaults = {
        f.name: getattr(candidate.hyperparameters, f.name) for f in dataclasses.fields(candidate.hyperparameters)
    }
    if fault := name_fault("mechanism", mechanisms):
        raise ContractViolation(fault)
    for name, overrides in mechanisms.items():
        if not isinstance(overrides, dict) or not overrides:
            raise ContractViolation(f"MECHANISMS[{name!r}] must be a non-empty dict of hyperparameter overrides")
        for key, value in overrides.items():
            if key not in defaults:
                raise ContractViolation(f"MECHANISMS[{name!r}] overrides {key!r}, which Hyperparameters does not have")
            kind = _kind(value)
            if kind is None or kind != _kind(defaults[key]):
                raise ContractViolation(
                    f"MECHANISMS[{name!r}] sets {key} to {value!r}, but its default is {defaults[key]!r}; use the same type"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise ContractViolation(f"MECHANISMS[{name!r}] sets {key} to {value}; use a finite number such as 1e6")
            if isinstance(value, tuple):
                _check_switched_tuple(candidate, f"MECHANISMS[{name!r}]: {key}", key, value)


_KINDS: tuple[type | UnionType, ...] = (bool, int | float, str, tuple)


def _kind(value: object) -> type | UnionType | None:
    """What a hyperparameter is: a truth value, a number, a text or a tuple; None for anything else."""
    return next((kind for kind in _KINDS if isinstance(value, kind)), None)


def _check_switched_tuple(candidate: Candidate, place: str, key: str, value: tuple[object, ...]) -> None:
    """Refuse a tuple that could not be the default of this field either: its length is the annotation's where that names one."""
    if fault := _tuple_fault(value):
        raise ContractViolation(f"{place} {fault}")
    length = len(getattr(candidate.hyperparameters, key))
    kinds = next(str(f.type) for f in dataclasses.fields(candidate.hyperparameters) if f.name == key)
    if "..." not in kinds and len(value) != length:
        raise ContractViolation(
            f"{place} is set to {len(value)} numbers, but has {length}; give as many, or annotate it with tuple[float, ...]"
        )
