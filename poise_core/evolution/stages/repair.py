"""Repairing: a training that shows a clear fault in its first steps goes back to the author of the file.

The revised file of the same proposal passes the gate and trains as a candidate of its own (``search.repairs``); the failed one
stays, with its failure. Repairs of a generation run beside the admission of its later slots. So that no result depends on timing,
a repaired file is seen by later generations only, and is compared with what the gate had admitted before its own slot.
"""

from __future__ import annotations

from collections.abc import Sequence

from poise_core.evolution.early_faults import clear_fault
from poise_core.evolution.records import CandidateRef, ChildSlot, Draft
from poise_core.evolution.search_context import SearchContext
from poise_core.evolution.stages.implement import write_draft
from poise_core.evolution.stages.verify import admit
from poise_core.failures import CandidateFailure


def rounds(search: SearchContext, slots: Sequence[ChildSlot]) -> int:
    """How often children of these slots may go back to their authors: the preset's bound, 0 where the implementer cannot
    revise a file, and never less than what is recorded."""
    recorded = [len(_repaired(search.drafts(slot))) for slot in slots]
    return max([search.preset.search.repairs if search.roles.implementer.revises else 0, *recorded])


def repair(search: SearchContext, candidate: CandidateRef) -> CandidateRef:
    """The child to go on with: the same where nothing failed, otherwise a revised file that the gate has admitted.

    Raises:
        CandidateFailure: it failed, and not of an early fault (``poise_core.evolution.early_faults``); or its repairs
            are used up, or no answer was admitted. It is the recorded failure of the training.
        InfrastructureError: the gate could not run, or a model cannot be used.
    """
    failure = search.run_context.failure(candidate)
    if failure is None:
        return candidate
    slot = search.slot_of(candidate)
    if slot is None:  # not made by this search
        raise failure
    number = 1 + max(draft.number for draft in search.drafts(slot) if draft.candidate_id == candidate.candidate_id)
    while (draft := _repair_draft(search, slot, number, candidate, failure)) is not None:
        number += 1
        if draft.failure is None:
            try:
                return admit(search, slot, draft)
            except CandidateFailure:  # refused by the gate: recorded, and answered by the next draft
                continue
    raise failure


def _repair_draft(
    search: SearchContext, slot: ChildSlot, number: int, candidate: CandidateRef, failure: CandidateFailure
) -> Draft | None:
    if (stored := search.draft(slot, number)) is not None:
        return stored
    earlier = search.drafts(slot)
    tries = [draft for draft in earlier if draft.repairs == candidate.candidate_id]
    rounds = len(_repaired(earlier) | {candidate.candidate_id})
    if tries:
        if len(tries) > search.preset.search.revisions or tries[-1].failure:
            return None
    elif (
        rounds > search.preset.search.repairs
        or not search.roles.implementer.revises
        or not _clear_fault(search, candidate, failure)
        or search.history.reflection(candidate.candidate_id) is not None  # this slot has ended
    ):
        return None
    (own,) = [draft for draft in earlier if draft.candidate_id == candidate.candidate_id][-1:]
    return write_draft(search, slot, number, own.index, repairs=candidate.candidate_id)


def _clear_fault(search: SearchContext, candidate: CandidateRef, failure: CandidateFailure) -> bool:
    return clear_fault(
        failure,
        search.archive.trajectory(candidate.candidate_id, search.protocol.digest),
        first_seed=search.seeds[0],
        within_steps=search.preset.search.repair_steps,
        training_steps=search.protocol.training.steps,
    )


def _repaired(drafts: Sequence[Draft]) -> set[str]:
    """The candidates that drafts of a slot answer for."""
    return {draft.repairs for draft in drafts if draft.repairs}
