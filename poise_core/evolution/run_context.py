"""What every stage of a run shares: its directory and archive, the executor, the observer, and look-ups of what is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from poise_core.archive import Archive, ArchiveRowError, candidate_row, failure_row
from poise_core.archive.typed import FailureRow
from poise_core.candidate.identity import UnreadableCandidate, candidate_name, read_candidate, source_digest, text_fault
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evolution.events import Observer, announced, ignore
from poise_core.evolution.executor import Executor, default_executor
from poise_core.evolution.records import CandidateRef, failure_from_dict
from poise_core.failures import Cancelled, CandidateFailure, FailureKind, plain_name
from poise_core.files import write_atomically
from poise_core.run_directory import RunDirectory, candidate_id
from poise_core.training.job import TrainingJob
from poise_core.verification import VerificationReport

LOCK_POLL_SECONDS = 0.5

ComputeSlot = Callable[[], AbstractContextManager[None]]
"""Makes a context manager that holds a share of the machine for as long as it is open."""

MANUAL_ARM = "manual"
"""The arm of candidates whose files a person has added to the run."""

_STAGES = ("verify", "train", "evaluate")
"""In order: a candidate that has failed in one does not enter those after it."""


def admitted_text(archive: Archive, candidate_id: str) -> tuple[str | None, str | None]:
    """Digest and fingerprint of the text that the gate admitted.

    Where the gate has admitted none, the digest is that of the registered text, and there is no fingerprint.
    """
    for row in archive.rows("verifications", candidate_id=candidate_id, admitted=True):
        return VerificationReport.from_json(row["report"]).source_digest, row["fingerprint"]
    for registered in archive.rows("candidates", candidate_id=candidate_id):
        return registered["source_digest"], None
    return None, None


@contextmanager
def refused_rows(stage: str) -> Iterator[None]:
    """Make what the archive refuses about a candidate the candidate's failure: the same would be refused for ever.

    Raises:
        CandidateFailure: a row was refused; in training as CRASHED, elsewhere as REJECTED.
    """
    try:
        yield
    except ArchiveRowError as error:
        kind = FailureKind.CRASHED if stage == "train" else FailureKind.REJECTED
        raise CandidateFailure(kind, stage, f"the archive refuses what it left: {error}") from error


class RunContext:
    """Handed to the stages of one run, which works under one protocol."""

    def __init__(
        self,
        run: RunDirectory,
        *,
        executor: Executor | None = None,
        observer: Observer = ignore,
        should_stop: Callable[[], bool] = lambda: False,
        compute_slot: ComputeSlot = nullcontext,
    ) -> None:
        """Bind to a run.

        Args:
            run: opened.
            executor: carries out gate, trainings and evaluations; by default child processes of this one.
            observer: called with every event.
            should_stop: polled; ends what runs.
            compute_slot: held while a training or an evaluation runs; may wait for its turn.
        """
        self.run = run
        self.executor: Executor = executor or default_executor()
        self.archive = run.archive
        self.protocol = run.preset.protocol
        self.resources = run.preset.resources
        self.observer = observer
        self.should_stop = should_stop
        self.compute_slot = compute_slot

    def register(self, name: str, source: str, *, written_by: str, **columns: Any) -> CandidateRef:
        """Make a source a candidate of the run: write its file, and its row in ``candidates``.

        Args:
            name: of the candidate.
            source: text of the candidate file.
            written_by: ``catalogue``, ``llm`` or ``human``.
            **columns: further columns of ``poise_core.archive.candidate_row``.

        Raises:
            CandidateFailure: another proposal of this run has led to the very same file (DUPLICATE), or the text cannot
                be kept (REJECTED).
        """
        name = plain_name(name)
        if fault := text_fault(source):
            raise CandidateFailure(FailureKind.REJECTED, "implement", fault)
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
            with refused_rows("implement"):
                self.archive.append("candidates", [row])
        parents = columns.get("parent_ids") or [None]
        return CandidateRef(identity, name, columns.get("generation", 0), parents[0])

    def adopt(self, file: Path) -> CandidateRef:
        """The candidate of this run that has the text of this file, registered as written by a human where it is new.

        Raises:
            CandidateFailure: it is no text that the gate would read; there is nothing that could be registered.
            OSError: the file cannot be read.
        """
        try:
            source = read_candidate(file)
        except UnreadableCandidate as error:
            raise CandidateFailure(FailureKind.REJECTED, "verify", f"language: {error}") from error
        for row in self.archive.rows("candidates", source_digest=source_digest(source)):
            return CandidateRef.of_row(row)
        return self.register(candidate_name(file.stem), source, written_by="human", arm=MANUAL_ARM)

    def evaluations(self, candidate: CandidateRef, seeds: Sequence[int] | None = None) -> list[SeedEvaluation]:
        """The recorded evaluations of a candidate; of these seeds only, where given."""
        found = self.archive.evaluations(protocol=self.protocol.digest, candidate_id=candidate.candidate_id)
        evaluations = found.get(candidate.candidate_id, [])
        return [one for one in evaluations if seeds is None or one.seed in seeds]

    def failure(self, candidate: CandidateRef) -> CandidateFailure | None:
        """The last recorded failure of this candidate; None where it has not failed."""
        rows = self.archive.rows("failures", protocol=self.protocol.digest, candidate_id=candidate.candidate_id)
        return failure_from_dict(rows[-1]) if rows else None

    def contains(self, table: str, candidate: CandidateRef, **keys: Any) -> bool:
        """Whether the archive has rows of this candidate under this protocol."""
        return self.archive.contains(table, protocol=self.protocol.digest, candidate_id=candidate.candidate_id, **keys)

    def training_job(
        self, candidate: CandidateRef, seeds: Sequence[int], pause_after: int | None = None
    ) -> TrainingJob:
        """What the executor is asked to train; see ``poise_core.training.job.TrainingJob``."""
        digest, fingerprint = admitted_text(self.archive, candidate.candidate_id)
        return TrainingJob(
            candidate_path=self.run.candidate_folder(candidate.candidate_id) / "candidate.py",
            candidate_name=candidate.name,
            folder=self.run.train_folder(candidate.candidate_id),
            protocol=self.protocol,
            resources=self.resources,
            seeds=tuple(seeds),
            pause_after=pause_after,
            source_digest=digest,
            fingerprint=fingerprint,
        )

    def unfinished_trajectory(
        self, candidate: CandidateRef, seed: int
    ) -> tuple[list[dict[str, float]], dict[str, str]]:
        """The steps that a training which is not archived has written so far, and how its process was confined."""
        return self.executor.unfinished_trajectory(self.training_job(candidate, [seed]), seed)

    @contextmanager
    def alone(self, candidate: CandidateRef) -> Iterator[None]:
        """Hold the candidate, so that no other process works on it, and a share of the machine."""

        def wait() -> None:
            if self.should_stop():
                raise Cancelled(f"stopped while another process works on {candidate.name}")
            time.sleep(LOCK_POLL_SECONDS)

        with self.run.candidate_lock(candidate.candidate_id, wait), self.compute_slot():
            yield

    @contextmanager
    def stage(self, candidate: CandidateRef, stage: str) -> Iterator[Callable[[str], None]]:
        """Announce a stage of a candidate that has not failed up to it, and record its failure in it."""
        recorded = self.failure(candidate)
        if recorded and _STAGES.index(recorded.stage) <= _STAGES.index(stage):
            raise recorded
        with self.announced(stage, candidate.name, candidate.generation) as say:
            try:
                with refused_rows(stage):
                    yield say
            except CandidateFailure as failure:
                self.archive.append("failures", [self.failure_row(candidate, failure)])
                raise

    def announced(self, stage: str, what: str, generation: int) -> AbstractContextManager[Callable[[str], None]]:
        """Tell the observer of a stage; see ``poise_core.evolution.events.announced``."""
        return announced(self.observer, stage, what, generation, self.should_stop)

    def failure_row(self, candidate: CandidateRef, failure: CandidateFailure) -> FailureRow:
        """A row of ``failures``."""
        return failure_row(
            failure,
            candidate_id=candidate.candidate_id,
            protocol=self.protocol.digest,
            name=candidate.name,
            generation=candidate.generation,
            parent_id=candidate.parent_id,
        )
