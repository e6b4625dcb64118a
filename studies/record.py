"""Full evaluations of candidates that a ladder has stopped, for ``studies.ladder_cost``.

``python -m studies.record RUN_DIR COPY [--children 40]`` copies a run and measures the first children of the copy, in
the order in which they were made, with all seeds of the search. Nothing is chosen by score, and the run itself is not changed.
After an interruption the same command goes on.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from poise_core.archive import EVOLUTION_ARM, Archive
from poise_core.archive.typed import CandidateRow
from poise_core.evolution import CandidateRef, Evolution
from poise_core.evolution.events import Event
from poise_core.failures import CandidateFailure
from poise_core.run_directory import RunDirectory


def first_children(archive: Archive, count: int | None) -> list[CandidateRow]:
    """Rows of the first children in the order in which they were made; None: all of them."""
    rows = sorted(archive.rows("candidates", arm=EVOLUTION_ARM), key=lambda row: row["created_at"])
    return [row for row in rows if row["generation"]][:count]


def record(source: Path, copy: Path, children: int) -> int:
    """Measure the first children with all seeds.

    Args:
        source: a run directory, which is only read.
        copy: made where it is missing; must not lie within the run.
        children: how many.

    Returns:
        How many have all seeds; failed candidates have not.

    Raises:
        InfrastructureError, Cancelled: see ``poise_core.evolution.trials.Trials``; the same call goes on.
        RunDirectoryError: a directory cannot be used.
    """
    if not copy.exists():
        partial = copy.with_name(copy.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns("prefect", "mlartifacts", "mlflow.db", ".lock"))
        partial.rename(copy)
    with RunDirectory.open(copy, RunDirectory.read(copy).current_preset) as run:
        evolution = Evolution(run, observer=_print)
        first = [CandidateRef.of_row(row) for row in first_children(run.archive, children)]

        def measure(candidate: CandidateRef) -> bool:
            try:
                evolution.trials.train(candidate, evolution.seeds)
                evolution.trials.evaluate(candidate, evolution.seeds)
            except CandidateFailure:
                return False
            return True

        with ThreadPoolExecutor(run.current_preset.resources.parallel_candidates) as pool:
            try:
                return sum(pool.map(measure, first))
            except BaseException:
                evolution.stop()
                raise


def _print(event: Event) -> None:
    if event.kind in ("finished", "failed"):
        print(f"{event.stage} {event.subject}: {event.message}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy, measure, and say how many are complete."""
    parser = argparse.ArgumentParser(prog="python -m studies.record", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("copy", type=Path)
    parser.add_argument("--children", type=int, default=40)
    given = parser.parse_args(arguments)
    complete = record(given.run_dir, given.copy, given.children)
    print(f"{complete} children with all seeds in {given.copy}")


if __name__ == "__main__":
    main()
