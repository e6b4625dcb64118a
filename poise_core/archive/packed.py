"""Rows in groups, held in compressed form: one pass over a table serves readers that take its candidates some at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from poise_core.archive.schema import Table


class PackedRows:
    """Columns of a table whose rows are in groups; compressed, they take a small part of the memory that they take when read."""

    def __init__(self, table: Table, columns: Sequence[str], groups: int) -> None:
        self._table = table
        self._columns = list(columns)
        self._packed: list[list[pa.Buffer]] = [[] for _ in range(groups)]

    def add(self, rows: pa.Table, group: pa.Array | pa.ChunkedArray) -> None:
        """Take rows in, each into the group of this number; a null leaves a row out."""
        order = pc.sort_indices(group)  # nulls come last
        counted = pc.value_counts(group.take(order))
        rows, begin = rows.combine_chunks().take(order), 0  # to take from many small chunks costs far more
        for one in counted.to_pylist():
            if one["values"] is not None:
                sink = pa.BufferOutputStream()
                with ipc.new_stream(sink, rows.schema, options=ipc.IpcWriteOptions(compression="zstd")) as stream:
                    stream.write_table(rows[begin : begin + one["counts"]].combine_chunks())
                self._packed[one["values"]].append(sink.getvalue())
            begin += one["counts"]

    def take(self, number: int) -> pa.Table:
        """Return the rows of a group, ordered by the table's keys, and keep them no longer."""
        packed, self._packed[number] = self._packed[number], []
        parts = [ipc.open_stream(buffer).read_all() for buffer in packed]
        schema = pa.schema([self._table.schema.field(name) for name in self._columns])
        found = pa.concat_tables([schema.empty_table(), *(part.select(self._columns).cast(schema) for part in parts)])
        return found.sort_by([(key, "ascending") for key in self._table.keys])
