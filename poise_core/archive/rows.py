"""Conversion of the stages' objects to the rows of each table, and back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from poise_core.archive.encoding import Row
from poise_core.archive.errors import ArchiveRowError
from poise_core.archive.schema import COMPUTED, EVOLUTION_ARM, TRAJECTORIES
from poise_core.archive.typed import (
    CandidateRow,
    CompletionRow,
    EvaluationRow,
    FailureRow,
    ProposalRow,
    ReflectionRow,
    SelectionRow,
    TrajectoryRow,
    VerificationRow,
)
from poise_core.escaping import printable
from poise_core.evaluation.kept import KeptCompletion
from poise_core.evaluation.results import BenchmarkResult, SeedEvaluation
from poise_core.failures import CandidateFailure, plain_name

STEP_COLUMNS = tuple(
    field.name
    for field in TRAJECTORIES.own_fields
    if field.name not in ("protocol", "candidate_id", "seed", "confinement", "metrics")
)


def as_appended(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of an archive as another archive takes it: without what that computes itself."""
    return {name: value for name, value in row.items() if name not in COMPUTED}


def candidate_row(
    *,
    candidate_id: str,
    name: str,
    source: str,
    source_digest: str,
    written_by: str,
    generation: int = 0,
    parent_ids: Sequence[str] = (),
    arm: str = EVOLUTION_ARM,
    mechanisms: Mapping[str, Any] | None = None,
    composition: Mapping[str, Any] | None = None,
    hypothesis: str | None = None,
    change: str | None = None,
    proposal_id: str | None = None,
    revises: str | None = None,
) -> CandidateRow:
    """Return the row of an implemented candidate; ``mechanisms`` is slot -> choice."""
    return {
        "candidate_id": candidate_id,
        "name": name,
        "generation": generation,
        "parent_ids": list(parent_ids),
        "arm": arm,
        "source": source,
        "source_digest": source_digest,
        "mechanisms": _json(mechanisms or {}),
        "composition": None if composition is None else _json(composition),
        "hypothesis": hypothesis,
        "change": change,
        "proposal_id": proposal_id,
        "revises": revises,
        "written_by": written_by,
    }


def proposal_id(arm: str, generation: int, slot: int, index: int) -> str:
    """Return the id of the proposal at this place."""
    return f"{arm}-g{generation}-s{slot}-p{index}"


def proposal_slot(identity: str | None) -> int | None:
    """Return the slot in an id that ``proposal_id`` made; None for any other text."""
    found = re.fullmatch(r".*-g\d+-s(\d+)-p\d+", identity or "")
    return int(found.group(1)) if found else None


def proposal_row(
    proposal: Mapping[str, Any],
    *,
    generation: int,
    slot: int,
    index: int,
    written_by: str,
    taken: bool,
    arm: str = EVOLUTION_ARM,
    rank: int | None = None,
    score: float | None = None,
    terms: Mapping[str, float] | None = None,
    feasible: bool | None = None,
    reasons: Sequence[str] = (),
    screened_by: str | None = None,
) -> ProposalRow:
    """Return the row of one proposal.

    Args:
        proposal: ``Proposal.model_dump(mode="json")``; needs name, parent_ids, hypothesis and mechanism_change.
        generation: the generation of the child that it would become.
        slot: the slot of the generation.
        index: its position in the proposer's answer.
        written_by: ``catalogue``, ``llm`` or ``human``.
        taken: whether it was implemented.
        arm: the arm of the search.
        rank: the screener's rank, 0 is best.
        score: the screener's score.
        terms: the terms of the score.
        feasible: whether the screener finds it feasible.
        reasons: the screener's reasons.
        screened_by: ``catalogue`` or ``llm``.
    """
    return {
        "proposal_id": proposal_id(arm, generation, slot, index),
        "arm": arm,
        "generation": generation,
        "slot": slot,
        "index": index,
        "name": proposal["name"],
        "parent_ids": list(proposal["parent_ids"]),
        "hypothesis": proposal["hypothesis"],
        "change": proposal["mechanism_change"],
        "content": _json(proposal),
        "rank": rank,
        "score": score,
        "terms": None if terms is None else dict(terms),
        "feasible": feasible,
        "taken": taken,
        "reasons": list(reasons),
        "screened_by": screened_by,
        "written_by": written_by,
    }


def verification_row(
    *, candidate_id: str, admitted: bool, report: str, fingerprint: str | None = None, seconds: float | None = None
) -> VerificationRow:
    """Return the row of a verification; ``report`` is the gate's report as JSON."""
    return {
        "candidate_id": candidate_id,
        "admitted": admitted,
        "fingerprint": fingerprint,
        "report": report,
        "seconds": seconds,
        "written_by": "poise",
    }


def evaluation_rows(candidate_id: str, protocol: str, evaluation: SeedEvaluation) -> list[EvaluationRow]:
    """Return one row per benchmark; ``protocol`` is the digest."""
    return [
        {
            "protocol": protocol,
            "candidate_id": candidate_id,
            "split": evaluation.split,
            "seed": evaluation.seed,
            "benchmark": result.name,
            "metric": result.metric,
            "score": result.score,
            "correct": list(result.correct),
            "samples": result.samples,
            "format_valid": result.format_valid,
            "completion_length": result.completion_length,
            "graded": None if result.graded is None else dict(result.graded),
            "overall": evaluation.overall,
            "problems": evaluation.problems or None,
            "seconds": evaluation.seconds,
            "written_by": "poise",
        }
        for result in evaluation.benchmarks
    ]


def seed_evaluations(rows: Iterable[Row]) -> dict[str, list[SeedEvaluation]]:
    """Undo ``evaluation_rows``: evaluations by candidate, seeds in order, benchmarks by name.

    The rows must be of one split and one protocol. They are gone through once, and none is kept.
    """
    found: dict[str, dict[int, tuple[Row, list[BenchmarkResult]]]] = {}
    for row in rows:
        seeds = found.setdefault(row["candidate_id"], {})
        if row["seed"] not in seeds:
            seeds[row["seed"]] = ({name: row.get(name) for name in ("split", "overall", "seconds", "problems")}, [])
        seeds[row["seed"]][1].append(_benchmark_result(row))
    return {
        candidate: [_seed_evaluation(seed, *seeds[seed]) for seed in sorted(seeds)]
        for candidate, seeds in found.items()
    }


def _benchmark_result(row: Row) -> BenchmarkResult:
    return BenchmarkResult(
        name=row["benchmark"],
        metric=row["metric"],
        score=row["score"],
        correct=tuple(row["correct"]),
        samples=row["samples"],
        format_valid=row["format_valid"],
        completion_length=row["completion_length"],
        graded=row.get("graded"),
    )


def _seed_evaluation(seed: int, first: Row, benchmarks: Sequence[BenchmarkResult]) -> SeedEvaluation:
    seconds = math.nan if first["seconds"] is None else first["seconds"]
    return SeedEvaluation(seed, first["split"], first["overall"], tuple(benchmarks), seconds, first["problems"] or "")


def completion_rows(
    candidate_id: str, protocol: str, seed: int, origin: str, kept: Iterable[KeptCompletion]
) -> list[CompletionRow]:
    """Return one row per kept completion; ``protocol`` is the digest, ``origin`` is ``train`` or ``search``."""
    common = {"protocol": protocol, "candidate_id": candidate_id, "seed": seed, "origin": origin, "written_by": "poise"}
    return [cast("CompletionRow", {**asdict(one), **common}) for one in kept]


def trajectory_rows(
    candidate_id: str,
    protocol: str,
    seed: int,
    steps: Iterable[Mapping[str, Any]],
    *,
    confinement: Mapping[str, str] | None = None,
) -> list[TrajectoryRow]:
    """Return one row per step of ``trajectory.jsonl``; metrics without a column go into ``metrics``.

    Args:
        candidate_id: the candidate that was trained.
        protocol: the digest of the protocol.
        seed: the seed of the training.
        steps: metric -> number, for every step.
        confinement: the measures of the training process, measure -> "granted" or why not.

    Raises:
        ArchiveRowError: a step has no ``step``.
    """
    rows: list[TrajectoryRow] = []
    confined = None if confinement is None else _json(confinement)
    for values in steps:
        if "step" not in values:
            raise ArchiveRowError(f"trajectories: a row of {candidate_id}, seed {seed}, has no step")
        own = {name: value for name, value in values.items() if name in STEP_COLUMNS}
        for name in ("step", "tokens"):
            if own.get(name) is not None:
                try:
                    own[name] = int(own[name])
                except (ValueError, OverflowError) as error:
                    raise ArchiveRowError(
                        f"trajectories: {name} of {candidate_id}, seed {seed}, is {own[name]}"
                    ) from error
        other = {
            name: float(value)
            for name, value in values.items()
            if name not in STEP_COLUMNS and name != "seed" and value is not None
        }
        keys = {"protocol": protocol, "candidate_id": candidate_id, "seed": seed, "written_by": "poise"}
        rows.append(cast("TrajectoryRow", {**own, **keys, "confinement": confined, "metrics": other}))
    return rows


def trajectory_step(row: Row) -> dict[str, Any]:
    """Undo ``trajectory_rows`` for one row: the step's metrics by name."""
    standard = {name: row[name] for name in STEP_COLUMNS if row[name] is not None}
    return {**standard, **row["metrics"]}


def trajectory_seeds(rows: Iterable[Row]) -> dict[int, list[dict[str, Any]]]:
    """The steps of every seed in order, flat and without absent metrics, from one candidate's rows in the table's order."""
    seeds: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(trajectory_step(row))
    return seeds


def reflection_row(
    *,
    candidate_id: str,
    protocol: str,
    summary: str,
    markdown: str,
    content: Mapping[str, Any],
    written_by: str,
    parent_id: str | None = None,
) -> ReflectionRow:
    """Return the row of a reflection; ``content`` is ``Reflection.model_dump(mode="json")``."""
    return {
        "protocol": protocol,
        "candidate_id": candidate_id,
        "parent_id": parent_id,
        "summary": printable(summary),
        "markdown": printable(markdown),
        "content": _json(content),
        "written_by": written_by,
    }


def selection_row(
    *,
    protocol: str,
    generation: int,
    candidate_id: str,
    terms: Mapping[str, float],
    total: float | None,
    slots: Sequence[int] = (),
    reason: str | None = None,
    arm: str = EVOLUTION_ARM,
) -> SelectionRow:
    """Return the row of one node's acquisition in one generation; the node was selected where it fills a slot."""
    return {
        "protocol": protocol,
        "arm": arm,
        "generation": generation,
        "candidate_id": candidate_id,
        "total": total,
        "terms": dict(terms),
        "selected": bool(slots),
        "slots": list(slots),
        "reason": reason,
        "written_by": "poise",
    }


def failure_row(
    failure: CandidateFailure,
    *,
    candidate_id: str,
    protocol: str,
    attempt: int = 0,
    name: str | None = None,
    generation: int | None = None,
    parent_id: str | None = None,
) -> FailureRow:
    """Return the row of a candidate's failure."""
    return {
        "protocol": protocol,
        "candidate_id": candidate_id,
        "stage": failure.stage,
        "attempt": attempt,
        "kind": str(failure.kind),
        "message": failure.message,
        "detail": failure.detail,
        "name": None if name is None else plain_name(name),
        "generation": generation,
        "parent_id": parent_id,
        "written_by": "poise",
    }


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
