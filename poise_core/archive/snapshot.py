"""One file that holds what many parts hold, so that a large archive opens quickly.

``<table>/.snapshot.parquet`` is derived: the rows of the parts that it names, each with its part's name, and the size that
every part had. It is replaced whole and never the only place of anything. A reader takes from it the rows of those parts
that still lie beside it in the same size, and opens the others; without it, or with one that cannot be read, it opens all.
Being hidden, it is no part and no reader of the folder meets it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from poise_core.archive.errors import ArchiveError
from poise_core.archive.parts import part_id, part_ids, part_name_of
from poise_core.archive.schema import EVALUATIONS, SCHEMA_VERSION, TRAJECTORIES, Table
from poise_core.archive.storage import Storage

SNAPSHOT_FILE = ".snapshot.parquet"
WORTH = 32
"""Parts to be opened beyond which a snapshot is looked for; as many new ones, or a tenth, make it worth writing anew."""

_PART, _SIZES = "snapshot_part", b"poise.part_sizes"


@dataclass(frozen=True)
class Snapshot:
    """Rows of parts, as they were when it was written."""

    sizes: Mapping[str, int]  # part -> bytes
    rows: pa.Table  # the table's columns and the part's name

    def of_parts(self, names: set[str], present: Mapping[str, int]) -> tuple[set[str], pa.Table]:
        """Which of the parts it can stand for, given the sizes of those that are there, and their rows."""
        usable = {name for name in names if name in self.sizes and present.get(name) == self.sizes[name]}
        rows = self.rows
        if len(usable) < len(self.sizes):
            rows = rows.filter(pc.is_in(rows[_PART], pa.array(sorted(usable), pa.string())))
        return usable, rows.drop_columns([_PART])


def snapshot_of(table: Table) -> bool:
    """Whether a table gets one: not trajectories, which are read one candidate at a time."""
    return table is not TRAJECTORIES


def load_snapshot(storage: Storage, table: Table) -> Snapshot | None:
    """The table's snapshot; None where there is none, or none that this version can use."""
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


def write_snapshot(storage: Storage, table: Table, data: pa.Table, sizes: Mapping[str, int]) -> bool:
    """Replace the table's snapshot; False where it could not be written, which harms nothing.

    Args:
        storage: of the archive.
        table: which.
        data: at least the rows of the parts; rows of others are left out.
        sizes: the parts that it shall stand for, with their bytes. The sealed split never enters.
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
