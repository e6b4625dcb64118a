"""Rewriting the parts of a table into one file, so that a large archive does not consist of millions of small files.

Every step leaves the archive whole, so that a kill between two steps neither loses nor duplicates a row:

1. the rows of all parts and of earlier compacted files are written to a hidden file, and read back from it;
2. ``schema.parquet`` records that the table may hold compacted files, so that earlier programs refuse the table;
3. the file is published under its final name in ``<table>/compacted/``;
4. the parts and files whose rows it holds are removed.

Between steps 3 and 4 rows are in two files. This program's readers take each part from one of them (``compacted.py``); another
reader of the folder sees them twice until this compaction or the next one finishes step 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from poise_core.archive.encoding import to_parquet
from poise_core.archive.errors import ArchiveError
from poise_core.archive.parts import (
    SCHEMA_FILE,
    compacted_name,
    compacted_split,
    compacted_table,
    part_ids,
    part_values,
    split_of,
)
from poise_core.archive.reader import PartReader
from poise_core.archive.schema import COMPACTED_VERSION, Table
from poise_core.archive.snapshot import SNAPSHOT_FILE
from poise_core.archive.storage import Storage

PARTS_AT_ONCE = 1000
GROUP_ROWS, GROUP_BYTES = 16_384, 16 << 20
"""Rows of a row group, which is the least that a reader reads, and the most that a compaction holds in memory."""


@dataclass(frozen=True)
class CompactedTable:
    """The rows of a compacted table, and its number of files before and after."""

    table: str
    rows: int
    files_before: int
    files_after: int


def compact_table(storage: Storage, reader: PartReader, table: Table) -> CompactedTable:
    """Write one file with all rows of a table, or one for each split, unless these files exist already.

    Raises:
        ArchiveError: a part cannot be read, or the disk is full; no file was removed.
    """
    storage.sweep(compacted_table(table), older_than=0.0)  # only compactions write there, one at a time
    listed = [name for name in storage.list(table.name) if len(part_values(name) or ()) == len(table.part_keys)]
    compacted = reader.compacted.names(table)
    for split in sorted(
        {split_of(table, name) for name in listed} | {compacted_split(name) or "" for name in compacted}
    ):
        parts = [name for name in listed if split_of(table, name) == split]
        _compact_split(storage, reader, table, split, parts, reader.compacted.names(table, [split]))
    if reader.compacted.names(table):  # the snapshot names parts that have been removed
        storage.remove(table.name, [SNAPSHOT_FILE])
    files = [storage.path(*file) for file in _files(storage, table)]
    rows = sum(pq.read_metadata(file, filesystem=storage.filesystem).num_rows for file in files)
    return CompactedTable(table.name, rows, len(listed) + len(compacted), len(files))


def _compact_split(
    storage: Storage, reader: PartReader, table: Table, split: str, parts: Sequence[str], compacted: Sequence[str]
) -> None:
    fresh = reader.compacted.uncovered(table, compacted, parts)
    if len(fresh) + len(compacted) <= 1 and len(fresh) == len(parts):
        return
    target = _holds_all(reader, table, compacted) if not fresh else None
    if target is None:
        target = compacted_name(split, _digest([*compacted, *fresh]))
        with storage.scratch(compacted_table(table)) as scratch:
            _write(scratch, table, _batches(reader, table, fresh, compacted))
            _mark(storage, reader, table)
            if not storage.publish_once(scratch, compacted_table(table), target):
                raise ArchiveError(
                    f"{storage.shown(compacted_table(table), target)}: written by another process; run the compaction again"
                )
    else:
        _read_through(storage, table, target)
    storage.remove(compacted_table(table), [name for name in compacted if name != target])
    storage.remove(table.name, parts)


def _files(storage: Storage, table: Table) -> list[tuple[str, str]]:
    parts = [(table.name, name) for name in storage.list(table.name) if part_values(name)]
    return [*parts, *((compacted_table(table), name) for name in storage.list(compacted_table(table)))]


def _digest(names: Sequence[str]) -> str:
    """Compute the digest of file names; files never change, so it identifies the content of a file made of them."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def _holds_all(reader: PartReader, table: Table, compacted: Sequence[str]) -> str | None:
    """Return the file that holds every part of all files, which a compaction killed before step 4 has left."""
    largest = max(compacted, key=lambda name: len(reader.compacted.ids(table, name)))
    held = reader.compacted.ids(table, largest)
    every = pc.all(pc.is_in(reader.compacted.all_ids(table, compacted), held)).as_py()
    return largest if every else None


def _batches(reader: PartReader, table: Table, fresh: Sequence[str], compacted: Sequence[str]) -> Iterator[pa.Table]:
    """Yield all rows, each once, in batches: first those compacted before, then the parts in the order of their keys."""
    for position, name in enumerate(compacted):
        before = reader.compacted.all_ids(table, compacted[:position])
        for rows in reader.compacted.groups(table, name):
            yield rows.filter(pc.invert(pc.is_in(part_ids(table, rows["row_key"]), before))) if position else rows
    for start in range(0, len(fresh), PARTS_AT_ONCE):
        rows = reader.load(table, fresh[start : start + PARTS_AT_ONCE])
        yield rows.sort_by([(key, "ascending") for key in table.keys])


def _write(path: Path, table: Table, batches: Iterator[pa.Table]) -> None:
    """Write the rows and read them back.

    Raises:
        ArchiveError: the rows that were read differ from those that were written.
    """
    written = []
    with pq.ParquetWriter(
        path,
        table.schema,
        compression="zstd",
        write_statistics=list(table.keys),  # of keys only; those of sources would be as large
        write_page_checksum=True,
    ) as writer:
        for group in _grouped(batches, table):
            writer.write_table(group, row_group_size=group.num_rows)
            written.append(_fingerprint(group))
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        found = (_fingerprint(file.read_row_group(group)) for group in range(file.num_row_groups))
        if file.num_row_groups != len(written) or any(one != other for one, other in zip(written, found, strict=True)):
            raise ArchiveError(f"{table.name}: what was written reads back differently; the parts stay as they are")


def _grouped(batches: Iterator[pa.Table], table: Table) -> Iterator[pa.Table]:
    """Yield the same rows in batches of the size of a row group."""
    held = table.schema.empty_table()
    for rows in batches:
        held = pa.concat_tables([held, rows])
        while held.num_rows >= GROUP_ROWS or held.nbytes >= GROUP_BYTES:
            count = min(GROUP_ROWS, max(1, held.num_rows * GROUP_BYTES // max(held.nbytes, 1)))
            yield held[:count].combine_chunks()
            held = held[count:].combine_chunks()
    if held.num_rows:
        yield held.combine_chunks()


def _fingerprint(rows: pa.Table) -> bytes:
    """Return bytes that are equal for equal rows in the same order, in every column."""
    return hashlib.sha256(repr(rows.to_pylist()).encode()).digest()


def _read_through(storage: Storage, table: Table, name: str) -> None:
    """Read every page of a file that a killed compaction left, before the parts whose rows it holds are removed.

    Raises:
        ArchiveError: the file is damaged.
    """
    try:
        path = storage.path(compacted_table(table), name)
        with pq.ParquetFile(path, filesystem=storage.filesystem, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group)
    except (pa.ArrowException, OSError) as error:
        raise ArchiveError(
            f"{storage.shown(compacted_table(table), name)}: damaged; delete it if its parts are all there, else restore it"
        ) from error


def _mark(storage: Storage, reader: PartReader, table: Table) -> None:
    if reader.version(table) < COMPACTED_VERSION:
        marked = table.schema.with_metadata({**table.schema.metadata, b"poise.schema_version": str(COMPACTED_VERSION)})
        storage.replace(table.name, SCHEMA_FILE, to_parquet(marked.empty_table()))
