"""What a run looks like, drawn from its archive: leaderboard, lineage, one candidate. Rich for people, dicts for JSON."""

from poise_core.views.candidate import CandidateView, find_candidate, render_candidate, view_candidate
from poise_core.views.leaderboard import LeaderboardRow, leaderboard, other_protocols, render_leaderboard
from poise_core.views.lineage import LineageNode, lineage, lineage_tree

__all__ = [
    "CandidateView",
    "LeaderboardRow",
    "LineageNode",
    "find_candidate",
    "leaderboard",
    "lineage",
    "lineage_tree",
    "other_protocols",
    "render_candidate",
    "render_leaderboard",
    "view_candidate",
]
