"""One candidate: why it was made, what it is, how it trained, what it scored, what it taught, where it failed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, TypeVar

from poise_core.archive import Archive, ArchiveError, trajectory_seeds
from poise_core.archive.typed import (
    CandidateRow,
    ExaminationRow,
    FailureRow,
    ProposalRow,
    ReflectionRow,
    RungRow,
    VerificationRow,
)
from poise_core.evaluation.results import benchmark_means, graded_counts
from poise_core.evidence.ablation import Ablation, conclude_ablation
from poise_core.evidence.intervals import Interval
from poise_core.evidence.run_evidence import Row, RunEvidence
from poise_core.sandbox.command import GRANTED

AnyRow = TypeVar("AnyRow")


@dataclass(frozen=True)
class CandidateView:
    """Everything the archive holds of one candidate, the sealed split aside."""

    record: CandidateRow  # the row of candidates
    parents: dict[str, str]  # candidate id -> name
    children: dict[str, str]
    proposal: ProposalRow | None
    verification: VerificationRow | None
    seeds: dict[int, float]  # seed -> Overall, percent
    benchmarks: dict[str, float]  # percent, mean over seeds
    parent_benchmarks: dict[str, float]
    overall: Interval | None
    deltas: dict[str, Interval]  # name of the parent and of the baseline -> paired difference
    reflection: ReflectionRow | None
    failures: list[FailureRow]
    curves: dict[str, dict[int, float]] = field(default_factory=dict)  # metric -> step -> mean over seeds
    state: str = ""  # see RunEvidence.state
    rungs: list[RungRow] = field(default_factory=list)  # of the ladder, from below
    replication: Mapping[str, Any] | None = None
    unconfined: Mapping[str, str] = field(default_factory=dict)  # measure that a training went without -> why
    examination: list[ExaminationRow] = field(default_factory=list)  # one row per condition, as planned
    ablation: Ablation | None = None
    graded: dict[str, dict[str, int]] = field(default_factory=dict)  # benchmark -> of GRADED -> completions, all seeds

    def to_dict(self) -> dict[str, Any]:
        """For JSON: times as ISO text, embedded JSON as objects."""
        plain = _plain({name: value for name, value in vars(self).items() if name != "ablation"})
        plain["overall"] = self.overall.to_dict() if self.overall else None
        for row in plain["examination"]:
            row["detail"] = json.loads(row["detail"])
        plain["ablation"] = self.ablation.to_dict() if self.ablation else None
        plain["deltas"] = {name: delta.to_dict() for name, delta in self.deltas.items()}
        return plain


NAMED = 5
"""Names of candidates that an error lists at most."""


def find_candidate(archive: Archive, wanted: str) -> str:
    """Id of the candidate with this id, name, or beginning of an id.

    Raises:
        ArchiveError: none or several match; the message lists them.
    """
    return _find({row["candidate_id"]: row for row in archive.rows("candidates")}, wanted)


def _find(records: Mapping[str, Row], wanted: str) -> str:
    names = {key: row["name"] for key, row in records.items()}
    if wanted in names:
        return wanted
    revised = {row["revises"] for row in records.values()}
    found = [key for key, name in names.items() if name.lower() == wanted.lower()]
    found = [key for key in found if key not in revised] or found  # of several files of one proposal, the last
    found = found or [key for key in names if key.startswith(wanted.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(sorted(found)[:NAMED]) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")
        raise ArchiveError(f"{wanted!r} could be any of {shown}; give more of the id")
    near = get_close_matches(wanted.upper(), sorted(set(names.values())), NAMED, 0.0)
    raise ArchiveError(
        f"no candidate {wanted!r}; "
        + (f"the nearest of {len(names)} names: {', '.join(near)}" if near else "there are none")
    )


@dataclass(frozen=True)
class Gathered:
    """The rows of one candidate in the tables that ``RunEvidence`` does not hold, those of its trainings aside."""

    proposal: ProposalRow | None
    verification: VerificationRow | None
    reflection: ReflectionRow | None
    failures: list[FailureRow]
    rungs: list[RungRow]


def gather(evidence: RunEvidence, groups: Sequence[Collection[str]]) -> Iterator[dict[str, Gathered]]:
    """Yield for each group of candidates their rows, by candidate; every table is read once for all of them.

    Args:
        evidence: of the run.
        groups: ids, all of them known to the evidence, none in two groups.

    Raises:
        ArchiveError: a file cannot be read.
    """
    archive, digest = evidence.archive, evidence.protocol.digest
    ideas: list[set[str]] = [
        {evidence.candidates[one]["proposal_id"] or "" for one in group} - {""} for group in groups
    ]
    # of several files of one idea, which may be in several groups, the row is read with the first
    first: list[set[str]] = []
    for own in ideas:
        first.append(own.difference(*first))
    again = {idea for asked, read in zip(ideas, first, strict=True) for idea in asked - read}
    failures, rungs = rows_by_candidate(evidence.failures), rows_by_candidate(evidence.rungs)
    kept: dict[str, Any] = {}
    for group, proposals, verifications, reflections in zip(
        groups,
        archive.rows_of("proposals", first, by="proposal_id"),
        archive.rows_of("verifications", groups, by="candidate_id"),
        archive.rows_of("reflections", groups, by="candidate_id", protocol=digest),
        strict=True,
    ):
        told = kept | {row["proposal_id"]: row for row in proposals}
        kept = {idea: row for idea, row in told.items() if idea in again}
        yield _gathered(evidence, group, told, verifications, reflections, failures, rungs)


def _gather_one(evidence: RunEvidence, candidate: str) -> Gathered:
    """As ``gather``, by tables that stay in memory for the next candidate."""
    archive, digest = evidence.archive, evidence.protocol.digest
    idea = evidence.candidates[candidate]["proposal_id"]
    return _gathered(
        evidence,
        [candidate],
        {row["proposal_id"]: row for row in archive.rows("proposals", proposal_id=idea)} if idea else {},
        archive.rows("verifications", candidate_id=candidate),
        archive.rows("reflections", candidate_id=candidate, protocol=digest),
        rows_by_candidate(row for row in evidence.failures if row["candidate_id"] == candidate),
        rows_by_candidate(row for row in evidence.rungs if row["candidate_id"] == candidate),
    )[candidate]


def _gathered(
    evidence: RunEvidence,
    candidates: Collection[str],
    proposals: Mapping[str, Any],
    verifications: Iterable[Any],
    reflections: Iterable[Any],
    failures: Mapping[str, list[FailureRow]],
    rungs: Mapping[str, list[RungRow]],
) -> dict[str, Gathered]:
    gates, taught = rows_by_candidate(verifications), rows_by_candidate(reflections)
    return {
        one: Gathered(
            proposals.get(evidence.candidates[one]["proposal_id"] or ""),
            _only(gates.get(one, [])),
            _only(taught.get(one, [])),
            sorted(failures.get(one, []), key=lambda row: (row["stage"], row["attempt"])),
            rungs.get(one, []),
        )
        for one in candidates
    }


def rows_by_candidate(rows: Iterable[AnyRow]) -> dict[str, list[AnyRow]]:
    """Candidate id -> its rows, in their order."""
    found: dict[str, list[AnyRow]] = {}
    for row in rows:
        found.setdefault(row["candidate_id"], []).append(row)  # type: ignore[index]  # a TypedDict of the archive
    return found


def view_candidate(evidence: RunEvidence, wanted: str, *, level: float = 0.95) -> CandidateView:
    """Collect what the archive holds of a candidate, given by its id, its name or the beginning of its id.

    Args:
        evidence: of the run.
        wanted: the candidate.
        level: confidence level of the intervals.

    Raises:
        ArchiveError: no such candidate, or a file cannot be read.
    """
    candidate = wanted if wanted in evidence.candidates else _find(evidence.candidates, wanted)
    view = describe(evidence, candidate, _gather_one(evidence, candidate), level=level)
    trained = evidence.archive.rows("trajectories", candidate_id=candidate, protocol=evidence.protocol.digest)
    return replace(
        view,
        curves=mean_curves(trajectory_seeds(trained)),
        unconfined=missing_measures(row["confinement"] for row in trained),
    )


def describe(evidence: RunEvidence, candidate: str, rows: Gathered, *, level: float = 0.95) -> CandidateView:
    """The view of a candidate but for what its trainings say: its curves, and what they were not confined by.

    Args:
        evidence: of the run.
        candidate: its id.
        rows: from ``gather``.
        level: confidence level of the intervals.
    """
    records = evidence.candidates
    record = records[candidate]
    evals = evidence.evaluations.get(candidate, [])
    deltas = {}
    for other in dict.fromkeys([*record["parent_ids"][:1], evidence.baseline or candidate]):
        delta = evidence.delta(candidate, other, level) if other != candidate else None
        if delta is not None:
            deltas[records[other]["name"]] = delta
    parent = record["parent_ids"][0] if record["parent_ids"] else ""
    return CandidateView(
        record=record,
        parents={key: records[key]["name"] for key in record["parent_ids"]},
        children={key: records[key]["name"] for key in evidence.lineage.children(candidate)},
        proposal=rows.proposal,
        verification=rows.verification,
        seeds={evaluation.seed: evaluation.overall for evaluation in evals},
        benchmarks=benchmark_means(evals),
        parent_benchmarks=benchmark_means(evidence.evaluations.get(parent, [])),
        overall=evidence.overall(candidate, level),
        deltas=deltas,
        reflection=rows.reflection,
        failures=rows.failures,
        state=evidence.state(candidate),
        rungs=sorted(rows.rungs, key=lambda row: row["tokens"]),
        replication=evidence.replications.get(candidate),
        examination=list(evidence.examinations.get(candidate, ())),
        ablation=conclude_ablation(evidence, candidate),
        graded=graded_counts(evals),
    )


def missing_measures(records: Iterable[str | None]) -> dict[str, str]:
    """The measures of confinement that were missing in trainings, of which these are the records: measure -> why."""
    found = [json.loads(record).items() for record in sorted({record for record in records if record})]
    return {measure: str(text) for measures in found for measure, text in measures if text != GRANTED}


def mean_curves(seeds: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, dict[int, float]]:
    """Mean over seeds of every metric at every step that it was recorded at; one bad seed makes the mean NaN."""
    points: dict[str, dict[int, list[float]]] = {}
    for rows in seeds.values():
        for row in rows:
            for name, value in row.items():
                if name not in ("step", "seed"):
                    points.setdefault(name, {}).setdefault(row["step"], []).append(float(value))
    return {
        name: {step: statistics.fmean(values) for step, values in sorted(by_step.items())}
        for name, by_step in points.items()
    }


def _only(rows: list[AnyRow]) -> AnyRow | None:
    return rows[0] if rows else None


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if key in ("mechanisms", "composition", "report", "content") and isinstance(value, str):
        return json.loads(value)
    if isinstance(value, float) and not math.isfinite(value):  # no JSON
        return None
    return value
