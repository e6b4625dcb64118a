"""The replication of a champion candidate: trained again with fresh seeds, beside the baseline, and read on the sealed split.

This module is the only reader of a run's ``report`` split (``tests/evolution/test_replication.py`` looks for others; the
calibration of the testbed evaluates known algorithms on it, in a directory of its own, and selects nothing). A candidate is
replicated once: the seeds are written down before anything is trained, the outcome is a row of ``replications``, and a later call
returns that row. So seeds cannot be added until the result is the wanted one.

Fresh seeds are those of the protocol with which nothing of the run was trained or scored for the search. The noise between seeds is
the noise floor of the search, moderated by the fresh seeds' own noise; no other number of the search is used.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from poise_core.archive import evaluation_rows
from poise_core.archive.typed import ReplicationRow
from poise_core.evaluation.job import EvaluationJob
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.format import format_interval
from poise_core.evidence.intervals import paired_delta
from poise_core.evidence.noise import SeedNoise, moderated
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution.events import Event, Observer, announced, ignore
from poise_core.evolution.executor import Executor, default_executor
from poise_core.evolution.records import CandidateRef
from poise_core.evolution.run_context import ComputeSlot, admitted_text
from poise_core.failures import CandidateFailure, InfrastructureError
from poise_core.files import write_atomically
from poise_core.run_directory import RunDirectory
from poise_core.training.job import TrainingJob

LEVEL = 0.95
FEWEST_SEEDS = 2


class ReplicationRefused(ValueError):
    """This candidate cannot be replicated here; one line."""


@dataclass
class Replication:
    """One replication in one run, whose lock is held."""

    run: RunDirectory
    candidate_id: str
    executor: Executor = field(default_factory=default_executor)
    observer: Observer = ignore
    should_stop: Callable[[], bool] = lambda: False
    compute_slot: ComputeSlot = nullcontext

    def __post_init__(self) -> None:
        self.archive, self.protocol = self.run.archive, self.run.preset.protocol

    def carry_out(self, count: int | None = None, *, undeclared: bool = False) -> ReplicationRow:
        """Replicate the candidate, go on with its replication, or read back the outcome.

        Args:
            count: how many fresh seeds; by default all there are.
            undeclared: also replicate a candidate that is no champion candidate; the row says so.

        Returns:
            The row of ``replications``.

        Raises:
            ReplicationRefused: not a champion candidate, or no fresh seeds left.
            InfrastructureError: a process failed, or the baseline did; the same call goes on.
            Cancelled: ``should_stop`` returned true.
        """
        if stored := self._stored():
            return stored
        evidence = RunEvidence.load(self.archive, self.protocol)
        plan = self._plan(evidence, count, undeclared)
        candidates = [self._candidate_ref(plan["baseline"]), self._candidate_ref(self.candidate_id)]
        try:
            for candidate in candidates:
                self._measure(candidate, plan["seeds"])
        except CandidateFailure as failure:
            outcome = {"outcome": "failed", "message": f"{failure.kind} with fresh seeds: {failure.message}"}
        else:
            outcome = self._compare(evidence, plan)
        row = {
            "protocol": self.protocol.digest,
            "candidate_id": self.candidate_id,
            "baseline_id": plan["baseline"],
            "declared": plan["declared"],
            "seeds": plan["seeds"],
            "written_by": "poise",
            **outcome,
        }
        self.archive.append("replications", [row])
        stored = self._stored()
        assert stored is not None  # as it was just written
        return stored

    def _stored(self) -> ReplicationRow | None:
        rows = self.archive.rows("replications", protocol=self.protocol.digest, candidate_id=self.candidate_id)
        return rows[0] if rows else None

    # the plan

    def _plan(self, evidence: RunEvidence, count: int | None, undeclared: bool) -> dict[str, Any]:
        path = self.run.candidate_folder(self.candidate_id) / "replicate" / "plan.json"
        if path.exists():
            plan: dict[str, Any] = json.loads(path.read_text())
            if count is not None and count != len(plan["seeds"]):
                raise ReplicationRefused(
                    f"this replication was begun with seeds {plan['seeds']}; it goes on with them, or not at all"
                )
            return plan
        declared = self._check(evidence, undeclared)
        seeds = self._fresh_seeds(count)
        plan = {"baseline": evidence.baseline, "seeds": list(seeds), "declared": declared}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(plan, indent=1) + "\n")
        return plan

    def _check(self, evidence: RunEvidence, undeclared: bool) -> bool:
        name = self._candidate_ref(self.candidate_id).name
        if evidence.baseline is None or evidence.baseline not in evidence.evaluations:
            raise ReplicationRefused("no baseline has been scored here; 'poise evolve' scores it first")
        if self.candidate_id == evidence.baseline:
            raise ReplicationRefused(f"{name} is the baseline; replicate what was declared better than it")
        if self.candidate_id not in evidence.evaluations:
            raise ReplicationRefused(f"{name} has no score; only a scored candidate can be replicated")
        found = evidence.declarations.get(self.candidate_id)
        if found is not None and found.champion:
            return True
        if not undeclared:
            shown = format_interval(found.delta, signed=True) if found else "none"
            raise ReplicationRefused(
                f"{name} is no champion candidate: its delta after {len(evidence.tried)} tried is {shown}, which does not "
                "exclude zero; --undeclared replicates it all the same, and says so"
            )
        return False

    def _fresh_seeds(self, count: int | None) -> Sequence[int]:
        own = {"protocol": self.protocol.digest}
        parts = [*self.archive.parts("evaluations"), *self.archive.parts("trajectories")]
        used = {int(part["seed"]) for part in parts if part.items() >= own.items() and part.get("split") != "report"}
        fresh = [seed for seed in self.protocol.seeds if seed not in used]
        wanted = len(fresh) if count is None else count
        if wanted < FEWEST_SEEDS or wanted > len(fresh):
            raise ReplicationRefused(
                f"{wanted} fresh seeds are asked for: at least {FEWEST_SEEDS} are needed and {len(fresh)} are left; "
                f"protocol.seeds lists {len(self.protocol.seeds)} and the search has used {sorted(used)}"
            )
        return fresh[:wanted]

    # the measurement

    def _candidate_ref(self, candidate: str) -> CandidateRef:
        (row,) = self.archive.rows("candidates", candidate_id=candidate)
        return CandidateRef.of_row(row)

    def _measure(self, candidate: CandidateRef, seeds: Sequence[int]) -> None:
        """Train with the fresh seeds and score on the sealed split; what is there already is read back."""
        keys = {"protocol": self.protocol.digest, "candidate_id": candidate.candidate_id, "split": "report"}
        if all(self.archive.contains("evaluations", **keys, seed=seed) for seed in seeds):
            return
        home = self.run.candidate_folder(candidate.candidate_id)
        resources = self.run.preset.resources

        def on_step(seed: int, row: dict[str, float]) -> None:
            self.observer(Event("step", "replicate", candidate.name, candidate.generation, seed=seed, row=row))

        with announced(self.observer, "replicate", candidate.name, candidate.generation, self.should_stop) as say:
            digest, fingerprint = admitted_text(self.archive, candidate.candidate_id)
            job = TrainingJob(
                home / "candidate.py",
                candidate.name,
                home / "replicate" / "train",
                self.protocol,
                resources,
                tuple(seeds),
                source_digest=digest,
                fingerprint=fingerprint,
            )
            try:
                with self.compute_slot():
                    trained = self.executor.train(job, on_step=on_step, should_stop=self.should_stop)
            except CandidateFailure as failure:
                if candidate.candidate_id == self.candidate_id:
                    raise
                raise InfrastructureError(f"the baseline {candidate.name} failed: {failure.message}") from failure
            policies = tuple((one.seed, one.policy_folder) for one in trained)
            folder = home / "replicate" / "evaluate"
            scored = EvaluationJob(folder, self.protocol, resources, "report", policies, self.run.secret)
            with self.compute_slot():
                results = self.executor.evaluate(scored, should_stop=self.should_stop)
            for result in results:
                self.archive.append(
                    "evaluations", evaluation_rows(candidate.candidate_id, self.protocol.digest, result)
                )
            say(f"{len(seeds)} fresh seeds")

    def _compare(self, evidence: RunEvidence, plan: dict[str, Any]) -> dict[str, Any]:
        mine, theirs = (self._sealed(name, plan["seeds"]) for name in (self.candidate_id, plan["baseline"]))
        differences = [one.overall - other.overall for one, other in zip(mine, theirs, strict=True)]
        noise = SeedNoise(statistics.variance(differences), len(differences) - 1.0)
        if evidence.noise is not None:
            typical = evidence.noise.typical
            noise = moderated(SeedNoise(2.0 * typical.variance, typical.freedom), noise)
        use = noise if evidence.noise is not None else None
        delta = paired_delta(mine, theirs, self.protocol, LEVEL, use)
        outcome = "replicated" if delta.low > 0 else "refuted"
        limits = format_interval(delta, signed=True)
        meaning = "which excludes zero" if delta.low > 0 else "which does not exclude zero from above"
        declared = "" if plan["declared"] else "; it had not been declared champion candidate"
        return {
            "outcome": outcome,
            "overall": statistics.fmean(one.overall for one in mine),
            "baseline_overall": statistics.fmean(one.overall for one in theirs),
            "delta": delta.estimate,
            "low": delta.low if math.isfinite(delta.low) else None,
            "high": delta.high if math.isfinite(delta.high) else None,
            "message": f"{outcome}: {limits} points to the baseline over {delta.seeds} fresh seeds, {meaning}{declared}",
        }

    def _sealed(self, candidate: str, seeds: Sequence[int]) -> list[SeedEvaluation]:
        found = self.archive.evaluations(
            protocol=self.protocol.digest, candidate_id=candidate, split="report", unsealed=True
        )
        return [one for one in found.get(candidate, []) if one.seed in seeds]
