"""The probability of finding one truly better change, and its cost, for every arm of the search.

``python -m studies.power`` writes ``docs/results/power.md`` and a drawing. In every simulated evolution one proposal,
at a random place, is truly worth 3 points; whatever descends from it keeps them, and no other change does anything. Found means
that it or a descendant is declared champion candidate by the code of ``poise leaderboard``. Parents are chosen by the selectors of
the arms. Children train with all seeds, or go up a ladder whose last rung may then afford more of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from poise_core.config import LadderSpec
from poise_core.evidence.format import format_limits
from poise_core.files import write_atomically
from poise_core.search.acquisition import AcquisitionSelector
from poise_core.search.arms import GreedySelector, RootSelector
from poise_core.search.selection import ParentSelector
from studies.drawing import Series, line_chart
from studies.simulation import Measured, World, described_proxy, present, share, simulate

CHILDREN = 63
EFFECT = 3.0
LADDERS: dict[str, tuple[float, float, float] | None] = {
    "all seeds": None,
    "ladder 0.05, 0.10": (0.05, 0.10, 0.0),
    "ladder 0.05, 0.50": (0.05, 0.50, 0.0),
    "ladder 0.05, 0.50, leader 0.25": (0.05, 0.50, 0.25),
    "ladder 0, 0.50, leader 0.25": (0.0, 0.50, 0.25),
}
"""Name -> the thresholds at the proxy, after one seed, and behind the leader."""


SELECTORS: dict[str, ParentSelector] = {
    "evolution": AcquisitionSelector(),
    "greedy": GreedySelector(),
    "random, best-of-n": RootSelector(),
}
"""Arms by how they choose parents; the last two differ in who proposes, which is not simulated: all propose the same changes."""


@dataclass(frozen=True)
class Row:
    """The results of one arm with one way to spend its budget."""

    arm: str
    name: str
    seeds: int
    runs: int
    found: int  # runs in which a child that has the better change was declared
    false: int  # runs in which a child that has not was declared
    trainings: float  # whole trainings per run, the baseline's left out


def study(
    measured: Measured, runs: int, seeds: Sequence[int], children: int = CHILDREN, effect: float = EFFECT, seed: int = 0
) -> list[Row]:
    """All settings; the better change stands at a random place of the evolution."""
    return [
        measure(measured, arm, name, count, runs, children, effect, seed)
        for name in LADDERS
        for count in seeds
        for arm in SELECTORS
    ]


def measure(
    measured: Measured, arm: str, name: str, count: int, runs: int, children: int, effect: float, seed: int
) -> Row:
    """One setting: an arm, a way to spend, a number of seeds."""
    thresholds = LADDERS[name]
    ladder = None
    if thresholds is not None:
        proxy, first, leader = thresholds
        ladder = LadderSpec(enabled=True, proxy_stop_below=proxy, first_stop_below=first, leader_stop_below=leader)
    found = false = 0
    spent = 0.0
    for number in range(runs):
        rng = np.random.default_rng([seed, number, count])
        better = int(rng.integers(children))
        effects = [effect if child == better else 0.0 for child in range(children)]
        run = simulate(
            World.build(measured, rng), rng, effects, count, ladder, uncorrected=False, selector=SELECTORS[arm]
        )
        found += any(run.effects[child] > 0 for child in run.declared)
        false += any(run.effects[child] <= 0 for child in run.declared)
        spent += run.trainings / runs
    return Row(arm, name, count, runs, found, false, spent)


def render(measured: Measured, rows: Sequence[Row], children: int, effect: float, command: str, drawing: str) -> str:
    """The page."""
    lines = [
        "# Power",
        "",
        f"Made by `{command}`.",
        "",
        f"{children} children, three per generation. One change, proposed at a random place, is truly worth "
        f"{effect:+g} points of Overall; whatever descends from it keeps them, and no other change does anything. "
        f"Seed noise as measured on the testbed ({measured.seed_std:.2f} points). Found: a child that has the "
        "change is declared champion candidate. Arms differ in how parents are chosen and propose the same "
        "changes: what a better proposer would add is not in here. A ladder's two numbers are the probabilities "
        "of being better than the parent and the baseline below which a child ends at the proxy and after one "
        "seed; with a leader it also ends after one seed where it is better than the best of earlier generations "
        f"with less than that. {described_proxy(measured)} Budget counts whole trainings.",
        "",
        f"![share of runs that find the better change, against whole trainings]({drawing})",
        "",
        "| children train with | seeds | arm | whole trainings per run | better change found | another declared |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        hit, low, high = share(row.found, row.runs)
        lines.append(
            f"| {row.name} | {row.seeds} | {row.arm} | {row.trainings:.0f} | {format_limits(hit, low, high, '.0%')} | "
            f"{row.false / row.runs:.0%} |"
        )
    lines += ["", f"{rows[0].runs} runs per row; Clopper-Pearson limits at 95 %.", ""]
    return "\n".join(lines)


def draw(rows: Sequence[Row]) -> str:
    """Share found against whole trainings, one line per arm and way to spend; SVG."""
    series = []
    for name in ("all seeds", "ladder 0.05, 0.50", "ladder 0.05, 0.50, leader 0.25"):
        for arm in SELECTORS:
            own = [row for row in rows if (row.name, row.arm) == (name, arm)]
            shares = [100.0 * row.found / row.runs for row in own]
            series.append(Series(f"{arm}: {name}", [row.trainings for row in own], shares))
    return line_chart(series, "whole trainings per evolution", "better change found, % of runs")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and write the page."""
    parser = argparse.ArgumentParser(prog="python -m studies.power", description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--children", type=int, default=CHILDREN)
    parser.add_argument("--effect", type=float, default=EFFECT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 8])
    parser.add_argument("--out", type=Path, default=Path("docs/results/power.md"))
    given = parser.parse_args(arguments)
    command = "python -m studies.power"
    if (given.runs, given.children, given.effect, given.seeds) != (100, CHILDREN, EFFECT, [3, 5, 8]):
        command += f" --runs {given.runs} --children {given.children} --effect {given.effect:g}"
        command += f" --seeds {' '.join(map(str, given.seeds))}"
    measured = present()
    rows = study(measured, given.runs, given.seeds, given.children, given.effect)
    drawing = given.out.with_suffix(".svg")
    page = render(measured, rows, given.children, given.effect, command, drawing.name)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out, page)
    write_atomically(drawing, draw(rows))
    print(page)


if __name__ == "__main__":
    main()
