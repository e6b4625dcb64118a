"""Arms of search against each other for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from poise_core.evidence.format import format_interval, format_tokens
from poise_core.render.terminal.style import plain_table
from poise_core.views.arms import POINTS, ArmCurve


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
