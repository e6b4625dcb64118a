"""Environments by name, or by the file of a user's own."""

from __future__ import annotations

from poise_core.config.environment_file import EnvironmentFile
from poise_core.environments.arithmetic import ArithmeticEnvironment
from poise_core.environments.base import Environment
from poise_core.environments.user import load_environment

_ENVIRONMENTS = {"arithmetic": ArithmeticEnvironment}


def get_environment(name: str) -> Environment:
    """The environment of that name, or that of a file named as ``FILE.py:CLASS``.

    Raises:
        ValueError: unknown name; the message lists the known ones. Or the file holds no environment.
    """
    if file := EnvironmentFile.parse(name):
        return load_environment(file)
    if name not in _ENVIRONMENTS:
        raise ValueError(f"unknown environment {name!r}; known: {', '.join(_ENVIRONMENTS)}; or give FILE.py:CLASS")
    return _ENVIRONMENTS[name]()
