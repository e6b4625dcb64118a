"""Files and functions of users that a preset names: the digest of a file, and whether it has the function."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import symtable
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

CALLABLE = re.compile(r"(?P<where>[\w.]+|.+\.py):(?P<name>[A-Za-z_]\w*)(?:#(?P<digest>[0-9a-f]{16}))?")
"""``package.module:function`` or ``FILE.py:function``, with the digest that the loader of presets appends."""


def file_digest(path: Path, expected: str = "") -> str:
    """Return 16 hex digits of SHA-256 over a file.

    Raises:
        OSError: it cannot be read.
        ValueError: another digest was expected.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if expected and digest != expected:
        raise ValueError(
            f"{path} has changed (digest {digest}, expected {expected}); other problems make another protocol: restore the "
            "file, or begin a new run"
        )
    return digest


def pinned_callable(reference: str) -> str:
    """Return ``FILE.py:name`` with the digest of the file; other references are returned unchanged.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has another digest than the reference says, is no Python, or binds no such name, or there is no such
            module; nothing is imported for that.
    """
    match = CALLABLE.fullmatch(reference)
    if match is None:
        return reference
    where, name = match["where"], match["name"]
    if not where.endswith(".py"):
        source = _source_of_module(where)
        if source is not None:
            _require_name(where, source, name)
        return reference
    path = Path(where)
    digest = file_digest(path, match["digest"] or "")
    _require_name(where, path, name)
    return f"{path}:{name}#{digest}"


def _source_of_module(where: str) -> Path | None:
    """The file of a module, found without importing its packages; None where it has no source.

    Raises:
        ValueError: there is none.
    """
    places: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    parts = where.split(".")
    for depth in range(1, len(parts) + 1):
        whole = ".".join(parts[:depth])
        spec = find_spec(whole) if depth == 1 else PathFinder.find_spec(whole, places)
        if spec is None:
            raise ValueError(f"there is no module {whole} here; install it, or give FILE.py:name")
        if depth < len(parts) and spec.submodule_search_locations is None:
            return None  # a module that makes others when it runs
        places = spec.submodule_search_locations
    origin = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
    return origin if origin is not None and origin.suffix == ".py" else None


def _require_name(where: str, path: Path, name: str) -> None:
    names = _names_in(path)
    if names is not None and name not in names:
        has = ", ".join(sorted(name for name in names if not name.startswith("_"))[:10]) or "none"
        raise ValueError(f"{where} has no {name}; its names are {has}")


def _names_in(path: Path) -> set[str] | None:
    """Names that the file of a module binds, nested in ifs or not.

    None where it takes all of another module's, or makes names when it is asked for them.
    """
    source = path.read_bytes()
    try:
        tree = ast.parse(source)
        table = symtable.symtable(source, str(path), "exec")  # type: ignore[arg-type]  # it takes bytes as compile does
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: it is no Python: {error}") from error
    if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree)):
        return None
    names = {one.get_name() for one in table.get_symbols() if one.is_assigned() or one.is_imported()}
    return None if "__getattr__" in names else names


def absolute_callable(reference: str) -> str:
    """Return ``FILE.py:name`` with the whole path of the file; other references are returned unchanged."""
    match = CALLABLE.fullmatch(reference)
    if match is None or not match["where"].endswith(".py"):
        return reference
    return os.path.abspath(match["where"]) + reference[len(match["where"]) :]
