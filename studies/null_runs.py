"""The rate of false champion candidates, in evolutions where every child equals the baseline plus seed noise.

``python -m studies.null_runs`` writes ``docs/results/null_runs.md``. Champion candidates are declared by the code of
``poise leaderboard``; training and evaluation are simulated (``studies.simulation``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from poise_core.config import LadderSpec, load_preset
from poise_core.evidence.format import format_limits
from poise_core.files import write_atomically
from studies.simulation import BASELINE, COLLAPSE, Evolution, Measured, World, present, share, simulate

CHILDREN = 63


def worlds(measured: Measured) -> dict[str, tuple[tuple[float, ...], float]]:
    """Name -> standard deviations of the children, and the share of those whose trainings collapse now and then."""
    return {
        "the baseline's seed noise": ((measured.seed_std,), 0.0),
        "seed noise of the panel": (measured.panel_stds, 0.0),
        "a tenth collapse": ((measured.seed_std,), 0.1),
    }


@dataclass(frozen=True)
class Row:
    """One setting of the study."""

    noise: str
    ladder: str
    seeds: int
    runs: list[Evolution]


def study(measured: Measured, runs: int, seeds: Sequence[int], children: int = CHILDREN, seed: int = 0) -> list[Row]:
    """All settings; every run has problems of its own."""
    ladders = {
        "all seeds": None,
        "the ladder": LadderSpec(enabled=True),
        "that of laptop-64": load_preset("laptop-64").ladder,
    }
    rows = []
    for noise, (stds, unstable) in worlds(measured).items():
        for count in seeds:
            for name, ladder in ladders.items():
                found = []
                for number in range(runs):
                    rng = np.random.default_rng([seed, number, count])
                    world = World.build(measured, rng)
                    found.append(simulate(world, rng, [0.0] * children, count, ladder, stds, unstable=unstable))
                rows.append(Row(noise, name, count, found))
    return rows


def render(measured: Measured, rows: Sequence[Row], children: int, command: str) -> str:
    """The page."""
    panel = measured.panel_stds
    lines = [
        "# Null runs",
        "",
        f"Made by `{command}`.",
        "",
        f"Every child of every simulated evolution equals the baseline: {children} children, true difference 0. "
        f"Trained policies differ by the seed noise measured on the testbed, {measured.seed_std:.2f} points of "
        "Overall for the baseline; in the second world every child has the noise of one of the panel's "
        f"{len(panel)} algorithms, {min(panel):.2f} to {max(panel):.2f} points, and the baseline its own. In the "
        f"third a tenth of the children collapse: one training in {1 / COLLAPSE[0]:.0f} of theirs loses "
        f"{-COLLAPSE[1]:.0f} points, and the others gain what makes their mean the baseline's. Declared is what "
        "`poise leaderboard` would call champion candidate; an examination on the sealed split still lies ahead "
        "of it.",
        "",
        "| noise | children train with | seeds | runs | runs with a false champion candidate | with plain 95 % intervals | "
        "best mean is not the baseline | whole trainings per run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        count = len(row.runs)
        false, low, high = share(sum(bool(run.declared) for run in row.runs), count)
        plain = sum(bool(run.uncorrected) for run in row.runs) / count
        lucky = sum(run.best != BASELINE for run in row.runs) / count
        spent = sum(run.trainings for run in row.runs) / count
        lines.append(
            f"| {row.noise} | {row.ladder} | {row.seeds} | {count} | "
            f"{format_limits(false, low, high, '.0%')} | {plain:.0%} | {lucky:.0%} | {spent:.0f} |"
        )
    lines += [
        "",
        "All are children of the baseline. Ladders have the thresholds of the default and of preset laptop-64 after one seed. "
        "Nobody is stopped at the proxy: both judge it by a forecast from the dynamics of a training, and none is run here. "
        "Intervals are Clopper-Pearson at 95 %. The "
        "last column but one is the practice of naming the highest mean. Where trainings collapse, no number of "
        "seeds that a search can afford sees it: claims hold for trainings that do not, and the worst seed stands"
        " beside every champion with how likely a worse one is.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and write the page."""
    parser = argparse.ArgumentParser(prog="python -m studies.null_runs", description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--children", type=int, default=CHILDREN)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--out", type=Path, default=Path("docs/results/null_runs.md"))
    given = parser.parse_args(arguments)
    command = "python -m studies.null_runs"
    if (given.runs, given.children, given.seeds) != (100, CHILDREN, [3, 6]):
        command += f" --runs {given.runs} --children {given.children} --seeds {' '.join(map(str, given.seeds))}"
    measured = present()
    page = render(measured, study(measured, given.runs, given.seeds, given.children), given.children, command)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out, page)
    print(page)


if __name__ == "__main__":
    main()
