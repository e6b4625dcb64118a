"""The identity of a candidate's text, and the names that a candidate may give; apart from the loader, which needs torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

BUILTINS = (
    "abs", "all", "any", "bool", "dict", "enumerate", "float", "int", "len", "list", "max", "min", "range", "reversed", "round",
    "sorted", "sum", "tuple", "zip",
)  # fmt: skip
"""Built-in functions of the candidate language: the language check lists no others, and no others exist while a candidate runs."""

MAX_NAMES = 64
"""Mechanisms, metrics, carried signals or controller values of one candidate, each."""

_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,60}")  # "." and ".." would be folders where a name ends a path


def name_fault(what: str, names: Iterable[object]) -> str:
    """What is wrong with the names that a candidate gives, for its author; "" where nothing is.

    They become columns, keys of MLflow, files and text on pages and terminals, so they are short and plain.

    Args:
        what: is named, in the singular: ``metric``.
        names: all of them.
    """
    given = list(names)
    if len(given) > MAX_NAMES:
        return f"there are {len(given)} names of the kind {what}; at most {MAX_NAMES} are allowed"
    for name in given:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            shown = ascii(name)
            shown = shown if len(shown) <= 70 else f"{shown[:60]}... ({len(shown)} characters)"
            hint = "not only dots" if name in (".", "..") else "1 to 60 of the characters A-Z a-z 0-9 _ . -"
            return f"the {what} name {shown} is not allowed; use {hint}"
    return ""


def source_digest(source: str) -> str:
    """Hex digest that names a candidate's text; line endings and trailing blanks do not count."""
    normalized = "\n".join(line.rstrip() for line in source.strip().splitlines()) + "\n"
    return hashlib.sha256(normalized.encode("utf-8", "replace")).hexdigest()
