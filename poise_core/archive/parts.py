"""Names of part files: the part's keys, percent-encoded, as in ``part-<key>,<key>.parquet``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

from poise_core.archive.errors import ArchiveRowError

SCHEMA_FILE = "schema.parquet"
_PREFIX, _SUFFIX = "part-", ".parquet"
_LONGEST_NAME = 240


def encode_key(values: Sequence[Any], separator: str) -> str:
    """Key values as one text from which they can be told apart again."""
    return separator.join(quote(str(value), safe="") for value in values)


def part_name(values: Sequence[Any]) -> str:
    """File name of the part with these key values.

    Raises:
        ArchiveRowError: the name would be too long for a file system.
    """
    name = f"{_PREFIX}{encode_key(values, ',')}{_SUFFIX}"
    if len(name) > _LONGEST_NAME:
        raise ArchiveRowError(f"the key {encode_key(values, '/')} is too long for a file name; shorten it")
    return name


def part_values(name: str) -> tuple[str, ...] | None:
    """Key values, as text, of a part's file name; ``None`` for any other file."""
    if not (name.startswith(_PREFIX) and name.endswith(_SUFFIX)):
        return None
    return tuple(unquote(text) for text in name[len(_PREFIX) : -len(_SUFFIX)].split(","))
