"""Check 2: the parts of the contract are there and well-formed, and every mechanism's off-switch does something."""

from __future__ import annotations

import dataclasses
import inspect

from poise_core.candidate import Candidate
from poise_core.verification.harness import ContractViolation

_SIGNATURES = {
    "compute_advantages": ("batch", "hp", "dynamics"),
    "compute_loss": ("inputs", "hp", "dynamics"),
    "update_controller": ("state", "dynamics", "hp"),
}


def check_interface(candidate: Candidate) -> None:
    """Signatures, hyperparameters and the table of mechanisms.

    Raises:
        ContractViolation: with the sentence for the author.
    """
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


def _check_mechanisms(candidate: Candidate) -> None:
    mechanisms = candidate.mechanisms
    if not isinstance(mechanisms, dict):
        raise ContractViolation("MECHANISMS is not a dict; map each mechanism to the overrides that switch it off")
    known = {field.name for field in dataclasses.fields(candidate.hyperparameters)}
    for name, overrides in mechanisms.items():
        if not isinstance(name, str) or not isinstance(overrides, dict) or not overrides:
            raise ContractViolation(f"MECHANISMS[{name!r}] must be a non-empty dict of hyperparameter overrides")
        for key in overrides:
            if key not in known:
                raise ContractViolation(f"MECHANISMS[{name!r}] overrides {key!r}, which Hyperparameters does not have")
