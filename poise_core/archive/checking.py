"""Checking a whole archive: every file opens, digests match, and no row refers to a missing candidate."""

from __future__ import annotations

import pyarrow.compute as pc

from poise_core.archive.encoding import content_digests
from poise_core.archive.errors import ArchiveError
from poise_core.archive.lineage import Lineage
from poise_core.archive.parts import compacted_table
from poise_core.archive.reader import PartReader
from poise_core.archive.schema import ABLATED, CANDIDATES, TABLES, Table
from poise_core.archive.snapshot import SNAPSHOT_FILE, load_snapshot, snapshot_of
from poise_core.archive.storage import Storage

_OF_CANDIDATES = (
    "verifications",
    "evaluations",
    "trajectories",
    "reflections",
    "selections",
    "completions",
    "ablations",
)


def find_faults(storage: Storage, reader: PartReader) -> list[str]:
    """Return one line per fault; empty where there is none.

    References are checked only where every file is whole, because one damaged file would otherwise cause many faults.
    """
    faults = []
    for table in TABLES.values():
        try:
            names = storage.list(table.name) if not table.later or storage.exists("", table.name) else []
            compacted = reader.compacted.names(table)
        except ArchiveError as error:
            faults.append(str(error))
            continue
        faults += [fault for name in names if (fault := _part_fault(storage, reader, table, name))]
        faults += [fault for name in compacted if (fault := _compacted_fault(storage, reader, table, name))]
    faults = faults or [fault for table in TABLES.values() if (fault := _snapshot_fault(storage, reader, table))]
    return faults or _reference_faults(reader)


def lineage_of(reader: PartReader) -> Lineage:
    """Return the parent links of all candidates, in the order of their generations.

    Raises:
        ArchiveError: a candidate's parent is missing, or a file cannot be read.
    """
    data = reader.select(CANDIDATES, {}, unsealed=False)
    columns = ["generation", "proposal_id", "created_at", "candidate_id", "parent_ids"]
    return Lineage.of_rows(data.select(columns).to_pylist())


def _part_fault(storage: Storage, reader: PartReader, table: Table, name: str) -> str | None:
    try:
        data = reader.open(table, name)
    except ArchiveError as error:
        return str(error)
    if data["content_digest"].to_pylist() != content_digests(table, data):
        return f"{storage.shown(table.name, name)}: a row does not match its digest; the file was altered"
    return None


def _compacted_fault(storage: Storage, reader: PartReader, table: Table, name: str) -> str | None:
    try:
        for data in reader.compacted.groups(table, name):
            if data["content_digest"].to_pylist() != content_digests(table, data):
                shown = storage.shown(compacted_table(table), name)
                return f"{shown}: a row does not match its digest; the file was altered"
    except ArchiveError as error:
        return str(error)
    return None


def _snapshot_fault(storage: Storage, reader: PartReader, table: Table) -> str | None:
    """Compare the snapshot with the parts, which have been found to be whole."""
    snapshot = load_snapshot(storage, table) if snapshot_of(table) else None
    if snapshot is None:
        return None
    usable, rows = snapshot.of_parts(set(snapshot.sizes), storage.sizes(table.name))
    key = [("row_key", "ascending")]
    if rows.sort_by(key).equals(reader.load(table, sorted(usable)).sort_by(key)):
        return None
    return f"{storage.shown(table.name, SNAPSHOT_FILE)}: differs from the parts it stands for; delete it"


def _reference_faults(reader: PartReader) -> list[str]:
    known = set(reader.columns(CANDIDATES, ["candidate_id"], {}, unsealed=False)["candidate_id"].to_pylist())
    faults = []
    for name in _OF_CANDIDATES:
        columns = ["candidate_id", "protocol"] if name == "evaluations" else ["candidate_id"]
        data = reader.columns(TABLES[name], columns, {}, unsealed=True)
        if name == "evaluations":
            # versions of an ablation are no candidates, and are scored before they have their row
            data = data.filter(pc.invert(pc.starts_with(data["protocol"], ABLATED)))
        named = set(pc.unique(data["candidate_id"]).to_pylist())
        faults += [f"{name} holds {missing}, which candidates lacks" for missing in sorted(named - known)]
    try:
        lineage_of(reader)
    except ArchiveError as error:
        faults.append(str(error))
    return faults
