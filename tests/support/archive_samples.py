"""A small made-up evolution, for tests of the archive, the views and the tracking: known numbers, no training."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from poise_core.archive import (
    Archive,
    candidate_row,
    evaluation_rows,
    failure_row,
    proposal_row,
    reflection_row,
    selection_row,
    trajectory_rows,
    verification_row,
)
from poise_core.config import Preset
from poise_core.config.protocol import BenchmarkSpec, EnvironmentSpec, Protocol, TrainingSpec
from poise_core.evaluation.results import BenchmarkResult, SeedEvaluation
from poise_core.evaluation.scoring import benchmark_score, overall
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.tracking.runs import KEY_TAG
from poise_core.tracking.sync import Tracker
from poise_core.views.explorer import line_changes

SEEDS = (0, 1, 2)
GRPO, AV, VM_AV, SA, BROKEN, WAITING = (
    "grpo-0000000000",
    "av-1111111111",
    "vm-av-2222222222",
    "sa-3333333333",
    "hot-4444444444",
    "late-5555555555",
)
SOURCE = '"""{name}: a made-up candidate."""\n\nLOSS_AGGREGATION = "token-mean"\nMECHANISMS = {{}}\n\n\ndef f(x):\n    return x\n'


def make_protocol(steps: int = 20) -> Protocol:
    def spec(name: str, weight: float, k: int) -> BenchmarkSpec:
        kind = {"metric": "pass", "k": k, "samples": 16} if k > 1 else {"metric": "accuracy"}
        return BenchmarkSpec(name=name, kinds=("add",), problems=200, weight=weight, **kind)

    return Protocol(
        policy="tiny",
        policy_digest="f00d",
        environment=EnvironmentSpec(name="arithmetic", mixture={"add": 1.0}),
        training=TrainingSpec(
            steps=steps, prompts_per_step=8, group_size=4, learning_rate=1e-4, max_completion_length=32
        ),
        benchmarks=(spec("chain", 0.4, 8), spec("mod", 0.3, 4), spec("add", 0.3, 1)),
        seeds=SEEDS,
    )


def make_preset(steps: int = 20, **search: object) -> Preset:
    return Preset.model_validate(
        {"name": "made-up", "protocol": make_protocol(steps).model_dump(), "search": search or {"generations": 2}}
    )


def make_evaluation(protocol: Protocol, skill: float, seed: int, split: str = "search") -> SeedEvaluation:
    """One seed's evaluation; ``skill`` is the chance of a right answer on a problem of middling difficulty."""
    problems_rng = np.random.default_rng(7 if split == "search" else 8)
    rng = np.random.default_rng([seed, round(skill * 1000)])
    results = []
    for spec in protocol.benchmarks:
        ease = problems_rng.normal(0.0, 1.0, spec.problems)
        rate = 1 / (1 + np.exp(-(math.log(skill / (1 - skill)) + ease + rng.normal(0, 0.05))))
        scale = 0.15 if spec.metric == "pass" else 1.0
        correct = tuple(int(c) for c in rng.binomial(spec.samples, rate * scale))
        score = benchmark_score(correct, spec.samples, spec.k)
        results.append(
            BenchmarkResult(spec.name, spec.metric_name, score, correct, spec.samples, 0.9 + skill / 20, 18.5)
        )
    return SeedEvaluation(seed, split, overall(results, protocol), tuple(results), 3.25)


def make_steps(steps: int, seed: int, *, collapse: bool = False) -> list[dict[str, float]]:
    rng = np.random.default_rng([seed, steps])
    rows = []
    for step in range(steps):
        progress = step / max(steps - 1, 1)
        rows.append(
            {
                "step": step,
                "reward_mean": 0.3 + 0.4 * (1 - progress if collapse else progress) + rng.normal(0, 0.02),
                "format_valid": 0.7 + 0.25 * progress,
                "completion_length": 20.0 - 5 * progress,
                "entropy": math.nan if collapse and step == steps - 1 else 1.2 - progress,
                "kl": 0.02 * step,
                "clip_fraction": 0.05,
                "grad_norm": math.inf if collapse and step == steps - 1 else 1.0,
                "tokens": 1000,
                "seconds_update": 0.4,
                "candidate/sigma": 0.3,
            }
        )
    return rows


def add_candidate(
    archive: Archive,
    protocol: Protocol,
    candidate_id: str,
    name: str,
    generation: int,
    parents: tuple[str, ...] = (),
    skill: float | None = None,
    *,
    collapse: bool = False,
    writer: str = "catalogue",
) -> None:
    """All rows of one candidate; without ``skill`` it is admitted but was never evaluated."""
    archive.append(
        "candidates",
        [
            candidate_row(
                candidate_id=candidate_id,
                name=name,
                source=SOURCE.format(name=name),
                source_digest=candidate_id[-10:],
                written_by=writer,
                generation=generation,
                parent_ids=parents,
                mechanisms={"scale": "std" if generation == 0 else "analytic", "level": "token"},
                hypothesis=f"{name} keeps the scale of advantages steady." if parents else None,
                change=f"scale: std -> {name.lower()}" if parents else None,
            )
        ],
    )
    report = '{"checks": [{"name": "signature", "passed": true, "message": "both functions are there"}]}'
    archive.append(
        "verifications",
        [verification_row(candidate_id=candidate_id, admitted=True, report=report, fingerprint="ab", seconds=0.2)],
    )
    if skill is None:
        return
    for seed in SEEDS:
        steps = make_steps(protocol.training.steps, seed, collapse=collapse)
        archive.append("trajectories", trajectory_rows(candidate_id, protocol.digest, seed, steps))
        archive.append(
            "evaluations", evaluation_rows(candidate_id, protocol.digest, make_evaluation(protocol, skill, seed))
        )
    archive.append(
        "reflections",
        [
            reflection_row(
                candidate_id=candidate_id,
                protocol=protocol.digest,
                parent_id=parents[0] if parents else None,
                summary=f"{name} rose from 0.30 to 0.70 in reward.",
                markdown=f"{name} rose from 0.30 to 0.70 in reward.\n\n## Evidence\n- KL ended at 0.38 nats.\n",
                content={"candidate_id": candidate_id, "reflector": "rules", "claims": []},
                written_by="rules",
            )
        ],
    )


def rung(protocol: Protocol, candidate_id: str, name: str, decision: str, cause: str | None = None) -> dict:
    """A row of ``rungs``."""
    return {
        "protocol": protocol.digest,
        "candidate_id": candidate_id,
        "rung": name,
        "generation": 1,
        "seeds": [0],
        "steps": 10,
        "tokens": 10_000,
        "decision": decision,
        "cause": cause,
        "message": "made up",
        "written_by": "poise",
    }


def replication(protocol: Protocol, candidate_id: str, outcome: str, *, declared: bool = True) -> dict:
    """A row of ``replications``."""
    return {
        "protocol": protocol.digest,
        "candidate_id": candidate_id,
        "baseline_id": GRPO,
        "declared": declared,
        "seeds": [3, 4],
        "outcome": outcome,
        "overall": 50.0,
        "baseline_overall": 45.0,
        "delta": 5.0,
        "low": 1.0 if outcome == "replicated" else -1.0,
        "high": 9.0,
        "message": f"{outcome}: +5.0 points to the baseline over 2 fresh seeds",
        "written_by": "poise",
    }


def fill(archive: Archive, protocol: Protocol) -> Archive:
    """GRPO with four children in two generations: two better, one collapsed, one rejected; and one not finished."""
    add_candidate(archive, protocol, GRPO, "GRPO", 0, (), 0.45, writer="human")
    archive.append(
        "selections",
        [
            selection_row(
                protocol=protocol.digest,
                generation=1,
                candidate_id=GRPO,
                terms={"score": 0.5, "exploration": 0.7},
                total=1.2,
                slots=[0, 1],
                reason="GRPO is the only node.",
            )
        ],
    )
    idea = {"name": "AV", "parent_ids": [GRPO], "hypothesis": "steadier scale", "mechanism_change": "scale: std -> av"}
    archive.append(
        "proposals",
        [
            proposal_row(idea, generation=1, slot=0, index=0, written_by="catalogue", taken=True, rank=0, score=0.9),
            proposal_row(
                {**idea, "name": "AW"}, generation=1, slot=0, index=1, written_by="catalogue", taken=False, rank=1,
                score=0.2, terms={"novelty": 0.2}, feasible=True, reasons=["close to AV"],
            ),
        ],
    )  # fmt: skip
    add_candidate(archive, protocol, AV, "AV", 1, (GRPO,), 0.55)
    add_candidate(archive, protocol, SA, "SA", 1, (GRPO,), 0.25, collapse=True)
    add_candidate(archive, protocol, VM_AV, "VM-AV", 2, (AV, SA), 0.65, writer="llm")
    add_candidate(archive, protocol, BROKEN, "HOT", 2, (AV,))
    failure = CandidateFailure(FailureKind.DIVERGED, "train", "the loss is NaN at step 7", "Traceback ...")
    archive.append(
        "failures",
        [failure_row(failure, candidate_id=BROKEN, protocol=protocol.digest, name="HOT", generation=2, parent_id=AV)],
    )
    add_candidate(archive, protocol, WAITING, "LATE", 2, (GRPO,))
    return archive


def filled_archive(folder: Path) -> tuple[Archive, Protocol]:
    protocol = make_protocol()
    return fill(Archive(folder / "archive").initialise(), protocol), protocol


def tracker_on(empty_store: Path, folder: Path) -> Tracker:
    """A tracker with an MLflow of its own, whose database is a copy of this one."""
    shutil.copy(empty_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return Tracker(uri, "poise/made-up/x", artifact_folder=folder / "mlartifacts", retry_seconds=60.0)


def runs(tracker: Tracker) -> dict:
    client = mlflow.MlflowClient(tracker.uri)
    experiment = client.get_experiment_by_name(tracker.experiment)
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    keys = [run.data.tags[KEY_TAG] for run in found]
    assert len(set(keys)) == len(keys), "a run exists twice"
    return dict(zip(keys, found, strict=True))


def points(tracker: Tracker, run_id: str, metric: str) -> list[tuple[int, float]]:
    history = mlflow.MlflowClient(tracker.uri).get_metric_history(run_id, metric)
    return [(point.step, point.value) for point in history]


def artifact(tracker: Tracker, run_id: str, name: str) -> str:
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, tracking_uri=tracker.uri)
    return Path(path).read_text(encoding="utf-8")


# ---- a page of many candidates


def many_candidates(
    few: Sequence[dict[str, Any]], known: Sequence[dict[str, Any]], count: int, seed: int = 0
) -> tuple[list[dict[str, Any]], Iterator[dict[str, Any]]]:
    """Records and details for the page of a run of ``count``, each drawn from one of a few real ones with other numbers in it.

    Every number of a text, a curve and a score is drawn anew, so that the candidates compress no better than real ones of as many
    kinds of algorithm do. Candidates have eight siblings to a generation, and parents among all before.

    Args:
        few: ``candidates`` of a real run's ``overview``.
        known: their ``details``.
        count: candidates to make.
    """
    rng = np.random.default_rng(seed)
    kinds = [i if i < len(few) else int(rng.integers(1, len(few))) for i in range(count)]
    parents = [int(rng.integers(0, i)) if i else 0 for i in range(count)]
    changes: dict[tuple[int, int], list[list[int]]] = {}

    def noisy(value: Any) -> Any:
        return round(float(value) * float(rng.normal(1.0, 0.05)), 4) if isinstance(value, float) else value

    def record(i: int) -> dict[str, Any]:
        own = few[kinds[i]]
        limits = {name: [noisy(one) for one in own[name]] if own[name] else None for name in ("overall", "delta")}
        return {
            **own,
            **limits,
            **{"id": f"c-{i:05d}-{i * 7919 % 2**32:08x}", "name": f"{own['name']}-{i}", "generation": (i + 7) // 8},
            **{"x": (i + 7) // 8, "y": float(i % 8 + rng.uniform(0, 4)), "parents": [parents[i]] if i else []},
            "metrics": {name: noisy(value) for name, value in own["metrics"].items()},
            "tokens": int(noisy(float(own["tokens"]))),
            "change": _renumbered(own["change"] or "", rng),
        }

    records = [record(i) for i in range(count)]

    def detail(i: int) -> dict[str, Any]:
        own, above = known[kinds[i]], known[kinds[parents[i]]]
        if not own:
            return {}
        text = json.loads(
            _renumbered(json.dumps({name: own[name] for name in own if name not in ("curves", "changed")}), rng)
        )
        drawn = {
            metric: {"step": curve["step"][::2]}
            | {
                part: (np.array(curve[part][::2]) * rng.normal(1.0, 0.05, len(curve[part][::2]))).round(3).tolist()
                for part in ("mean", "low", "high")
            }
            for metric, curve in own["curves"].items()
        }
        pair = (kinds[parents[i]], kinds[i])
        if pair not in changes and above:
            changes[pair] = line_changes(above["source"], own["source"])
        changed = {"from": records[parents[i]]["id"], "lines": changes[pair]} if i and above else None
        return {**text, "changed": changed, "curves": drawn}

    return records, map(detail, range(count))


def _renumbered(text: str, rng: np.random.Generator) -> str:
    """The text with other last digits in all its decimal fractions."""
    return re.sub(
        r"(?<=\.)\d+", lambda found: f"{rng.integers(1, 10 ** min(len(found[0]), 5))}".zfill(len(found[0])), text
    )
