"""Reading parts: which files may hold what is asked for, and what of them this process has read already."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from poise_core.archive.errors import ArchiveError, ArchiveRowError
from poise_core.archive.parts import SCHEMA_FILE, part_name, part_values
from poise_core.archive.schema import SCHEMA_VERSION, TRAJECTORIES, Table
from poise_core.archive.snapshot import WORTH, load_snapshot, snapshot_of
from poise_core.archive.storage import Storage, one_line


class PartReader:
    """Rows of parts, each part opened at most once by this process. Safe for threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        # per table, the names of the parts read so far and their rows: parts never change, so only new ones are read
        self._cache: dict[str, tuple[frozenset[str], pa.Table]] = {}
        self._lock = threading.Lock()
        self._checked: set[str] = set()

    def select(self, table: Table, equals: Mapping[str, Any], unsealed: bool) -> pa.Table:
        """The rows that match, ordered by their keys.

        Raises:
            ArchiveError: a file is missing, truncated or no Parquet; the message names it.
            ArchiveRowError: a column that the table has not.
        """
        self.check_version(table)
        names = self.names(table, equals, unsealed)
        # trajectories are by far the largest table and are read one candidate at a time: not worth the memory
        data = self.load(table, names) if table is TRAJECTORIES else self.cached(table, names)
        return data.filter(_condition(table, equals, unsealed)).sort_by([(key, "ascending") for key in table.keys])

    def names(self, table: Table, equals: Mapping[str, Any], unsealed: bool) -> list[str]:
        """Parts that may hold matching rows, told from their names alone."""
        wanted = {key: {str(value) for value in _values(equals[key])} for key in table.part_keys if key in equals}
        if table.name == "evaluations" and not unsealed:
            wanted["split"] = wanted.get("split", {"search"}) & {"search"}
        if len(wanted) == len(table.part_keys) and all(len(values) == 1 for values in wanted.values()):
            name = part_name([next(iter(wanted[key])) for key in table.part_keys])
            return [name] if self._storage.exists(table.name, name) else []
        names = []
        for name in self._storage.list(table.name):
            values = part_values(name)
            if values is not None and len(values) == len(table.part_keys):
                keys = dict(zip(table.part_keys, values, strict=True))
                if all(keys[key] in allowed for key, allowed in wanted.items()):
                    names.append(name)
        return names

    def cached(self, table: Table, names: Sequence[str]) -> pa.Table:
        """At least the rows of these parts; others that were read before come along."""
        with self._lock:
            known, data = self._cache.get(table.name, (frozenset(), table.schema.empty_table()))
            fresh = [name for name in names if name not in known]
            if len(fresh) > WORTH and snapshot_of(table):
                known, data = self._from_snapshot(table, known, data, set(fresh))
                fresh = [name for name in fresh if name not in known]
                self._cache[table.name] = (known, data)
            if fresh:
                data = pa.concat_tables([data, self.load(table, fresh)]).combine_chunks()
                self._cache[table.name] = (known | set(fresh), data)
            return data

    def _from_snapshot(
        self, table: Table, known: frozenset[str], data: pa.Table, wanted: set[str]
    ) -> tuple[frozenset[str], pa.Table]:
        """What is known, and what the snapshot knows of the parts that are wanted."""
        snapshot = load_snapshot(self._storage, table)
        if snapshot is None:
            return known, data
        usable, rows = snapshot.of_parts(wanted, self._storage.sizes(table.name))
        return known | usable, pa.concat_tables([data, rows]).combine_chunks() if usable else data

    def load(self, table: Table, names: Sequence[str]) -> pa.Table:
        """The rows of these parts, from their files."""
        if not names:
            return table.schema.empty_table()
        paths = [self._storage.path(table.name, name) for name in names]
        try:
            # a column that a part lacks, because an earlier version wrote it, reads as null
            return ds.dataset(paths, table.schema, format="parquet", filesystem=self._storage.filesystem).to_table()
        except (pa.ArrowException, OSError):
            for name in names:  # the error does not always say which file it is
                self.open(table, name)
            raise

    def open(self, table: Table, name: str) -> pa.Table:
        """One part, from its file.

        Raises:
            ArchiveError: it is missing, truncated or no Parquet; the message names it and says what helps.
        """
        path = self._storage.path(table.name, name)
        try:
            return ds.dataset(path, table.schema, format="parquet", filesystem=self._storage.filesystem).to_table()
        except FileNotFoundError:
            raise ArchiveError(f"{self._storage.shown(table.name, name)}: missing") from None
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(
                f"{self._storage.shown(table.name, name)}: not a readable Parquet file, left as it is; restore it, or move "
                f"it away to have its stage redone ({one_line(error)})"
            ) from error

    def check_version(self, table: Table) -> None:
        """Refuse a table that a later version of this program has made.

        Raises:
            ArchiveError: so it is, or its schema cannot be read.
        """
        if table.name in self._checked or not self._storage.exists(table.name, SCHEMA_FILE):
            return
        path = self._storage.path(table.name, SCHEMA_FILE)
        shown = self._storage.shown(table.name, SCHEMA_FILE)
        try:
            metadata = pq.read_schema(path, filesystem=self._storage.filesystem).metadata or {}
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(f"{shown}: not a readable Parquet file ({one_line(error)})") from error
        version = int(metadata.get(b"poise.schema_version", b"0"))
        if version > SCHEMA_VERSION:
            raise ArchiveError(
                f"{shown}: schema version {version}; this program knows up to {SCHEMA_VERSION}; update it"
            )
        self._checked.add(table.name)


def _values(value: Any) -> Collection[Any]:
    return value if isinstance(value, Collection) and not isinstance(value, str) else [value]


def _condition(table: Table, equals: Mapping[str, Any], unsealed: bool) -> pc.Expression:
    condition = pc.scalar(True)
    if table.name == "evaluations" and not unsealed:
        condition &= pc.field("split") == "search"
    for column, value in equals.items():
        if column not in table.schema.names:
            raise ArchiveRowError(f"{table.name}: unknown column {column!r}; columns: {', '.join(table.schema.names)}")
        kind = table.schema.field(column).type
        condition &= pc.field(column).isin(pa.array(list(_values(value)), kind))
    return condition
