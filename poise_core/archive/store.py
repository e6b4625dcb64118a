"""The archive: append-only tables of Parquet files, on a disk or in an object store.

Every result of a run is stored here first; experiment tracking and views are derived from it. Any Parquet reader opens it, for
example ``pandas.read_parquet("RUN_DIR/archive/candidates")``.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pyarrow as pa
from pyarrow import fs

from poise_core.archive.checking import find_faults, lineage_of
from poise_core.archive.compaction import CompactedTable, compact_table
from poise_core.archive.encoding import Row, build_table, to_parquet, to_rows
from poise_core.archive.errors import ArchiveConflictError, ArchiveError, ArchiveRowError
from poise_core.archive.lineage import Lineage
from poise_core.archive.locations import open_storage
from poise_core.archive.parts import SCHEMA_FILE, compacted_table, part_name, part_values
from poise_core.archive.reader import PartReader
from poise_core.archive.rows import STEP_COLUMNS, trajectory_seeds
from poise_core.archive.schema import TABLES, TRAJECTORIES, Table
from poise_core.archive.snapshot import WORTH, load_snapshot, snapshot_of, write_snapshot
from poise_core.archive.trajectories import Trained, trained_steps
from poise_core.archive.typed import (
    AblationRow,
    CallRow,
    CandidateRow,
    CompletionRow,
    EvaluationRow,
    ExaminationRow,
    FailureRow,
    ProposalRow,
    ReflectionRow,
    ReplicationRow,
    RungRow,
    SelectionRow,
    TrajectoryRow,
    VerificationRow,
)
from poise_core.evaluation.results import SeedEvaluation

_AT_ONCE = 500  # candidates whose rows are dictionaries at once


class Archive:
    """An archive to append to and read from, safe for any number of concurrent processes and threads."""

    def __init__(self, root: str | Path, filesystem: fs.FileSystem | None = None) -> None:
        """Refer to an archive, without accessing it yet.

        Args:
            root: folder, URI of an object store such as ``s3://bucket/runs/laptop``, or path within ``filesystem``. Keys,
                endpoint and region of S3 are taken from the environment, as AWS's own tools do; the URI's query may
                name ``endpoint_override``, ``scheme`` and ``region``.
            filesystem: an open file system.

        Raises:
            ArchiveLocationError: the URI cannot be used.
        """
        self._storage = open_storage(root, filesystem)
        self._reader = PartReader(self._storage)
        self._given = filesystem

    def __reduce__(self) -> tuple[type, tuple[str, fs.FileSystem | None]]:
        """Support pickling between processes, without the cache of rows."""
        return type(self), (self.root, self._given)

    @property
    def root(self) -> str:
        """The archive's folder or URI."""
        return self._storage.location

    def initialise(self) -> Archive:
        """Make the folder of every table with a file that holds its schema and no row; it may be called repeatedly.

        Raises:
            ArchiveError: the archive was made by a later version, or cannot be written.
        """
        for table in TABLES.values():
            self._storage.write_once(table.name, SCHEMA_FILE, to_parquet(table.schema.empty_table()))
            self._storage.sweep(table.name)
            self._reader.check_version(table)
        return self

    def claim(self, owner: str) -> None:
        """Record the owner of this archive permanently; the same owner may call it repeatedly.

        Raises:
            ArchiveOwnedError: another run owns the archive; the message names the owner and tells how to take it over.
        """
        self._storage.claim(owner)

    def append(self, table: str, rows: Sequence[Row], *, keep_existing: bool = False) -> int:
        """Write rows, each exactly once.

        Rows with the same part keys make one file. Writing the same rows again changes nothing.

        Args:
            table: name of a table of ``poise_core.archive.schema``.
            rows: one mapping per row; ``row_key`` and ``content_digest`` are computed, ``created_at`` is filled in.
            keep_existing: leave parts that exist already without comparing them, for content that differs each time it is
                made, such as a language model's answers.

        Returns:
            The number of rows that were written; 0 where all existed already.

        Raises:
            ArchiveRowError: a row does not fit the table; nothing was written.
            ArchiveConflictError: a part exists with other content; that part stays, and parts before it are written.
            ArchiveError: the disk is full, or the file system fails; no partial file is visible.
        """
        spec = _table(table)
        parts: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            parts.setdefault(tuple(str(row.get(key, "")) for key in spec.part_keys), []).append(row)
        built = [(part_name(values), build_table(spec, members)) for values, members in parts.items()]
        self._reader.check_version(spec)
        written = 0
        for name, data in built:
            if self._write(spec, name, data):
                written += data.num_rows
            elif not keep_existing:
                self._compare(spec, name, data)
        return written

    def contains(self, table: str, **part_keys: Any) -> bool:
        """Whether the part with these keys (all of the table's ``part_keys``) exists, in its own file or a compacted one.

        Raises:
            ArchiveError: the file system does not answer.
            ValueError: the keys are not those of the table.
        """
        spec = _table(table)
        if set(part_keys) != set(spec.part_keys):
            raise ValueError(f"{table}: give {', '.join(spec.part_keys)}; got {', '.join(part_keys)}")
        name = part_name([part_keys[key] for key in spec.part_keys])
        return self._storage.exists(table, name) or self._reader.settled(
            lambda: self._reader.compacted.holding(spec, name) is not None
        )

    def has(self, table: str) -> bool:
        """Whether the archive has this table, which an earlier version may lack until a run goes on in it.

        Raises:
            ArchiveError: the file system does not answer.
        """
        return self._storage.exists("", _table(table).name)

    def parts(self, table: str) -> list[dict[str, str]]:
        """Return the part keys, as text, of every part of a table, from file names and from compacted files.

        Raises:
            ArchiveError: the folder is missing or cannot be listed.
        """
        spec = _table(table)
        names = self._reader.settled(lambda: self._reader.all_names(spec))
        return [dict(zip(spec.part_keys, part_values(name) or (), strict=True)) for name in names]

    def read(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        *,
        keep: bool = True,
        unsealed: bool = False,
        **equals: Any,
    ) -> pa.Table:
        """Return the rows of a table, ordered by their keys.

        Args:
            table: name of a table.
            columns: names of columns; all columns by default.
            keep: whether the whole table may stay in memory for whoever reads it next, as any table but ``trajectories`` does.
                Without it no other column is read, which serves long rows that are looked through once.
            unsealed: also read the ``report`` split of ``evaluations``, whose files are not opened otherwise.
            **equals: column = value, or column = collection of values; only rows that match all of them are returned.

        Raises:
            ArchiveError: a file is missing, truncated or no Parquet; the message names it.
        """
        spec = _table(table)
        if columns is not None and (not keep or spec is TRAJECTORIES):
            return self._reader.columns(spec, columns, equals, unsealed)
        data = self._reader.select(spec, equals, unsealed)
        return data.select(list(columns)) if columns is not None else data

    def totals(self, table: str, by: str, *sums: Sequence[str], **equals: Any) -> dict[str, tuple[float, ...]]:
        """Return for each value of a column of texts the sums of other columns over its rows, which are read once.

        Args:
            table: name of a table.
            by: the column of texts.
            *sums: columns of numbers, whose numbers are added up together, row by row in the order of keys; an absent one is 0.
            **equals: as in ``read``.

        Raises:
            ArchiveError: a file is missing, truncated or no Parquet; the message names it.
        """
        names = [by, *dict.fromkeys(name for one in sums for name in one)]
        data = self._reader.columns(_table(table), names, equals, unsealed=False)
        groups = data[by].combine_chunks().dictionary_encode()
        codes = groups.indices.to_numpy()
        numbers = {name: data[name].fill_null(0).to_numpy() for name in names[1:]}
        totals = [
            np.bincount(np.repeat(codes, len(one)), np.stack([numbers[name] for name in one], axis=1).ravel()).tolist()
            for one in sums
        ]
        return dict(zip(groups.dictionary.to_pylist(), zip(*totals, strict=True), strict=True))

    def rows_of(
        self,
        table: str,
        groups: Sequence[Collection[str]],
        columns: Sequence[str] | None = None,
        *,
        by: str,
        **equals: Any,
    ) -> Iterator[list[Any]]:
        """Yield for each group the rows whose column ``by`` is in it, as ``rows`` gives them.

        The table is read once, however many groups there are, and only one group's rows are dictionaries at a time; the others
        wait in compressed form.

        Args:
            table: name of a table.
            groups: values of ``by``; no value may be in two groups.
            columns: names of columns, and ``by`` and the key columns are there besides; all columns by default.
            by: a column of texts.
            **equals: as in ``read``.

        Raises:
            ArchiveError: a file is missing, truncated or no Parquet; the message names it.
        """
        spec = _table(table)
        packed = self._reader.packed(spec, by, groups, spec.schema.names if columns is None else columns, equals)
        for number in range(len(groups)):
            yield to_rows(packed.take(number))

    def trained(self, groups: Sequence[Collection[str]], protocol: str) -> Iterator[dict[str, Trained]]:
        """Yield for each group of candidates the steps of their trainings, by candidate; read as ``rows_of`` reads.

        Args:
            groups: candidate ids; none may be in two groups.
            protocol: digest of the protocol.

        Raises:
            ArchiveError: a file is missing, truncated or no Parquet; the message names it.
        """
        columns = [*STEP_COLUMNS, "confinement", "metrics"]
        packed = self._reader.packed(TRAJECTORIES, "candidate_id", groups, columns, {"protocol": protocol})
        for number in range(len(groups)):
            yield trained_steps(packed.take(number))

    @overload
    def rows(self, table: Literal["candidates"], *, unsealed: bool = False, **equals: Any) -> list[CandidateRow]: ...

    @overload
    def rows(self, table: Literal["proposals"], *, unsealed: bool = False, **equals: Any) -> list[ProposalRow]: ...

    @overload
    def rows(
        self, table: Literal["verifications"], *, unsealed: bool = False, **equals: Any
    ) -> list[VerificationRow]: ...

    @overload
    def rows(self, table: Literal["evaluations"], *, unsealed: bool = False, **equals: Any) -> list[EvaluationRow]: ...

    @overload
    def rows(self, table: Literal["trajectories"], *, unsealed: bool = False, **equals: Any) -> list[TrajectoryRow]: ...

    @overload
    def rows(self, table: Literal["reflections"], *, unsealed: bool = False, **equals: Any) -> list[ReflectionRow]: ...

    @overload
    def rows(self, table: Literal["selections"], *, unsealed: bool = False, **equals: Any) -> list[SelectionRow]: ...

    @overload
    def rows(self, table: Literal["failures"], *, unsealed: bool = False, **equals: Any) -> list[FailureRow]: ...

    @overload
    def rows(self, table: Literal["rungs"], *, unsealed: bool = False, **equals: Any) -> list[RungRow]: ...

    @overload
    def rows(
        self, table: Literal["replications"], *, unsealed: bool = False, **equals: Any
    ) -> list[ReplicationRow]: ...

    @overload
    def rows(
        self, table: Literal["examinations"], *, unsealed: bool = False, **equals: Any
    ) -> list[ExaminationRow]: ...

    @overload
    def rows(self, table: Literal["ablations"], *, unsealed: bool = False, **equals: Any) -> list[AblationRow]: ...

    @overload
    def rows(self, table: Literal["completions"], *, unsealed: bool = False, **equals: Any) -> list[CompletionRow]: ...

    @overload
    def rows(self, table: Literal["calls"], *, unsealed: bool = False, **equals: Any) -> list[CallRow]: ...

    @overload
    def rows(self, table: str, *, unsealed: bool = False, **equals: Any) -> list[dict[str, Any]]: ...

    def rows(self, table: str, *, unsealed: bool = False, **equals: Any) -> Any:
        """Read rows as ``read`` does, as one dictionary per row; map columns become dictionaries."""
        return self._reader.rows(_table(table), equals, unsealed)

    def evaluations(
        self, *, protocol: str, candidate_id: str | None = None, split: str = "search", unsealed: bool = False
    ) -> dict[str, list[SeedEvaluation]]:
        """Return the evaluations of each candidate, with seeds in order. They are shared by all who ask, and never changed.

        Args:
            protocol: digest of the protocol; evaluations under different protocols are never returned together.
            candidate_id: return only this candidate's.
            split: ``search``, or ``report`` with ``unsealed=True``.
            unsealed: confirms that the caller is the replication of a champion candidate.

        Raises:
            ArchiveError: the report split was requested without ``unsealed``, or a file cannot be read.
        """
        if split != "search" and not unsealed:
            raise ArchiveError(f"the {split} split is sealed; only a replication reads it, with unsealed=True")
        equals = {"protocol": protocol, "split": split}
        if candidate_id is not None:
            equals["candidate_id"] = candidate_id
        return self._reader.evaluations(equals, unsealed)

    def trajectory(self, candidate_id: str, protocol: str) -> dict[int, list[dict[str, Any]]]:
        """Return the steps of every seed of a candidate in order, as in ``trajectory.jsonl``: flat, without absent metrics.

        Raises:
            ArchiveError: a file cannot be read.
        """
        return trajectory_seeds(self.rows("trajectories", candidate_id=candidate_id, protocol=protocol))

    def trajectories(
        self, candidates: Collection[str], protocol: str, **equals: Any
    ) -> Iterator[tuple[str, dict[int, list[dict[str, Any]]]]]:
        """Yield the candidates that have a trajectory, each with its own, by id; read as ``rows_of`` reads.

        Raises:
            ArchiveError: a file cannot be read.
        """
        for name, rows in self.by_candidate("trajectories", candidates, protocol, **equals):
            yield name, trajectory_seeds(rows)

    def by_candidate(
        self, table: str, candidates: Collection[str], protocol: str, **equals: Any
    ) -> Iterator[tuple[str, list[Any]]]:
        """Yield the candidates that have rows under a protocol, each with these, by id; read as ``rows_of`` reads.

        Raises:
            ArchiveError: a file cannot be read.
        """
        wanted = sorted(candidates)
        groups = [wanted[start : start + _AT_ONCE] for start in range(0, len(wanted), _AT_ONCE)]
        for rows in self.rows_of(table, groups, by="candidate_id", protocol=protocol, **equals):
            for name, own in itertools.groupby(rows, key=lambda row: row["candidate_id"]):
                yield name, list(own)

    def lineage(self) -> Lineage:
        """Return the parent links of all candidates.

        Raises:
            ArchiveError: a candidate's parent is missing, or a file cannot be read.
        """
        return lineage_of(self._reader)

    def compact(self, say: Callable[[CompactedTable], None]) -> None:
        """Rewrite the parts of every table into one file, or two for evaluations, without a change for readers.

        Any process may read and append meanwhile and afterwards. After a kill at any moment, the next call completes the work.

        Args:
            say: called after every table.

        Raises:
            ArchiveError: a part cannot be read, the disk is full, or another process is compacting; tables that were not
                rewritten are unchanged.
        """
        with self._storage.compacting():
            for table in filter(lambda table: self.has(table.name), TABLES.values()):
                self._reader.check_version(table)
                say(compact_table(self._storage, self._reader, table))

    def refresh_snapshots(self) -> list[str]:
        """Write the snapshots that are out of date, so that the next process opens this archive quickly.

        Only derived files change; any process may call it at any time, and none has to.

        Returns:
            The tables whose snapshot was written.

        Raises:
            ArchiveError: a part cannot be read.
        """
        written = []
        for table in filter(snapshot_of, TABLES.values()):
            self._reader.check_version(table)
            sizes = {name: size for name, size in self._storage.sizes(table.name).items() if part_values(name)}
            names = [name for name in self._reader.names(table, {}, unsealed=False) if name in sizes]
            current = load_snapshot(self._storage, table)
            known = current.sizes if current else {}
            behind = sum(known.get(name) != sizes.get(name) for name in names)
            if behind >= max(WORTH, len(names) // 10):
                data = self._reader.settled(partial(self._reader.known, table, names))
                present = {name: sizes[name] for name in names if name in sizes}
                written += [table.name] if write_snapshot(self._storage, table, data, present) else []
        return written

    def revision(self) -> str:
        """Return a text that is another one whenever rows were added, or files exchanged; no file is opened for it.

        Raises:
            ArchiveError: a folder is missing or cannot be listed.
        """
        found = hashlib.sha256()
        for table in filter(lambda table: self.has(table.name), TABLES.values()):
            for folder in (table.name, compacted_table(table)):
                found.update(repr((folder, sorted(self._storage.stamps(folder).items()))).encode())
        return found.hexdigest()

    def check(self) -> list[str]:
        """Check the whole archive: every file opens, digests match, and no row refers to a missing candidate.

        Returns:
            One line per fault; empty where there is none.
        """
        return find_faults(self._storage, self._reader)

    def _write(self, table: Table, name: str, data: pa.Table) -> bool:
        """Write the part; return False where its rows exist already, in its own file or in a compacted one."""
        held = self._reader.compacted.holding
        if self._reader.settled(lambda: held(table, name)) is not None:
            return False
        if not self._storage.write_once(table.name, name, to_parquet(data)):
            return False
        if self._reader.settled(lambda: held(table, name)) is not None:
            # between the look and the write, another writer's part was written and compacted, and that one counts
            self._storage.remove(table.name, [name])
            return False
        return True

    def _compare(self, table: Table, name: str, given: pa.Table) -> None:
        stored = self._reader.part(table, name).sort_by([(key, "ascending") for key in table.keys])
        if stored["content_digest"].equals(given["content_digest"]) and stored["row_key"].equals(given["row_key"]):
            return
        path = self._storage.shown(table.name, name)
        if not stored["row_key"].equals(given["row_key"]):
            raise ArchiveConflictError(
                f"{path}: holds {stored.num_rows} rows that are not the {given.num_rows} given; kept"
            )
        columns = [field.name for field in table.fields if field.counts]
        differing = [column for column in columns if not stored[column].equals(given[column])]
        raise ArchiveConflictError(f"{path}: holds other content in {', '.join(differing) or 'its digests'}; kept")


def _table(name: str) -> Table:
    if name not in TABLES:
        raise ArchiveRowError(f"no table {name!r}; tables: {', '.join(TABLES)}")
    return TABLES[name]
