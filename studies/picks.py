"""What a promise is worth without any surrogate: picks among the compositions of recorded tables, by what the earlier picks scored.

``python -m studies.picks docs/results/table.parquet`` begins with a few compositions drawn at random and picks three at a time,
each the most promising of those drawn from what is left, as the proposer does (``poise_core.evidence.promise``). Every score is the
one recorded, so nothing here depends on a model of what was not trained. The best five of all that were picked are compared with
those of as many drawn at random, and with those of picks by a regression on main effects alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from sklearn.linear_model import RidgeCV

from poise_core.evidence.format import format_interval
from poise_core.evidence.intervals import mean_interval
from poise_core.evidence.noise import Array, winsorized
from poise_core.evidence.promise import Promise
from poise_core.experiments.surrogate import Cells
from poise_core.mechanisms.features import Codes, indicators

FIRST, TOTAL, AT_A_TIME, DRAWS, BEST = 12, 60, 3, 128, 5

Way = Callable[[Cells, Codes, Codes], Array]
"""Cells, rows that were picked, rows to choose from -> what these promise."""


def by_trees(confidence: float) -> Way:
    """The promise of a search, with so many standard deviations added."""

    def promised(cells: Cells, known: Codes, rows: Codes) -> Array:
        promise = Promise.learn(cells.codes[known], cells.numbers[known], cells.overall[known], cells.seeds[known])
        if promise is None:
            return np.zeros(len(rows))
        mean, deviation = promise.predict(cells.codes[rows], cells.numbers[rows])
        return mean + confidence * deviation

    return promised


def by_main_effects(cells: Cells, known: Codes, rows: Codes) -> Array:
    """Ridge regression on choices and numbers, the penalty by leaving one out."""
    columns = indicators(cells.codes, cells.numbers)
    model = RidgeCV(np.logspace(-1, 2, 7)).fit(
        columns[known], winsorized(cells.overall[known]), sample_weight=cells.seeds[known]
    )
    found: Array = model.predict(columns[rows])
    return found


WAYS: Mapping[str, Way | None] = {
    "at random": None,
    "main effects": by_main_effects,
    "trees": by_trees(0.0),
    "trees and a standard deviation (in use)": by_trees(1.0),
}


def picks(cells: Cells, way: Way | None, rng: np.random.Generator, total: int = TOTAL) -> Codes:
    """(total,) rows in the order in which they are picked.

    Args:
        cells: of the tables.
        way: how they are chosen after the first ``FIRST``; None: at random, all of them.
        rng: of the first and of the draws.
        total: how many; at most as many as there are cells.
    """
    order = rng.permutation(len(cells.codes))
    if way is None:
        return order[:total]
    chosen = list(order[:FIRST])
    while len(chosen) < total:
        known = np.array(chosen)
        for _ in range(min(AT_A_TIME, total - len(chosen))):
            left = np.setdiff1d(order, chosen)
            rows = rng.choice(left, min(DRAWS, len(left)), replace=False)
            chosen.append(int(rows[np.argmax(way(cells, known, rows))]))
    return np.array(chosen)


def best(cells: Cells, rows: Codes) -> tuple[float, float]:
    """Mean Overall of the best ``BEST`` of some rows, and the highest, percent."""
    found = np.sort(cells.overall[rows])[::-1]
    return float(found[:BEST].mean()), float(found[0])


def table(cells: Cells, repetitions: int) -> str:
    """A Markdown table with a row for each way; the same first draws for all."""
    lines = [f"| picked | best {BEST} of {TOTAL} | the best |", "|---|---|---|"]
    for name, way in WAYS.items():
        found = [best(cells, picks(cells, way, np.random.default_rng([0, number]))) for number in range(repetitions)]
        shown = [format_interval(mean_interval(column)) for column in zip(*found, strict=True)]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m studies.picks", description=__doc__)
    parser.add_argument("tables", type=Path, nargs="+", help="recorded tables of one protocol")
    parser.add_argument("--repetitions", type=int, default=40)
    given = parser.parse_args()
    cells = Cells.read(given.tables)
    print(f"{len(cells.codes)} compositions, {given.repetitions} repetitions.\n\n{table(cells, given.repetitions)}")


if __name__ == "__main__":
    main()
