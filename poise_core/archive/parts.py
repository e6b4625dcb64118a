"""Names of files in a table's folder.

A part is ``part-<key>,<key>.parquet``, with percent-encoded keys. ``compacted/`` holds the rows of many parts in
``all-<digest>.parquet``; in a table with a sealed split, each split has its own file, named by the split.

A *part id* is a part's keys joined by ``/``. The ``row_key`` of every row begins with the id of its part, so the part of a row
is known in any file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc

from poise_core.archive.errors import ArchiveRowError
from poise_core.archive.schema import Table

SCHEMA_FILE = "schema.parquet"
COMPACTED = "compacted"
WHOLE_TABLE = "all"
_PREFIX, _SUFFIX = "part-", ".parquet"
_LONGEST_NAME = 240


def encode_key(values: Sequence[Any], separator: str) -> str:
    """Join key values into one text from which they can be recovered."""
    return separator.join(quote(str(value), safe="") for value in values)


def part_name(values: Sequence[Any]) -> str:
    """Return the file name of the part with these key values.

    Raises:
        ArchiveRowError: the name would be too long for a file system.
    """
    name = f"{_PREFIX}{encode_key(values, ',')}{_SUFFIX}"
    if len(name) > _LONGEST_NAME:
        raise ArchiveRowError(f"the key {encode_key(values, '/')} is too long for a file name; shorten it")
    return name


def part_values(name: str) -> tuple[str, ...] | None:
    """Return the key values, as text, of a part's file name; ``None`` for any other file."""
    if not (name.startswith(_PREFIX) and name.endswith(_SUFFIX)):
        return None
    return tuple(unquote(text) for text in name[len(_PREFIX) : -len(_SUFFIX)].split(","))


def part_id(name: str) -> str:
    """Return the part id in a part's file name."""
    return name[len(_PREFIX) : -len(_SUFFIX)].replace(",", "/")


def part_name_of(identity: str) -> str:
    """Return the file name of the part with this part id."""
    return f"{_PREFIX}{identity.replace('/', ',')}{_SUFFIX}"


def part_ids(table: Table, row_keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the part id of every row, from its ``row_key``."""
    if not table.row_keys:
        return row_keys
    ids: pa.ChunkedArray = pc.replace_substring_regex(row_keys, f"(/[^/]*){{{len(table.row_keys)}}}$", "")
    return ids


def split_of(table: Table, name: str) -> str:
    """Return the split of a part, with which the name of its compacted file begins."""
    values = part_values(name)
    if "split" not in table.part_keys or values is None:
        return WHOLE_TABLE
    return values[table.part_keys.index("split")]


def compacted_table(table: Table) -> str:
    """Return the folder of a table's compacted files, relative to the archive."""
    return f"{table.name}/{COMPACTED}"


def compacted_name(split: str, digest: str) -> str:
    """Return the file name of a compacted file for a split, or for a whole table."""
    return f"{split}-{digest}{_SUFFIX}"


def compacted_split(name: str) -> str | None:
    """Return the split in the name of a compacted file; ``None`` for any other file."""
    split, dash, _ = name.partition("-")
    return split if dash and name.endswith(_SUFFIX) else None
