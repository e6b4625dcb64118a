"""The ladder of a run: what each rung cost, what it decided, and whether it predicts the rung that counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from poise_core.archive import UNTRAINED_ARM, Archive
from poise_core.config import LadderSpec
from poise_core.config.protocol import Protocol
from poise_core.evidence.forecast import foretold, proxy_dynamics
from poise_core.evidence.racing import proxy_reward
from poise_core.evidence.rankings import Correlation, rank_correlation
from poise_core.evidence.run_evidence import standing_of


@dataclass(frozen=True)
class RungReport:
    """What :func:`rung_report` finds."""

    rungs: list[dict[str, Any]]  # per rung: rung, candidates, promoted, stopped, finished, tokens
    correlations: dict[str, Correlation]  # "proxy -> first", "forecast -> others" and the like, over candidates
    tokens: int  # sampled in training by all candidates, the baseline included
    tokens_without: int | None  # had every candidate of the ladder trained with all seeds; None where none did
    stopped: list[dict[str, Any]]  # rows of candidates that were stopped, with their names

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        correlations = {name: one.to_dict() for name, one in self.correlations.items()}
        stopped = [
            {key: value for key, value in row.items() if key not in ("created_at", "row_key", "content_digest")}
            for row in self.stopped
        ]
        return {**vars(self), "correlations": correlations, "stopped": stopped}


def rung_report(archive: Archive, protocol: Protocol, ladder: LadderSpec) -> RungReport:
    """Read the ladder of one protocol from the archive.

    Every candidate with a whole training says what its proxy would have been, on the ladder or not, so correlations do not need
    the ladder to be switched on. "others" is the mean Overall of the seeds beside the first one: a value and its own mean
    would agree by themselves. "forecast" is :func:`poise_core.evidence.forecast.foretold`. Candidates that a rung stopped
    are missing above it, which lowers what can be seen.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    rows = archive.rows("rungs", protocol=protocol.digest) if archive.has("rungs") else []
    names = {row["candidate_id"]: row["name"] for row in archive.rows("candidates")}
    known = _known(archive, protocol, ladder)
    whole = [row["tokens"] for row in rows if row["rung"] == "all" and row["decision"] == "finished"]
    climbed = {row["candidate_id"] for row in rows}
    trained = archive.read("trajectories", ["candidate_id", "tokens"], protocol=protocol.digest)
    spent = [
        (name, tokens or 0)
        for name, tokens in zip(trained["candidate_id"].to_pylist(), trained["tokens"].to_pylist(), strict=True)
    ]
    below = sum(tokens for name, tokens in spent if name not in climbed)
    return RungReport(
        rungs=[_rung(rung, [row for row in rows if row["rung"] == rung]) for rung in ("proxy", "first", "all")],
        correlations={
            "proxy -> first": rank_correlation(known.rewards, known.firsts),
            "proxy -> others": rank_correlation(known.rewards, known.others),
            "forecast -> first": rank_correlation(known.forecasts, known.firsts),
            "forecast -> others": rank_correlation(known.forecasts, known.others),
            "first -> others": rank_correlation(known.firsts, known.others),
        },
        tokens=sum(tokens for _, tokens in spent),
        tokens_without=round(below + len(climbed) * sum(whole) / len(whole)) if whole else None,
        stopped=[{"name": names[row["candidate_id"]], **row} for row in rows if row["decision"] == "stopped"],
    )


@dataclass(frozen=True)
class _Known:
    """Candidate -> percent; a value that is not known is missing or NaN."""

    rewards: dict[str, float]  # of the proxy
    forecasts: dict[str, float]  # of Overall, by the proxy's dynamics and earlier generations
    firsts: dict[str, float]  # Overall at the first seed
    others: dict[str, float]  # mean Overall at the others


def _known(archive: Archive, protocol: Protocol, ladder: LadderSpec) -> _Known:
    evaluations = standing_of(archive, protocol).evaluations
    generations = {
        row["candidate_id"]: row["generation"] for row in archive.rows("candidates") if row["arm"] != UNTRAINED_ARM
    }
    first = protocol.seeds[0]
    rewards, firsts, others, dynamics = {}, {}, {}, {}
    for name, evals in evaluations.items():
        if name not in generations:
            continue
        own = {one.seed: one.overall for one in evals}
        rest = [overall for seed, overall in own.items() if seed != first]
        firsts[name] = own.get(first, math.nan)
        others[name] = sum(rest) / len(rest) if rest else math.nan
        if ladder.proxy_steps:
            steps = archive.trajectory(name, protocol.digest).get(first, [])
            rewards[name] = proxy_reward(steps, ladder.proxy_steps, ladder.proxy_window)
            if (found := proxy_dynamics(steps, ladder.proxy_steps, ladder.proxy_window)) is not None:
                dynamics[name] = found
    return _Known(rewards, foretold(generations, dynamics, firsts), firsts, others)


def _rung(rung: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    count = {what: sum(row["decision"] == what for row in rows) for what in ("promoted", "stopped", "finished")}
    return {"rung": rung, "candidates": len(rows), **count, "tokens": sum(row["tokens"] for row in rows)}


def render_rungs(report: RungReport) -> RenderableType:
    """For a terminal of 80 columns."""
    table = Table(title="Ladder", title_justify="left", box=None, pad_edge=False, header_style="dim")
    for title in ("rung", "reached", "promoted", "stopped", "finished"):
        table.add_column(title, justify="left" if title == "rung" else "right")
    for row in report.rungs:
        if row["candidates"]:
            table.add_row(row["rung"], *(str(row[key]) for key in ("candidates", "promoted", "stopped", "finished")))
    lines: list[RenderableType] = []
    if any(row["candidates"] for row in report.rungs):
        lines += [table, Text()]
    else:
        lines.append(
            Text("No candidate has climbed a ladder here (ladder.enabled is false, or none is finished).", "dim")
        )
    for name, one in report.correlations.items():
        style = "" if one.predicts else "yellow"
        lines.append(Text(f"Rank correlation {name}: {one.sentence()}", style))
    saved = f"; with all seeds for every candidate about {report.tokens_without:,}" if report.tokens_without else ""
    lines.append(Text(f"Training tokens sampled: {report.tokens:,}{saved}.", "dim"))
    for row in report.stopped:
        lines.append(Text(f"{row['name']} stopped at {row['rung']} ({row['cause']}): {row['message']}", "dim"))
    return Group(*lines)
