"""Proposing: ideas for a child of a slot's parent, recorded before they are used."""

from __future__ import annotations

from typing import Any

from poise_core.agents.roles import Proposal
from poise_core.agents.variants import promising, variants
from poise_core.escaping import printable
from poise_core.evolution.records import ChildSlot, load_record, write_record
from poise_core.evolution.search_context import SearchContext
from poise_core.failures import CandidateFailure, plain_name

_CODE = ("source", "composition")


def propose(search: SearchContext, slot: ChildSlot) -> list[Proposal]:
    """Ideas for a child of the slot's parent."""
    path = search.folder(slot) / "proposals.json"
    stored = load_record(path)
    if stored is None:
        with search.announced("propose", slot.label, slot.generation) as say:
            context = search.context(slot)
            seed = search.seed("propose", slot.generation, slot.number)
            count = search.preset.search.proposals
            try:
                own = variants(context, count) if context.variant and promising(context) else []
                proposer = search.roles.immigrants if context.immigrant else search.roles.proposer
                proposals = own or proposer.propose(context, count, seed)
            except CandidateFailure as failure:
                search.record_failure(slot, failure, *slot.child_to_be)
                proposals = []
            stored = [_plain(proposal).model_dump(mode="json") for proposal in proposals]
            write_record(path, stored)
            say(", ".join(proposal.name for proposal in proposals) or "nothing new")
    return [Proposal.model_validate(document) for document in stored]


def _plain(proposal: Proposal) -> Proposal:
    """The proposal with a name and texts that every archive, page and terminal takes; its code stays, as far as it is UTF-8."""
    document = {name: value if name in _CODE else _printable(value) for name, value in proposal.model_dump().items()}
    if proposal.source is not None:
        document["source"] = proposal.source.encode("utf-8", "replace").decode()
    return Proposal.model_validate({**document, "name": plain_name(proposal.name)})


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable(name): _printable(one) for name, one in value.items()}
    return [_printable(one) for one in value] if isinstance(value, list | tuple) else value
