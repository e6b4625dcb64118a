"""Arms of search against each other: the best so far over the training tokens spent.

*Best* is the shrunken estimate of the candidate that a run would name at that moment. It is no running maximum and may fall:
what looked good among few may turn out to be noise among more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.special import stdtrit

from poise_core.archive import Archive
from poise_core.config.protocol import Protocol
from poise_core.evidence.intervals import Interval
from poise_core.evolution.history import Memory
from poise_core.render.text import format_interval
from poise_core.search.nodes import NodeRecord, shrunken_scores

POINTS = 25
"""Budgets at which arms are compared, from the baseline's to the smallest total of any run."""


@dataclass(frozen=True)
class Step:
    """The state of one run after a generation."""

    generation: int
    tokens: int  # completion tokens sampled in training so far, failed candidates' included
    best: float  # shrunken Overall of the candidate that the run would name best, percent


@dataclass(frozen=True)
class ArmCurve:
    """One arm over all its search seeds, on the common grid of budgets."""

    arm: str
    tokens: tuple[float, ...]
    best: tuple[Interval, ...]  # mean over search seeds; open limits with one seed

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"arm": self.arm, "tokens": list(self.tokens), "best": [one.to_dict() for one in self.best]}


def training_tokens(archive: Archive, protocol: Protocol) -> dict[str, int]:
    """Completion tokens that each candidate's trainings have sampled, all seeds."""
    data = archive.read("trajectories", ["candidate_id", "tokens"], protocol=protocol.digest)
    spent: dict[str, int] = {}
    for candidate, tokens in zip(data["candidate_id"].to_pylist(), data["tokens"].to_pylist(), strict=True):
        spent[candidate] = spent.get(candidate, 0) + (tokens or 0)
    return spent


def best_so_far(archive: Archive, protocol: Protocol) -> list[Step]:
    """A run's steps, generation 0 (the baseline) first; empty before the baseline has a score."""
    spent = training_tokens(archive, protocol)
    nodes = Memory(archive, protocol).nodes(10**9)
    steps = []
    for generation in range(max((node.generation for node in nodes), default=-1) + 1):
        made: Sequence[NodeRecord] = [node for node in nodes if node.generation <= generation]
        scores = shrunken_scores(made)
        if scores:
            tokens = sum(spent.get(node.candidate_id, 0) for node in made)
            steps.append(Step(generation, tokens, max(scores.values())))
    return steps


def compare_arms(runs: Mapping[str, Sequence[Sequence[Step]]], level: float = 0.95) -> list[ArmCurve]:
    """Arms on one grid of budgets: the mean over search seeds, with a t-interval over them.

    A run's best at a budget is that of its last generation within it. The grid ends where the first run does, so that
    no arm is carried on beyond what it has spent.

    Args:
        runs: arm -> one list of steps per search seed.
        level: confidence level.
    """
    all_steps = [steps for seeds in runs.values() for steps in seeds if steps]
    if not all_steps:
        return []
    start = max(steps[0].tokens for steps in all_steps)
    end = max(start, min(steps[-1].tokens for steps in all_steps))
    grid = np.linspace(start, end, POINTS)
    curves = []
    for arm, seeds in runs.items():
        values = np.array([[_at(steps, budget) for budget in grid] for steps in seeds if steps])
        if len(values):
            curves.append(ArmCurve(arm, tuple(grid.tolist()), tuple(_interval(column, level) for column in values.T)))
    return curves


def _at(steps: Sequence[Step], budget: float) -> float:
    return next(step.best for step in reversed(steps) if step.tokens <= budget + 0.5)


def _interval(values: Any, level: float) -> Interval:
    count, mean = len(values), float(values.mean())
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    half = float(stdtrit(count - 1, 0.5 + level / 2)) * float(values.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def render_comparison(curves: Sequence[ArmCurve], level: float = 0.95) -> Table:
    """Best so far of every arm at half and at the whole of the common budget."""
    table = Table(
        title="Best so far (shrunken Overall) at equal training tokens", title_justify="left", title_style="bold",
        header_style="dim", box=None, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("arm")
    table.add_column("search seeds", justify="right", style="dim")
    for place in (POINTS // 2, POINTS - 1):
        tokens = curves[0].tokens[place] if curves else 0.0
        shown = f"{tokens / 1e6:.2f} M" if tokens >= 1e5 else f"{tokens:,.0f}"
        table.add_column(f"{shown} tokens [{level:.0%}]", no_wrap=True)
    for curve in sorted(curves, key=lambda one: -one.best[-1].estimate):
        last = curve.best[-1]
        table.add_row(curve.arm, str(last.seeds), format_interval(curve.best[POINTS // 2]), format_interval(last))
    if curves and curves[0].best[-1].seeds == 1:
        table.caption = "One search seed per arm: no interval, and no arm can be told from another."
    return table


def draw_comparison(curves: Sequence[ArmCurve], path: Path) -> None:
    """Best so far over tokens, with a band where there are several search seeds, as SVG or PNG by the path's suffix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for curve in curves:
        millions = [tokens / 1e6 for tokens in curve.tokens]
        (line,) = axes.step(millions, [one.estimate for one in curve.best], where="post", label=curve.arm)
        if curve.best[0].seeds > 1:
            low, high = [one.low for one in curve.best], [one.high for one in curve.best]
            axes.fill_between(millions, low, high, step="post", alpha=0.15, color=line.get_color())
    axes.set_xlabel("training tokens, millions")
    axes.set_ylabel("best so far, shrunken Overall (%)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
