"""How often one child that is truly better is found, against what it costs.

``python -m poise_core.studies.power`` writes ``docs/results/power.md`` and a drawing. One child of every simulated evolution is
truly 3 points better than GRPO, the others equal it; found means declared champion candidate by the code of
``poise leaderboard``. Children train with all seeds, or climb a ladder whose last rung may then afford more of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from poise_core.config import LadderSpec, load_preset
from poise_core.studies.drawing import Series, line_chart
from poise_core.studies.simulation import GRPO_SEED_STD, World, share, simulate

CHILDREN = 63
EFFECT = 3.0
LADDERS: dict[str, tuple[float, float] | None] = {
    "all seeds": None,
    "ladder 0.05, 0.10": (0.05, 0.10),
    "ladder 0.25, 0.50": (0.25, 0.50),
    "ladder 0.50, 0.75": (0.50, 0.75),
}
"""Name -> the thresholds at the proxy and after one seed."""


@dataclass(frozen=True)
class Row:
    """One way to spend, and what it found."""

    name: str
    seeds: int
    runs: int
    found: int  # runs in which the better child was declared
    false: int  # runs in which another child was
    trainings: float  # whole trainings per run, the baseline's left out


def study(
    runs: int, seeds: Sequence[int], children: int = CHILDREN, effect: float = EFFECT, seed: int = 0
) -> list[Row]:
    """All settings; the better child stands at a random place of the evolution."""
    preset = load_preset("laptop")
    rows = []
    for name, thresholds in LADDERS.items():
        ladder = None
        if thresholds is not None:
            ladder = LadderSpec(enabled=True, proxy_stop_below=thresholds[0], first_stop_below=thresholds[1])
        for count in seeds:
            found = false = 0
            spent = 0.0
            for number in range(runs):
                rng = np.random.default_rng([seed, number, count])
                better = int(rng.integers(children))
                effects = [effect if child == better else 0.0 for child in range(children)]
                run = simulate(World.build(preset, rng), rng, effects, count, ladder, uncorrected=False)
                found += f"child-{better:02d}" in run.declared
                false += bool(set(run.declared) - {f"child-{better:02d}"})
                spent += run.trainings / runs
            rows.append(Row(name, count, runs, found, false, spent))
    return rows


def render(rows: Sequence[Row], children: int, effect: float, command: str, drawing: str) -> str:
    """The page."""
    lines = [
        "# Power",
        "",
        f"Made by `{command}`.",
        "",
        f"{children} children of GRPO, one of them truly {effect:+g} points of Overall, the others equal to it; seed noise as "
        f"measured on the testbed ({GRPO_SEED_STD} points). Found: the better child is declared champion candidate. A ladder's "
        "two numbers are the probabilities of being better than the baseline below which a child ends at the proxy and after "
        "one seed. Budget counts whole trainings, a proxy as 0.43 of one (its tokens). It is assumed that the search proposes "
        "the child at all, so this is the power of the evaluation, the same for every way to search.",
        "",
        f"![share of runs that find the better child, against whole trainings]({drawing})",
        "",
        "| children train with | seeds | whole trainings per run | better child found | another declared |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        hit, low, high = share(row.found, row.runs)
        lines.append(
            f"| {row.name} | {row.seeds} | {row.trainings:.0f} | {hit:.0%} [{low:.0%}, {high:.0%}] | "
            f"{row.false / row.runs:.0%} |"
        )
    lines += ["", f"{rows[0].runs} runs per row; Clopper-Pearson limits at 95 %.", ""]
    return "\n".join(lines)


def draw(rows: Sequence[Row]) -> str:
    """Share found against whole trainings, one line per way to spend; SVG."""
    series = []
    for name in LADDERS:
        own = [row for row in rows if row.name == name]
        series.append(Series(name, [row.trainings for row in own], [100.0 * row.found / row.runs for row in own]))
    return line_chart(series, "whole trainings per evolution", "better child found, % of runs")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and write the page."""
    parser = argparse.ArgumentParser(prog="python -m poise_core.studies.power", description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--children", type=int, default=CHILDREN)
    parser.add_argument("--effect", type=float, default=EFFECT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 8])
    parser.add_argument("--out", type=Path, default=Path("docs/results/power.md"))
    given = parser.parse_args(arguments)
    command = "python -m poise_core.studies.power"
    if (given.runs, given.children, given.effect, given.seeds) != (100, CHILDREN, EFFECT, [3, 5, 8]):
        command += f" --runs {given.runs} --children {given.children} --effect {given.effect:g}"
        command += f" --seeds {' '.join(map(str, given.seeds))}"
    rows = study(given.runs, given.seeds, given.children, given.effect)
    drawing = given.out.with_suffix(".svg")
    page = render(rows, given.children, given.effect, command, drawing.name)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(page)
    drawing.write_text(draw(rows))
    print(page)


if __name__ == "__main__":
    main()
