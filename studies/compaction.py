"""Files and seconds of ``poise archive compact``, on made-up archives of ten thousand and of a million rows.

``python -m studies.compaction FOLDER`` prints the table of ``docs/archive.md``. The archives are made below the folder first,
and what lies there already is not made again, so that a run that was stopped goes on.

Parts are written without the sync that an archive's own append makes: their content and names are the same.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from poise_core.archive import Archive, trajectory_rows
from poise_core.archive.compaction import CompactedTable
from poise_core.archive.encoding import build_table, to_parquet
from poise_core.archive.parts import COMPACTED, compacted_name, part_name
from poise_core.archive.schema import TABLES
from studies.scale import make_candidate

STEPS = 100
CHUNK = 5000


@dataclass(frozen=True)
class Case:
    """A made-up table: ``compacted`` rows in one file, and parts."""

    title: str
    table: str
    compacted: int
    parts: int


def cases(rows: int, parts: int) -> list[Case]:
    """Candidates in a file each; as many rows as the largest case in steps of trainings; candidates that joined a large file."""
    return [
        Case(f"{parts:,} candidates, none compacted before", "candidates", 0, parts),
        Case(
            f"{rows:,} training steps in {rows // STEPS:,} parts, none compacted before",
            "trajectories",
            0,
            rows // STEPS,
        ),
        Case(f"{rows:,} candidates, {rows - parts:,} of them compacted before", "candidates", rows - parts, parts),
    ]


def make(case: Case, folder: Path) -> Archive:
    """The archive of a case; parts that are there already are left alone."""
    archive = Archive(folder).initialise()
    place = folder / case.table
    if case.compacted:
        _make_compacted(case, place / COMPACTED)
    for number in range(case.compacted, case.compacted + case.parts):
        values, rows = _part(case.table, number)
        path = place / part_name(values)
        if not path.exists():
            path.write_bytes(to_parquet(build_table(TABLES[case.table], rows)))
    return archive


def _make_compacted(case: Case, folder: Path) -> None:
    target = folder / compacted_name("all", "0" * 16)
    if target.exists():
        return
    folder.mkdir(exist_ok=True)
    unfinished = target.with_name(".unfinished")
    table = TABLES[case.table]
    with pq.ParquetWriter(unfinished, table.schema, compression="zstd", write_statistics=list(table.keys)) as writer:
        for start in range(0, case.compacted, CHUNK):
            numbers = range(start, min(start + CHUNK, case.compacted))
            writer.write_table(build_table(table, [row for number in numbers for row in _part(case.table, number)[1]]))
    unfinished.replace(target)


def _part(table: str, number: int) -> tuple[Sequence[Any], Sequence[Any]]:
    """Key values and rows of a part."""
    if table == "candidates":
        row = make_candidate(number, number // 2)
        return [row["candidate_id"]], [row]
    steps = ({"step": step, "reward_mean": (number + step) / 7, "loss": step / 3} for step in range(STEPS))
    return ["p", f"c-{number}", 0], trajectory_rows(f"c-{number}", "p", 0, steps)


def measure(case: Case, folder: Path) -> str:
    """Compact it: a line of the table."""
    archive = make(case, folder)
    place = folder / case.table
    before = list(_files(place))
    done: list[CompactedTable] = []
    wall, processor = time.perf_counter(), time.process_time()
    archive.compact(done.append)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    after = list(_files(place))
    (rows,) = (one.rows for one in done if one.table == case.table)
    keys = pq.read_table(place, columns=["row_key"])["row_key"]  # as any reader of the folder sees it
    if len(keys) != rows or len(keys.unique()) != rows:
        raise SystemExit(f"{place}: {len(keys)} rows are read where {rows} were written")
    sizes = [sum(size for _, size in files) / 1e6 for files in (before, after)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return (
        f"| {case.title} | {len(before):,} → {len(after):,} | {sizes[0]:,.1f} → {sizes[1]:,.1f} | {processor:,.0f} | {wall:,.0f} "
        f"| {memory:.1f} |"
    )


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Every file below the folder with its bytes."""
    return ((path, path.stat().st_size) for path in folder.rglob("*") if path.is_file())


def main(arguments: Iterable[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Make the archives, compact them, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the archives; some gigabytes are needed at the default size")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the large cases")
    parser.add_argument("--parts", type=int, default=10_000, help="parts of the cases with candidates")
    given = parser.parse_args(None if arguments is None else list(arguments))
    say("| archive | files | MB | processor seconds | wall-clock seconds | peak memory so far, GB |")
    say("|---|---|---|---|---|---|")
    for number, case in enumerate(cases(given.rows, given.parts)):
        folder = given.folder / str(number)
        say(measure(case, folder))
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
