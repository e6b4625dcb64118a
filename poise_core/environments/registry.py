"""Environments by name."""

from __future__ import annotations

from poise_core.environments.arithmetic import ArithmeticEnvironment
from poise_core.environments.base import Environment

_ENVIRONMENTS = {"arithmetic": ArithmeticEnvironment}


def get_environment(name: str) -> Environment:
    """The environment of that name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in _ENVIRONMENTS:
        raise ValueError(f"unknown environment {name!r}; known: {', '.join(_ENVIRONMENTS)}")
    return _ENVIRONMENTS[name]()
