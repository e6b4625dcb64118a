"""The replication of a champion candidate: trained again with fresh seeds, beside the baseline, and read on the sealed split.

This module is the only reader of a run's ``report`` split (``tests/evolution/test_replication.py`` looks for others; the
calibration of the testbed evaluates known algorithms on it, in a directory of its own, and selects nothing). A candidate is
replicated once: the seeds and the set of sealed problems are written down before anything is trained, the outcome is a row of
``replications``, and a later call returns that row. So seeds cannot be added until the result is the wanted one. It is the primary
condition of the candidate's examination (``poise_core.experiments.examination``), which trains under further conditions
by the methods here.

Fresh seeds are those of the protocol with which nothing of the run was trained or scored, by the search or by an earlier
examination, and after them the integers that follow. Every examination of a run has a number and reads the sealed problems of that
number. The noise between seeds is the noise floor of the search, moderated by the fresh seeds' own noise; no other number of the
search is used.

What is trained here is filed under digests of its own: those of the protocol with the seeds of this examination, and with another
learning rate or policy where a condition has one. Nothing of it is ever ranked with the rows of the run.
"""

from __future__ import annotations

import contextvars
import statistics
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Self, TypeVar

from poise_core.archive import EXAMINED, as_appended, evaluation_rows
from poise_core.archive.typed import ReplicationRow
from poise_core.config.preset import ExaminationSpec
from poise_core.config.protocol import BenchmarkSpec, Protocol
from poise_core.environments import Split
from poise_core.evaluation.job import EvaluationJob
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.examination import LEVEL, PROCEDURAL, Plan, fresh_seeds
from poise_core.evidence.format import format_interval
from poise_core.evidence.intervals import Interval, paired_delta
from poise_core.evidence.noise import SeedNoise, moderated
from poise_core.evidence.promotion import Stability
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution.events import Event, Observer, announced, ignore
from poise_core.evolution.executor import Executor, default_executor
from poise_core.evolution.records import (
    CandidateRef,
    failure_from_dict,
    failure_to_dict,
    load_record,
    write_record,
)
from poise_core.evolution.run_context import ComputeSlot, admitted_text
from poise_core.failures import Cancelled, CandidateFailure, InfrastructureError
from poise_core.policies.locate import PolicyNotFoundError, policy_digest
from poise_core.run_directory import RunDirectory
from poise_core.training.job import TrainingJob

if TYPE_CHECKING:
    from poise_core.evolution import Evolution

FEWEST_SEEDS = 2


def delta_columns(delta: Interval) -> dict[str, float | None]:
    """A difference as the columns of ``replications`` and ``examinations``; an open limit is None."""
    plain = delta.to_dict()
    return {"delta": plain["estimate"], "low": plain["low"], "high": plain["high"]}


Found = TypeVar("Found")


class ReplicationRefused(ValueError):
    """This candidate cannot be replicated here; one line."""


@dataclass(frozen=True)
class Variant:
    """The protocol as one condition trains under it."""

    label: str  # for people, and as the name of its folder; empty for the protocol as it is
    protocol: Protocol
    procedural: tuple[
        BenchmarkSpec, ...
    ] = ()  # asked of the policies of the protocol as it is, in place of its benchmarks

    @property
    def asked(self) -> Protocol:
        """The protocol with the benchmarks that are asked."""
        return self.protocol.model_copy(update={"benchmarks": self.procedural}) if self.procedural else self.protocol

    @property
    def filed(self) -> str:
        """The digest under which its evaluations lie in the archive."""
        return f"{EXAMINED}{self.asked.digest}"


@dataclass
class Remeasurement:
    """What trains for itself beside the search of one run, whose lock is held."""

    run: RunDirectory
    candidate_id: str
    executor: Executor = field(default_factory=default_executor)
    observer: Observer = ignore
    should_stop: Callable[[], bool] = lambda: False
    compute_slot: ComputeSlot = nullcontext

    @classmethod
    def within(cls, evolution: Evolution, candidate_id: str) -> Self:
        """About a candidate of a run whose evolution is open, with its executor, its events and its slots."""
        return cls(
            evolution.run,
            candidate_id,
            executor=evolution.executor,
            observer=evolution.observer,
            should_stop=lambda: evolution.stopped,
            compute_slot=evolution.trials.compute_slot,
        )

    def __post_init__(self) -> None:
        self.archive, self.protocol = self.run.archive, self.run.preset.protocol
        self._halted = threading.Event()

    def _stopping(self) -> bool:
        return self._halted.is_set() or self.should_stop()

    def side_by_side(self, *works: Callable[[], Found]) -> list[Found | CandidateFailure]:
        """Do the work of each side, at the same time where the preset allows as many candidates.

        Returns:
            What each has found, or how its candidate failed.

        Raises:
            BaseException: what a side raised that is nobody's failure; the others are stopped first.
        """

        def guarded(work: Callable[[], Found]) -> Found | CandidateFailure:
            try:
                return work()
            except CandidateFailure as failure:
                return failure
            except BaseException:
                self._halted.set()
                raise

        self._halted.clear()
        workers = min(len(works), self.run.preset.resources.parallel_candidates)
        if workers == 1:
            return [guarded(work) for work in works]
        with ThreadPoolExecutor(workers, "examination") as pool:
            # a copy of the context for each: what logs progress looks there for whose it is
            futures = [pool.submit(contextvars.copy_context().run, guarded, work) for work in works]
            try:
                wait(futures)
            except BaseException:  # Ctrl-C reaches this thread alone
                self._halted.set()
                raise
        errors = [error for one in futures if (error := one.exception()) is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, Cancelled)), errors[0])
        return [one.result() for one in futures]

    def candidate_ref(self, candidate: str | None = None) -> CandidateRef:
        """The candidate of this id; by default the one that this is about."""
        (row,) = self.archive.rows("candidates", candidate_id=candidate or self.candidate_id)
        return CandidateRef.of_row(row)


@dataclass
class Replication(Remeasurement):
    """One replication in one run, whose lock is held."""

    def carry_out(self, count: int | None = None, *, undeclared: bool = False) -> ReplicationRow:
        """Replicate the candidate, go on with its replication, or read back the outcome.

        Args:
            count: how many fresh seeds; by default ``examination.seeds`` of the preset.
            undeclared: also replicate a candidate that is no champion candidate; the row says so.

        Returns:
            The row of ``replications``.

        Raises:
            ReplicationRefused: not a champion candidate, or too few seeds.
            InfrastructureError: a process failed, or the baseline did; the same call goes on.
            Cancelled: ``should_stop`` returned true.
        """
        return self.stored() or self.replicate(self.begin(count, undeclared=undeclared))

    def stored(self) -> ReplicationRow | None:
        """The outcome, where there is one already."""
        rows = self.archive.rows("replications", protocol=self.protocol.digest, candidate_id=self.candidate_id)
        return rows[0] if rows else None

    def replicate(self, plan: Plan) -> ReplicationRow:
        """Train and score both sides under the protocol as it is, and file what follows; see ``carry_out``."""
        as_it_is = self.variant(plan)
        base, me = self.candidate_ref(plan.baseline), self.candidate_ref()
        theirs, mine = self.side_by_side(
            lambda: self.sealed(base, plan, as_it_is), lambda: self.sealed(me, plan, as_it_is)
        )
        if isinstance(theirs, CandidateFailure):
            self._failure_file(base, as_it_is, plan.seeds).unlink(
                missing_ok=True
            )  # without it there is nothing: try again
            raise InfrastructureError(f"the baseline {base.name} failed: {theirs.message}") from theirs
        if isinstance(mine, CandidateFailure):
            outcome = {"outcome": "failed", "message": f"{mine.kind} with fresh seeds: {mine.message}"}
        else:
            outcome = self._compare(plan, mine, theirs)
        row = {
            "protocol": self.protocol.digest,
            "candidate_id": self.candidate_id,
            "baseline_id": plan.baseline,
            "declared": plan.declared,
            "seeds": list(plan.seeds),
            "written_by": "poise",
            **outcome,
        }
        self.archive.append("replications", [row])
        stored = self.stored()
        assert stored is not None  # as it was just written
        return stored

    def share_baseline(self, plan: Plan, other: Replication) -> bool:
        """Take the baseline's sealed scores from another run's replication that has settled on the same seeds and problems.

        Returns:
            Whether they are here now.
        """
        if not other.has_plan() or other.run.secret != self.run.secret:
            return False
        settled = other.begin()
        same = (settled.baseline, settled.seeds, settled.sealed_set) == (plan.baseline, plan.seeds, plan.sealed_set)
        filed = self.variant(plan).filed
        if not same or other.variant(settled).filed != filed:
            return False
        rows = other.archive.rows(
            "evaluations", protocol=filed, candidate_id=plan.baseline, split="report", unsealed=True
        )
        if rows:
            self.archive.append("evaluations", [as_appended(row) for row in rows])
        return bool(rows)

    # the plan

    def begin(self, count: int | None = None, *, undeclared: bool = False) -> Plan:
        """Settle seeds and sealed problems, or read back what was settled when this was begun; see ``carry_out``."""
        path = self._plan_file(self.candidate_id)
        if (stored := load_record(path)) is not None:
            plan = Plan.from_dict(stored)
            if count is not None and count != len(plan.seeds):
                raise ReplicationRefused(
                    f"this replication was begun with seeds {list(plan.seeds)}; it goes on with them, or not at all"
                )
            return plan
        evidence = self.run.evidence()
        declared = self._check(evidence, undeclared)
        settings = self.run.preset.examination
        count = settings.seeds if count is None else count
        if count < FEWEST_SEEDS:
            raise ReplicationRefused(f"{count} fresh seeds are asked for: at least {FEWEST_SEEDS} are needed")
        used, sealed_sets = self._used()
        choices = settings.choice_seeds if settings.rates else 0
        seeds = fresh_seeds(self.protocol.seeds, used, count + choices)
        plan = Plan(
            baseline=evidence.baseline or "",
            declared=declared,
            seeds=seeds[:count],
            settings=settings,
            choice_seeds=seeds[count:],
            sealed_set=max(sealed_sets) + 1,
            policies={name: self._policy_digest(name) for name in settings.policies if name != self.protocol.policy},
        )
        write_record(path, plan.to_dict())
        return plan

    def _plan_file(self, candidate: str) -> Path:
        return self.run.candidate_folder(candidate) / "replicate" / "plan.json"

    def settings(self) -> ExaminationSpec:
        """With which the candidate's examination was begun; those of the preset where it was not."""
        stored = load_record(self._plan_file(self.candidate_id))
        return self.run.preset.examination if stored is None else Plan.from_dict(stored).settings

    def has_plan(self) -> bool:
        """Whether the candidate's examination was begun by a version of the program that plans one."""
        return "settings" in (load_record(self._plan_file(self.candidate_id)) or {})

    def _check(self, evidence: RunEvidence, undeclared: bool) -> bool:
        name = self.candidate_ref().name
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
                f"{name} is no champion candidate: its delta after {evidence.counted()} is {shown}, which does not "
                "exclude zero; --undeclared replicates it all the same, and says so"
            )
        return False

    def _used(self) -> tuple[set[int], set[int]]:
        """Seeds with which anything of this run was trained or scored, and sets of sealed problems that were given out."""
        own = self.protocol.digest
        parts = [*self.archive.parts("evaluations"), *self.archive.parts("trajectories")]
        seeds = {int(part["seed"]) for part in parts if part["protocol"] == own}
        replications = self.archive.rows("replications", protocol=own)
        for replicated in replications:
            seeds.update(replicated["seeds"])
        # where plans are lost with their folders, the count stands for them, since every replication was given a set of its own
        sets = {len(replications)}
        for row in self.archive.rows("examinations", protocol=own):
            seeds.update(row["seeds"], row["choice_seeds"])
            sets.add(row["sealed_set"])
        candidates = self.run.candidate_folder(self.candidate_id).parent
        for path in candidates.glob("*/replicate/plan.json"):  # of examinations that have not come to an answer, too
            plan = Plan.from_dict(load_record(path))
            seeds.update(plan.seeds, plan.choice_seeds)
            sets.add(plan.sealed_set)
        return seeds, sets

    def _policy_digest(self, name: str) -> str:
        try:
            return policy_digest(name)
        except PolicyNotFoundError as error:
            raise ReplicationRefused(f"examination.policies: {error}") from error

    # the measurement

    def variant(self, plan: Plan, *, rate: float = 1.0, policy: str = "", procedural: bool = False) -> Variant:
        """The protocol with this factor on its learning rate, or on this base policy, and with the plan's seeds; or its trained
        policies on the plan's procedural problems.

        Raises:
            ReplicationRefused: the policy is not the one with which the examination was begun.
        """
        changes: dict[str, Any] = {"seeds": plan.seeds + plan.choice_seeds}
        labels = []
        if rate != 1.0:
            learning_rate = self.protocol.training.learning_rate * rate
            changes["training"] = self.protocol.training.model_copy(update={"learning_rate": learning_rate})
            labels.append(f"rate-x{rate:.6g}")
        if policy:
            if self._policy_digest(policy) != plan.policies[policy]:
                raise ReplicationRefused(f"policy {policy} has changed since this examination began; restore it")
            changes |= {"policy": policy, "policy_digest": plan.policies[policy]}
            labels.append(f"policy-{PurePath(policy).name}")
        asked = plan.settings.procedural if procedural else ()
        labels += [PROCEDURAL] if asked else []
        return Variant(",".join(labels), self.protocol.model_copy(update=changes), asked)

    def sealed(self, candidate: CandidateRef, plan: Plan, variant: Variant) -> list[SeedEvaluation]:
        """Train with the seeds of the comparison and score on this examination's sealed problems; done before, read back.

        Raises:
            CandidateFailure: a training failed; it is not tried again.
            InfrastructureError: a process failed; the same call goes on.
            Cancelled: ``should_stop`` returned true.
        """
        return self._measure(candidate, variant, plan.seeds, "report", plan.sealed_set)

    def chosen(self, candidate: CandidateRef, plan: Plan, variant: Variant) -> list[SeedEvaluation]:
        """The same with the seeds of the choice, on the search split."""
        return self._measure(candidate, variant, plan.choice_seeds, "search", 0)

    def to_train(self, candidate: CandidateRef, plan: Plan, variant: Variant, *, choice: bool = False) -> int:
        """How many trainings ``sealed``, or ``chosen``, would still have to see to their end."""
        seeds, split = (plan.choice_seeds, "search") if choice else (plan.seeds, "report")
        if self._failure_file(candidate, variant, seeds).exists():
            return 0
        return sum(not self._scored(candidate, variant, split, seed) for seed in seeds)

    def _scored(self, candidate: CandidateRef, variant: Variant, split: str, seed: int) -> bool:
        keys = {"protocol": variant.filed, "candidate_id": candidate.candidate_id, "split": split, "seed": seed}
        return self.archive.contains("evaluations", **keys)

    def _home(self, candidate: CandidateRef, variant: Variant, *, trained: bool = False) -> Path:
        label = (
            "" if trained and variant.procedural else variant.label
        )  # whose trainings are those of the primary condition
        return self.run.candidate_folder(candidate.candidate_id) / "replicate" / label

    def _failure_file(self, candidate: CandidateRef, variant: Variant, seeds: Sequence[int]) -> Path:
        return self._home(candidate, variant) / f"failure-of-seed-{seeds[0]}.json"

    def _measure(
        self, candidate: CandidateRef, variant: Variant, seeds: Sequence[int], split: Split, sealed_set: int
    ) -> list[SeedEvaluation]:
        record = self._failure_file(candidate, variant, seeds)
        if (failed := load_record(record)) is not None:
            raise failure_from_dict(failed)
        if not all(self._scored(candidate, variant, split, seed) for seed in seeds):
            try:
                self._train_and_score(candidate, variant, seeds, split, sealed_set)
            except CandidateFailure as failure:
                write_record(record, failure_to_dict(failure))
                raise
        found = self.archive.evaluations(
            protocol=variant.filed, candidate_id=candidate.candidate_id, split=split, unsealed=True
        )
        return [one for one in found[candidate.candidate_id] if one.seed in seeds]

    def _train_and_score(
        self, candidate: CandidateRef, variant: Variant, seeds: Sequence[int], split: Split, sealed_set: int
    ) -> None:
        home, resources = self._home(candidate, variant), self.run.preset.resources
        subject = f"{candidate.name} {variant.label}".strip()

        def on_step(seed: int, row: dict[str, float]) -> None:
            self.observer(Event("step", "replicate", subject, candidate.generation, seed=seed, row=row))

        with announced(self.observer, "replicate", subject, candidate.generation, self._stopping) as say:
            digest, fingerprint = admitted_text(self.archive, candidate.candidate_id)
            job = TrainingJob(
                self.run.candidate_folder(candidate.candidate_id) / "candidate.py",
                candidate.name,
                self._home(candidate, variant, trained=True) / "train",
                variant.protocol,
                resources,
                tuple(seeds),
                source_digest=digest,
                fingerprint=fingerprint,
            )
            with self.compute_slot():
                trained = self.executor.train(job, on_step=on_step, should_stop=self._stopping)
            policies = tuple((one.seed, one.policy_folder) for one in trained)
            folder = home / f"evaluate-set-{sealed_set}"
            scored = EvaluationJob(
                folder, variant.asked, resources, split, policies, self.run.secret, examination=sealed_set
            )
            with self.compute_slot():
                results = self.executor.evaluate(scored, should_stop=self._stopping)
            for result in results:
                self.archive.append("evaluations", evaluation_rows(candidate.candidate_id, variant.filed, result))
            say(f"{len(seeds)} fresh seeds")

    def _compare(self, plan: Plan, mine: Sequence[SeedEvaluation], theirs: Sequence[SeedEvaluation]) -> dict[str, Any]:
        delta = paired_delta(mine, theirs, self.protocol, LEVEL, self.primary_noise(mine, theirs))
        outcome = "replicated" if delta.low > 0 else "refuted"
        limits = format_interval(delta, signed=True)
        meaning = "which excludes zero" if delta.low > 0 else "which does not exclude zero from above"
        stable = Stability.of(mine)
        steady = f"; {stable.sentence()}" if stable else ""
        declared = "" if plan.declared else "; it had not been declared champion candidate"
        return {
            "outcome": outcome,
            "overall": statistics.fmean(one.overall for one in mine),
            "baseline_overall": statistics.fmean(one.overall for one in theirs),
            **delta_columns(delta),
            "message": f"{outcome}: {limits} points to the baseline over {delta.seeds} fresh seeds, {meaning}{steady}{declared}",
        }

    def primary_noise(self, mine: Sequence[SeedEvaluation], theirs: Sequence[SeedEvaluation]) -> SeedNoise | None:
        """Noise of the difference between seeds: the fresh seeds' own, drawn towards the search's noise floor, if it has one."""
        floor = self.run.evidence().noise
        if floor is None:
            return None
        differences = [one.overall - other.overall for one, other in zip(mine, theirs, strict=True)]
        own = SeedNoise(statistics.variance(differences), len(differences) - 1.0)
        return moderated(SeedNoise(2.0 * floor.typical.variance, floor.typical.freedom), own)
