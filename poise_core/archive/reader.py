"""Reading parts: which files may hold what is asked for, and what of them this process has read already."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from poise_core.archive.compacted import CompactedFiles
from poise_core.archive.errors import ArchiveError, ArchiveMissingError, ArchiveRowError
from poise_core.archive.parts import SCHEMA_FILE, part_name, part_name_of, part_values
from poise_core.archive.schema import CANDIDATES, COMPACTED_VERSION, TRAJECTORIES, Table
from poise_core.archive.snapshot import WORTH, load_snapshot, snapshot_of
from poise_core.archive.storage import Storage, one_line

_Found = TypeVar("_Found")
_ATTEMPTS = 5


@dataclass(frozen=True)
class _Cache:
    """What this process has read of a table: files never change, so only new ones are read."""

    parts: frozenset[str]
    compacted: frozenset[str]
    rows: pa.Table


class PartReader:
    """Rows of parts, each file opened at most once by this process. Safe for threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.compacted = CompactedFiles(storage)
        self._cache: dict[str, _Cache] = {}
        self._lock = threading.Lock()
        self._checked: set[str] = set()

    def select(self, table: Table, equals: Mapping[str, Any], unsealed: bool) -> pa.Table:
        """The rows that match, ordered by their keys.

        Raises:
            ArchiveError: a file is missing, truncated or no Parquet; the message names it.
            ArchiveRowError: a column that the table has not.
        """
        self.check_version(table)
        data = self.settled(lambda: self._matching(table, equals, unsealed))
        return data.filter(_condition(table, equals, unsealed)).sort_by([(key, "ascending") for key in table.keys])

    def settled(self, read: Callable[[], _Found]) -> _Found:
        """What ``read`` gives when no compaction takes a file away between its look at a folder and its opening of the file.

        Raises:
            ArchiveError: a file is still missing after some attempts, or ``read`` fails otherwise.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return read()
            except (
                ArchiveMissingError
            ):  # when a file goes, the one that holds its rows is there: the next look finds it
                continue
        return read()

    def _matching(self, table: Table, equals: Mapping[str, Any], unsealed: bool) -> pa.Table:
        """At least the rows that match, each once."""
        names = self.names(
            table, equals, unsealed
        )  # the parts first: a part that is gone by then has left its rows behind
        compacted = self.compacted_names(table, equals, unsealed)
        if table is not TRAJECTORIES:
            return self.cached(table, names, compacted)
        # by far the largest table, and read one candidate at a time: not worth the memory
        keys = {key: value for key, value in equals.items() if key in table.part_keys}
        loose = self.load(table, self.compacted.uncovered(table, compacted, names))
        return pa.concat_tables([self.compacted.load(table, compacted, _condition(table, keys, unsealed)), loose])

    def part(self, table: Table, name: str) -> pa.Table:
        """The rows of one part, wherever they lie.

        Raises:
            ArchiveError: they cannot be read; the message names the file.
        """

        def read() -> pa.Table:
            compacted = self.compacted.holding(table, name)
            if compacted is None:
                return self.open(table, name)
            texts = zip(table.part_keys, part_values(name) or (), strict=True)
            keys = {key: pa.scalar(text).cast(table.schema.field(key).type).as_py() for key, text in texts}
            return self.compacted.load(table, [compacted], _condition(table, keys, True))

        return self.settled(read)

    def names(self, table: Table, equals: Mapping[str, Any], unsealed: bool) -> list[str]:
        """Parts that may hold matching rows, told from their names alone."""
        wanted = _wanted(table, equals, unsealed)
        if len(wanted) == len(table.part_keys) and all(len(values) == 1 for values in wanted.values()):
            name = part_name([next(iter(wanted[key])) for key in table.part_keys])
            return [name] if self._storage.exists(table.name, name) else []
        names = []
        for name in self._listed(table):
            values = part_values(name)
            if values is not None and len(values) == len(table.part_keys):
                keys = dict(zip(table.part_keys, values, strict=True))
                if all(keys[key] in allowed for key, allowed in wanted.items()):
                    names.append(name)
        return names

    def _listed(self, table: Table) -> list[str]:
        """The files of a table; none of one that came to the schema after the archive was made."""
        try:
            return self._storage.list(table.name)
        except ArchiveMissingError:
            if table.later and self._storage.exists("", CANDIDATES.name):
                return []
            raise

    def compacted_names(self, table: Table, equals: Mapping[str, Any], unsealed: bool) -> list[str]:
        """Compacted files that may hold matching rows."""
        return self.compacted.names(table, _wanted(table, equals, unsealed).get("split"))

    def all_names(self, table: Table) -> list[str]:
        """The names of all parts, sorted, also of those that have no file of their own any more."""
        names = {name for name in self._listed(table) if len(part_values(name) or ()) == len(table.part_keys)}
        held = self.compacted.all_ids(table, self.compacted.names(table))
        return sorted(names.union(map(part_name_of, held.to_pylist())))

    def cached(self, table: Table, names: Sequence[str], compacted: Sequence[str]) -> pa.Table:
        """At least the rows of these parts and compacted files; others that were read before come along."""
        with self._lock:
            cache = self._cache.get(table.name, _Cache(frozenset(), frozenset(), table.schema.empty_table()))
            if not cache.compacted.issuperset(compacted):  # parts that were read one by one may be in it: begin anew
                cache = _Cache(frozenset(), frozenset(compacted), self.compacted.load(table, compacted))
            fresh = [name for name in names if name not in cache.parts]
            fresh = self.compacted.uncovered(table, compacted, fresh)
            if len(fresh) > WORTH and snapshot_of(table):
                known, rows = self._from_snapshot(table, cache.parts, cache.rows, set(fresh))
                fresh = [name for name in fresh if name not in known]
                cache = _Cache(known, cache.compacted, rows)
            if fresh:
                rows = pa.concat_tables([cache.rows, self.load(table, fresh)]).combine_chunks()
                cache = _Cache(cache.parts | set(fresh), cache.compacted, rows)
            self._cache[table.name] = cache
            return cache.rows

    def known(self, table: Table, names: Sequence[str]) -> pa.Table:
        """At least the rows of these parts, those of the sealed split perhaps left out."""
        return self.cached(table, names, self.compacted_names(table, {}, unsealed=False))

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
            raise ArchiveMissingError(f"{self._storage.shown(table.name, name)}: missing") from None
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
        if table.name in self._checked:
            return
        version = self.version(table)
        if version > COMPACTED_VERSION:
            raise ArchiveError(
                f"{self._storage.shown(table.name, SCHEMA_FILE)}: schema version {version}; this program knows up to "
                f"{COMPACTED_VERSION}; update it"
            )
        if version:
            self._checked.add(table.name)

    def version(self, table: Table) -> int:
        """What the table's ``schema.parquet`` says; 0 without one.

        Raises:
            ArchiveError: it cannot be read.
        """
        if not self._storage.exists(table.name, SCHEMA_FILE):
            return 0
        path = self._storage.path(table.name, SCHEMA_FILE)
        shown = self._storage.shown(table.name, SCHEMA_FILE)
        try:
            metadata = pq.read_schema(path, filesystem=self._storage.filesystem).metadata or {}
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(f"{shown}: not a readable Parquet file ({one_line(error)})") from error
        return int(metadata.get(b"poise.schema_version", b"0"))


def _values(value: Any) -> Collection[Any]:
    return value if isinstance(value, Collection) and not isinstance(value, str) else [value]


def _wanted(table: Table, equals: Mapping[str, Any], unsealed: bool) -> dict[str, set[str]]:
    """For each part key that is asked for its values, as file names have them; the sealed split is never among them."""
    wanted = {key: {str(value) for value in _values(equals[key])} for key in table.part_keys if key in equals}
    if table.name == "evaluations" and not unsealed:
        wanted["split"] = wanted.get("split", {"search"}) & {"search"}
    return wanted


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
