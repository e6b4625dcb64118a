"""What a night has brought, for the morning: what was tried, what was learned, what it cost. And single lines of the same."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise_core.agents.llm.ledger import Spent
from poise_core.archive import EVOLUTION_ARM, Archive
from poise_core.config import Preset
from poise_core.config.protocol import Protocol
from poise_core.evidence.intervals import Interval
from poise_core.render.text import format_interval, format_overall
from poise_core.views.arms import training_tokens
from poise_core.views.leaderboard import LeaderboardRow, leaderboard
from poise_core.views.outlook import outlook_note

SHOWN = 5
"""Candidates of the leaderboard in a summary."""

_FOLDER = "nights"


@dataclass(frozen=True)
class Night:
    """One nightly run of one evolution."""

    generation: int
    began: dt.datetime  # with a time zone
    ended: dt.datetime
    finished: bool  # whether the generation has come to its end
    stopped: str = ""  # why the night ended before its work did; empty where it did not
    hours: float | None = None  # the time budget
    dollars: float | None = None  # the cost budget
    replication: str = ""  # what became of the champion candidate, one sentence; empty where there was none


def candidate_headline(archive: Archive, protocol: Protocol, candidate: str) -> str:
    """One candidate in one line.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    for row in leaderboard(archive, protocol):
        if row.candidate_id == candidate:
            return f"{row.name}: {outcome(row)}"
    return f"{candidate}: not in this run"


def generation_headline(archive: Archive, protocol: Protocol, generation: int) -> str:
    """The children of a generation in one line.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    children = [row for row in leaderboard(archive, protocol) if _child_of(row, generation)]
    return "; ".join(f"{row.name}: {outcome(row)}" for row in children) or "no child"


def run_headline(archive: Archive, protocol: Protocol) -> str:
    """A whole run in one line: how far it is, and its best candidate.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    rows = leaderboard(archive, protocol)
    generations = max((row.generation or 0 for row in rows), default=0)
    best = next((row for row in rows if row.rank == 1), None)
    head = f"{generations} generation{'s' if generations != 1 else ''}"
    return f"{head}; best is {best.name}: {outcome(best)}" if best else f"{head}; nothing is scored yet"


def outcome(row: LeaderboardRow) -> str:
    """What a candidate came to, in a few words."""
    if row.overall is None:
        if row.failure:
            return f"failed in {row.failure['stage']} ({row.failure['kind'].replace('_', ' ')})"
        return row.state or row.status
    words = f"Overall {format_overall(row.overall)}"
    if row.delta is not None:
        words += f", {format_interval(row.delta, signed=True)} to the baseline, {row.verdict}"
    return f"{words}; {row.state}" if row.state else words


def morning_summary(archive: Archive, preset: Preset, night: Night) -> str:
    """The night as a page of Markdown.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    rows = leaderboard(archive, preset.protocol)
    children = [row for row in rows if _child_of(row, night.generation)]
    sections = [
        f"# Generation {night.generation}, night of {night.began:%Y-%m-%d}\n\n{_lead(rows, children, night)}",
        f"## What was tried\n\n{_tried(archive, children)}",
        f"## What was learned\n\n{_learned(archive, preset, children, night)}",
        f"## What it cost\n\n{_cost(archive, preset, children, night)}",
        f"## Where the search stands\n\n{_standing(rows)}",
    ]
    return "\n\n".join(sections) + "\n"


def summary_file(run_dir: Path, night: Night) -> Path:
    """Where the summary of a night is kept."""
    return run_dir / _FOLDER / f"{night.began:%Y-%m-%dT%H%M}{_suffix(night.generation)}"


def summaries(run_dir: Path, generation: int) -> dict[str, str]:
    """What the nights that worked on a generation have left: file, relative to the run directory, and text."""
    paths = sorted((run_dir / _FOLDER).glob(f"*{_suffix(generation)}"))
    return {path.relative_to(run_dir).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def _suffix(generation: int) -> str:
    return f"-gen-{generation:02d}.md"


def _child_of(row: LeaderboardRow, generation: int) -> bool:
    return row.generation == generation and row.arm in (EVOLUTION_ARM, "")


def _lead(rows: Sequence[LeaderboardRow], children: Sequence[LeaderboardRow], night: Night) -> str:
    ends = Counter(row.status for row in children)
    counted = ", ".join(f"{count} {status}" for status, count in ends.items()) or "none yet"
    best = next((row for row in rows if row.rank == 1), None)
    lines = [f"Children: {counted}."]
    if night.finished:
        lines.append("The generation is complete.")
    else:
        lines.append(f"The generation is not complete; the next night goes on with it ({night.stopped or 'stopped'}).")
    if night.finished and night.stopped:
        lines.append(f"The night ended early: {night.stopped}.")
    if best is not None:
        news = " It is new." if best.generation == night.generation else ""
        lines.append(f"Best so far: **{best.name}**, {outcome(best)}.{news}")
    if night.replication:
        lines.append(f"Replication: {night.replication}.")
    return " ".join(lines)


def _tried(archive: Archive, children: Sequence[LeaderboardRow]) -> str:
    if not children:
        return "Nothing has come so far as to be a candidate."
    records = {row["candidate_id"]: row for row in archive.rows("candidates")}
    lines = ["| candidate | parent | change | outcome |", "|---|---|---|---|"]
    for row in children:
        record: Mapping[str, Any] = records.get(row.candidate_id, {})
        parents = [records[one]["name"] for one in record.get("parent_ids", ()) if one in records]
        cells = (row.name, ", ".join(parents), record.get("change") or "", outcome(row))
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines)


def _learned(archive: Archive, preset: Preset, children: Sequence[LeaderboardRow], night: Night) -> str:
    wanted = {row.candidate_id: row.name for row in children}
    reflections = archive.rows("reflections", protocol=preset.protocol.digest, candidate_id=list(wanted))
    lines = [f"- **{wanted[one['candidate_id']]}**: {' '.join(one['summary'].split())}" for one in reflections]
    if note := outlook_note(archive, preset):
        lines.append(f"- {note}")
    return "\n".join(lines) or "No candidate has been reflected on yet."


def _cost(archive: Archive, preset: Preset, children: Sequence[LeaderboardRow], night: Night) -> str:
    seconds = (night.ended - night.began).total_seconds()
    limit = f" of {_duration(night.hours * 3600)}" if night.hours is not None else ""
    spent = training_tokens(archive, preset.protocol)
    trained = sum(spent.get(row.candidate_id, 0) for row in children)
    lines = [f"- Time: {_duration(seconds)}{limit}.", f"- Training: {trained:,} completion tokens over all children."]
    calls = [row for row in archive.rows("calls") if row["created_at"] >= night.began and not row["replayed"]]
    total = Spent()
    for row in calls:
        total = total.plus(Spent.of_row(row))
    budget = f" of {night.dollars:g}" if night.dollars is not None else ""
    if not calls:
        lines.append(f"- Language models: none asked, 0{budget} dollars.")
    else:
        unpriced = f"; {total.unpriced} without a price" if total.unpriced else ""
        tokens = f"{total.input_tokens:,} tokens in, {total.output_tokens:,} out"
        lines.append(
            f"- Language models: {total.calls} calls, {tokens}, {total.dollars:.4f}{budget} dollars{unpriced}."
        )
    return "\n".join(lines)


def _standing(rows: Sequence[LeaderboardRow]) -> str:
    scored = [row for row in rows if row.rank is not None][:SHOWN]
    if not scored:
        return "Nothing is scored yet."
    lines = ["| rank | candidate | generation | Overall | seeds | to the baseline | |", "|---|---|---|---|---|---|---|"]
    for row in scored:
        seeds = str(row.overall.seeds) if row.overall else ""
        cells = (
            str(row.rank),
            row.name,
            str(row.generation),
            format_interval(row.overall),
            seeds,
            _plain(row.delta),
            row.judgement,
        )
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _plain(delta: Interval | None) -> str:
    return format_interval(delta, signed=True) if delta is not None and math.isfinite(delta.estimate) else ""


def _cell(text: str) -> str:
    """Text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
