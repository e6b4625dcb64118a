"""Measuring one candidate: verification, training, evaluation, each recorded in the archive when it has finished.

Every method may be called again at any time, in this process or a later one: what is recorded is read back, what was
interrupted goes on where its files stand. A failure of the candidate is recorded once and raised again from the record.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise_core.archive import (
    UNTRAINED_ARM,
    Archive,
    candidate_row,
    evaluation_rows,
    failure_row,
    trajectory_rows,
    verification_row,
)
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evolution.events import Event, Observer, announced, ignore
from poise_core.evolution.health import CertainLoss, HealthWatch
from poise_core.evolution.records import failure_from_dict
from poise_core.failures import Cancelled, CandidateFailure, FailureKind, InfrastructureError
from poise_core.files import write_atomically
from poise_core.run_directory import RunDirectory, candidate_id
from poise_core.verification import VerificationReport, verify_file

UNTRAINED = "base policy"
"""Name of the row that holds the scores of the policy before any training."""

LOCK_POLL_SECONDS = 0.5

ComputeSlot = Callable[[], AbstractContextManager[None]]
"""Makes a context manager that holds a share of the machine for as long as it is open."""

MANUAL_ARM = "manual"
"""Of candidates that a person has brought."""

_STAGES = ("verify", "train", "evaluate")
"""In order: a candidate that has failed in one does not enter those after it."""


@dataclass(frozen=True)
class Subject:
    """A candidate on its way through the stages."""

    candidate_id: str
    name: str
    generation: int = 0
    parent_id: str | None = None

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Subject:
        """The candidate of a row of ``candidates``."""
        return cls(row["candidate_id"], row["name"], row["generation"], next(iter(row["parent_ids"]), None))

    @property
    def label(self) -> str:
        """For people: ``gen-03/VM-AV``."""
        return f"gen-{self.generation:02d}/{self.name}"


def admitted_digest(archive: Archive, candidate_id: str) -> str | None:
    """Digest of the text that the gate admitted; of the registered one where the gate was not asked, as for a baseline."""
    for row in archive.rows("verifications", candidate_id=candidate_id, admitted=True):
        return VerificationReport.from_json(row["report"]).source_digest
    for row in archive.rows("candidates", candidate_id=candidate_id):
        return str(row["source_digest"])
    return None


class Trials:
    """Verifies, trains and evaluates candidates of one run under its protocol."""

    def __init__(
        self,
        run: RunDirectory,
        *,
        observer: Observer = ignore,
        should_stop: Callable[[], bool] = lambda: False,
        compute_slot: ComputeSlot = nullcontext,
    ) -> None:
        """Bind to a run.

        Args:
            run: opened.
            observer: told what happens.
            should_stop: polled; ends what runs.
            compute_slot: held while a training or an evaluation runs; may wait for its turn.
        """
        self.run = run
        self.archive = run.archive
        self.protocol = run.preset.protocol
        self.resources = run.preset.resources
        self.observer = observer
        self.should_stop = should_stop
        self.compute_slot = compute_slot

    def register(self, name: str, source: str, *, written_by: str, **columns: Any) -> Subject:
        """Give a source its place in the run: its file, and its row in ``candidates``.

        Args:
            name: of the candidate.
            source: text of the candidate file.
            written_by: ``catalogue``, ``llm`` or ``human``.
            **columns: further columns of :func:`poise_core.archive.candidate_row`.

        Raises:
            CandidateFailure: another proposal of this run has led to the very same file (DUPLICATE).
        """
        from poise_core.candidate.loading import source_digest

        identity = candidate_id(name, source)
        stored = self.archive.rows("candidates", candidate_id=identity)
        if stored and stored[0]["proposal_id"] != columns.get("proposal_id"):
            raise CandidateFailure(
                FailureKind.DUPLICATE, "implement", f"the same file as {stored[0]['name']} ({identity})"
            )
        path = self.run.candidate_folder(identity) / "candidate.py"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, source)
        if not stored:
            row = candidate_row(
                candidate_id=identity,
                name=name,
                source=source,
                source_digest=source_digest(source),
                written_by=written_by,
                **columns,
            )
            self.archive.append("candidates", [row])
        parents = columns.get("parent_ids") or [None]
        return Subject(identity, name, columns.get("generation", 0), parents[0])

    def adopt(self, file: Path) -> Subject:
        """The candidate of this run with the text of a file, or a new one by a human hand.

        Raises:
            OSError: the file cannot be read.
        """
        from poise_core.candidate.loading import source_digest

        source = file.read_text(errors="replace")
        for row in self.archive.rows("candidates", source_digest=source_digest(source)):
            return Subject.of_row(row)
        return self.register(file.stem, source, written_by="human", arm=MANUAL_ARM)

    def verify(self, subject: Subject, *, must_be_new: bool = True, unseen: Collection[str] = frozenset()) -> None:
        """Admit the candidate or refuse it.

        Args:
            subject: registered.
            must_be_new: refuse what behaves exactly like an admitted candidate of this run.
            unseen: admitted candidates that it is not compared with.

        Raises:
            CandidateFailure: refused; recorded, with the gate's sentence.
            InfrastructureError: the gate could not run.
            Cancelled: ``should_stop`` said so.
        """
        with self.stage(subject, "verify") as done:
            report = self._stored_report(subject)
            if report is None:
                folder = self.run.candidate_folder(subject.candidate_id)
                report = verify_file(
                    folder / "candidate.py",
                    name=subject.name,
                    timeout_seconds=self.resources.verify_timeout_seconds,
                    known_fingerprints=self._fingerprints(subject, unseen) if must_be_new else {},
                    folder=folder,
                    should_stop=self.should_stop,
                )
                self._require_registered(subject, report.source_digest)
                known = f", trains exactly as {report.duplicate_of}" if report.duplicate_of else ""
                done(f"admitted after {len(report.checks)} checks{known}" if report.admitted else "refused")
            row = verification_row(
                candidate_id=subject.candidate_id,
                admitted=report.admitted,
                report=report.to_json(),
                fingerprint=report.fingerprint or None,
                seconds=report.seconds,
            )
            self.archive.append("verifications", [row])
            if not report.admitted:
                kind = report.failure or FailureKind.REJECTED
                raise CandidateFailure(kind, "verify", report.message, report.to_json())

    def train(
        self,
        subject: Subject,
        seeds: Sequence[int],
        *,
        pause_after: int | None = None,
        watch: HealthWatch | None = None,
    ) -> str | None:
        """Train the candidate with every seed; the trajectories of finished seeds go to the archive.

        Args:
            subject: admitted.
            seeds: training seeds.
            pause_after: stop every seed at a checkpoint after so many steps; a later call goes on from there.
            watch: ends the training early, as a failure or as a certain loss.

        Returns:
            What made the loss to the parent certain; None where nothing did.

        Raises:
            CandidateFailure: it crashed, diverged, took too long or broke a rule of ``watch``; recorded.
            InfrastructureError: something else ended the training.
            Cancelled: ``should_stop`` said so.
        """
        try:
            with self.stage(subject, "train") as done:
                try:
                    if all(self._contains("trajectories", subject, seed=seed) for seed in seeds):
                        self._judge_again(subject, seeds, watch)
                        return None
                    done(self._train(subject, seeds, pause_after, watch))
                except CertainLoss as loss:
                    self._keep_unfinished(subject, seeds, watch)
                    done(f"stopped: {loss}")
                    return str(loss)
        except CandidateFailure:
            self._keep_unfinished(subject, seeds, watch)
            raise
        return None

    def _train(self, subject: Subject, seeds: Sequence[int], pause_after: int | None, watch: HealthWatch | None) -> str:
        from poise_core.evidence.intervals import counted_seeds
        from poise_core.training.launcher import train_candidate

        started = time.monotonic()

        def on_step(seed: int, row: dict[str, float]) -> None:
            self.observer(Event("step", "train", subject.name, subject.generation, seed=seed, row=row))
            if watch is not None:
                watch.observe(seed, row)

        job = self._job(subject, seeds, pause_after)
        with self._alone(subject):
            trained = train_candidate(job, on_step=on_step, should_stop=self.should_stop)
        for one in trained:
            steps = one.trajectory()
            if watch is not None:
                watch.observe_all(one.seed, steps)  # what had finished before this process was not followed
            # one that was stopped and is trained further by hand keeps the steps that it was stopped at
            if pause_after is None and not self._contains("trajectories", subject, seed=one.seed):
                self._append_trajectory(subject, one.seed, steps, one.confinement)
        length = f"{pause_after} steps" if pause_after else counted_seeds(len(seeds))
        return f"{length} in {time.monotonic() - started:.0f} s"

    def unfinished_trajectory(self, subject: Subject, seed: int) -> tuple[list[dict[str, float]], dict[str, str]]:
        """The steps that a training which is not archived has written so far, and how its process was confined."""
        from poise_core.training.launcher import unfinished_trajectory

        return unfinished_trajectory(self._job(subject, [seed]), seed)

    def keep_trajectory(self, subject: Subject, seed: int, steps: int) -> None:
        """Archive the first ``steps`` steps of a training that goes no further."""
        if not self._contains("trajectories", subject, seed=seed):
            found, confinement = self.unfinished_trajectory(subject, seed)
            self._append_trajectory(subject, seed, found[:steps], confinement)

    def _judge_again(self, subject: Subject, seeds: Sequence[int], watch: HealthWatch | None) -> None:
        """Come to the verdict that was on its way when the last process ended."""
        if watch is not None:
            stored = self.archive.trajectory(subject.candidate_id, self.protocol.digest)
            for seed in seeds:
                watch.observe_all(seed, stored[seed])

    def _keep_unfinished(self, subject: Subject, seeds: Sequence[int], watch: HealthWatch | None) -> None:
        """Archive the steps that a stopped candidate got to: they are the evidence for what went wrong.

        Where a rule stopped it, those up to that step: how much further the worker got is chance.
        """
        for seed in seeds:
            steps, confinement = self.unfinished_trajectory(subject, seed)
            judged = watch.judged(seed, steps) if watch is not None else len(steps)
            if steps and not self._contains("trajectories", subject, seed=seed):
                self._append_trajectory(subject, seed, steps[:judged], confinement)
            if watch is not None and watch.stopped:
                return

    def _append_trajectory(
        self, subject: Subject, seed: int, steps: Sequence[dict[str, float]], confinement: Mapping[str, str]
    ) -> None:
        rows = trajectory_rows(subject.candidate_id, self.protocol.digest, seed, steps, confinement=confinement)
        self.archive.append("trajectories", rows)

    def evaluate(self, subject: Subject, seeds: Sequence[int]) -> list[SeedEvaluation]:
        """Score the trained policies on the ``search`` split.

        Raises:
            InfrastructureError: the evaluation could not be done.
            Cancelled: ``should_stop`` said so.
        """
        from poise_core.evaluation.launcher import EvaluationJob, evaluate_policies
        from poise_core.evidence.intervals import overall_interval
        from poise_core.render.text import format_overall
        from poise_core.training.launcher import train_candidate

        with self.stage(subject, "evaluate") as done:
            if all(self._contains("evaluations", subject, split="search", seed=seed) for seed in seeds):
                return self.evaluations(subject, seeds)
            trained = train_candidate(self._job(subject, seeds), should_stop=self.should_stop)  # finished: reads only
            policies = tuple((one.seed, one.policy_folder) for one in trained)
            folder = self.run.evaluate_folder(subject.candidate_id)
            job = EvaluationJob(folder, self.protocol, self.resources, "search", policies)
            with self._alone(subject):
                results = evaluate_policies(job, should_stop=self.should_stop)
            for result in results:
                self.archive.append("evaluations", evaluation_rows(subject.candidate_id, self.protocol.digest, result))
            done(f"Overall {format_overall(overall_interval(results, self.protocol))}")
            return results

    def evaluate_untrained(self, seeds: Sequence[int]) -> Subject:
        """Score the policy that every training starts from, as a row of its own.

        It is evaluated once: sampling does not depend on the training seed. The result stands under every seed, so that
        it can be paired with the candidates'.

        Raises:
            InfrastructureError: the evaluation could not be done.
            Cancelled: ``should_stop`` said so.
        """
        from poise_core.evaluation.launcher import EvaluationJob, evaluate_policies
        from poise_core.evidence.intervals import overall_interval
        from poise_core.render.text import format_overall

        source = f"# no algorithm: the policy {self.protocol.policy_digest}, before any training\n"
        subject = self.register(UNTRAINED, source, written_by="poise", arm=UNTRAINED_ARM)
        with self.stage(subject, "evaluate") as done:
            if all(self._contains("evaluations", subject, split="search", seed=seed) for seed in seeds):
                return subject
            policies = ((seeds[0], Path(self.protocol.policy)),)
            folder = self.run.evaluate_folder(subject.candidate_id)
            job = EvaluationJob(folder, self.protocol, self.resources, "search", policies)
            with self._alone(subject):
                (result,) = evaluate_policies(job, should_stop=self.should_stop)
            for seed in seeds:
                copy = dataclasses.replace(result, seed=seed)
                self.archive.append("evaluations", evaluation_rows(subject.candidate_id, self.protocol.digest, copy))
            done(f"Overall {format_overall(overall_interval([result], self.protocol))}")
        return subject

    def evaluations(self, subject: Subject, seeds: Sequence[int] | None = None) -> list[SeedEvaluation]:
        """The recorded evaluations of a candidate; of these seeds only, where given."""
        found = self.archive.evaluations(protocol=self.protocol.digest, candidate_id=subject.candidate_id)
        evaluations = found.get(subject.candidate_id, [])
        return [one for one in evaluations if seeds is None or one.seed in seeds]

    def failure(self, subject: Subject) -> CandidateFailure | None:
        """What this candidate has failed of, if anything."""
        rows = self.archive.rows("failures", protocol=self.protocol.digest, candidate_id=subject.candidate_id)
        return failure_from_dict(rows[-1]) if rows else None

    @contextmanager
    def _alone(self, subject: Subject) -> Iterator[None]:
        """Hold the candidate, so that no other process works on it, and a share of the machine."""

        def wait() -> None:
            if self.should_stop():
                raise Cancelled(f"stopped while another process works on {subject.name}")
            time.sleep(LOCK_POLL_SECONDS)

        with self.run.candidate_lock(subject.candidate_id, wait), self.compute_slot():
            yield

    @contextmanager
    def stage(self, subject: Subject, stage: str) -> Iterator[Callable[[str], None]]:
        """Announce a stage of a candidate that has not failed up to it, and record its failure in it."""
        recorded = self.failure(subject)
        if recorded and _STAGES.index(recorded.stage) <= _STAGES.index(stage):
            raise recorded
        with announced(self.observer, stage, subject.name, subject.generation, self.should_stop) as say:
            try:
                yield say
            except CandidateFailure as failure:
                self._record_failure(subject, failure)
                raise

    def _record_failure(self, subject: Subject, failure: CandidateFailure) -> None:
        row = failure_row(
            failure,
            candidate_id=subject.candidate_id,
            protocol=self.protocol.digest,
            name=subject.name,
            generation=subject.generation,
            parent_id=subject.parent_id,
        )
        self.archive.append("failures", [row])

    def _job(self, subject: Subject, seeds: Sequence[int], pause_after: int | None = None) -> Any:
        from poise_core.training.launcher import TrainingJob

        return TrainingJob(
            candidate_path=self.run.candidate_folder(subject.candidate_id) / "candidate.py",
            candidate_name=subject.name,
            folder=self.run.train_folder(subject.candidate_id),
            protocol=self.protocol,
            resources=self.resources,
            seeds=tuple(seeds),
            pause_after=pause_after,
            source_digest=admitted_digest(self.archive, subject.candidate_id),
        )

    def _require_registered(self, subject: Subject, verified: str) -> None:
        """What the gate read must be the text that was registered: the verdict is filed under that."""
        for row in self.archive.rows("candidates", candidate_id=subject.candidate_id):
            if row["source_digest"] != verified:
                path = self.run.candidate_folder(subject.candidate_id) / "candidate.py"
                raise InfrastructureError(
                    f"{path} is not the text that was registered as {subject.name}; put that text back (column source of "
                    "the table candidates)"
                )

    def _stored_report(self, subject: Subject) -> VerificationReport | None:
        rows = self.archive.rows("verifications", candidate_id=subject.candidate_id)
        return VerificationReport.from_json(rows[0]["report"]) if rows else None

    def _fingerprints(self, subject: Subject, unseen: Collection[str]) -> dict[str, str]:
        rows = self.archive.rows("verifications", admitted=True)
        return {
            row["fingerprint"]: row["candidate_id"]
            for row in rows
            if row["fingerprint"] and row["candidate_id"] != subject.candidate_id and row["candidate_id"] not in unseen
        }

    def _contains(self, table: str, subject: Subject, **keys: Any) -> bool:
        return self.archive.contains(table, protocol=self.protocol.digest, candidate_id=subject.candidate_id, **keys)
