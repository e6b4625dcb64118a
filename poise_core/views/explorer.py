"""A whole run as one document: what the page of ``poise explore`` shows, and nothing that it would have to compute twice.

``overview`` holds one short record per candidate, for the tree, the plots and the table. ``details`` holds what only a
candidate's own page shows; it is by far the larger part, and a page reads it one candidate at a time.
"""

from __future__ import annotations

import difflib
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from poise_core.archive import Trained
from poise_core.evaluation.kept import KINDS
from poise_core.evaluation.results import benchmark_means
from poise_core.evidence.credit import mechanisms_of, run_credit
from poise_core.evidence.intervals import Interval
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.views.arms import best_so_far
from poise_core.views.candidate import CandidateView, describe, gather, missing_measures, rows_by_candidate
from poise_core.views.leaderboard import LeaderboardRow, leaderboard

CURVE_POINTS = 40
"""Steps at which a curve is kept; a longer training is thinned out evenly, its last step always kept."""

CURVE_LEVELS = 500
"""Into how many parts of its range a curve's values are told apart: about as many as a drawing has pixels."""

MANY = 2_000
"""Candidates above which curves keep half as many steps: they are most of what such a page weighs."""

TOGETHER = 200
"""Candidates whose rows are in memory at once; those of the others wait in compressed form."""

COMPLETION = (
    "seed",
    "origin",
    "benchmark",
    "step",
    "kind",
    "prompt",
    "completion",
    "correctness",
    "format_valid",
    "truncated",
    "tokens",
)
"""What the page tells of a completion, in the order of the table's columns."""

BOOKKEEPING = frozenset(
    {"row_key", "protocol", "candidate_id", "proposal_id", "content_digest", "created_at", "fingerprint"}
)
"""Columns that the page has elsewhere, or that say nothing to a reader."""

REFUSING = frozenset({"language", "implement", "verify"})
"""Stages before any training: a candidate that ends there was refused."""


PAGE = "explore.html"
"""The page's name in a run directory."""


def page_address(run_dir: Path, candidate: str = "") -> str:
    """Where the page of a run lies once ``poise explore`` has written it; of a candidate, where it is shown in it."""
    place = (run_dir.absolute() / PAGE).as_uri()
    return f"{place}#/candidate/{quote(candidate, safe='')}" if candidate else place


@dataclass(frozen=True)
class Place:
    """Where a candidate stands in the drawing of the tree: one column per generation, children beside their parents."""

    column: int
    row: float


def overview(evidence: RunEvidence, beside: Mapping[str, RunEvidence] | None = None) -> dict[str, Any]:
    """The run, its candidates in order of their making, and what it has cost; JSON without NaN.

    Args:
        evidence: of the run.
        beside: label -> evidence of runs under the same protocol, whose best over tokens is drawn beside this one's.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    rows = {row.candidate_id: row for row in leaderboard(evidence)}
    made = sorted(rows.values(), key=lambda row: (row.generation or 0, _created(evidence, row), row.candidate_id))
    number = {row.candidate_id: place for place, row in enumerate(made)}
    places = tree_places(
        [[number[p] for p in _parents(evidence, row.candidate_id)[:1] if p in number] for row in made],
        [row.generation or 0 for row in made],
    )
    spent = evidence.training_tokens
    candidates = [
        {
            **_summary(evidence, row, spent),
            "parents": [number[p] for p in _parents(evidence, row.candidate_id) if p in number],
            "x": place.column,
            "y": place.row,
        }
        for row, place in zip(made, places, strict=True)
    ]
    protocol = evidence.protocol
    return {
        "protocol": protocol.digest,
        "policy": protocol.policy,
        "benchmarks": [{"name": one.name, "weight": one.weight} for one in protocol.benchmarks],
        "baseline": number.get(evidence.baseline or ""),
        "untuned": " ".join(note for note in (evidence.untuned, protocol.unsealed_note) if note),
        "counted": evidence.counted(),
        "candidates": candidates,
        "best": [vars(step) for step in best_so_far(evidence)],
        "beside": {label: [vars(step) for step in best_so_far(other)] for label, other in (beside or {}).items()},
        "credit": run_credit(evidence).to_dict(),
        "cost": _costs(evidence, made, spent),
    }


def details(evidence: RunEvidence, candidates: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What only a candidate's own page shows, in the order asked for; an empty document for an idea without code.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    wanted = list(candidates)
    points = CURVE_POINTS if len(wanted) <= MANY else CURVE_POINTS // 2
    parts = [wanted[start : start + TOGETHER] for start in range(0, len(wanted), TOGETHER)]
    known = [[one for one in part if one in evidence.candidates] for part in parts]
    digest = evidence.protocol.digest
    for part, rows, trained, kept in zip(
        parts,
        gather(evidence, known),
        evidence.archive.trained(known, digest),
        evidence.archive.rows_of("completions", known, COMPLETION, by="candidate_id", protocol=digest),
        strict=True,
    ):
        read = rows_by_candidate(kept)
        for one in part:
            if one in rows:
                view = describe(evidence, one, rows[one])
                yield _detail(evidence, view, trained.get(one), read.get(one, []), points)
            else:
                yield {}


def tree_places(parents: Sequence[Sequence[int]], generations: Sequence[int]) -> list[Place]:
    """Lay the tree out: a leaf takes the next free row, a parent stands in the middle of its children.

    Args:
        parents: of every candidate, by number; the first parent is the one that it hangs on.
        generations: of every candidate, its column.
    """
    children: list[list[int]] = [[] for _ in parents]
    roots: list[int] = []
    for own, above in enumerate(parents):
        (children[above[0]] if above else roots).append(own)
    rows, free = [0.0] * len(parents), 0.0
    pending = [(root, False) for root in reversed(roots)]
    while pending:
        own, done = pending.pop()
        if not children[own]:
            rows[own], free = free, free + 1.0
        elif done:
            rows[own] = (rows[children[own][0]] + rows[children[own][-1]]) / 2.0
        else:
            pending += [(own, True), *((child, False) for child in reversed(children[own]))]
    return [Place(generation, row) for generation, row in zip(generations, rows, strict=True)]


# ---- one candidate


def _summary(evidence: RunEvidence, row: LeaderboardRow, spent: Mapping[str, int]) -> dict[str, Any]:
    record = evidence.candidates.get(row.candidate_id)
    stability = evidence.stability(row.candidate_id)
    return {
        "id": row.candidate_id,
        "name": row.name,
        "generation": row.generation or 0,
        "arm": row.arm,
        "author": row.written_by,
        "outcome": outcome(row),
        "state": row.state,
        "overall": _limits(row.overall),
        "delta": _limits(row.delta),
        "verdict": row.verdict,
        "metrics": _finite(
            {
                **row.benchmarks,
                "completion length": row.completion_length,
                "format valid": None if row.format_valid is None else 100.0 * row.format_valid,
                "worst seed": stability.worst if stability else None,
                "seed deviation": row.seed_std,
            }
        ),
        "tokens": spent.get(row.candidate_id, 0),
        "change": record["change"] if record else "",
        "mechanisms": ", ".join(mechanisms_of(record["source"])) if record else "",
        "failure": dict(row.failure) if row.failure else None,
    }


def outcome(row: LeaderboardRow) -> str:
    """``baseline``, ``scored``, ``reference``, ``stopped``, ``failed``, ``refused`` or ``unfinished``."""
    if row.status == "reference":
        return "reference"
    if row.status == "evaluated":
        return "baseline" if row.verdict == "baseline" else "scored"
    if row.status == "failed":
        return "refused" if row.failure and row.failure["stage"] in REFUSING else "failed"
    return row.status


def _detail(
    evidence: RunEvidence, view: CandidateView, trained: Trained | None, read: Sequence[Mapping[str, Any]], points: int
) -> dict[str, Any]:
    record, parents = view.record, view.record["parent_ids"]
    above = evidence.candidates[parents[0]]["source"] if parents else None
    plain = replace(view, reflection=None).to_dict()  # of the reflection the page tells the text alone
    kept = (
        "verification",
        "failures",
        "rungs",
        "deltas",
        "replication",
        "examination",
        "ablation",
    )
    return {
        **{name: _told(plain[name]) for name in kept},
        "proposal": _proposal(plain["proposal"]),
        "reflection": {name: view.reflection[name] for name in ("markdown", "written_by")} if view.reflection else None,
        "unconfined": missing_measures(trained.confinement) if trained else {},
        "source": record["source"],
        "changed": {"from": parents[0], "lines": line_changes(above, record["source"])} if above is not None else None,
        "benchmarks": _told(benchmark_table(evidence, record["candidate_id"])),
        "seeds": _told({str(seed): value for seed, value in view.seeds.items()}),
        "completions": completions(read),
        "curves": curves(trained, points) if trained else {},
    }


def _proposal(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A proposal with what only its content says; its columns say the rest."""
    if row is None:
        return None
    said = {*row, "mechanism_change"}
    only = {name: value for name, value in row["content"].items() if name not in said}
    return {**_told(row), "content": _told(only)}


def _told(value: Any) -> Any:
    """What the page tells of a row: no bookkeeping, and numbers to five significant digits."""
    if isinstance(value, Mapping):
        return {name: _told(item) for name, item in value.items() if name not in BOOKKEEPING}
    if isinstance(value, float):
        return _short(value)
    return [_told(item) for item in value] if isinstance(value, list) else value


def completions(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was kept to be read of a candidate: of its first seed every kept step of training, and of each seed the search split."""
    first = min((row["seed"] for row in rows), default=0)
    kept = [row for row in rows if row["origin"] == "search" or row["seed"] == first]
    kept.sort(key=lambda row: (row["origin"], row["seed"], row["benchmark"], row["step"], KINDS.index(row["kind"])))
    return [{name: row[name] for name in COMPLETION} for row in kept]


def line_changes(before: str, after: str) -> list[list[int]]:
    """Where two files differ, as [from, to, from, to]: lines of the first that lines of the second replace; nothing where equal.

    The page has both files, so that it can draw the diff from these few numbers.
    """
    matched = difflib.SequenceMatcher(None, before.split("\n"), after.split("\n"))
    return [list(lines) for kind, *lines in matched.get_opcodes() if kind != "equal"]


def benchmark_table(evidence: RunEvidence, candidate: str) -> list[dict[str, Any]]:
    """Of every benchmark the scores by seed and their mean, in percent, and the baseline's mean."""
    own = evidence.evaluations.get(candidate, ())
    base = benchmark_means(evidence.evaluations.get(evidence.baseline or "", ()))
    return [
        {
            "name": name,
            "seeds": {str(one.seed): result.score for one in own for result in one.benchmarks if result.name == name},
            "mean": mean,
            "baseline": base.get(name),
        }
        for name, mean in benchmark_means(own).items()
    ]


def curves(trained: Trained, points: int = CURVE_POINTS) -> dict[str, dict[str, list[float]]]:
    """Metric -> steps with mean, lowest and highest over seeds; non-finite points are left out.

    Values are rounded to less than a ``CURVE_LEVELS``th of what the curve spans, which no drawing shows.

    Args:
        trained: the steps of a candidate.
        points: at most so many steps are kept.
    """
    drawn: dict[str, dict[str, list[float]]] = {}
    seeds, row_of = np.unique(trained.seed, return_inverse=True)
    steps, place = np.unique(trained.step, return_inverse=True)
    for name, (rows, values) in trained.metrics.items():
        table = np.full((len(seeds), len(steps)), np.nan)
        table[row_of[rows], place[rows]] = np.where(np.isfinite(values), values, np.nan)
        recorded = np.flatnonzero((~np.isnan(table)).any(axis=0))
        if not recorded.size:
            continue
        kept = thinned(recorded.tolist(), points)
        table = table[:, kept]
        low, high = np.fmin.reduce(table).tolist(), np.fmax.reduce(table).tolist()
        digits = _digits(min(low), max(high))
        lines = [low] if len(seeds) == 1 else [[_mean(column) for column in table.T.tolist()], low, high]
        rounded = [[round(value, digits) for value in line] for line in lines]
        mean, low, high = rounded * 3 if len(seeds) == 1 else rounded
        drawn[name] = {"step": steps[kept].astype(np.float64).tolist(), "mean": mean, "low": low, "high": high}
    return drawn


def _mean(values: Sequence[float]) -> float:
    """Of those that are not NaN; between the lowest and the highest, whatever rounding does."""
    known = [value for value in values if value == value]
    return max(min(known), min(max(known), statistics.fmean(known)))


def _digits(low: float, high: float) -> int:
    """Decimals by which a ``CURVE_LEVELS``th of the range is told apart; of a constant, its five leading digits."""
    span = (high - low) / CURVE_LEVELS
    step = span if 0.0 < span < math.inf else max(abs(low), abs(high)) * 1e-5
    return min(300, math.ceil(-math.log10(step))) if 0.0 < step < math.inf else 0


def thinned(steps: Sequence[int], points: int = CURVE_POINTS) -> list[int]:
    """At most ``points`` of these, evenly spread, the first and the last among them."""
    if len(steps) <= points:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(i * last / (points - 1))] for i in range(points)]


# ---- the run


def _costs(evidence: RunEvidence, made: Sequence[LeaderboardRow], spent: Mapping[str, int]) -> dict[str, Any]:
    """What had been spent when each trained candidate was made: tokens, hours of training and evaluation, dollars of models."""
    trained = [row.candidate_id for row in made if row.candidate_id in spent]
    seconds = (sum(evidence.measuring_seconds.get(one, (0.0, 0.0))) for one in trained)
    document: dict[str, Any] = {
        "tokens": list(accumulate(spent[one] for one in trained)),
        "hours": [round(value / 3600.0, 4) for value in accumulate(seconds)],
    }
    if evidence.archive.has("calls"):
        columns = ["created_at", "replayed", "dollars"]
        calls = evidence.archive.read("calls", columns, keep=False).to_pylist()
        calls.sort(key=lambda call: call["created_at"])
        paid = list(accumulate(0.0 if call["replayed"] else call["dollars"] or 0.0 for call in calls))
        document["calls"] = {"at": [call["created_at"].isoformat() for call in calls], "dollars": paid}
    return document


def _parents(evidence: RunEvidence, candidate: str) -> list[str]:
    record = evidence.candidates.get(candidate)
    return list(record["parent_ids"]) if record else []


def _created(evidence: RunEvidence, row: LeaderboardRow) -> str:
    record = evidence.candidates.get(row.candidate_id)
    return record["created_at"].isoformat() if record else ""


def _limits(interval: Interval | None) -> list[float | None] | None:
    """[estimate, low, high, seeds]; open limits are null."""
    if interval is None:
        return None
    return [_short(interval.estimate), _short(interval.low), _short(interval.high), interval.seeds]


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items() if value is not None and math.isfinite(value)}


def _short(value: float) -> float | None:
    """To five significant digits: what a plot shows; null for what JSON cannot hold."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
