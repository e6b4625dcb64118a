"""Candidates by Overall, each with its interval and its paired difference to the baseline; failures below."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from poise_core.archive import UNTRAINED_ARM, Archive
from poise_core.archive.typed import FailureRow
from poise_core.config.protocol import Protocol
from poise_core.evaluation.results import benchmark_means
from poise_core.evidence.intervals import Interval, distinguishable
from poise_core.evidence.run_evidence import STOPPED_AT, Standing, baseline_of, standing_of
from poise_core.render.text import STYLES, format_interval

__all__ = ["LeaderboardRow", "baseline_of", "leaderboard", "other_protocols", "render_leaderboard"]

Status = Literal["evaluated", "reference", "stopped", "failed", "unfinished"]

FULL_WIDTH = 100
"""Columns that a row with every cell filled fits into."""


@dataclass(frozen=True)
class LeaderboardRow:
    """One candidate. Numbers are of the ``search`` split under one protocol; what was not measured is ``None``."""

    rank: int | None  # 1 is best; None without Overall, and for a reference, which is no candidate
    candidate_id: str
    name: str
    generation: int | None
    written_by: str
    arm: str
    status: Status
    overall: Interval | None = None  # percent
    seed_std: float | None = None  # of Overall between seeds, divisor n - 1, percent points
    delta: Interval | None = None  # Overall minus the baseline's, paired by seed and problem, percent points
    verdict: str = ""  # "baseline", "better", "worse", "not distinguishable"; empty without a delta
    benchmarks: dict[str, float] = field(default_factory=dict)  # percent, mean over seeds
    completion_length: float | None = None  # tokens
    format_valid: float | None = None  # share, 0 to 1
    failure: Mapping[str, Any] | None = None  # stage, kind, message, attempt
    state: str = ""  # see Standing.state; or revised, of a failed file that was answered
    rung: dict[str, Any] | None = None  # of the ladder, the highest one reached: rung, decision, message, tokens

    @property
    def judgement(self) -> str:
        """Verdict and state, where there are any."""
        return "; ".join(filter(None, (self.verdict, self.state)))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = dict(vars(self))
        plain["overall"] = self.overall.to_dict() if self.overall else None
        plain["delta"] = self.delta.to_dict() if self.delta else None
        return plain


def leaderboard(
    archive: Archive, protocol: Protocol, *, baseline_id: str | None = None, level: float = 0.95
) -> list[LeaderboardRow]:
    """Evaluated candidates by Overall, best first; then unfinished ones, then failures.

    The base policy before any training stands among them as a reference without a rank.

    Args:
        archive: read only; the sealed split stays closed.
        protocol: only evaluations under this protocol count.
        baseline_id: whom to compare with; by default :func:`baseline_of`.
        level: confidence level of the intervals.

    Raises:
        poise_core.archive.ArchiveError: a file of the archive cannot be read.
    """
    standing = standing_of(archive, protocol, baseline_id)
    failures = last_failures(archive, protocol)
    records = archive.rows("candidates")
    revised = {record["revises"] for record in records}
    rows = []
    for record in records:
        candidate = record["candidate_id"]
        common: dict[str, Any] = {
            name: record[name] for name in ("candidate_id", "name", "generation", "written_by", "arm")
        }
        common["state"] = standing.state(candidate)
        if rung := standing.rungs.get(candidate):
            common["rung"] = {name: rung[name] for name in ("rung", "decision", "message", "tokens")}
        if candidate in standing.evaluations:
            rows.append(_evaluated(common, standing, protocol, level))
        elif candidate in failures:
            common["state"] = "revised" if candidate in revised else common["state"]
            rows.append(LeaderboardRow(rank=None, status="failed", failure=failures.pop(candidate), **common))
        else:
            stopped = common["state"] in STOPPED_AT.values()
            rows.append(LeaderboardRow(rank=None, status="stopped" if stopped else "unfinished", **common))
    known = {row.candidate_id for row in rows}
    for candidate, failure in failures.items():  # ideas that never became code
        if candidate not in known:
            rows.append(_without_code(candidate, failure))
    return _ranked(rows)


def last_failures(archive: Archive, protocol: Protocol) -> dict[str, FailureRow]:
    """The last failure of each candidate that has one."""
    rows = archive.rows("failures", protocol=protocol.digest)
    rows.sort(key=lambda row: (row["created_at"], row["attempt"]))
    return {row["candidate_id"]: row for row in rows}


def other_protocols(archive: Archive, protocol: Protocol) -> list[str]:
    """Digests of further protocols whose numbers lie in the archive; they are never ranked with these."""
    found = set(archive.read("evaluations", ["protocol"])["protocol"].to_pylist())
    return sorted(found - {protocol.digest})


def _evaluated(common: dict[str, Any], standing: Standing, protocol: Protocol, level: float) -> LeaderboardRow:
    candidate = common["candidate_id"]
    evals = standing.evaluations[candidate]
    is_base = candidate == standing.baseline
    delta = None if is_base else standing.delta(candidate, standing.baseline or "", protocol, level)
    overalls = [evaluation.overall for evaluation in evals]
    return LeaderboardRow(
        rank=None,
        status="reference" if common["arm"] == UNTRAINED_ARM else "evaluated",
        overall=standing.overall(candidate, protocol, level),
        seed_std=statistics.stdev(overalls) if len(overalls) > 1 else None,
        delta=delta,
        verdict="baseline" if is_base else distinguishable(delta) if delta else "",
        benchmarks=benchmark_means(evals),
        completion_length=statistics.fmean(evaluation.completion_length for evaluation in evals),
        format_valid=statistics.fmean(evaluation.format_valid for evaluation in evals),
        **common,
    )


def _without_code(candidate: str, failure: Mapping[str, Any]) -> LeaderboardRow:
    return LeaderboardRow(
        rank=None,
        candidate_id=candidate,
        name=failure["name"] or candidate,
        generation=failure["generation"],
        written_by=failure["written_by"],
        arm="",
        status="failed",
        failure=failure,
    )


def _ranked(rows: list[LeaderboardRow]) -> list[LeaderboardRow]:
    """Best Overall first, ties by id; then unfinished, then failed, each in the order of generations."""
    scored = sorted(
        (row for row in rows if row.overall is not None),
        key=lambda row: (-row.overall.estimate if row.overall else 0.0, row.candidate_id),
    )
    rest = sorted(
        (row for row in rows if row.overall is None),
        key=lambda row: (row.status == "failed", row.generation or 0, row.candidate_id),
    )
    places = itertools.count(1)
    ranked = [replace(row, rank=next(places)) if row.status == "evaluated" else row for row in scored]
    return ranked + [_plain_failure(row) for row in rest]


def _plain_failure(row: LeaderboardRow) -> LeaderboardRow:
    if row.failure is None:
        return row
    short = {name: row.failure[name] for name in ("stage", "kind", "message", "attempt")}
    return replace(row, failure=short)


def render_leaderboard(
    rows: Sequence[LeaderboardRow],
    protocol: Protocol,
    *,
    others: Sequence[str] = (),
    standing: Standing | None = None,
    level: float = 0.95,
    width: int = FULL_WIDTH,
    outlook: str = "",
) -> RenderableType:
    """The leaderboard for a terminal; one narrower than 100 columns is spared lengths and format validity.

    Args:
        rows: from :func:`leaderboard`.
        protocol: whose digest stands in the title.
        others: from :func:`other_protocols`.
        standing: the evidence behind the rows, for the notes below the table.
        level: the confidence level that the rows were made with.
        width: columns of the terminal.
        outlook: from :func:`poise_core.views.outlook.outlook_note`.
    """
    baseline = next((row for row in rows if row.verdict == "baseline"), None)
    against = baseline.name if baseline else "baseline"
    table = _table(f"Leaderboard, protocol {protocol.digest}")
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
    parts += [Text(), *_notes(rows, baseline, others, standing)]
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
    standing: Standing | None,
) -> list[Text]:
    notes = []
    if baseline and baseline.overall and baseline.seed_std is not None:
        notes.append(
            f"Seed noise of {baseline.name}: standard deviation {baseline.seed_std:.2f} points over "
            f"{baseline.overall.seeds} seeds."
        )
    if standing and standing.noise:
        typical = standing.noise.typical
        notes.append(
            f"Noise floor: {typical.std:.2f} points per seed, from {standing.noise.candidates} candidates "
            f"({typical.freedom:.0f} degrees of freedom); intervals rest on it and on their own seeds."
        )
    compared = sum(row.delta is not None and row.status == "evaluated" for row in rows)
    if compared:
        notes.append(
            "Deltas are paired by seed and problem; intervals are per candidate, not corrected for "
            f"{compared} comparison{'s' if compared > 1 else ''}."
        )
    if standing and standing.declarations:
        champions = sum(one.champion for one in standing.declarations.values())
        level = next(iter(standing.declarations.values())).level
        notes.append(
            f"Champion candidates, whose interval at {level:.2%} excludes zero ({len(standing.tried)} tried): "
            f"{champions or 'none'}."
        )
    if others:
        notes.append(f"Not ranked here, another protocol: {', '.join(others)}.")
    return [Text(note, style="dim") for note in notes]


def _stopped(rows: Sequence[LeaderboardRow]) -> Table:
    table = _table("Stopped on the ladder: neither failed nor zero")
    table.add_column("candidate", max_width=30, overflow="fold")
    table.add_column("gen", justify="right", style="dim")
    table.add_column("where", no_wrap=True)
    table.add_column("why", overflow="fold", style="dim")
    for row in rows:
        where = row.state.removeprefix("stopped ")
        table.add_row(row.name, str(row.generation), where, Text((row.rung or {}).get("message", "")))
    return table


def _table(title: str) -> Table:
    """Narrow gaps and no lines: a row with every cell filled must fit 100 columns and leave the name room."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _failures(rows: Sequence[LeaderboardRow]) -> Table:
    table = _table("Failures, never scored")
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
