"""Proposing: ideas for a child of a slot's parent, recorded before they are used."""

from __future__ import annotations

from poise_core.agents.roles import Proposal
from poise_core.evolution.records import ChildSlot, load_record, write_record
from poise_core.evolution.search_context import SearchContext
from poise_core.failures import CandidateFailure


def propose(search: SearchContext, slot: ChildSlot) -> list[Proposal]:
    """Ideas for a child of the slot's parent."""
    path = search.folder(slot) / "proposals.json"
    stored = load_record(path)
    if stored is None:
        with search.announced("propose", slot.label, slot.generation) as say:
            context = search.context(slot)
            seed = search.seed("propose", slot.generation, slot.number)
            try:
                proposals = search.roles.proposer.propose(context, search.preset.search.proposals, seed)
            except CandidateFailure as failure:
                search.record_failure(slot, failure, *slot.child_to_be)
                proposals = []
            stored = [proposal.model_dump(mode="json") for proposal in proposals]
            write_record(path, stored)
            say(", ".join(proposal.name for proposal in proposals) or "nothing new")
    return [Proposal.model_validate(document) for document in stored]
