"""What experiment tracking should hold, read from the archive: one ``RunPlan`` per run, parents before children.

Pure: nothing here knows MLflow; ``poise_core.tracking.runs`` carries the plans out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poise_core.archive import UNTRAINED_ARM
from poise_core.escaping import markdown, markdown_page, printable
from poise_core.evidence.ablation import conclude_ablation
from poise_core.evidence.examination import conclude
from poise_core.evidence.run_evidence import Row, RunEvidence
from poise_core.render.markdown import render_ablation_page, render_completions_page, render_examination_page
from poise_core.tracking.registry import ALGORITHM_FOLDER, plan_versions
from poise_core.views.explorer import page_address
from poise_core.views.leaderboard import LeaderboardRow, leaderboard
from poise_core.views.nightly import kept_reports
from poise_core.views.outlook import Compute, computed

NOTE_TAG = "mlflow.note.content"
_NO_CONTENT = ("state", "as_of", "color")
_REGISTERED = ("candidate.py", "reflection.md", "verification.json")

# the baseline first; distinguishable with any kind of colour vision, and on white (Okabe and Ito 2008 without their yellow,
# then two of Tol's muted scheme); the grey is for the base policy
_COLORS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7", "#882255", "#999933")
_GREY = "#999999"

_STATUSES = {
    "evaluated": "FINISHED",
    "reference": "FINISHED",
    "stopped": "KILLED",  # by the ladder: MLflow's word for neither finished nor failed
    "failed": "FAILED",
    "unfinished": "RUNNING",
}


@dataclass
class RunPlan:
    """What one run of MLflow should hold."""

    key: str
    name: str
    parent_key: str | None
    tags: dict[str, str]
    start: int  # milliseconds since 1970, as MLflow counts
    end: int
    as_of: int = 0  # the same, of the newest measurement that can have changed a score or its limits
    status: str = "FINISHED"
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int]] = field(default_factory=list)  # name, value, step
    texts: dict[str, str] = field(default_factory=dict)  # artifact file -> content
    curves: tuple[str, int | None] | None = None  # candidate whose curves belong here; its seed, None for their mean
    color: str = ""  # of its curves; set when the run is made, later changes by the user stay
    report: tuple[str, ...] = ()  # candidates whose page belongs here; several make the page of a generation
    depends: str = ""  # digest of what else its page shows
    state: str = ""  # digest of the content, and of which curves there are


def plan_runs(evidence: RunEvidence, run_dir: Path | None = None, *, gpus: int = 1) -> list[RunPlan]:
    """Every run that MLflow should hold, parents before children.

    Args:
        evidence: what is to be shown.
        run_dir: whose nightly reports are to be shown too.
        gpus: that a candidate holds while it is measured.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    known = _Known.read(evidence, gpus)
    records = known.records
    plans: list[RunPlan] = []
    for generation in sorted({record["generation"] for record in records}):
        members = [record for record in records if record["generation"] == generation]
        plans.append(_generation_plan(generation, members, known))
        if run_dir is not None:
            plans[-1].texts |= kept_reports(run_dir, generation)
        for record in members:
            own = _plans_of(record, known)
            if run_dir is not None:
                own[0].tags["explorer"] = page_address(run_dir, record["candidate_id"])
            plans += own
    colors = _colors(records)
    as_of = newest_measurement(evidence)
    for plan in plans:
        plan.color = colors.get(plan.tags.get("candidate", ""), "")
        plan.state = _digest({name: value for name, value in vars(plan).items() if name not in _NO_CONTENT})
        plan.as_of = max(as_of, plan.start)
    return plans


@dataclass(frozen=True)
class _Known:
    """What the plans of all candidates are made from."""

    evidence: RunEvidence
    records: Sequence[Row]  # of candidates, in the order of generations
    rows: Mapping[str, LeaderboardRow]
    children: Mapping[str, Sequence[str]]  # ids
    reflections: Mapping[str, Row]
    verifications: Mapping[str, Row]
    scores: Mapping[str, Mapping[int, Sequence[Row]]]  # candidate -> seed -> one row per benchmark
    registered: frozenset[str]  # candidates that are versions of the registered model
    compute: Mapping[str, Compute]  # of candidates that were trained or scored
    completions: Mapping[str, str]  # candidate -> the page of those that were kept to be read, where there are any

    @classmethod
    def read(cls, evidence: RunEvidence, gpus: int) -> _Known:
        archive, digest = evidence.archive, evidence.protocol.digest
        scores: dict[str, dict[int, list[Row]]] = {}
        for score in archive.rows("evaluations", protocol=digest):
            scores.setdefault(score["candidate_id"], {}).setdefault(score["seed"], []).append(score)
        records = sorted(
            evidence.candidates.values(), key=lambda row: (row["generation"], row["created_at"], row["candidate_id"])
        )
        children: dict[str, list[str]] = {}
        for record in records:
            for parent in record["parent_ids"]:
                children.setdefault(parent, []).append(record["candidate_id"])
        return cls(
            evidence=evidence,
            records=records,
            rows={row.candidate_id: row for row in leaderboard(evidence)},
            children=children,
            reflections={row["candidate_id"]: row for row in archive.rows("reflections", protocol=digest)},
            verifications={row["candidate_id"]: row for row in archive.rows("verifications")},
            scores=scores,
            registered=frozenset(version.candidate_id for version in plan_versions(evidence)),
            compute={one.candidate_id: one for one in computed(evidence, gpus)},
            completions={
                name: render_completions_page(kept, evidence.candidates[name]["name"])
                for name, kept in archive.by_candidate("completions", evidence.candidates, digest)
            },
        )


def _plans_of(record: Row, known: _Known) -> list[RunPlan]:
    """The run of one candidate, and below it one per seed."""
    candidate = record["candidate_id"]
    trained = known.evidence.trained_seeds.get(candidate, frozenset())
    scores = known.scores.get(candidate, {})
    own = _candidate_plan(record, known)
    _add_texts(own, record, known)
    # the mean over seeds is drawn once, when every seed that was trained has been measured and the ladder lets the candidate go
    # no further (or no more will be measured): points cannot be taken back
    rung = known.evidence.highest_rungs.get(candidate)
    goes_on = rung is not None and rung["decision"] == "promoted"
    if trained and ((set(scores) == trained and not goes_on) or own.status in ("FAILED", "KILLED")):
        own.curves = (candidate, None)
    seeds = sorted(trained.union(scores))
    return [own, *(_seed_plan(own, record, seed, scores.get(seed, []), seed in trained) for seed in seeds)]


def _colors(records: Sequence[Row]) -> dict[str, str]:
    """Candidate -> color of its curves."""
    trained = [record["candidate_id"] for record in records if record["arm"] != UNTRAINED_ARM]
    colors = {record["candidate_id"]: _GREY for record in records}
    return colors | {candidate: _COLORS[index % len(_COLORS)] for index, candidate in enumerate(trained)}


def newest_measurement(evidence: RunEvidence) -> int:
    """When the newest row was made from which scores and their limits follow, in milliseconds since 1970; 0 without any.

    A new measurement anywhere moves the noise floor, and with it the limits of every candidate.
    """
    scores = evidence.archive.read("evaluations", ["created_at"], protocol=evidence.protocol.digest)
    answers = [row for rows in evidence.examinations.values() for row in rows]
    versions = [row for rows in evidence.ablations.values() for row in rows]
    rows = [*evidence.failures, *evidence.rungs, *evidence.replications.values(), *answers, *versions]
    moments = [*scores["created_at"].to_pylist(), *(row["created_at"] for row in rows)]
    return _milliseconds(max(moments)) if moments else 0


def _generation_plan(generation: int, members: Sequence[Row], known: _Known) -> RunPlan:
    board = [row for record in members if (row := known.rows[record["candidate_id"]]).status != "reference"]
    scored = [row.overall.estimate for row in board if row.overall and row.rank]
    plan = RunPlan(
        key=f"generation/{generation}",
        name=f"gen-{generation:02d}",
        parent_key=None,
        tags={"level": "generation", "generation": str(generation), "protocol": known.evidence.protocol.digest},
        start=min(_milliseconds(record["created_at"]) for record in members),
        end=max(_milliseconds(record["created_at"]) for record in members),
        report=tuple(record["candidate_id"] for record in members),
        depends=_digest([row.to_dict() for row in board]),
    )
    # the step is how many candidates have come to an end, so the newest value is the last one
    failed, stopped = (sum(row.status == status for row in board) for status in ("failed", "stopped"))
    step = len(scored) + failed + stopped
    plan.metrics = [("candidates", len(board), step), ("evaluated", len(scored), step)]
    plan.metrics += [("failed", failed, step), ("stopped", stopped, step)]
    if step < len(board):
        plan.status = "RUNNING"
    if scored:
        plan.metrics.append(("best_overall", max(scored), step))
    return plan


def _candidate_plan(record: Row, known: _Known) -> RunPlan:
    candidate, made = record["candidate_id"], _milliseconds(record["created_at"])
    row, candidates = known.rows[candidate], known.evidence.candidates
    names = [candidates[parent]["name"] if parent in candidates else parent for parent in record["parent_ids"]]
    plan = RunPlan(
        key=f"candidate/{candidate}",
        name=record["name"],
        parent_key=f"generation/{record['generation']}",
        tags={
            "level": "candidate",
            "candidate": candidate,
            "candidate_name": record["name"],
            "parent": ",".join(record["parent_ids"]),
            "parent_name": ", ".join(names),
            "children": ",".join(known.children.get(candidate, ())),
            "generation": str(record["generation"]),
            "protocol": known.evidence.protocol.digest,
            "mechanisms": record["mechanisms"],
            "arm": record["arm"],
            "written_by": record["written_by"],
            "status": row.status,
            "standing": row.state,
        },
        start=made,
        end=made,
        status=_STATUSES[row.status],
        report=(candidate,),
    )
    plan.params = {f"mechanism.{slot}": str(choice) for slot, choice in json.loads(record["mechanisms"]).items()}
    if row.verdict:
        plan.tags["verdict"] = row.verdict
    if examined := known.evidence.examinations.get(candidate):
        plan.tags |= {"examination": conclude(examined).sentence, "examined": conclude(examined).standing}
        plan.texts["examination.md"] = render_examination_page(examined, record["name"])
    if (ablation := conclude_ablation(known.evidence, candidate)) is not None:
        plan.tags["ablation"] = ablation.sentence
        plan.texts["ablation.md"] = render_ablation_page(ablation)
    if row.rung:
        plan.tags["rung"] = f"{row.rung['rung']}, {row.rung['decision']}: {row.rung['message']}"
    if row.overall:
        step = row.overall.seeds  # more seeds later make a later value, not a second one
        named = {"Overall": row.overall.estimate, "Overall_low": row.overall.low, "Overall_high": row.overall.high}
        if row.delta:
            named |= {"delta": row.delta.estimate, "delta_low": row.delta.low, "delta_high": row.delta.high}
        named |= {f"benchmark/{name}": score for name, score in row.benchmarks.items()}
        named |= {"seeds": step, "evaluation/completion_length": row.completion_length or 0.0}
        named["evaluation/format_valid"] = row.format_valid or 0.0
        if row.graded:  # nothing where an older program has scored
            named |= {
                f"evaluation/{outcome}": row.graded.get(outcome, 0) for outcome in ("timed_out", "failed", "cut_off")
            }
        plan.metrics = [(name, value, step) for name, value in named.items()]
    if (spent := known.compute.get(candidate)) is not None:
        step = len(known.evidence.trained_seeds.get(candidate, ()))
        plan.metrics += [("compute/tokens", spent.tokens, step), ("compute/gpu_hours", spent.gpu_hours, step)]
    return plan


def _add_texts(plan: RunPlan, record: Row, known: _Known) -> None:
    candidate = record["candidate_id"]
    reflection, verification = known.reflections.get(candidate), known.verifications.get(candidate)
    failure = known.evidence.last_failures.get(candidate)
    note = [f"**{markdown(record['name'])}** {markdown(record['hypothesis'] or '')}".strip()]
    plan.texts["candidate.py"] = printable(record["source"])  # which changes nothing in one that the gate admits
    if verification:
        plan.texts["verification.json"] = json.dumps(json.loads(verification["report"]), indent=1)
        plan.tags["admitted"] = str(verification["admitted"]).lower()
    if reflection:
        plan.texts["reflection.md"] = markdown_page(reflection["markdown"])
        note.append(markdown(reflection["summary"]))
        plan.end = max(plan.end, _milliseconds(reflection["created_at"]))
    if candidate in known.completions:
        plan.texts["completions.md"] = known.completions[candidate]
    if failure and plan.status == "FAILED":
        plan.tags["failure"] = failure["kind"]
        head = f"{failure['kind']} in {failure['stage']}:"
        plan.texts["failure.txt"] = printable(f"{head} {failure['message']}\n\n{failure['detail']}")
        note.append(f"{head} {markdown(failure['message'])}")
        plan.end = max(plan.end, _milliseconds(failure["created_at"]))
    plan.tags[NOTE_TAG] = "\n\n".join(note)
    if candidate in known.registered:
        plan.texts |= {f"{ALGORITHM_FOLDER}/{name}": plan.texts[name] for name in _REGISTERED if name in plan.texts}


def _seed_plan(parent: RunPlan, record: Row, seed: int, scores: Sequence[Row], trained: bool) -> RunPlan:
    made = max([_milliseconds(score["created_at"]) for score in scores], default=parent.end)
    shared = ("candidate", "candidate_name", "parent", "parent_name", "generation", "protocol", "mechanisms", "arm")
    plan = RunPlan(
        key=f"seed/{record['candidate_id']}/{seed}",
        name=f"{record['name']}/seed-{seed}",
        parent_key=parent.key,
        tags={"level": "seed", "seed": str(seed), **{name: parent.tags[name] for name in shared}},
        start=parent.start,
        end=max(made, parent.start),
        status="FINISHED" if scores else parent.status,
        params=dict(parent.params),
        curves=(record["candidate_id"], seed) if trained else None,
    )
    for score in scores:
        plan.metrics.append((f"benchmark/{score['benchmark']}", score["score"], 0))
    if scores:
        plan.metrics.append(("Overall", scores[0]["overall"], 0))
        if scores[0]["seconds"] is not None:
            plan.metrics.append(("evaluation/seconds", scores[0]["seconds"], 0))
    return plan


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _milliseconds(moment: Any) -> int:
    return round(moment.timestamp() * 1000)
