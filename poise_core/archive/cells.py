"""The file of a recorded table of compositions: one Parquet file, one row per cell and seed.

A *cell* is one composition of the mechanism catalogue that was trained and scored under one protocol. The file is small and holds
all that a replay of searches needs, so it can lie beside a page or be sent to somebody; ``poise record-table`` makes it
(``poise_core.experiments.recording``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from poise_core.archive.encoding import to_parquet
from poise_core.archive.errors import ArchiveError
from poise_core.archive.storage import one_line
from poise_core.files import write_atomically

TABLE_VERSION: Final = 1
_METADATA: Final = b"poise.table"


@dataclass(frozen=True)
class TableHead:
    """What all cells of a table have in common."""

    preset: str
    protocol: str  # digest; tables of different protocols are never mixed
    weights: dict[str, float]  # benchmark -> its share of Overall
    baseline: int  # cell of the baseline; -1 where it was not recorded
    planned: int  # random cells that the recording was asked for; 0 for a table made from a run
    proxy_steps: int  # first steps of a training that make its proxy
    proxy_window: int  # last steps of the proxy, and of the training, over which dynamics are averaged
    version: int = TABLE_VERSION


@dataclass(frozen=True)
class CellRow:
    """One cell with one seed; a cell that was refused or failed has one row with the failure and no Overall."""

    cell: int
    design: str  # "random", "baseline", or "run": a candidate that a search has made
    name: str
    choices: dict[str, str]  # slot -> choice, every slot of the catalogue
    numbers: dict[str, float]  # parameter -> number
    seed: int | None = None
    overall: float | None = None  # percent
    benchmarks: dict[str, float] = field(default_factory=dict)  # percent
    tokens: int | None = None  # completion tokens sampled in the whole training
    proxy_tokens: int | None = None  # the same up to the end of the proxy
    dynamics: dict[str, float] = field(
        default_factory=dict
    )  # ``proxy_NAME`` and ``final_NAME`` -> mean over the window
    seconds: float | None = None  # wall-clock time of rollouts, updates and evaluation
    failure: str | None = None  # kind

    @property
    def composition(self) -> dict[str, Any]:
        """As ``poise_core.mechanisms.composition.Composition`` reads it."""
        return {"choices": self.choices, "parameters": self.numbers}


_MAPS = {"choices": pa.string(), "numbers": pa.float64(), "benchmarks": pa.float64(), "dynamics": pa.float64()}
_PLAIN = {
    "cell": pa.int64(), "design": pa.string(), "name": pa.string(), "seed": pa.int64(), "overall": pa.float64(),
    "tokens": pa.int64(), "proxy_tokens": pa.int64(), "seconds": pa.float64(), "failure": pa.string(),
}  # fmt: skip


def write_cells(path: Path, head: TableHead, rows: Sequence[CellRow]) -> None:
    """Write the file, whole or not at all; rows are ordered by cell and seed.

    Raises:
        OSError: it could not be written; an earlier file stays.
    """
    ordered = sorted(rows, key=lambda row: (row.cell, -1 if row.seed is None else row.seed))
    columns: dict[str, pa.Array] = {}
    for column in fields(CellRow):
        values = [getattr(row, column.name) for row in ordered]
        if column.name in _MAPS:
            kind = pa.map_(pa.string(), _MAPS[column.name])
            columns[column.name] = pa.array([sorted(value.items()) for value in values], kind)
        else:
            columns[column.name] = pa.array(values, _PLAIN[column.name])
    data = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(asdict(head), sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, bytes(to_parquet(data)))


def once_each(rows: Iterable[CellRow]) -> list[CellRow]:
    """Of one cell: of several rows of a seed the first; a failure stands alone, as in a run."""
    seeds: dict[int | None, CellRow] = {}
    for row in rows:
        if row.failure:
            return [row]
        seeds.setdefault(row.seed, row)
    return list(seeds.values())


def together(tables: Mapping[str, tuple[TableHead, Sequence[CellRow]]]) -> tuple[TableHead, list[CellRow]]:
    """Several tables of one protocol as one: a composition is one cell, whichever tables have it, with every seed once.

    Of two rows of one composition and seed that of the earlier table counts; a failure stands alone, as in a run. Cells of the
    first table keep their numbers, the others are numbered on.

    Args:
        tables: name for messages -> head and rows; one at least. Preset and planned cells are those of the first.

    Raises:
        ArchiveError: they are of different protocols, benchmarks or proxies.
    """
    first, (head, own) = next(iter(tables.items()))
    numbers: dict[str, int] = {}
    rows: dict[int, list[CellRow]] = {}
    baseline, following = head.baseline, 1 + max((row.cell for row in own), default=-1)
    for name, (other, found) in tables.items():
        for what in ("protocol", "weights", "proxy_steps", "proxy_window"):
            if getattr(other, what) != getattr(head, what):
                raise ArchiveError(f"{name}: another {what.replace('_', ' ')} than {first}; tables are not mixed")
        for row in found:
            key = json.dumps(row.composition, sort_keys=True)
            if key not in numbers:
                numbers[key] = row.cell if name == first else following
                following += name != first
            number = numbers[key]
            baseline = number if baseline < 0 and row.cell == other.baseline else baseline
            rows.setdefault(number, []).append(replace(row, cell=number))
    return replace(head, baseline=baseline), [row for cell in rows.values() for row in once_each(cell)]


def read_cells(path: Path) -> tuple[TableHead, list[CellRow]]:
    """Read a file that ``write_cells`` has made.

    Raises:
        ArchiveError: it is missing, is no such file, or was written by a later version.
    """
    try:
        data = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(f"{path}: cannot be read as a table of cells: {one_line(error)}") from error
    text = (data.schema.metadata or {}).get(_METADATA)
    if text is None:
        raise ArchiveError(f"{path}: no table of cells; make one with `poise record-table`")
    stored: Mapping[str, Any] = json.loads(text)
    if stored.get("version", 0) > TABLE_VERSION:
        raise ArchiveError(f"{path}: written by a later version (table version {stored['version']}); update poise")
    head = TableHead(**{one.name: stored[one.name] for one in fields(TableHead) if one.name in stored})
    known = [one.name for one in fields(CellRow) if one.name in data.column_names]
    return head, [CellRow(**row) for row in data.select(known).to_pylist(maps_as_pydicts="strict")]
