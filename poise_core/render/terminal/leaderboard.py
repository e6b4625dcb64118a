"""The leaderboard for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from poise_core.config.protocol import Protocol
from poise_core.evidence.format import format_interval, format_level
from poise_core.evidence.run_evidence import STOPPED_AT, RunEvidence
from poise_core.render.lines import grading_note, untuned_note
from poise_core.render.terminal.style import STYLES, plain_table
from poise_core.views.leaderboard import LeaderboardRow

FULL_WIDTH = 100
"""Columns that a row with every cell filled fits into."""


def render_leaderboard(
    rows: Sequence[LeaderboardRow],
    protocol: Protocol,
    *,
    others: Sequence[str] = (),
    evidence: RunEvidence | None = None,
    level: float = 0.95,
    width: int = FULL_WIDTH,
    outlook: str = "",
    spending: str = "",
    compute: str = "",
) -> RenderableType:
    """The leaderboard for a terminal; lengths and format validity are left out below 100 columns.

    Args:
        rows: from ``leaderboard``, all or some.
        protocol: whose digest is shown in the title.
        others: from ``other_protocols``.
        evidence: what the rows were made from, for the notes below the table.
        level: the confidence level that the rows were made with.
        width: columns of the terminal.
        outlook: from ``outlook_note``; empty where there is nothing to say.
        spending: from ``spending_note``, likewise.
        compute: from ``compute_note``, likewise.
    """
    baseline = next((row for row in rows if row.verdict == "baseline"), None)
    against = baseline.name if baseline else "baseline"
    table = plain_table(f"Leaderboard, protocol {protocol.digest}")
    table.add_column("#", justify="right", style="dim")
    table.add_column("candidate", max_width=30, overflow="fold")
    table.add_column(f"Overall [{level:.0%}]", no_wrap=True)
    table.add_column("seeds", justify="right", style="dim")
    table.add_column(f"delta to {against}", no_wrap=True)
    table.add_column("", no_wrap=True)
    behaviour = width >= FULL_WIDTH
    if behaviour:
        table.add_column("tokens", justify="right")
        table.add_column("valid", justify="right")
    for row in rows:
        if row.overall is not None:
            word = row.state if row.state in STYLES else row.verdict
            style = STYLES.get(word, "")
            if word == row.state and row.verdict == "not distinguishable":
                word = f"{row.verdict}\n{word}"
            table.add_row(
                str(row.rank or ""),
                Text(row.name, style="bold" if row.verdict == "better" else ""),
                format_interval(row.overall),
                str(row.overall.seeds),
                Text(format_interval(row.delta, signed=True) if row.delta else "", style=style),
                Text(word, style=style),
                *((f"{row.completion_length:.1f}", f"{row.format_valid:.0%}") if behaviour else ()),
            )
    parts: list[RenderableType] = [table]
    if not any(row.overall for row in rows):
        parts.append(Text("No candidate has been evaluated yet.", style="dim"))
    parts += [Text(), *_notes(rows, baseline, others, evidence)]
    if spending:
        parts.append(Text(spending, style="dim"))
    if compute:
        parts.append(Text(compute, style="dim"))
    if outlook:
        parts.append(Text(outlook))
    stopped = [row for row in rows if row.state in STOPPED_AT.values()]
    if stopped:
        parts += [Text(), _stopped(stopped)]
    unfinished = [row for row in rows if row.status == "unfinished"]
    if unfinished:
        listed = ", ".join(f"{row.name} (generation {row.generation})" for row in unfinished)
        parts.append(Text(f"Not finished: {listed}.", style="yellow"))
    failed = [row for row in rows if row.failure is not None]
    if failed:
        parts += [Text(), _failures(failed)]
    return Group(*parts)


def _notes(
    rows: Sequence[LeaderboardRow],
    baseline: LeaderboardRow | None,
    others: Sequence[str],
    evidence: RunEvidence | None,
) -> list[Text]:
    notes, shown = [], {row.candidate_id for row in rows}
    if baseline and baseline.overall and baseline.seed_std is not None:
        notes.append(
            f"Seed noise of {baseline.name}: standard deviation {baseline.seed_std:.2f} points over "
            f"{baseline.overall.seeds} seeds."
        )
    if evidence and evidence.noise:
        typical = evidence.noise.typical
        notes.append(
            f"Noise floor: {typical.std:.2f} points per seed, from {evidence.noise.candidates} candidates "
            f"({typical.freedom:.0f} degrees of freedom); intervals rest on it and on their own seeds."
        )
    compared = sum(row.delta is not None and row.status == "evaluated" for row in rows)
    if compared:
        notes.append(
            "Deltas are paired by seed and problem; intervals are per candidate, not corrected for "
            f"{compared} comparison{'s' if compared > 1 else ''}."
        )
    if evidence and evidence.declarations:
        level = next(iter(evidence.declarations.values())).level
        notes.append(
            f"Champion candidates, whose interval at {format_level(level)} excludes zero ({evidence.counted()}): "
            f"{len(evidence.champions) or 'none'}."
        )
        steady = [
            f"{evidence.candidates[one.candidate_id]['name']} {found.sentence()}"
            for one in evidence.champions
            if one.candidate_id in shown and (found := evidence.stability(one.candidate_id))
        ]
        if steady:
            notes.append(f"Claims hold for trainings that do not collapse: {'; '.join(steady)} (95 %).")
    graded = {row.name: row.graded for row in rows if row.status == "evaluated"}
    notes += filter(None, [grading_note(graded)])
    if evidence and evidence.untuned:
        notes.append(untuned_note(evidence.untuned))
    if evidence and evidence.protocol.unsealed:
        notes.append(evidence.protocol.unsealed_note)
    if others:
        notes.append(f"Not ranked here, another protocol: {', '.join(others)}.")
    return [Text(note, style="dim") for note in notes]


def _stopped(rows: Sequence[LeaderboardRow]) -> Table:
    table = plain_table("Stopped on the ladder: neither failed nor zero")
    table.add_column("candidate", max_width=30, overflow="fold")
    table.add_column("gen", justify="right", style="dim")
    table.add_column("where", no_wrap=True)
    table.add_column("why", overflow="fold", style="dim")
    for row in rows:
        where = row.state.removeprefix("stopped ")
        table.add_row(row.name, str(row.generation), where, Text((row.rung or {}).get("message", "")))
    return table


def _failures(rows: Sequence[LeaderboardRow]) -> Table:
    table = plain_table("Failures, never scored")
    table.add_column("candidate", max_width=24, overflow="fold")
    table.add_column("gen", justify="right", style="dim")
    table.add_column("stage")
    table.add_column("kind", style="red", no_wrap=True)
    table.add_column("what happened", overflow="fold")
    for row in rows:
        failure = row.failure or {}
        generation = "" if row.generation is None else str(row.generation)
        kind = failure["kind"] + (", revised" if row.state == "revised" else "")
        table.add_row(row.name, generation, failure["stage"], kind, Text(failure["message"]))
    return table
