"""Views for a terminal."""

from poise_core.render.terminal.ablation import render_ablation, render_credit
from poise_core.render.terminal.arms import describe_fit, render_comparison, render_picks, render_replays
from poise_core.render.terminal.candidate import render_candidate, render_examination
from poise_core.render.terminal.leaderboard import render_leaderboard
from poise_core.render.terminal.lineage import render_lineage, render_selection
from poise_core.render.terminal.rungs import render_rungs

__all__ = [
    "describe_fit",
    "render_ablation",
    "render_candidate",
    "render_comparison",
    "render_credit",
    "render_examination",
    "render_leaderboard",
    "render_lineage",
    "render_picks",
    "render_replays",
    "render_rungs",
    "render_selection",
]
