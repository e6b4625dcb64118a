"""What a run looks like, as data: leaderboard, lineage, one candidate and more, from its archive and its evidence.

Nothing here knows how it is shown; ``poise_core.render`` turns it into text, pages and drawings.
"""

from poise_core.views.candidate import CandidateView, find_candidate, view_candidate
from poise_core.views.leaderboard import LeaderboardRow, leaderboard, other_protocols
from poise_core.views.lineage import LineageNode, lineage

__all__ = [
    "CandidateView",
    "LeaderboardRow",
    "LineageNode",
    "find_candidate",
    "leaderboard",
    "lineage",
    "other_protocols",
    "view_candidate",
]
