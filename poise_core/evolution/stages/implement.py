"""Implementing: the feasible ideas of a slot in order, and a candidate file of the best one or of the next.

Up to ``search.revisions`` further drafts answer the gate's report on the same idea, then the next-ranked idea is tried
(``search.ideas_tried``). Every answer is a draft, numbered in its slot and recorded before it is used.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from poise_core.agents.reports import gate_report, training_report
from poise_core.agents.roles import Attempt
from poise_core.archive import EVOLUTION_ARM as ARM
from poise_core.archive import proposal_id, proposal_row
from poise_core.evolution.records import (
    CandidateRef,
    ChildSlot,
    Draft,
    failure_from_dict,
    failure_to_dict,
    load_record,
    write_record,
)
from poise_core.evolution.search_context import SearchContext
from poise_core.evolution.stages.propose import propose
from poise_core.failures import CandidateFailure, FailureKind


def screen(search: SearchContext, slot: ChildSlot) -> list[int]:
    """Indices of the feasible proposals, best first, as many as may be implemented."""
    path = search.folder(slot) / "screening.json"
    stored = load_record(path)
    if stored is None:
        proposals = propose(search, slot)
        with search.announced("screen", slot.label, slot.generation) as say:
            ranked = search.roles.screener.rank(proposals, search.context(slot))
            stored = [
                {
                    "index": proposals.index(one.proposal),
                    "score": one.score,
                    "feasible": one.feasible,
                    "terms": dict(one.terms),
                    "reasons": list(one.reasons),
                    "screener": one.screener,
                }
                for one in ranked
            ]
            write_record(path, stored)
            say(f"{ranked[0].proposal.name} first of {len(ranked)}" if ranked else "nothing to rank")
    return [one["index"] for one in stored if one["feasible"]][: search.preset.search.ideas_tried]


def implement(search: SearchContext, slot: ChildSlot, refused: Draft | None = None) -> Draft:
    """A candidate file for the slot: of the best idea, or the next try after a refused one.

    At most ``search.revisions`` further drafts answer the gate's report on an idea, and ``search.ideas_tried`` ideas are tried.

    Raises:
        CandidateFailure: no idea is left.
    """
    number = refused.number + 1 if refused else 0
    draft = _draft(search, slot, number)
    while draft is not None and draft.failure is not None:
        number += 1
        draft = _draft(search, slot, number)
    if draft is None:
        settle(search, slot)
        failure = CandidateFailure(FailureKind.REJECTED, "implement", _why_no_child(search, slot))
        if not search.drafts(slot):  # otherwise every draft has a row of its own
            search.record_failure(slot, failure, *slot.child_to_be)
        raise failure
    return draft


def _draft(search: SearchContext, slot: ChildSlot, number: int) -> Draft | None:
    """The implementer's answer of this number; None where no idea is left to ask about."""
    if (stored := search.draft(slot, number)) is not None:
        return stored
    earlier = search.drafts(slot)[:number]
    for index in screen(search, slot):
        own = [draft for draft in earlier if draft.index == index]
        if len(own) <= search.preset.search.revisions and not any(draft.failure for draft in own):
            return write_draft(search, slot, number, index)
    return None


def write_draft(search: SearchContext, slot: ChildSlot, number: int, index: int, repairs: str | None = None) -> Draft:
    """Ask the implementer for a file of an idea, with every earlier file of it and what its author has to answer.

    Args:
        search: of the run.
        slot: that the child is for.
        number: of the draft in its slot.
        index: of the proposal.
        repairs: the admitted candidate whose training the draft answers.

    Returns:
        The draft, recorded; with its failure where there is no file.
    """
    proposal = propose(search, slot)[index]
    earlier = [draft for draft in search.drafts(slot)[:number] if draft.index == index and draft.candidate_id]
    attempts = [_attempt(search, draft) for draft in earlier]
    identity = proposal_id(ARM, slot.generation, slot.number, index)
    stage = "repair" if repairs else "implement"
    made, failed = None, None
    with search.announced(stage, proposal.name, slot.generation) as say:
        try:
            source = search.roles.implementer.implement(proposal, search.context(slot), attempts)
            made = register(
                search,
                proposal.name,
                source,
                written_by=proposal.proposer,
                generation=slot.generation,
                parent_ids=proposal.parent_ids,
                composition=proposal.composition,
                hypothesis=proposal.hypothesis,
                change=proposal.mechanism_change,
                proposal_id=identity,
                revises=earlier[-1].candidate_id if earlier else None,
            ).candidate_id
            if repairs and made in {draft.candidate_id for draft in earlier}:
                raise CandidateFailure(FailureKind.REJECTED, stage, f"{proposal.name}: the same file as before")
            say(made)
        except CandidateFailure as failure:
            made, failed = None, failure_to_dict(failure)
            if not attempts:  # otherwise the refusal that could not be answered is on record
                search.record_failure(slot, failure, identity, proposal.name)
            say(f"{failure.kind}: {failure.message}")
        draft = Draft(number, index, made, proposal.name, failed, repairs)
        write_record(search.draft_path(slot, number), asdict(draft))
    return draft


def _attempt(search: SearchContext, draft: Draft) -> Attempt:
    """An earlier file of the same proposal with what its author has to answer: the gate's report or the training's."""
    (candidate,) = search.archive.rows("candidates", candidate_id=draft.candidate_id)
    failures = {
        row["stage"]: failure_from_dict(row)
        for row in search.archive.rows("failures", candidate_id=draft.candidate_id, protocol=search.protocol.digest)
    }
    if refused := failures.get("verify"):
        return Attempt(candidate["source"], "verify", gate_report(refused))
    steps = search.archive.trajectory(str(draft.candidate_id), search.protocol.digest)
    return Attempt(candidate["source"], "train", training_report(failures["train"], steps))


def register(search: SearchContext, name: str, source: str, **columns: Any) -> CandidateRef:
    """Make a source a candidate of the run, with its composition where the catalogue can express it.

    Raises:
        CandidateFailure: see ``RunContext.register``.
    """
    composition = columns.pop("composition", None) or _known_composition(source)
    mechanisms = composition["choices"] if composition else None
    return search.run_context.register(name, source, arm=ARM, composition=composition, mechanisms=mechanisms, **columns)


def settle(search: SearchContext, slot: ChildSlot) -> None:
    """Archive the ideas of a slot once it is known which of them were implemented."""
    if search.archive.contains("proposals", arm=ARM, generation=slot.generation, slot=slot.number):
        return
    drafts = search.drafts(slot)
    ranked = {one["index"]: (rank, one) for rank, one in enumerate(load_record(search.folder(slot) / "screening.json"))}
    rows = []
    for index, proposal in enumerate(propose(search, slot)):
        rank, screened = ranked[index]
        rows.append(
            proposal_row(
                proposal.model_dump(mode="json"),
                generation=slot.generation,
                slot=slot.number,
                index=index,
                written_by=proposal.proposer,
                taken=any(draft.index == index and draft.candidate_id for draft in drafts),
                arm=ARM,
                rank=rank,
                score=screened["score"],
                terms=screened["terms"],
                feasible=screened["feasible"],
                reasons=screened["reasons"],
                screened_by=screened.get("screener"),
            )
        )
    search.archive.append("proposals", rows)


def _why_no_child(search: SearchContext, slot: ChildSlot) -> str:
    drafts = search.drafts(slot)
    if not drafts:
        return f"no feasible proposal for {slot.parent_name}"
    return f"no admissible child of {slot.parent_name} in {len(drafts)} drafts"


def _known_composition(source: str) -> dict[str, Any] | None:
    from poise_core.mechanisms.known import composition_for

    known = composition_for(source)
    return known.composition.model_dump(mode="json") if known else None
