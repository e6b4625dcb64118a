"""The gate: a candidate is admitted or refused, and the next draft of a slot follows a refused one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from poise_core.archive import Archive, verification_row
from poise_core.candidate.identity import program_digest
from poise_core.evolution.records import CandidateRef, ChildSlot, Draft
from poise_core.evolution.run_context import RunContext
from poise_core.evolution.search_context import SearchContext
from poise_core.evolution.stages.implement import implement, settle
from poise_core.failures import CandidateFailure, FailureKind, InfrastructureError
from poise_core.verification import Conditions, VerificationReport


def admitted_child(search: SearchContext, slot: ChildSlot, draft: Draft) -> CandidateRef:
    """The first draft of the slot that the gate admits, beginning with this one.

    Raises:
        CandidateFailure: none was admitted.
        InfrastructureError: the gate could not run.
    """
    while True:
        try:
            candidate = admit(search, slot, draft)
        except CandidateFailure:
            draft = implement(search, slot, draft)
        else:
            settle(search, slot)
            return candidate


def admit(search: SearchContext, slot: ChildSlot, draft: Draft) -> CandidateRef:
    """The candidate of a draft, once the gate has admitted it.

    Raises:
        CandidateFailure: refused.
        InfrastructureError: the gate could not run.
    """
    candidate = draft.candidate(slot)
    verify(search.run_context, candidate, unseen=search.history.unseen(slot.generation, slot.number))
    return candidate


def verify(
    context: RunContext, candidate: CandidateRef, *, must_be_new: bool = True, unseen: Collection[str] = frozenset()
) -> None:
    """Admit the candidate or refuse it.

    Args:
        candidate: registered.
        must_be_new: refuse what behaves exactly like an admitted candidate of this run.
        unseen: admitted candidates that it is not compared with.

    Raises:
        CandidateFailure: refused; recorded, with the gate's sentence.
        InfrastructureError: the gate could not run.
        Cancelled: ``should_stop`` returned true.
    """
    with context.stage(candidate, "verify") as done:
        report = _stored_report(context, candidate)
        if report is None:
            own = {candidate.candidate_id, *unseen}
            known = known_candidates(context.archive, own) if must_be_new else Known({}, {})
            folder, secret = context.run.candidate_folder(candidate.candidate_id), context.run.secret
            report = context.executor.verify(
                folder / "candidate.py",
                name=candidate.name,
                timeout_seconds=context.resources.verify_timeout_seconds,
                known_fingerprints=known.fingerprints,
                known_programs=known.programs,
                folder=folder,
                should_stop=context.should_stop,
                probe_seed=secret.probe_seed(candidate.candidate_id) if secret else None,
                conditions=Conditions.of(context.protocol.training),
            )
            _require_registered(context, candidate, report.source_digest)
            twin = f", trains exactly as {report.duplicate_of}" if report.duplicate_of else ""
            done(f"admitted after {len(report.checks)} checks{twin}" if report.admitted else "refused")
        row = verification_row(
            candidate_id=candidate.candidate_id,
            admitted=report.admitted,
            report=report.to_json(),
            fingerprint=report.fingerprint or None,
            seconds=report.seconds,
        )
        context.archive.append("verifications", [row])
        if not report.admitted:
            kind = report.failure or FailureKind.REJECTED
            raise CandidateFailure(kind, "verify", report.message, report.to_json())


def _require_registered(context: RunContext, candidate: CandidateRef, verified: str) -> None:
    """What the gate read must be the text that was registered: the verdict is filed under that."""
    for row in context.archive.rows("candidates", candidate_id=candidate.candidate_id):
        if row["source_digest"] != verified:
            path = context.run.candidate_folder(candidate.candidate_id) / "candidate.py"
            raise InfrastructureError(
                f"{path} is not the text that was registered as {candidate.name}; put that text back (column source of "
                "the table candidates)"
            )


def _stored_report(context: RunContext, candidate: CandidateRef) -> VerificationReport | None:
    rows = context.archive.rows("verifications", candidate_id=candidate.candidate_id)
    return VerificationReport.from_json(rows[0]["report"]) if rows else None


class Known(NamedTuple):
    """What a candidate must not repeat, each with the candidate that it names."""

    fingerprints: Mapping[str, str]
    programs: Mapping[str, str]


def known_candidates(archive: Archive, without: Collection[str] = ()) -> Known:
    """The admitted candidates of a run, but for these."""
    seen = {
        row["candidate_id"]: row["fingerprint"]
        for row in archive.rows("verifications", admitted=True)
        if row["candidate_id"] not in without
    }
    texts = archive.read("candidates", ["candidate_id", "source"]).to_pylist()  # nothing else is needed of them
    sources = {row["candidate_id"]: row["source"] for row in texts}
    return Known(
        {fingerprint: identity for identity, fingerprint in seen.items() if fingerprint},
        {program_digest(sources[identity]): identity for identity in seen if identity in sources},
    )
