"""One candidate: why it was made, what it is, how it trained, what it scored, what it taught, where it failed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from poise_core.archive import Archive, ArchiveError, trajectory_seeds
from poise_core.archive.typed import (
    CandidateRow,
    CompletionRow,
    ExaminationRow,
    FailureRow,
    ProposalRow,
    ReflectionRow,
    RungRow,
    TrajectoryRow,
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
    curves: dict[str, dict[int, float]]  # metric -> step -> mean over seeds
    reflection: ReflectionRow | None
    failures: list[FailureRow]
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
    found = found or [key for key in names if key.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ArchiveError(f"{wanted!r} could be any of {', '.join(found)}; give more of the id")
    raise ArchiveError(f"no candidate {wanted!r}; there are {', '.join(sorted(names)) or 'none'}")


@dataclass(frozen=True)
class Gathered:
    """The rows of one candidate in the tables that ``RunEvidence`` does not hold."""

    proposal: ProposalRow | None
    verification: VerificationRow | None
    reflection: ReflectionRow | None
    failures: list[FailureRow]
    rungs: list[RungRow]
    trained: list[TrajectoryRow]
    completions: list[CompletionRow]


def gather(evidence: RunEvidence, candidates: Collection[str]) -> dict[str, Gathered]:
    """The rows of several candidates, every table read once for all of them.

    Args:
        evidence: of the run.
        candidates: ids, all of them known to the evidence.

    Raises:
        ArchiveError: a file cannot be read.
    """
    wanted, archive, digest = set(candidates), evidence.archive, evidence.protocol.digest
    ideas = {evidence.candidates[one]["proposal_id"] for one in wanted} - {None, ""}
    proposals = {row["proposal_id"]: row for row in archive.rows("proposals", proposal_id=ideas)} if ideas else {}
    gates = _grouped(archive.rows("verifications", candidate_id=wanted))
    taught = _grouped(archive.rows("reflections", candidate_id=wanted, protocol=digest))
    failures = _grouped(archive.rows("failures", candidate_id=wanted, protocol=digest))
    rungs = _grouped(row for row in evidence.rungs if row["candidate_id"] in wanted)
    trained = _grouped(archive.rows("trajectories", candidate_id=wanted, protocol=digest))
    kept = _grouped(archive.rows("completions", candidate_id=wanted, protocol=digest))
    return {
        one: Gathered(
            proposals.get(evidence.candidates[one]["proposal_id"] or ""),
            _only(gates.get(one, [])),
            _only(taught.get(one, [])),
            failures.get(one, []),
            rungs.get(one, []),
            trained.get(one, []),
            kept.get(one, []),
        )
        for one in wanted
    }


def _grouped(rows: Iterable[AnyRow]) -> dict[str, list[AnyRow]]:
    found: dict[str, list[AnyRow]] = {}
    for row in rows:
        found.setdefault(row["candidate_id"], []).append(row)  # type: ignore[index]  # a TypedDict of the archive
    return found


def view_candidate(
    evidence: RunEvidence, wanted: str, *, level: float = 0.95, gathered: Gathered | None = None
) -> CandidateView:
    """Collect what the archive holds of a candidate, given by its id, its name or the beginning of its id.

    Args:
        evidence: of the run.
        wanted: the candidate.
        level: confidence level of the intervals.
        gathered: its rows, where they have been read for many candidates at once.

    Raises:
        ArchiveError: no such candidate, or a file cannot be read.
    """
    records = evidence.candidates
    candidate = wanted if wanted in records else _find(records, wanted)
    record = records[candidate]
    rows = gathered or gather(evidence, [candidate])[candidate]
    evals = evidence.evaluations.get(candidate, [])
    deltas = {}
    for other in dict.fromkeys([*record["parent_ids"][:1], evidence.baseline or candidate]):
        delta = evidence.delta(candidate, other, level) if other != candidate else None
        if delta is not None:
            deltas[records[other]["name"]] = delta
    parent = record["parent_ids"][0] if record["parent_ids"] else ""
    replication = evidence.replications.get(candidate)
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
        curves=mean_curves(trajectory_seeds(rows.trained)),
        reflection=rows.reflection,
        failures=rows.failures,
        state=evidence.state(candidate),
        rungs=sorted(rows.rungs, key=lambda row: row["tokens"]),
        replication=replication,
        unconfined=missing_measures(rows.trained),
        examination=list(evidence.examinations.get(candidate, ())),
        ablation=conclude_ablation(evidence, candidate),
        graded=graded_counts(evals),
    )


def missing_measures(trajectories: Iterable[TrajectoryRow]) -> dict[str, str]:
    """The measures of confinement that were missing where these steps were trained: measure -> why."""
    records = {row["confinement"] for row in trajectories if row.get("confinement")}
    found = [json.loads(record).items() for record in sorted(filter(None, records))]
    return {measure: str(text) for measures in found for measure, text in measures if text != GRANTED}


def mean_curves(seeds: dict[int, list[dict[str, Any]]]) -> dict[str, dict[int, float]]:
    """Mean over seeds of every metric at every step that it was recorded at; one bad seed makes the mean NaN."""
    return {
        name: {step: statistics.fmean(values) for step, values in sorted(by_step.items())}
        for name, by_step in curve_points(seeds).items()
    }


def curve_points(seeds: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, dict[int, list[float]]]:
    """Metric -> step -> the values of the seeds that recorded it there."""
    points: dict[str, dict[int, list[float]]] = {}
    for rows in seeds.values():
        for row in rows:
            for name, value in row.items():
                if name not in ("step", "seed"):
                    points.setdefault(name, {}).setdefault(row["step"], []).append(float(value))
    return points


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
