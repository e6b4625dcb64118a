"""Environments by their names, by the file or module of a user's environment, or from a source of problems.

A user's code is trusted, because the user who starts the run has named it. It runs in the confined processes of training and
evaluation, which can read no other file beside it, so problems that are not generated must stand in the file itself.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import cast

from poise_core.config.environment_file import EnvironmentFile
from poise_core.config.problems import SourceSpec
from poise_core.config.protocol import BenchmarkSpec, EnvironmentSpec, Protocol
from poise_core.environments.arithmetic import DESCRIPTIONS, FORM, ArithmeticEnvironment
from poise_core.environments.base import Environment
from poise_core.environments.sources import HALVES, HASH, SAME, TRAIN, Shares, SourceEnvironment, user_class

_ENVIRONMENTS = {"arithmetic": ArithmeticEnvironment}
_METHODS = ("problems", "pool_size", "verify")


def get_environment(wanted: str | EnvironmentSpec) -> Environment:
    """Return the environment of a specification, or of that name, or the one in a file named as ``FILE.py:CLASS``.

    Raises:
        ValueError: the name is unknown (the message lists the known ones), the file holds none, or a source cannot be read.
    """
    if isinstance(wanted, EnvironmentSpec):
        if wanted.source is not None:
            return _from_source(wanted.source, HASH if wanted.split == "hash" else TRAIN)
        wanted = wanted.name
    if file := EnvironmentFile.parse(wanted):
        return _load_environment(file)
    if wanted not in _ENVIRONMENTS:
        raise ValueError(f"unknown environment {wanted!r}; known: {', '.join(_ENVIRONMENTS)}; or give FILE.py:CLASS")
    return _ENVIRONMENTS[wanted]()


def benchmark_environment(protocol: Protocol, benchmark: BenchmarkSpec) -> Environment:
    """Return the environment from which a benchmark's problems are drawn and which judges their completions.

    Raises:
        ValueError: see ``get_environment``.
    """
    if benchmark.source is None:
        return get_environment(protocol.environment)
    return _from_source(benchmark.source, SAME if benchmark.sealed == "same" else HALVES)


def _from_source(source: SourceSpec, shares: Shares) -> Environment:
    if source.environment is None:
        return SourceEnvironment(source, shares)
    return checked_environment(user_class(source.environment)(), source.environment)


def checked_environment(environment: object, where: str) -> Environment:
    """Return an object as an environment.

    Raises:
        ValueError: it lacks a method of one.
    """
    missing = [method for method in _METHODS if not callable(getattr(environment, method, None))]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; see poise_core.environments.base.Environment")
    return cast(Environment, environment)


def _load_environment(file: EnvironmentFile) -> Environment:
    """Import the file and make an environment of its class, which is called without arguments.

    Raises:
        ValueError: the file is missing or fails, has changed since the preset was loaded, or the class is no environment.
    """
    try:
        digest = file.present_digest()
    except OSError as error:
        raise ValueError(f"{file.path}: the environment cannot be read: {error.strerror or error}") from error
    if file.digest and digest != file.digest:
        raise ValueError(
            f"{file.path} has changed since this run began (digest {digest}, the run has {file.digest}); other problems make "
            "another protocol: restore the file, or begin a new run"
        )
    return checked_environment(file.instance(f"poise_environment_{digest}"), f"{file.path}: {file.class_name}")


def described_problems(protocol: Protocol, kinds: Sequence[str]) -> tuple[dict[str, str], str]:
    """Descriptions of the training's kinds of problems, and of its prompts and answers; no problem is quoted."""
    environment = protocol.environment
    if environment.source is None:
        return described(environment.name, kinds)
    told = f"Training prompts: {environment.train_problems} problems of {environment.source.described}."
    own = described((environment.source.environment or "").partition("#")[0], ())[1]
    if protocol.prompt is not None and protocol.prompt.template != "{problem}":
        chat = " in the chat template of the policy" if protocol.prompt.chat else ""
        own += f"\nEach problem is put to the policy{chat} as: {' '.join(protocol.prompt.template.split())[:600]}"
    return {}, f"{told}\n{own}".replace("\n\n", "\n").strip()


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
