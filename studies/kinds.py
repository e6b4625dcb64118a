"""Whether children that vary a candidate score higher than immigrants: in runs, and in replays of the same search on a table.

``python -m studies.kinds --table docs/results/table.parquet --run runs/one`` takes the children with a score from the fifth
generation on, when a search has learned from others. Children of the baseline count as immigrants: the baseline is the parent of
every immigrant, and few variations begin there so late. The median says which kind scores higher in the middle, the highest which
kind finds more.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from poise_core.config import load_preset
from poise_core.evidence.noise import Array
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution.history import History
from poise_core.experiments.contest import Contest, arms_on
from poise_core.experiments.replay import ReplayedSearch
from poise_core.experiments.surrogate import Cells
from poise_core.experiments.world import World
from poise_core.render.markdown import table
from poise_core.run_directory import RunDirectory
from poise_core.views.arms import WHOLE

FROM_GENERATION = 5

Child = tuple[int, bool, float]
"""Generation, whether its parent is the baseline, and mean Overall, percent; NaN without a score."""


def of_run(evidence: RunEvidence) -> list[Child]:
    """The children of a run."""
    nodes = History(evidence.archive, evidence.protocol).nodes()
    roots = {node.candidate_id for node in nodes if not node.parent_ids}
    return [
        (node.generation, node.parent_ids[0] in roots, np.nan if node.overall is None else node.overall.estimate)
        for node in nodes
        if node.parent_ids
    ]


def of_replay(search: ReplayedSearch) -> list[Child]:
    """The children of a search, which is made for it."""
    search.run()
    weights = search.world.cells.weights
    return [
        (node.generation, node.parents[0] == 0, float((node.values @ weights).mean()) if len(node.values) else np.nan)
        for node in search.nodes
        if node.parents
    ]


def summary(children: Iterable[Child]) -> Array:
    """(6,) how many with a score, their median and the highest, of variations and then of immigrants; NaN where there is none."""
    late = [(kind, overall) for generation, kind, overall in children if generation >= FROM_GENERATION]
    found: list[float] = []
    for kind in (False, True):
        own = [overall for immigrant, overall in late if immigrant == kind and not np.isnan(overall)]
        found += [len(own), np.median(own), max(own)] if own else [0, np.nan, np.nan]
    return np.array(found)


def row(name: str, summaries: Array) -> tuple[str, ...]:
    """Of a table: the mean of (n, 6) summaries, and the mean difference of medians with the range of 95 % of them.

    Args:
        name: of the row.
        summaries: each of ``summary``; those that lack a kind count in no difference.
    """
    known = [column[~np.isnan(column)] for column in (*summaries.T, summaries[:, 1] - summaries[:, 4])]
    count, number, gap = "{:.0f}".format, "{:.1f}".format, "{:+.1f}".format
    shown = zip((count, number, number) * 2 + (gap,), known, strict=True)
    cells = [write(own.mean()) if len(own) else "-" for write, own in shown]
    if len(known[-1]) > 1:
        cells[-1] += " ({} to {})".format(*map(gap, np.percentile(known[-1], [2.5, 97.5])))
    return name, *cells


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m studies.kinds", description=__doc__)
    parser.add_argument(
        "--table", type=Path, action="append", default=[], help="recorded scores for replays; may be repeated"
    )
    parser.add_argument("--run", type=Path, action="append", default=[], help="run directory; may be repeated")
    parser.add_argument("--preset", default="laptop-64", help="whose search is replayed")
    parser.add_argument("--replays", type=int, default=100)
    parser.add_argument("--trainings", type=float, default=80.0, help="budget of a replay, as in poise compare-search")
    given = parser.parse_args()
    rows = [row(str(path), summary(of_run(RunDirectory.read(path).evidence()))[None]) for path in given.run]
    if given.table:
        preset = load_preset(given.preset)
        cells = Cells.read(given.table)
        whole = arms_on(preset, cells)[WHOLE]
        contest = Contest.of(World.build(cells), preset.search, given.trainings)
        summaries = [summary(of_replay(contest.search_of(whole, number))) for number in range(given.replays)]
        rows.append(row(f"{given.replays} replays", np.array(summaries)))
    kinds = [f"{kind}: {what}" for kind in ("variations", "immigrants") for what in ("scored", "median", "highest")]
    print(table(("search", *kinds, "difference of medians"), rows))


if __name__ == "__main__":
    main()
