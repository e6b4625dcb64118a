"""The archive of a run, as append-only Parquet tables: schema, append, read, lineage."""

from poise_core.archive.compaction import CompactedTable
from poise_core.archive.errors import (
    ArchiveConflictError,
    ArchiveError,
    ArchiveLocationError,
    ArchiveOwnedError,
    ArchiveRowError,
)
from poise_core.archive.lineage import Lineage, TreeNode
from poise_core.archive.locations import check_location, location_below
from poise_core.archive.rows import (
    as_appended,
    candidate_row,
    completion_rows,
    evaluation_rows,
    failure_row,
    proposal_id,
    proposal_row,
    proposal_slot,
    reflection_row,
    selection_row,
    trajectory_rows,
    trajectory_seeds,
    verification_row,
)
from poise_core.archive.schema import ABLATED, EVOLUTION_ARM, EXAMINED, SCHEMA_VERSION, TABLES, UNTRAINED_ARM
from poise_core.archive.store import Archive
from poise_core.archive.trajectories import Trained

__all__ = [
    "ABLATED",
    "EVOLUTION_ARM",
    "EXAMINED",
    "SCHEMA_VERSION",
    "TABLES",
    "UNTRAINED_ARM",
    "Archive",
    "ArchiveConflictError",
    "ArchiveError",
    "ArchiveLocationError",
    "ArchiveOwnedError",
    "ArchiveRowError",
    "CompactedTable",
    "Lineage",
    "Trained",
    "TreeNode",
    "as_appended",
    "candidate_row",
    "check_location",
    "completion_rows",
    "evaluation_rows",
    "failure_row",
    "location_below",
    "proposal_id",
    "proposal_row",
    "proposal_slot",
    "reflection_row",
    "selection_row",
    "trajectory_rows",
    "trajectory_seeds",
    "verification_row",
]
