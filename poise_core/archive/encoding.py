"""Encoding rows as Parquet: filling in computed columns, checking values, computing digests."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from poise_core.archive.errors import ArchiveRowError
from poise_core.archive.parts import encode_key
from poise_core.archive.schema import COMPUTED, Table
from poise_core.archive.storage import one_line

Row = Mapping[str, Any]


def build_table(table: Table, rows: Sequence[Row]) -> pa.Table:
    """Return the rows of one part as an Arrow table with the table's schema, ordered by row key.

    ``created_at`` is filled in where a row lacks it; ``row_key`` and ``content_digest`` are computed.

    Raises:
        ArchiveRowError: a column is unknown, missing, of another type or not among the allowed values; a key repeats.
    """
    now = _now()
    completed = [_complete(table, row, now) for row in rows]
    completed.sort(key=lambda row: tuple(row[key] for key in table.row_keys))
    keys = [row["row_key"] for row in completed]
    if len(set(keys)) != len(keys):
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ArchiveRowError(f"{table.name}: the row {repeated} is given twice in one append")
    columns = {field.name: _column(table, field.name, field.type, completed) for field in table.fields}
    digests = content_digests(table, pa.table(columns))
    columns["content_digest"] = pa.array(digests, pa.string())
    return pa.table(columns, schema=table.schema)


def to_rows(data: pa.Table) -> list[dict[str, Any]]:
    """Return a table as one dictionary per row, as ``to_pylist`` does, many values at a time; maps become dictionaries."""
    columns = [_values(data[name]) for name in data.column_names]
    return [dict(zip(data.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_timestamp(kind):
        # the rows of one append share theirs, and making one takes longer than the rest of a row
        found = column.combine_chunks().dictionary_encode()
        moments = [*found.dictionary.to_pylist(), None]
        return [moments[code] for code in found.indices.fill_null(-1).to_pylist()]
    if pa.types.is_list(kind) and pa.types.is_integer(kind.value_type) and not column.null_count:
        return [own for chunk in column.chunks for own in _lists(chunk)]
    return list(column.to_pylist(maps_as_pydicts="strict"))


def _lists(chunk: pa.Array) -> list[list[int]]:
    offsets = chunk.offsets.to_pylist()
    items = chunk.values[offsets[0] : offsets[-1]]
    if items.null_count:
        return list(chunk.to_pylist())
    values, first = items.to_numpy().tolist(), offsets[0]
    return [values[start - first : end - first] for start, end in itertools.pairwise(offsets)]


def content_digests(table: Table, data: pa.Table) -> list[str]:
    """Return the digest of each row over the columns that count; equal content gives equal digests."""
    names = [field.name for field in table.fields if field.counts and field.name in data.column_names]
    digests = []
    for row in to_rows(data.select(names)):
        # an absent column counts as null, so that rows stay comparable when a later schema adds one
        text = json.dumps({name: value for name, value in row.items() if value is not None}, sort_keys=True)
        digests.append(hashlib.sha256(text.encode()).hexdigest()[:16])
    return digests


def to_parquet(data: pa.Table) -> memoryview:
    """Return the file's bytes in memory: parts are small, and a full disk then fails one simple write."""
    sink = pa.BufferOutputStream()
    # in a part of a few rows, statistics and dictionaries only add bytes (the minimum of one source is the source)
    pq.write_table(data, sink, compression="zstd", write_statistics=False, use_dictionary=False)
    return memoryview(sink.getvalue()).cast("B")  # as bytes are, so that the two compare


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _complete(table: Table, row: Row, now: dt.datetime) -> dict[str, Any]:
    names = {field.name for field in table.fields}
    unknown = sorted(set(row) - (names - COMPUTED))
    if unknown:
        raise ArchiveRowError(f"{table.name}: unknown column {unknown[0]!r}; columns: {', '.join(sorted(names))}")
    filled = {name: row.get(name) for name in names}
    created = filled["created_at"] = filled["created_at"] or now
    if not isinstance(created, dt.datetime) or created.tzinfo is None:
        raise ArchiveRowError(f"{table.name}: created_at must be a datetime with a time zone, got {created!r}")
    for key in table.keys:
        if filled[key] is None or filled[key] == "":
            raise ArchiveRowError(f"{table.name}: the key column {key!r} is missing")
    filled["row_key"] = encode_key([filled[key] for key in table.keys], "/")
    filled["content_digest"] = ""  # computed after Arrow has converted the types
    for field in table.fields:
        value = filled[field.name]
        where = f"{table.name}: column {field.name!r} of row {filled['row_key']}"
        if value is None and not field.nullable:
            raise ArchiveRowError(f"{where} is missing")
        if field.allowed and value not in field.allowed:
            raise ArchiveRowError(f"{where} is {value!r}; allowed: {', '.join(field.allowed)}")
        if field.finite and value is not None and not math.isfinite(value):
            raise ArchiveRowError(f"{where} is {value}; a number that is not finite is a failure, not a score")
        if pa.types.is_map(field.type) and value is not None:
            # Parquet keeps the order of a map; sorting makes equal maps equal
            filled[field.name] = sorted(dict(value).items())
    return filled


def _column(table: Table, name: str, kind: pa.DataType, rows: Sequence[Row]) -> pa.Array:
    try:
        return pa.array([row[name] for row in rows], kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ArchiveRowError(f"{table.name}: column {name!r} takes {kind}: {one_line(error)}") from error
