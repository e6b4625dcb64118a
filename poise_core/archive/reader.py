"""Reading parts: choosing the files that may hold the requested rows, and caching those that were read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from poise_core.archive.compacted import CompactedFiles
from poise_core.archive.encoding import to_rows
from poise_core.archive.errors import ArchiveError, ArchiveMissingError, ArchiveRowError
from poise_core.archive.packed import PackedRows
from poise_core.archive.parts import SCHEMA_FILE, part_name, part_name_of, part_values
from poise_core.archive.rows import seed_evaluations
from poise_core.archive.schema import CANDIDATES, COMPACTED_VERSION, EVALUATIONS, TRAJECTORIES, Table
from poise_core.archive.snapshot import WORTH, load_snapshot, scan_snapshot, snapshot_of, snapshot_sizes
from poise_core.archive.storage import Storage, one_line
from poise_core.evaluation.results import SeedEvaluation

_Found = TypeVar("_Found")
_ATTEMPTS = 5
_FEW = 8  # files that are read one after the other: a scan by Arrow's threads costs more than so few files do
_TOGETHER = 1000  # files whose rows are read before any of them is handed on
_MEMO_ROWS = 2000  # longer answers are not kept; the table they come from is


@dataclass(frozen=True)
class _Cache:
    """The files of a table that this process has read; files never change, so only new ones are read."""

    parts: frozenset[str]
    compacted: frozenset[str]
    rows: pa.Table


@dataclass(frozen=True)
class _Memo:
    """The answers that were made from a table in memory; a decision asks the same dozens of times between two appends."""

    data: pa.Table
    answers: dict[Hashable, Any]


class PartReader:
    """A reader of parts, which opens each file at most once per process. Safe for threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.compacted = CompactedFiles(storage)
        self._cache: dict[str, _Cache] = {}
        self._memos: dict[str, _Memo] = {}
        self._lock = threading.Lock()
        self._checked: set[str] = set()

    def scan(
        self, table: Table, columns: Sequence[str], equals: Mapping[str, Any], unsealed: bool
    ) -> Iterator[pa.Table]:
        """Yield columns of the rows that match, some rows at a time and in no order, and keep none of them.

        Raises:
            ArchiveMissingError: a compaction has removed a file meanwhile; the caller begins again (``settled``).
            ArchiveError: a file is missing, truncated or no Parquet; the message names it.
            ArchiveRowError: the table lacks a column.
        """
        self.check_version(table)
        condition = _condition(table, equals, unsealed)
        names = self.names(table, equals, unsealed)  # the parts first, as in ``_matching``
        compacted = self.compacted_names(table, equals, unsealed)
        yield from self.compacted.scan(table, compacted, columns, condition)
        fresh = self.compacted.uncovered(table, compacted, names)
        if len(fresh) > WORTH and snapshot_of(table):
            known, present = snapshot_sizes(self._storage, table), self._storage.sizes(table.name)
            held = {name for name in fresh if name in known and present.get(name) == known[name]}
            rows = scan_snapshot(self._storage, table, columns, held, condition) if held else None
            if rows is not None:
                yield rows
                fresh = [name for name in fresh if name not in held]
        others = {column: value for column, value in equals.items() if column not in table.part_keys}
        rest = _condition(table, others, unsealed=True) if others else None  # the names of parts have said the rest
        for start in range(0, len(fresh), _TOGETHER):
            yield self.load(table, fresh[start : start + _TOGETHER], columns, rest)

    def columns(self, table: Table, names: Sequence[str], equals: Mapping[str, Any], unsealed: bool) -> pa.Table:
        """Return columns of the rows that match, ordered by their keys, and keep nothing of them.

        Raises:
            ArchiveError: as ``select``.
            ArchiveRowError: as ``select``.
        """
        read = [*dict.fromkeys([*names, *table.keys])]
        # a column that the table lacks is refused in its own words
        _terms(table, dict.fromkeys(read, ()), unsealed=True)
        found = self.settled(lambda: list(self.scan(table, read, equals, unsealed)))
        schema = pa.schema([table.schema.field(name) for name in read])
        rows = pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in found)])
        chosen = rows.sort_by([(key, "ascending") for key in table.keys]).select(list(names))
        del rows, found
        _give_back()
        return chosen

    def packed(
        self,
        table: Table,
        by: str,
        groups: Sequence[Collection[str]],
        columns: Sequence[str],
        equals: Mapping[str, Any],
    ) -> PackedRows:
        """Return columns of the rows whose ``by`` is in one of the groups, the table read once; the sealed split stays closed.

        Raises:
            ArchiveError: as ``select``.
            ArchiveRowError: as ``select``.
        """
        wanted = [value for group in groups for value in group]
        owner = pa.array([number for number, group in enumerate(groups) for _ in group], pa.int32())
        known = pa.array(wanted, pa.string())
        read = [*dict.fromkeys([*columns, by, *table.keys])]

        def pack() -> PackedRows:
            found = PackedRows(table, read, len(groups))
            for rows in self.scan(table, read, {**equals, by: wanted}, unsealed=False):
                if rows.num_rows:
                    found.add(rows, owner.take(pc.index_in(rows[by].combine_chunks(), value_set=known)))
            return found

        packed = self.settled(pack)
        _give_back()
        return packed

    def select(self, table: Table, equals: Mapping[str, Any], unsealed: bool) -> pa.Table:
        """Return the rows that match, ordered by their keys.

        Raises:
            ArchiveError: a file is missing, truncated or no Parquet; the message names it.
            ArchiveRowError: the table lacks a column.
        """
        return _chosen(self._read(table, equals, unsealed), table, equals, unsealed)

    def rows(self, table: Table, equals: Mapping[str, Any], unsealed: bool) -> list[dict[str, Any]]:
        """Return what ``select`` returns, as dictionaries that belong to the caller; maps become dictionaries.

        Raises:
            ArchiveError: a file is missing, truncated or no Parquet; the message names it.
            ArchiveRowError: the table lacks a column.
        """
        if table is TRAJECTORIES:  # read anew every time, so no answer would be asked for again
            return to_rows(self.select(table, equals, unsealed))
        data, answers, asked = self._answers(table, equals, unsealed)
        rows = answers.get(asked)
        if rows is None:
            rows = to_rows(_chosen(data, table, equals, unsealed))
            if len(rows) > _MEMO_ROWS:
                return rows
            answers[asked] = rows
        return [_copy(row) for row in rows]

    def evaluations(self, equals: Mapping[str, Any], unsealed: bool) -> dict[str, list[SeedEvaluation]]:
        """Return ``seed_evaluations`` of what ``rows`` returns; made once, and handed out until the table has other rows.

        Raises:
            ArchiveError: as ``rows``.
        """
        data, answers, asked = self._answers(EVALUATIONS, equals, unsealed)
        found = answers.get(("evaluations", asked))
        if found is None:
            chosen = _chosen(data, EVALUATIONS, equals, unsealed)
            starts = range(0, chosen.num_rows, _MEMO_ROWS)
            found = seed_evaluations(row for start in starts for row in to_rows(chosen.slice(start, _MEMO_ROWS)))
            answers["evaluations", asked] = found
            del chosen
            _give_back()
        return {name: list(evaluations) for name, evaluations in found.items()}

    def _answers(
        self, table: Table, equals: Mapping[str, Any], unsealed: bool
    ) -> tuple[pa.Table, dict[Hashable, Any], Hashable]:
        """The table in memory, the answers that were made from it, and the key of this one among them."""
        data = self._read(table, equals, unsealed)
        memo = self._memos.get(table.name)
        if memo is None or memo.data is not data:
            memo = self._memos[table.name] = _Memo(data, {})
        asked = (unsealed, *sorted((column, tuple(_values(value))) for column, value in equals.items()))
        return data, memo.answers, asked

    def _read(self, table: Table, equals: Mapping[str, Any], unsealed: bool) -> pa.Table:
        self.check_version(table)
        return self.settled(lambda: self._matching(table, equals, unsealed))

    def settled(self, read: Callable[[], _Found]) -> _Found:
        """Call ``read`` again where a compaction has removed a file between the listing of a folder and the opening of the file.

        Raises:
            ArchiveError: a file is still missing after some attempts, or ``read`` fails otherwise.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return read()
            except (
                ArchiveMissingError
            ):  # the file that holds its rows existed before it was removed, so the next listing has it
                continue
        return read()

    def _matching(self, table: Table, equals: Mapping[str, Any], unsealed: bool) -> pa.Table:
        """Return at least the rows that match, each once."""
        names = self.names(
            table, equals, unsealed
        )  # the parts first: the rows of a part that is removed meanwhile are in a compacted file
        compacted = self.compacted_names(table, equals, unsealed)
        if table is not TRAJECTORIES:
            return self.cached(table, names, compacted)
        # it is by far the largest table, and is read one candidate at a time, so caching is not worth the memory
        keys = {key: value for key, value in equals.items() if key in table.part_keys}
        loose = self.load(table, self.compacted.uncovered(table, compacted, names))
        return pa.concat_tables([self.compacted.load(table, compacted, _condition(table, keys, unsealed)), loose])

    def part(self, table: Table, name: str) -> pa.Table:
        """Return the rows of one part, from its own file or from a compacted one.

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
        """Return the parts that may hold matching rows, judged by their names."""
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
        """Return the files of a table; none of a table that is newer than the archive."""
        try:
            return self._storage.list(table.name)
        except ArchiveMissingError:
            if table.later and self._storage.exists("", CANDIDATES.name):
                return []
            raise

    def compacted_names(self, table: Table, equals: Mapping[str, Any], unsealed: bool) -> list[str]:
        """Return the compacted files that may hold matching rows."""
        return self.compacted.names(table, _wanted(table, equals, unsealed).get("split"))

    def all_names(self, table: Table) -> list[str]:
        """Return the names of all parts, sorted, also of those that are only in compacted files."""
        names = {name for name in self._listed(table) if len(part_values(name) or ()) == len(table.part_keys)}
        held = self.compacted.all_ids(table, self.compacted.names(table))
        _give_back()
        return sorted(names.union(map(part_name_of, held.to_pylist())))

    def cached(self, table: Table, names: Sequence[str], compacted: Sequence[str]) -> pa.Table:
        """Return at least the rows of these parts and compacted files; rows that were read before may be among them."""
        with self._lock:
            cache = self._cache.get(table.name, _Cache(frozenset(), frozenset(), table.schema.empty_table()))
            # a new compacted file may hold parts that are cached, so the cache then starts empty
            if not cache.compacted.issuperset(compacted):
                cache = _Cache(frozenset(), frozenset(compacted), self.compacted.load(table, compacted))
            fresh = [name for name in names if name not in cache.parts]
            # by all that is cached: another thread may have read a compacted file that is newer than this one's list
            fresh = self.compacted.uncovered(table, sorted(cache.compacted), fresh)
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
        """Return at least the rows of these parts, possibly without those of the sealed split."""
        return self.cached(table, names, self.compacted_names(table, {}, unsealed=False))

    def _from_snapshot(
        self, table: Table, known: frozenset[str], data: pa.Table, wanted: set[str]
    ) -> tuple[frozenset[str], pa.Table]:
        """Add to the known parts those of the wanted ones that the snapshot holds."""
        snapshot = load_snapshot(self._storage, table)
        if snapshot is None:
            return known, data
        usable, rows = snapshot.of_parts(wanted, self._storage.sizes(table.name))
        return known | usable, pa.concat_tables([data, rows]).combine_chunks() if usable else data

    def load(
        self,
        table: Table,
        names: Sequence[str],
        columns: Sequence[str] | None = None,
        condition: pc.Expression | None = None,
    ) -> pa.Table:
        """Return the rows of these parts that match, from their own files, with all columns by default."""
        wanted = table.schema.names if columns is None else list(columns)
        if len(names) <= _FEW:
            rows = pa.concat_tables([table.schema.empty_table(), *(self.open(table, name) for name in names)])
            return (rows if condition is None else rows.filter(condition)).select(wanted)
        paths = [self._storage.path(table.name, name) for name in names]
        try:
            # a column that a part lacks, because an earlier version wrote it, reads as null
            data = ds.dataset(paths, table.schema, format="parquet", filesystem=self._storage.filesystem)
            return data.to_table(columns=wanted, filter=condition)
        except (pa.ArrowException, OSError):
            for name in names:  # the error does not always name the file
                self.open(table, name)
            raise

    def open(self, table: Table, name: str) -> pa.Table:
        """Read one part from its file.

        Raises:
            ArchiveError: the file is missing, truncated or no Parquet; the message names it and tells what to do.
        """
        path = self._storage.path(table.name, name)
        try:
            with self._storage.filesystem.open_input_file(path) as file, pq.ParquetFile(file) as part:
                return _with_schema(part.read(use_threads=False), table.schema)
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
            ArchiveError: a later version has made it, or its schema cannot be read.
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
        """Return the version in the table's ``schema.parquet``; 0 without such a file.

        Raises:
            ArchiveError: the file cannot be read.
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


def _chosen(data: pa.Table, table: Table, equals: Mapping[str, Any], unsealed: bool) -> pa.Table:
    return data.filter(_mask(data, table, equals, unsealed)).sort_by([(key, "ascending") for key in table.keys])


def _give_back() -> None:
    """What a pass over a large table has freed goes back to the system; Arrow would keep hundreds of megabytes of it."""
    pa.default_memory_pool().release_unused()


def _copy(value: Any) -> Any:
    """A copy of what Arrow makes of a row: dictionaries and lists of plain values."""
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    if isinstance(value, list):  # the elements of a list have one type
        return [_copy(part) for part in value] if value and isinstance(value[0], dict | list) else value.copy()
    return value


def _with_schema(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of the schema; one that the part lacks, because an earlier version wrote it, is null."""
    if part.schema.equals(schema):
        return part
    columns = [
        part[field.name].cast(field.type) if field.name in part.schema.names else pa.nulls(part.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _values(value: Any) -> Collection[Any]:
    return value if isinstance(value, Collection) and not isinstance(value, str) else [value]


def _wanted(table: Table, equals: Mapping[str, Any], unsealed: bool) -> dict[str, set[str]]:
    """Map each requested part key to its values, as in file names; without ``unsealed``, the sealed split is left out."""
    wanted = {key: {str(value) for value in _values(equals[key])} for key in table.part_keys if key in equals}
    if table.name == "evaluations" and not unsealed:
        wanted["split"] = wanted.get("split", {"search"}) & {"search"}
    return wanted


def _terms(table: Table, equals: Mapping[str, Any], unsealed: bool) -> dict[str, pa.Array]:
    """Map each column that is asked for to the values that match; without ``unsealed``, the sealed split is left out."""
    terms: dict[str, pa.Array] = {}
    for column, value in equals.items():
        if column not in table.schema.names:
            raise ArchiveRowError(f"{table.name}: unknown column {column!r}; columns: {', '.join(table.schema.names)}")
        terms[column] = pa.array(list(_values(value)), table.schema.field(column).type)
    if table.name == "evaluations" and not unsealed:
        asked = terms.get("split", pa.array(["search"]))
        terms["split"] = pa.array([split for split in asked.to_pylist() if split == "search"], pa.string())
    return terms


def _condition(table: Table, equals: Mapping[str, Any], unsealed: bool) -> pc.Expression:
    """The rows that match, for a scan of files."""
    condition = pc.scalar(True)
    for column, values in _terms(table, equals, unsealed).items():
        condition &= pc.field(column).isin(values)
    return condition


def _mask(data: pa.Table, table: Table, equals: Mapping[str, Any], unsealed: bool) -> pa.Array | pa.ChunkedArray:
    """The rows that match, of a table in memory; an expression would start Arrow's threads for a few hundred rows."""
    mask = pa.repeat(pa.scalar(True), data.num_rows)
    for column, values in _terms(table, equals, unsealed).items():
        mask = pc.and_(mask, pc.is_in(data[column], value_set=values))
    return mask
