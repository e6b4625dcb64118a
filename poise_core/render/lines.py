"""One-line summaries of a candidate, a generation or a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from poise_core.archive.typed import ExaminationRow
from poise_core.escaping import one_line
from poise_core.evidence.examination import PRIMARY, conclude, multiplicity
from poise_core.evidence.format import counted_seeds, format_interval, format_limits, format_overall
from poise_core.evidence.intervals import Interval
from poise_core.search.plateau import Plateau
from poise_core.views.arms import REFERENCE, WHOLE, ArmPicks, ReplayedArm
from poise_core.views.leaderboard import LeaderboardRow, best_of, children_of
from poise_core.views.outlook import Compute, Spending


def candidate_headline(rows: Sequence[LeaderboardRow], candidate: str) -> str:
    """One candidate of the leaderboard, by its id."""
    for row in rows:
        if row.candidate_id == candidate:
            return one_line(f"{row.name}: {outcome(row)}")
    return f"{candidate}: not in this run"


def generation_headline(rows: Sequence[LeaderboardRow], generation: int) -> str:
    """The children of a generation."""
    children = children_of(rows, generation)
    return one_line("; ".join(f"{row.name}: {outcome(row)}" for row in children)) or "no child"


def run_headline(rows: Sequence[LeaderboardRow]) -> str:
    """A whole run: how far it is, and its best candidate."""
    generations = max((row.generation or 0 for row in rows), default=0)
    best = best_of(rows)
    head = f"{generations} generation{'s' if generations != 1 else ''}"
    return one_line(f"{head}; best is {best.name}: {outcome(best)}") if best else f"{head}; nothing is scored yet"


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


EXAMINATION_HEAD = ("condition", "candidate", "baseline", "difference", "worst seed", "collapsed", "verdict")


def examination_cells(row: ExaminationRow) -> tuple[str, ...]:
    """One condition of an examination under ``EXAMINATION_HEAD``; what was not measured is a dash."""
    measured = {"estimate": row["delta"], "low": row["low"], "high": row["high"], "seeds": len(row["seeds"])}
    shown = "-" if row["delta"] is None else format_interval(Interval.from_dict(measured), signed=True)
    worst = "-" if row["worst"] is None else f"{row['worst']:.1f} ({row['baseline_worst']:.1f})"
    collapsed = "-"
    if row["collapsed"] is not None:
        collapsed = f"{row['collapsed']} of {len(row['seeds'])}, <= {100 * (row['collapse_bound'] or 0.0):.0f} %"
    return (
        row["condition"],
        _with_rate(row["overall"], row["rate"]),
        _with_rate(row["baseline_overall"], row["baseline_rate"]),
        shown,
        worst,
        collapsed,
        row["verdict"],
    )


def _with_rate(value: float | None, rate: float | None) -> str:
    shown = "-" if value is None else f"{value:.1f}"
    return shown if rate is None else f"{shown} at x{rate:.3g}"


def examination_headline(rows: Sequence[ExaminationRow]) -> str:
    """What an examination says, in one sentence."""
    return conclude(rows).sentence


def examination_notes(rows: Sequence[ExaminationRow]) -> list[str]:
    """What stands below the table of an examination: every answer that the table cannot hold, and how it was made."""
    first = rows[0]
    notes = [f"{row['condition']}: {row['message']}." for row in rows if row["condition"] != PRIMARY]
    seeds = f"Seeds {_ranges(first['seeds'])}, sealed set {first['sealed_set']}, examination {first['examination']}."
    beside = (
        "Worst seed: the candidate's lowest, the baseline's in brackets. Collapsed: trainings, and the chance at most."
    )
    return [*notes, f"{multiplicity(first['planned'])} {beside} {seeds}"]


def _ranges(seeds: Sequence[int]) -> str:
    """``2-4, 9``."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def untuned_note(untuned: str) -> str:
    """What an untuned baseline means for the deltas; empty where it is tuned.

    Args:
        untuned: of ``Preset.untuned``.
    """
    return f"{untuned} A positive delta may be a matter of numbers that suit the baseline badly." if untuned else ""


UNGRADED = {"timed_out": "the grader timed out", "failed": "the grader failed"}
"""Outcomes of a grading that are nobody's answer, in words."""


def grading_note(graded: Mapping[str, Mapping[str, int]]) -> str:
    """Which gradings have come to no verdict, in one sentence; empty where all did.

    Args:
        graded: name of a candidate or a benchmark -> outcome of ``GRADED`` -> completions.
    """
    parts = []
    for outcome, words in UNGRADED.items():
        found = {name: counts[outcome] for name, counts in graded.items() if counts.get(outcome)}
        if found:
            listed = ", ".join(f"{one_line(name)} {count:,}" for name, count in found.items())
            parts.append(f"{words} on {sum(found.values()):,} ({listed})")
    asked = sum(sum(counts.values()) for counts in graded.values())
    return f"Of {asked:,} completions {' and '.join(parts)}, which count as wrong." if parts else ""


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


def compute_note(found: Sequence[Compute]) -> str:
    """What the candidates have cost so far, in one sentence; empty where nothing was trained."""
    if not found:
        return ""
    tokens, hours = sum(one.tokens for one in found), sum(one.gpu_hours for one in found)
    trained = [one for one in found if one.tokens]  # the base policy is only scored
    mean = sum(one.gpu_hours for one in trained) / max(len(trained), 1)
    each = f", {1e-6 * tokens / len(trained):.2f} million and {mean:.3g} for a candidate" if len(trained) > 1 else ""
    return f"Measured with {1e-6 * tokens:.2f} million training tokens in {hours:.3g} GPU-hours (process-hours without GPUs){each}."


def outlook_note(outlook: Plateau) -> str:
    """One sentence on whether the search is on a plateau; empty while there are too few generations to say anything."""
    described = outlook.describe()
    return f"{'Plateau' if outlook.stalled else 'No plateau'}: {described}" if described else ""


REPLAY_HEAD = ("regret", f"minus {REFERENCE}", f"tokens of {REFERENCE} / own", f"minus {WHOLE}")
"""What ``replay_cells`` are, after the arm's name."""


def replay_cells(arm: ReplayedArm) -> tuple[str, ...]:
    """An arm that was replayed on a table; empty where there is nothing to compare with."""
    return tuple(
        "" if one is None else format_limits(one.estimate, one.low, one.high, form)
        for one, form in ((arm.final, ".2f"), (arm.gap, "+.2f"), (arm.ratio, ".2f"), (arm.loss, "+.2f"))
    )


def pick_cells(arm: ArmPicks) -> Sequence[tuple[str, ...]]:
    """The picks of one arm: search seed, name, Overall in its search, difference to the baseline measured again, and outcome; last
    their mean, where there are several and all were measured, with its difference to the reference arm."""
    rows = [
        (
            str(pick.search_seed),
            pick.name,
            f"{pick.own:.1f}",
            format_interval(pick.delta, signed=True) if pick.delta is not None and pick.delta.seeds else "",
            pick.outcome,
        )
        for pick in arm.picks
    ]
    if len(rows) > 1 and arm.delta is not None:
        gap = f"minus {REFERENCE} {format_interval(arm.gap, signed=True)}" if arm.gap else ""
        rows.append(("mean", "", "", format_interval(arm.delta, signed=True), gap))
    return rows
