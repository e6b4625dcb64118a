"""The archive: append-only tables of Parquet files, on a disk or behind a pyarrow file system.

Everything a run learns is here first; experiment tracking and views are drawn from it. Any Parquet reader opens it, for
example ``pandas.read_parquet("RUN_DIR/archive/candidates")``.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from poise_core.archive.encoding import Row, build_table, content_digests, to_parquet
from poise_core.archive.errors import ArchiveConflictError, ArchiveError, ArchiveRowError
from poise_core.archive.lineage import Lineage
from poise_core.archive.parts import SCHEMA_FILE, PartStore, one_line, part_name, part_values
from poise_core.archive.rows import seed_evaluations, trajectory_step
from poise_core.archive.schema import SCHEMA_VERSION, TABLES, TRAJECTORIES, Table
from poise_core.archive.snapshot import SNAPSHOT_FILE, WORTH, load_snapshot, snapshot_of, write_snapshot
from poise_core.evaluation.results import SeedEvaluation


class Archive:
    """Append, read and follow lineages. Safe for any number of processes and threads at a time."""

    def __init__(self, root: str | Path, filesystem: fs.FileSystem | None = None) -> None:
        """Nothing is touched yet.

        Args:
            root: folder, or path within ``filesystem``.
            filesystem: where the archive does not lie on a local disk.
        """
        self._store = PartStore(root, filesystem)
        self._remote = filesystem
        # per table, the names of the parts read so far and their rows: parts never change, so only new ones are read
        self._cache: dict[str, tuple[frozenset[str], pa.Table]] = {}
        self._lock = threading.Lock()
        self._checked: set[str] = set()

    def __reduce__(self) -> tuple[type, tuple[str, fs.FileSystem | None]]:
        """Travel between processes without what was read."""
        return type(self), (self.root, self._remote)

    @property
    def root(self) -> str:
        """The archive's folder."""
        return self._store.root

    def initialise(self) -> Archive:
        """Make the folder of every table, with a file that holds its schema and no row; harmless when repeated.

        Raises:
            ArchiveError: the archive was made by a later version, or cannot be written.
        """
        for table in TABLES.values():
            self._store.write_once(table.name, SCHEMA_FILE, to_parquet(table.schema.empty_table()))
            self._store.sweep(table.name)
            self._check_version(table)
        return self

    def append(self, table: str, rows: Sequence[Row], *, keep_existing: bool = False) -> int:
        """Write rows, each exactly once.

        Rows with the same part keys make one file. Writing the same rows again changes nothing.

        Args:
            table: name of a table of :mod:`poise_core.archive.schema`.
            rows: one mapping per row; ``row_key`` and ``content_digest`` are computed, ``created_at`` is filled in.
            keep_existing: where a part is there already, leave it and compare nothing; for content that cannot be made
                twice alike, such as a language model's.

        Returns:
            How many rows were written; 0 where they all were there.

        Raises:
            ArchiveRowError: a row does not fit the table; nothing was written.
            ArchiveConflictError: a part is there with other content; that part stays, parts before it are written.
            ArchiveError: the disk is full, or the file system fails; no partial file is visible.
        """
        spec = _table(table)
        parts: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            parts.setdefault(tuple(str(row.get(key, "")) for key in spec.part_keys), []).append(row)
        built = [(part_name(values), build_table(spec, members)) for values, members in parts.items()]
        self._check_version(spec)
        written = 0
        for name, data in built:
            if self._store.write_once(table, name, to_parquet(data)):
                written += data.num_rows
            elif not keep_existing:
                self._compare(spec, name, data)
        return written

    def contains(self, table: str, **part_keys: Any) -> bool:
        """Whether the part with these keys (all of the table's ``part_keys``) is there; costs one look-up.

        Raises:
            ArchiveError: the file system does not answer.
            ValueError: other keys than the table's.
        """
        spec = _table(table)
        if set(part_keys) != set(spec.part_keys):
            raise ValueError(f"{table}: give {', '.join(spec.part_keys)}; got {', '.join(part_keys)}")
        return self._store.exists(table, part_name([part_keys[key] for key in spec.part_keys]))

    def has(self, table: str) -> bool:
        """Whether the archive has this table: one made by an earlier version may lack it until a run goes on in it.

        Raises:
            ArchiveError: the file system does not answer.
        """
        return self._store.exists(_table(table).name, SCHEMA_FILE)

    def parts(self, table: str) -> list[dict[str, str]]:
        """The part keys, as text, of every part of a table, from the file names alone.

        Raises:
            ArchiveError: the folder is missing or cannot be listed.
        """
        spec = _table(table)
        values = (part_values(name) for name in self._store.list(table))
        return [
            dict(zip(spec.part_keys, keys, strict=True)) for keys in values if keys and len(keys) == len(spec.part_keys)
        ]

    def read(
        self, table: str, columns: Sequence[str] | None = None, *, unsealed: bool = False, **equals: Any
    ) -> pa.Table:
        """Rows of a table, ordered by their keys.

        Args:
            table: name of a table.
            columns: which; all if not given.
            unsealed: also the ``report`` split of ``evaluations``, whose files are not even opened otherwise.
            **equals: column = value, or column = collection of values; only rows that match all.

        Raises:
            ArchiveError: a file is missing, truncated or no Parquet; the message names it.
        """
        spec = _table(table)
        self._check_version(spec)
        names = self._names(spec, equals, unsealed)
        # trajectories are by far the largest table and are read one candidate at a time: not worth the memory
        data = self._load(spec, names) if spec is TRAJECTORIES else self._cached(spec, names)
        data = data.filter(_condition(spec, equals, unsealed)).sort_by([(key, "ascending") for key in spec.keys])
        return data.select(list(columns)) if columns is not None else data

    def rows(self, table: str, *, unsealed: bool = False, **equals: Any) -> list[dict[str, Any]]:
        """As :meth:`read`, one dictionary per row; map columns become dictionaries."""
        found: list[dict[str, Any]] = self.read(table, unsealed=unsealed, **equals).to_pylist(maps_as_pydicts="strict")
        return found

    def evaluations(
        self, *, protocol: str, candidate_id: str | None = None, split: str = "search", unsealed: bool = False
    ) -> dict[str, list[SeedEvaluation]]:
        """Evaluations by candidate, seeds in order.

        Args:
            protocol: digest; evaluations under another one are never given out together with these.
            candidate_id: only this candidate.
            split: ``search``, or ``report`` with ``unsealed=True``.
            unsealed: says that the caller is the replication of a finished champion.

        Raises:
            ArchiveError: the report split was asked for without ``unsealed``, or a file cannot be read.
        """
        if split != "search" and not unsealed:
            raise ArchiveError(f"the {split} split is sealed; only a replication reads it, with unsealed=True")
        equals = {"protocol": protocol, "split": split}
        if candidate_id is not None:
            equals["candidate_id"] = candidate_id
        return seed_evaluations(self.rows("evaluations", unsealed=unsealed, **equals))

    def trajectory(self, candidate_id: str, protocol: str) -> dict[int, list[dict[str, Any]]]:
        """Steps of every seed of a candidate in order, as ``trajectory.jsonl`` had them: flat, without absent metrics.

        Raises:
            ArchiveError: a file cannot be read.
        """
        seeds: dict[int, list[dict[str, Any]]] = {}
        for row in self.rows("trajectories", candidate_id=candidate_id, protocol=protocol):
            seeds.setdefault(row["seed"], []).append(trajectory_step(row))
        return seeds

    def lineage(self) -> Lineage:
        """Parent links of all candidates.

        Raises:
            ArchiveError: a candidate's parent is missing, or a file cannot be read.
        """
        data = self.read("candidates", ["candidate_id", "parent_ids", "generation", "created_at"])
        ordered = data.sort_by(
            [("generation", "ascending"), ("created_at", "ascending"), ("candidate_id", "ascending")]
        )
        pairs = zip(ordered["candidate_id"].to_pylist(), ordered["parent_ids"].to_pylist(), strict=True)
        return Lineage.build(pairs)

    def compact(self) -> list[str]:
        """Write the snapshots that have fallen behind, so that the next process opens this archive quickly.

        Nothing but a derived file changes; any process may do it at any time, and none has to.

        Returns:
            The tables whose snapshot was written.

        Raises:
            ArchiveError: a part cannot be read.
        """
        written = []
        for table in filter(snapshot_of, TABLES.values()):
            self._check_version(table)
            sizes = {name: size for name, size in self._store.sizes(table.name).items() if part_values(name)}
            names = self._names(table, {}, unsealed=False)
            current = load_snapshot(self._store, table)
            known = current.sizes if current else {}
            behind = sum(known.get(name) != sizes.get(name) for name in names)
            if behind >= max(WORTH, len(names) // 10):
                data = self._cached(table, names)
                present = {name: sizes[name] for name in names if name in sizes}
                written += [table.name] if write_snapshot(self._store, table, data, present) else []
        return written

    def check(self) -> list[str]:
        """Look over the whole archive: every file opens, digests match, nothing refers to a missing candidate.

        Returns:
            One line per fault; empty where all is well.
        """
        faults = []
        for table in TABLES.values():
            try:
                names = self._store.list(table.name)
            except ArchiveError as error:
                faults.append(str(error))
                continue
            faults += [fault for name in names if (fault := self._fault(table, name))]
        faults = faults or [fault for table in TABLES.values() if (fault := self._snapshot_fault(table))]
        if faults:
            return faults
        known = set(self.read("candidates")["candidate_id"].to_pylist())
        for name in ("verifications", "evaluations", "trajectories", "reflections", "selections"):
            named = set(self.read(name, unsealed=True)["candidate_id"].to_pylist())
            faults += [f"{name} holds {missing}, which candidates lacks" for missing in sorted(named - known)]
        try:
            self.lineage()
        except ArchiveError as error:
            faults.append(str(error))
        return faults

    def _fault(self, table: Table, name: str) -> str | None:
        try:
            data = self._open(table, name)
        except ArchiveError as error:
            return str(error)
        if data["content_digest"].to_pylist() != content_digests(table, data):
            return f"{self._store.path(table.name, name)}: a row does not match its digest; the file was altered"
        return None

    def _snapshot_fault(self, table: Table) -> str | None:
        """Whether the snapshot says what the parts say; they have been found to be whole."""
        snapshot = load_snapshot(self._store, table) if snapshot_of(table) else None
        if snapshot is None:
            return None
        usable, rows = snapshot.of_parts(set(snapshot.sizes), self._store.sizes(table.name))
        key = [("row_key", "ascending")]
        if rows.sort_by(key).equals(self._load(table, sorted(usable)).sort_by(key)):
            return None
        return f"{self._store.path(table.name, SNAPSHOT_FILE)}: differs from the parts it stands for; delete it"

    def _names(self, table: Table, equals: dict[str, Any], unsealed: bool) -> list[str]:
        """Parts that may hold matching rows, told from their names alone."""
        wanted = {key: {str(value) for value in _values(equals[key])} for key in table.part_keys if key in equals}
        if table.name == "evaluations" and not unsealed:
            wanted["split"] = wanted.get("split", {"search"}) & {"search"}
        if len(wanted) == len(table.part_keys) and all(len(values) == 1 for values in wanted.values()):
            name = part_name([next(iter(wanted[key])) for key in table.part_keys])
            return [name] if self._store.exists(table.name, name) else []
        names = []
        for name in self._store.list(table.name):
            values = part_values(name)
            if values is not None and len(values) == len(table.part_keys):
                keys = dict(zip(table.part_keys, values, strict=True))
                if all(keys[key] in allowed for key, allowed in wanted.items()):
                    names.append(name)
        return names

    def _cached(self, table: Table, names: Sequence[str]) -> pa.Table:
        """At least the rows of these parts; others that were read before come along."""
        with self._lock:
            known, data = self._cache.get(table.name, (frozenset(), table.schema.empty_table()))
            fresh = [name for name in names if name not in known]
            if len(fresh) > WORTH and snapshot_of(table):
                known, data = self._from_snapshot(table, known, data, set(fresh))
                fresh = [name for name in fresh if name not in known]
                self._cache[table.name] = (known, data)
            if fresh:
                data = pa.concat_tables([data, self._load(table, fresh)]).combine_chunks()
                self._cache[table.name] = (known | set(fresh), data)
            return data

    def _from_snapshot(
        self, table: Table, known: frozenset[str], data: pa.Table, wanted: set[str]
    ) -> tuple[frozenset[str], pa.Table]:
        """What is known, and what the snapshot knows of the parts that are wanted."""
        snapshot = load_snapshot(self._store, table)
        if snapshot is None:
            return known, data
        usable, rows = snapshot.of_parts(wanted, self._store.sizes(table.name))
        return known | usable, pa.concat_tables([data, rows]).combine_chunks() if usable else data

    def _load(self, table: Table, names: Sequence[str]) -> pa.Table:
        if not names:
            return table.schema.empty_table()
        paths = [self._store.path(table.name, name) for name in names]
        try:
            # a column that a part lacks, because an earlier version wrote it, reads as null
            return ds.dataset(paths, table.schema, format="parquet", filesystem=self._store.filesystem).to_table()
        except (pa.ArrowException, OSError):
            for name in names:  # the error does not always say which file it is
                self._open(table, name)
            raise

    def _open(self, table: Table, name: str) -> pa.Table:
        path = self._store.path(table.name, name)
        try:
            return ds.dataset(path, table.schema, format="parquet", filesystem=self._store.filesystem).to_table()
        except FileNotFoundError:
            raise ArchiveError(f"{path}: missing") from None
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(
                f"{path}: not a readable Parquet file, left as it is; restore it, or move it away to have its stage "
                f"redone ({one_line(error)})"
            ) from error

    def _compare(self, table: Table, name: str, given: pa.Table) -> None:
        stored = self._open(table, name).sort_by([(key, "ascending") for key in table.keys])
        if stored["content_digest"].equals(given["content_digest"]) and stored["row_key"].equals(given["row_key"]):
            return
        path = self._store.path(table.name, name)
        if not stored["row_key"].equals(given["row_key"]):
            raise ArchiveConflictError(
                f"{path}: holds {stored.num_rows} rows that are not the {given.num_rows} given; kept"
            )
        columns = [field.name for field in table.fields if field.counts]
        differing = [column for column in columns if not stored[column].equals(given[column])]
        raise ArchiveConflictError(f"{path}: holds other content in {', '.join(differing) or 'its digests'}; kept")

    def _check_version(self, table: Table) -> None:
        if table.name in self._checked or not self._store.exists(table.name, SCHEMA_FILE):
            return
        path = self._store.path(table.name, SCHEMA_FILE)
        try:
            metadata = pq.read_schema(path, filesystem=self._store.filesystem).metadata or {}
        except (pa.ArrowException, OSError) as error:
            raise ArchiveError(f"{path}: not a readable Parquet file ({one_line(error)})") from error
        version = int(metadata.get(b"poise.schema_version", b"0"))
        if version > SCHEMA_VERSION:
            raise ArchiveError(
                f"{path}: schema version {version}; this program knows up to {SCHEMA_VERSION}; update it"
            )
        self._checked.add(table.name)


def _table(name: str) -> Table:
    if name not in TABLES:
        raise ArchiveRowError(f"no table {name!r}; tables: {', '.join(TABLES)}")
    return TABLES[name]


def _values(value: Any) -> Collection[Any]:
    return value if isinstance(value, Collection) and not isinstance(value, str) else [value]


def _condition(table: Table, equals: dict[str, Any], unsealed: bool) -> pc.Expression:
    condition = pc.scalar(True)
    if table.name == "evaluations" and not unsealed:
        condition &= pc.field("split") == "search"
    for column, value in equals.items():
        if column not in table.schema.names:
            raise ArchiveRowError(f"{table.name}: unknown column {column!r}; columns: {', '.join(table.schema.names)}")
        kind = table.schema.field(column).type
        condition &= pc.field(column).isin(pa.array(list(_values(value)), kind))
    return condition
