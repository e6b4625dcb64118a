"""One-line summaries of a candidate, a generation or a run."""

from __future__ import annotations

from collections.abc import Sequence

from poise_core.evidence.format import format_interval, format_overall
from poise_core.search.plateau import Plateau
from poise_core.views.leaderboard import LeaderboardRow, best_of, children_of


def candidate_headline(rows: Sequence[LeaderboardRow], candidate: str) -> str:
    """One candidate of the leaderboard, by its id."""
    for row in rows:
        if row.candidate_id == candidate:
            return f"{row.name}: {outcome(row)}"
    return f"{candidate}: not in this run"


def generation_headline(rows: Sequence[LeaderboardRow], generation: int) -> str:
    """The children of a generation."""
    children = children_of(rows, generation)
    return "; ".join(f"{row.name}: {outcome(row)}" for row in children) or "no child"


def run_headline(rows: Sequence[LeaderboardRow]) -> str:
    """A whole run: how far it is, and its best candidate."""
    generations = max((row.generation or 0 for row in rows), default=0)
    best = best_of(rows)
    head = f"{generations} generation{'s' if generations != 1 else ''}"
    return f"{head}; best is {best.name}: {outcome(best)}" if best else f"{head}; nothing is scored yet"


def outcome(row: LeaderboardRow) -> str:
    """The result of a candidate in a few words."""
    if row.overall is None:
        if row.failure:
            return f"failed in {row.failure['stage']} ({row.failure['kind'].replace('_', ' ')})"
        return row.state or row.status
    words = f"Overall {format_overall(row.overall)}"
    if row.delta is not None:
        words += f", {format_interval(row.delta, signed=True)} to the baseline, {row.verdict}"
    return f"{words}; {row.state}" if row.state else words


def judgement(row: LeaderboardRow) -> str:
    """Verdict and state, where there are any."""
    return "; ".join(filter(None, (row.verdict, row.state)))


def untuned_note(untuned: str) -> str:
    """What an untuned baseline means for the deltas; empty where it is tuned.

    Args:
        untuned: of ``Preset.untuned``.
    """
    return f"{untuned} A positive delta may be a matter of numbers that suit the baseline badly." if untuned else ""


def outlook_note(outlook: Plateau) -> str:
    """One sentence on whether the search is on a plateau; empty while there are too few generations to say anything."""
    described = outlook.describe()
    return f"{'Plateau' if outlook.stalled else 'No plateau'}: {described}" if described else ""
