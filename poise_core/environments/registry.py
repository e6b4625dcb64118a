"""Environments by their names, or by the file of a user's environment."""

from __future__ import annotations

from poise_core.config.environment_file import EnvironmentFile
from poise_core.environments.arithmetic import ArithmeticEnvironment
from poise_core.environments.base import Environment
from poise_core.environments.user import load_environment

_ENVIRONMENTS = {"arithmetic": ArithmeticEnvironment}


def get_environment(name: str) -> Environment:
    """Return the environment of that name, or the one in a file named as ``FILE.py:CLASS``.

    Raises:
        ValueError: the name is unknown (the message lists the known ones), or the file holds no environment.
    """
    if file := EnvironmentFile.parse(name):
        return load_environment(file)
    if name not in _ENVIRONMENTS:
        raise ValueError(f"unknown environment {name!r}; known: {', '.join(_ENVIRONMENTS)}; or give FILE.py:CLASS")
    return _ENVIRONMENTS[name]()
