"""Environments by their names, or by the file of a user's environment."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from poise_core.config.environment_file import EnvironmentFile
from poise_core.environments.arithmetic import DESCRIPTIONS, FORM, ArithmeticEnvironment
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


def described(name: str, kinds: Sequence[str]) -> tuple[dict[str, str], str]:
    """Descriptions of kinds of problems, and of what a completion must look like; no problem is quoted.

    Of a user's file the docstring of the class is the description, read and not executed; without one there is none.
    """
    file = EnvironmentFile.parse(name)
    if file is None:
        return {
            kind: DESCRIPTIONS[kind] for kind in kinds if kind in DESCRIPTIONS
        }, FORM if name == "arithmetic" else ""
    try:
        tree = ast.parse(file.path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return {}, ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == file.class_name:
            return {}, (ast.get_docstring(node) or "")[:1500]
    return {}, ""
