"""Names of files in a table's folder.

A part is ``part-<key>,<key>.parquet``, its keys percent-encoded. ``compacted/`` holds the rows of many parts in
``all-<digest>.parquet``; in a table with a split that stays sealed, each split has a file of its own, named by the split.

A *part id* is a part's keys joined by ``/``. It stands at the beginning of the ``row_key`` of every row of the part, so a row
tells which part it came in, wherever it lies.
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


def part_id(name: str) -> str:
    """The part id in a part's file name."""
    return name[len(_PREFIX) : -len(_SUFFIX)].replace(",", "/")


def part_name_of(identity: str) -> str:
    """The file name of the part with this part id."""
    return f"{_PREFIX}{identity.replace('/', ',')}{_SUFFIX}"


def part_ids(table: Table, row_keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """The part id of every row, from its ``row_key``."""
    if not table.row_keys:
        return row_keys
    ids: pa.ChunkedArray = pc.replace_substring_regex(row_keys, f"(/[^/]*){{{len(table.row_keys)}}}$", "")
    return ids


def split_of(table: Table, name: str) -> str:
    """The split that a part belongs to, which is also the beginning of the name of its compacted file."""
    values = part_values(name)
    if "split" not in table.part_keys or values is None:
        return WHOLE_TABLE
    return values[table.part_keys.index("split")]


def compacted_table(table: Table) -> str:
    """The folder of a table's compacted files, as storage knows it."""
    return f"{table.name}/{COMPACTED}"


def compacted_name(split: str, digest: str) -> str:
    """File name of the rows of a split, or of a whole table."""
    return f"{split}-{digest}{_SUFFIX}"


def compacted_split(name: str) -> str | None:
    """The split in such a name; ``None`` for any other file."""
    split, dash, _ = name.partition("-")
    return split if dash and name.endswith(_SUFFIX) else None
