"""Reading compacted files: the rows of many parts in one file of ``<table>/compacted/``.

A compacted file never changes; one that holds more takes its place under another name, and only when that one is there
does the old one go, and do the parts. So between two moments rows may lie in several places, never in none. A reader lists
the parts first and the compacted files after them, and takes every part from one place: from a compacted file before a
part's own file, and from one of several compacted files.
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
        """The table's compacted files; only those of some splits, if these are given.

        Raises:
            ArchiveError: the folder cannot be listed.
        """
        found = {name: compacted_split(name) for name in self._storage.list(compacted_table(table))}
        return [name for name, split in found.items() if split and (splits is None or split in splits)]

    def ids(self, table: Table, name: str) -> pa.Array:
        """The part ids of a file, each once. Only the keys are read, and once by this process.

        Raises:
            ArchiveError: it cannot be read.
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
        """The part ids of several files."""
        return pa.chunked_array([self.ids(table, name) for name in names], pa.string())

    def holding(self, table: Table, part: str) -> str | None:
        """The compacted file that has the rows of this part, named as its own file would be; None if there is none.

        Raises:
            ArchiveError: one cannot be read.
        """
        for name in self.names(table, [split_of(table, part)]):
            if pc.index(self.ids(table, name), part_id(part)).as_py() >= 0:
                return name
        return None

    def load(self, table: Table, names: Sequence[str], condition: pc.Expression | None = None) -> pa.Table:
        """The rows of these files that match; those of a part that several of them hold, once.

        Raises:
            ArchiveError: one cannot be read.
        """
        found: list[pa.Table] = []
        for position, name in enumerate(names):
            rows = self._open(table, name, condition=condition)
            if position:
                before = self.all_ids(table, names[:position])
                rows = rows.filter(pc.invert(pc.is_in(part_ids(table, rows["row_key"]), before)))
            found.append(rows)
        return pa.concat_tables([table.schema.empty_table(), *found])

    def groups(self, table: Table, name: str) -> Iterator[pa.Table]:
        """The rows of a file, a row group at a time.

        Raises:
            ArchiveError: it cannot be read.
        """
        with self._named(table, name) as path:
            data = ds.dataset(path, table.schema, format="parquet", filesystem=self._storage.filesystem)
            for fragment in data.get_fragments():
                for group in fragment.split_by_row_group():
                    yield group.to_table(schema=table.schema)

    def uncovered(self, table: Table, names: Sequence[str], parts: Sequence[str]) -> list[str]:
        """Those of the parts, by file name, whose rows are in none of these files.

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
        """The path of a file; what goes wrong with it in the block is told with its name."""
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
