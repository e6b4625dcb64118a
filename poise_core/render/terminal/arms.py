"""Arms of search against each other for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from poise_core.evidence.format import format_interval, format_tokens
from poise_core.render.lines import REPLAY_HEAD, pick_cells, replay_cells
from poise_core.render.terminal.style import plain_table
from poise_core.views.arms import POINTS, ArmCurve, ArmPicks, ReplayedArm

if TYPE_CHECKING:
    from poise_core.experiments.surrogate import Fit


def render_comparison(curves: Sequence[ArmCurve], level: float = 0.95) -> Table:
    """Best so far of every arm at half and at the whole of the common budget."""
    table = plain_table("Best so far (shrunken Overall) at equal training tokens")
    table.add_column("arm")
    table.add_column("search seeds", justify="right", style="dim")
    for point in (POINTS // 2, POINTS - 1):
        tokens = curves[0].tokens[point] if curves else 0.0
        table.add_column(f"{format_tokens(tokens)} tokens [{level:.0%}]", no_wrap=True)
    for curve in sorted(curves, key=lambda one: -one.best[-1].estimate):
        last = curve.best[-1]
        table.add_row(curve.arm, str(last.seeds), format_interval(curve.best[POINTS // 2]), format_interval(last))
    if curves and curves[0].best[-1].seeds == 1:
        table.caption = "One search seed per arm: no interval, and no arm can be told from another."
    return table


def render_picks(arms: Sequence[ArmPicks], budget: float, level: float = 0.95) -> Table:
    """What every search named best at the common budget, and what it scored again."""
    table = plain_table(f"Picks at {format_tokens(budget)} tokens, trained again with fresh seeds on sealed problems")
    for title in ("arm", "search seed", "pick"):
        table.add_column(title)
    table.add_column("Overall in its search", justify="right", style="dim")
    table.add_column(f"minus baseline [{level:.0%}]", no_wrap=True)
    table.add_column("outcome", style="dim")
    for arm in arms:
        for cells in pick_cells(arm):
            table.add_row(arm.arm, *cells, style="bold" if cells[0] == "mean" else None)
    table.caption = "Limits of a pick are over its fresh seeds, those of a mean and of a difference over searches."
    return table


def render_replays(arms: Sequence[ReplayedArm], level: float = 0.95) -> Table:
    """Final regret of every arm, its difference to random, and how many times fewer tokens it needs than random.

    The difference to the whole search would not fit beside it into 80 columns; pages and JSON have it.
    """
    table = plain_table(f"Regret after {format_tokens(arms[0].tokens[-1])} tokens, {arms[0].final.seeds} replays each")
    table.add_column("arm")
    for title in REPLAY_HEAD[:3]:
        table.add_column(f"{title}\n[{level:.0%}]", no_wrap=True)
    for one in arms:
        table.add_row(one.arm, *replay_cells(one)[:3])
    table.caption = "Last column: to the lowest mean regret that both reach; above 1 the arm needs fewer tokens."
    return table


def describe_fit(fit: Fit, optimum: float, baseline: float | None, agreement: float) -> str:
    """How far the surrogate of a table may be trusted, in a few sentences."""
    noise = (
        f"Seed deviation {fit.seed_std:.2f} points pooled, {fit.seed_std_range[0]:.2f} to {fit.seed_std_range[1]:.2f} over cells; "
        f"{fit.collapses} of {fit.trainings} trainings collapsed. A perfect prediction of true means would have R^2 "
        f"{fit.ceiling:.2f}."
        if fit.seed_std == fit.seed_std
        else "No cell has two seeds, so the replays know no seed noise, and the ceiling of R^2 is unknown."
    )
    base = "" if baseline is None else f", the baseline's {baseline:.1f}"
    falls = (
        f"{fit.fallen} of them fell below {fit.floor:.1f}, the lowest of the bulk; held out, which ones is told with AUC "
        f"{fit.fall_auc:.2f}. Surrogate of the others"
        if fit.fallen
        else "Surrogate"
    )
    return (
        f"{fit.cells} cells with a score, {fit.failed} that failed. {falls}: main effects and pairs (share {fit.pair_share:g}, "
        f"penalty {fit.penalty:g}) of scores with standard deviation {fit.spread:.2f} points. Held-out R^2 {fit.r2:.2f}, rank "
        f"correlation {fit.rank_correlation:.2f}, error {fit.error:.2f} points. {noise} Its optimum is {optimum:.1f}{base}; "
        f"{agreement:.0%} of the climbs ended there."
    )
