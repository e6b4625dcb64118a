"""A candidate's bytes, its text and the identity of that, and the names that it may give; apart from the loader, which needs torch.

Whoever reads a candidate file reads it here: gate, registration and training judge the same bytes under the same limits.
"""

from __future__ import annotations

import ast
import codecs
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

BUILTINS = (
    "abs", "all", "any", "bool", "dict", "enumerate", "float", "int", "len", "list", "max", "min", "range", "reversed", "round",
    "sorted", "sum", "tuple", "zip",
)  # fmt: skip
"""Built-in functions of the candidate language: the language check lists no others, and no others exist while a candidate runs."""

MAX_NAMES = 64
"""Mechanisms, metrics, carried signals or controller values of one candidate, each."""

MAX_TUPLE = 8
"""Numbers in a tuple that is one hyperparameter."""

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


def text_fault(source: str) -> str:
    """What keeps a text from being written to a file, for its author; "" where nothing does."""
    try:
        source.encode()
    except UnicodeEncodeError as error:
        return f"the file holds half of a surrogate pair at character {error.start}; write UTF-8 text"
    return ""


def same_program(one: str, other: str) -> bool:
    """Whether two texts of candidates differ in comments, docstrings and layout only.

    Raises:
        SyntaxError: one of them is no Python.
    """
    return program_digest(one) == program_digest(other)


@lru_cache(maxsize=1 << 14)  # a verification asks for every candidate of its run
def program_digest(source: str) -> str:
    """Hex digest that names what ``same_program`` compares.

    Raises:
        SyntaxError: it is no Python.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            del body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


MAX_BYTES = 1 << 20
"""Of a candidate file; the check `language` refuses far smaller ones."""


class UnreadableCandidate(ValueError):
    """The content of the file is no text of a candidate; the message tells its author what to change.

    ``content`` is what was read of it.
    """

    def __init__(self, message: str, content: bytes = b"") -> None:
        super().__init__(message)
        self.content = content


def read_candidate(path: Path) -> str:
    """The text of a candidate file, which is opened once and read once.

    A link is followed to its file. A pipe or a device is not waited for.

    Raises:
        OSError: there is no such file, it is no regular file, or it cannot be read.
        UnreadableCandidate: it is too large, or no UTF-8 text.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return decode_candidate(stream.read(MAX_BYTES + 1))


def decode_candidate(content: bytes) -> str:
    """The text of these bytes: UTF-8 with or without a byte order mark, any line end as LF, as Python reads a file.

    Bytes that are no UTF-8 are read by their coding line, if they have one, which then says UTF-8, as the text is kept.

    Raises:
        UnreadableCandidate: there are too many, or they are neither UTF-8 nor what their coding line says.
    """
    if len(content) > MAX_BYTES:
        raise UnreadableCandidate(f"the file has more than {MAX_BYTES} bytes; a candidate has a few thousand", content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if (other := _by_coding_line(content)) is not None:
            return other.replace("\r\n", "\n").replace("\r", "\n")
        place = error.start + (len(content) - len(error.object))  # the decoder does not count the mark
        raise UnreadableCandidate(f"the file is not UTF-8 text (byte {place}); save it as UTF-8", content) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


_CODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_CODECS = (
    "iso8859",
    "latin",
    "cp",
    "koi8",
    "mac",
    "gb",
    "big5",
    "euc",
    "shift",
    "johab",
    "hz",
    "tis",
    "ptcp",
    "kz1048",
)
"""Beginnings of the codecs that a coding line may name: character sets, and none of Python's transformations."""


def _by_coding_line(content: bytes) -> str | None:
    """The text by the coding line among its first two lines (PEP 263), changed to utf-8; None where that says nothing usable."""
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines[:2]):
        if found := _CODING.match(line):
            try:
                codec = codecs.lookup(found[1].decode("ascii"))
                if not codec.name.replace("-", "").startswith(_CODECS):
                    return None
                begin, end = found.span(1)
                lines[number] = line[:begin] + b"utf-8" + line[end:]
                return b"".join(lines).decode(codec.name)
            except (LookupError, UnicodeError):
                return None
        if line.strip() and not line.lstrip().startswith(b"#"):
            return None
    return None


def candidate_name(stem: str) -> str:
    """The name of a candidate whose file has this stem: 60 letters, digits and ``_.-`` at most."""
    return re.sub(r"[^\w.-]+", "-", stem)[:60].strip("-.") or "unnamed"


def source_digest(source: str) -> str:
    """Hex digest that names a candidate's text; line endings and trailing blanks do not count."""
    normalized = "\n".join(line.rstrip() for line in source.strip().splitlines()) + "\n"
    return hashlib.sha256(normalized.encode("utf-8", "replace")).hexdigest()
