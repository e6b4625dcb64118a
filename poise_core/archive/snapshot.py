"""The snapshot of a table, one file with the rows of many parts, so that a large archive opens quickly.

``<table>/.snapshot.parquet`` is derived from the parts: it holds their rows, each with its part's name, and the size of
every part. It is replaced atomically and never holds the only copy of a row. A reader takes from it the rows of those parts
that still exist with the same size, and opens the others; without a readable snapshot it opens all parts.
The file is hidden, so other readers of the folder ignore it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from poise_core.archive.errors import ArchiveError
from poise_core.archive.parts import part_id, part_ids, part_name_of
from poise_core.archive.schema import EVALUATIONS, SCHEMA_VERSION, TRAJECTORIES, Table
from poise_core.archive.storage import Storage

SNAPSHOT_FILE = ".snapshot.parquet"
WORTH = 32
"""A snapshot is read where more parts than this must be opened, and rewritten after as many new parts, or a tenth."""

_PART, _SIZES = "snapshot_part", b"poise.part_sizes"


@dataclass(frozen=True)
class Snapshot:
    """The rows of parts at the time when the snapshot was written."""

    sizes: Mapping[str, int]  # part -> bytes
    rows: pa.Table  # the table's columns and the part's name

    def of_parts(self, names: set[str], present: Mapping[str, int]) -> tuple[set[str], pa.Table]:
        """Return which of the parts it can replace, given the sizes of the existing ones, and their rows."""
        usable = {name for name in names if name in self.sizes and present.get(name) == self.sizes[name]}
        rows = self.rows
        if len(usable) < len(self.sizes):
            rows = rows.filter(pc.is_in(rows[_PART], pa.array(sorted(usable), pa.string())))
        return usable, rows.drop_columns([_PART])


def snapshot_of(table: Table) -> bool:
    """Whether a table has a snapshot; trajectories have none, because they are read one candidate at a time."""
    return table is not TRAJECTORIES


def load_snapshot(storage: Storage, table: Table) -> Snapshot | None:
    """Load the table's snapshot; None where there is none that this version can use."""
    path = storage.path(table.name, SNAPSHOT_FILE)
    try:
        rows = pq.read_table(path, filesystem=storage.filesystem)
        metadata = rows.schema.metadata or {}
        if int(metadata.get(b"poise.schema_version", b"0")) != SCHEMA_VERSION or _PART not in rows.column_names:
            return None
        sizes = json.loads(metadata[_SIZES])
        schema = table.schema.append(pa.field(_PART, pa.string()))
        return Snapshot(sizes, rows.select(schema.names).cast(schema))
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None


def snapshot_sizes(storage: Storage, table: Table) -> dict[str, int]:
    """The parts that the table's snapshot holds, with their bytes; none where there is no snapshot that this version can use."""
    try:
        schema = pq.read_schema(storage.path(table.name, SNAPSHOT_FILE), filesystem=storage.filesystem)
        metadata = schema.metadata or {}
        usable = int(metadata.get(b"poise.schema_version", b"0")) == SCHEMA_VERSION and _PART in schema.names
        return dict(json.loads(metadata[_SIZES])) if usable else {}
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return {}


def scan_snapshot(
    storage: Storage, table: Table, columns: Sequence[str], parts: Collection[str], condition: pc.Expression
) -> pa.Table | None:
    """Columns of the rows of these parts that match, from the snapshot; None where that is no longer readable."""
    path, wanted = storage.path(table.name, SNAPSHOT_FILE), pc.field(_PART).isin(pa.array(sorted(parts), pa.string()))
    schema = table.schema.append(pa.field(_PART, pa.string()))
    try:
        data = ds.dataset(path, schema, format="parquet", filesystem=storage.filesystem)
        return data.to_table(columns=list(columns), filter=condition & wanted)
    except (pa.ArrowException, OSError):
        return None


def write_snapshot(storage: Storage, table: Table, data: pa.Table, sizes: Mapping[str, int]) -> bool:
    """Replace the table's snapshot; return False where it could not be written, which does no harm.

    Args:
        storage: the archive's storage.
        table: the table.
        data: at least the rows of the parts; rows of other parts are left out.
        sizes: the parts in the snapshot, with their bytes. The sealed split is never included.
    """
    ids = part_ids(table, data["row_key"])
    wanted = pc.is_in(ids, pa.array([part_id(name) for name in sizes], pa.string()))
    named = [part_name_of(identity) for identity in ids.filter(wanted).to_pylist()]
    rows = data.filter(wanted).append_column(_PART, pa.array(named, pa.string()))
    if table is EVALUATIONS:
        rows = rows.filter(pc.field("split") == "search")
    kept = set(rows[_PART].to_pylist())
    described = {name: size for name, size in sizes.items() if name in kept}
    rows = rows.replace_schema_metadata({**(table.schema.metadata or {}), _SIZES: json.dumps(described).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    try:
        storage.replace(table.name, SNAPSHOT_FILE, memoryview(sink.getvalue()).cast("B"))
    except ArchiveError:
        return False
    return True
