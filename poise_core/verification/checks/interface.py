"""The checks `interface` and `switches`: all parts of the contract are well-formed, and every off-switch has an effect."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence

from poise_core.candidate.calls import ContractViolation
from poise_core.candidate.identity import name_fault
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
    if not (ast.get_docstring(ast.parse(candidate.source)) or "").strip():
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


def check_switches(candidate: Candidate, draw: Draw) -> None:
    """Check that switching any mechanism off changes the candidate's results on some probe.

    Raises:
        ContractViolation: with the message for the author.
    """
    for name, overrides in candidate.mechanisms.items():
        try:
            changes = any(_changes(candidate, overrides, draw.scenario(number)) for number in range(SCENARIOS))
        except ContractViolation as violation:
            raise ContractViolation(f"with mechanism {name!r} switched off: {violation}") from violation
        if not changes:
            raise ContractViolation(
                f"switching mechanism {name!r} off ({_overrides(overrides)}) changes nothing on any probe; remove it from "
                "MECHANISMS, or make the code depend on those hyperparameters"
            )


def _changes(candidate: Candidate, overrides: Mapping[str, object], probes: Sequence[Probe]) -> bool:
    others = observe_one_by_one(candidate.with_overrides(**overrides), probes)
    own = observe_one_by_one(candidate, probes)
    return any(differs(one, other, EFFECT) for one, other in zip(own, others, strict=True))


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
        if not isinstance(value, bool | int | float | str):
            raise ContractViolation(
                f"Hyperparameters.{field.name} is a {type(value).__name__}; use a bool, int, float or str"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ContractViolation(f"Hyperparameters.{field.name} is {value}; use a finite number such as 1e6")


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
            if isinstance(value, str | bool) != isinstance(defaults[key], str | bool):
                raise ContractViolation(
                    f"MECHANISMS[{name!r}] sets {key} to {value!r}, but its default is {defaults[key]!r}; use the same type"
                )
