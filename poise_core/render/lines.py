"""One-line summaries of a candidate, a generation or a run."""

from __future__ import annotations

from collections.abc import Sequence

from poise_core.evidence.format import counted_seeds, format_interval, format_overall
from poise_core.search.plateau import Plateau
from poise_core.views.leaderboard import LeaderboardRow, best_of, children_of
from poise_core.views.outlook import Spending


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


def spending_note(found: Spending | None) -> str:
    """Where the variance of a difference comes from, and what to buy next; empty where nothing is known of it."""
    if found is None or found.parts.total <= 0:
        return ""
    parts, total = found.parts, found.parts.total
    shares = ", ".join(
        f"{name} {part / total:.0%}"
        for name, part in (("seeds", parts.seed), ("problems", parts.problem), ("seed x problem", parts.rest))
    )
    cost = "" if found.problem_cost is None else f" for {found.problem_cost - 1:+.0%} time"
    problems, seeds = parts.scaled(problems=2) / total - 1, parts.scaled(seeds=2) / total - 1
    return (
        f"Variance of a delta with {counted_seeds(parts.seeds)} (mean of {found.candidates}): {shares}. Twice the problems: "
        f"{problems:+.0%}{cost}; twice the seeds: {seeds:+.0%} for +100% time."
        + (f" Buy {found.advice} next." if found.advice else "")
    )


def outlook_note(outlook: Plateau) -> str:
    """One sentence on whether the search is on a plateau; empty while there are too few generations to say anything."""
    described = outlook.describe()
    return f"{'Plateau' if outlook.stalled else 'No plateau'}: {described}" if described else ""
