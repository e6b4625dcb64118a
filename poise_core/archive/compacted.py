"""Reading compacted files, which hold the rows of many parts in one file of ``<table>/compacted/``.

A compacted file never changes. A later compaction writes a larger file under another name, and removes the old file and the
parts only when the new file exists. So rows may temporarily be in several files, but are always in one. A reader lists
the parts first and the compacted files after them, and takes every part from one file: from a compacted file before the
part's own file, and from only one of several compacted files.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from poise_core.archive.errors import ArchiveError, ArchiveMissingError
from poise_core.archive.parts import compacted_split, compacted_table, part_id, part_ids, split_of
from poise_core.archive.schema import Table
from poise_core.archive.storage import Storage, one_line


class CompactedFiles:
    """The compacted files of an archive's tables. Safe for threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._ids: dict[tuple[str, str], pa.Array] = {}  # (table, file) -> the parts in it
        self._lock = threading.Lock()

    def names(self, table: Table, splits: Collection[str] | None = None) -> list[str]:
        """Return the names of the table's compacted files, or only of those for the given splits.

        Raises:
            ArchiveError: the folder cannot be listed.
        """
        found = {name: compacted_split(name) for name in self._storage.list(compacted_table(table))}
        return [name for name, split in found.items() if split and (splits is None or split in splits)]

    def ids(self, table: Table, name: str) -> pa.Array:
        """Return the part ids of a file, each once; this process reads only the keys, and only once.

        Raises:
            ArchiveError: the file cannot be read.
        """
        with self._lock:
            known = self._ids.get((table.name, name))
        if known is None:
            keys = self._open(table, name, columns=["row_key"])
            known = part_ids(table, keys["row_key"]).unique()
            with self._lock:
                self._ids[table.name, name] = known
        return known

    def all_ids(self, table: Table, names: Sequence[str]) -> pa.ChunkedArray:
        """Return the part ids of several files."""
        return pa.chunked_array([self.ids(table, name) for name in names], pa.string())

    def holding(self, table: Table, part: str) -> str | None:
        """Return the compacted file with the rows of a part, which is given by its file name; None if there is none.

        Raises:
            ArchiveError: a compacted file cannot be read.
        """
        for name in self.names(table, [split_of(table, part)]):
            if pc.index(self.ids(table, name), part_id(part)).as_py() >= 0:
                return name
        return None

    def load(self, table: Table, names: Sequence[str], condition: pc.Expression | None = None) -> pa.Table:
        """Return the rows of these files that match; a part that is in several of them is returned once.

        Raises:
            ArchiveError: a file cannot be read.
        """
        found: list[pa.Table] = []
        for position, name in enumerate(names):
            rows = self._open(table, name, condition=condition)
            if position:
                before = self.all_ids(table, names[:position])
                rows = rows.filter(pc.invert(pc.is_in(part_ids(table, rows["row_key"]), before)))
            found.append(rows)
        return pa.concat_tables([table.schema.empty_table(), *found])

    def groups(
        self, table: Table, name: str, columns: Sequence[str] | None = None, condition: pc.Expression | None = None
    ) -> Iterator[pa.Table]:
        """Yield the rows of a file that match, one row group at a time, all columns by default.

        Raises:
            ArchiveError: the file cannot be read.
        """
        with self._named(table, name) as path:
            data = ds.dataset(path, table.schema, format="parquet", filesystem=self._storage.filesystem)
            for fragment in data.get_fragments():
                for group in fragment.split_by_row_group(condition, schema=table.schema):
                    yield group.to_table(
                        schema=table.schema, columns=None if columns is None else list(columns), filter=condition
                    )

    def scan(
        self, table: Table, names: Sequence[str], columns: Sequence[str], condition: pc.Expression
    ) -> Iterator[pa.Table]:
        """Yield columns of the rows of these files that match, a part of a file at a time; every row once, as ``load`` does.

        Raises:
            ArchiveError: a file cannot be read.
        """
        for position, name in enumerate(names):
            if not position:
                yield from self.groups(table, name, columns, condition)
                continue
            before = self.all_ids(table, names[:position])
            for rows in self.groups(table, name, [*dict.fromkeys([*columns, "row_key"])], condition):
                yield rows.filter(pc.invert(pc.is_in(part_ids(table, rows["row_key"]), before))).select(list(columns))

    def uncovered(self, table: Table, names: Sequence[str], parts: Sequence[str]) -> list[str]:
        """Return the parts, by file name, whose rows are in none of these files.

        Raises:
            ArchiveError: a file cannot be read.
        """
        if not parts or not names:
            return list(parts)
        wanted = pa.array([part_id(part) for part in parts], pa.string())
        held = self.all_ids(table, names)
        covered = set(held.filter(pc.is_in(held, wanted)).to_pylist())
        return [part for part in parts if part_id(part) not in covered]

    def _open(
        self,
        table: Table,
        name: str,
        *,
        columns: list[str] | None = None,
        condition: pc.Expression | None = None,
    ) -> pa.Table:
        with self._named(table, name) as path:
            data = ds.dataset(path, table.schema, format="parquet", filesystem=self._storage.filesystem)
            return data.to_table(columns=columns, filter=condition)

    @contextmanager
    def _named(self, table: Table, name: str) -> Iterator[str]:
        """Yield the path of a file, and add the file's name to errors in the block."""
        shown = self._storage.shown(compacted_table(table), name)
        try:
            yield self._storage.path(compacted_table(table), name)
        except FileNotFoundError:
            raise ArchiveMissingError(f"{shown}: missing") from None
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(
                f"{shown}: not a readable Parquet file, left as it is; restore it from a copy, it holds the only rows "
                f"of many parts ({one_line(error)})"
            ) from error
