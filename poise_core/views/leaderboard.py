"""Candidates by Overall, each with its interval and its paired difference to the baseline; failures below."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from poise_core.archive import ABLATED, EVOLUTION_ARM, EXAMINED, UNTRAINED_ARM
from poise_core.evaluation.results import benchmark_means, graded_counts
from poise_core.evidence.intervals import Interval, distinguishable
from poise_core.evidence.run_evidence import STOPPED_AT, RunEvidence

Status = Literal["evaluated", "reference", "stopped", "failed", "unfinished"]


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
    graded: dict[str, int] = field(default_factory=dict)  # of GRADED -> completions, all seeds; empty in older rows
    failure: Mapping[str, Any] | None = None  # stage, kind, message, attempt
    state: str = ""  # see RunEvidence.state; or revised, of a failed file that was answered
    rung: dict[str, Any] | None = None  # of the ladder, the highest one reached: rung, decision, message, tokens

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = dict(vars(self))
        plain["overall"] = self.overall.to_dict() if self.overall else None
        plain["delta"] = self.delta.to_dict() if self.delta else None
        return plain


def leaderboard(evidence: RunEvidence, *, level: float = 0.95) -> list[LeaderboardRow]:
    """Evaluated candidates by Overall, best first; then unfinished ones, then failures.

    The base policy before any training is among them as a reference without a rank.

    Args:
        evidence: of the protocol whose evaluations count.
        level: confidence level of the intervals.
    """
    rows = []
    for candidate, record in evidence.candidates.items():
        common: dict[str, Any] = {
            name: record[name] for name in ("candidate_id", "name", "generation", "written_by", "arm")
        }
        common["state"] = evidence.state(candidate)
        if rung := evidence.highest_rungs.get(candidate):
            common["rung"] = {name: rung[name] for name in ("rung", "decision", "message", "tokens")}
        if candidate in evidence.evaluations:
            rows.append(_evaluated(common, evidence, level))
        elif failure := evidence.last_failures.get(candidate):
            common["state"] = "revised" if candidate in evidence.revised else common["state"]
            rows.append(LeaderboardRow(rank=None, status="failed", failure=_plain_failure(failure), **common))
        else:
            stopped = common["state"] in STOPPED_AT.values()
            rows.append(LeaderboardRow(rank=None, status="stopped" if stopped else "unfinished", **common))
    for candidate, failure in evidence.last_failures.items():  # ideas that never became code
        if candidate not in evidence.candidates:
            rows.append(_without_code(candidate, failure))
    return _ranked(rows)


def other_protocols(evidence: RunEvidence) -> list[str]:
    """Digests of further protocols whose numbers lie in the archive; they are never ranked with these.

    What examinations have trained for themselves is no other search, and is left out.
    """
    found = set(evidence.archive.read("evaluations", ["protocol"])["protocol"].to_pylist())
    return sorted(one for one in found - {evidence.protocol.digest} if not one.startswith((EXAMINED, ABLATED)))


def children_of(rows: Iterable[LeaderboardRow], generation: int) -> list[LeaderboardRow]:
    """What the evolution has made in one generation, ideas that never became code included."""
    return [row for row in rows if row.generation == generation and row.arm in (EVOLUTION_ARM, "")]


def best_of(rows: Iterable[LeaderboardRow]) -> LeaderboardRow | None:
    """The candidate with rank 1; None before anything is scored."""
    return next((row for row in rows if row.rank == 1), None)


def _evaluated(common: dict[str, Any], evidence: RunEvidence, level: float) -> LeaderboardRow:
    candidate = common["candidate_id"]
    evals = evidence.evaluations[candidate]
    is_base = candidate == evidence.baseline
    delta = None if is_base else evidence.delta(candidate, evidence.baseline or "", level)
    overalls = [evaluation.overall for evaluation in evals]
    return LeaderboardRow(
        rank=None,
        status="reference" if common["arm"] == UNTRAINED_ARM else "evaluated",
        overall=evidence.overall(candidate, level),
        seed_std=statistics.stdev(overalls) if len(overalls) > 1 else None,
        delta=delta,
        verdict="baseline" if is_base else distinguishable(delta) if delta else "",
        benchmarks=benchmark_means(evals),
        completion_length=statistics.fmean(evaluation.completion_length for evaluation in evals),
        format_valid=statistics.fmean(evaluation.format_valid for evaluation in evals),
        graded=dict(sum(map(Counter, graded_counts(evals).values()), Counter())),
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
        failure=_plain_failure(failure),
    )


def _plain_failure(failure: Mapping[str, Any]) -> dict[str, Any]:
    return {name: failure[name] for name in ("stage", "kind", "message", "attempt")}


def _ranked(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
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
    return ranked + rest
