"""Reflecting: what a candidate taught, be it scored, stopped on the ladder or failed in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from poise_core.agents.roles import Reflection
from poise_core.agents.steering import steering_text
from poise_core.archive import EVOLUTION_ARM as ARM
from poise_core.archive import reflection_row
from poise_core.evolution.records import CandidateRef, ChildSlot
from poise_core.evolution.search_context import SearchContext
from poise_core.failures import CandidateFailure


def reflect(
    search: SearchContext,
    candidate: CandidateRef,
    failure: CandidateFailure | None,
    stopped: Mapping[str, Any] | None,
) -> Reflection:
    """Have the reflector say what the candidate taught, and record it.

    Args:
        search: of the run.
        candidate: measured as far as it will be.
        failure: its failure, where it has failed.
        stopped: its row of ``rungs``, where the ladder stopped it.
    """
    with search.announced("reflect", candidate.name, candidate.generation) as say:
        directive = steering_text(search.preset.agents.steering)
        evidence = replace(
            search.history.evidence(candidate, failure, stopped),
            directive=directive,
            generation=candidate.generation,
            task=search.briefs.task_card(candidate.generation),
        )
        reflection = search.roles.reflector.reflect(evidence)
        row = reflection_row(
            candidate_id=candidate.candidate_id,
            protocol=search.preset.protocol.digest,
            summary=reflection.summary,
            markdown=reflection.as_text(),
            content=reflection.model_dump(mode="json"),
            written_by=reflection.reflector,
            parent_id=reflection.parent_id,
        )
        search.run.archive.append("reflections", [row], keep_existing=True)
        say(reflection.summary)
    return reflection


def slot_ended(search: SearchContext, slot: ChildSlot) -> bool:
    """Whether the slot has come to its end, in a reflection or without an admissible child."""
    if not search.archive.contains("proposals", arm=ARM, generation=slot.generation, slot=slot.number):
        identity, _ = slot.child_to_be  # a slot without a single idea has ended where that is on record
        keys = {"protocol": search.protocol.digest, "stage": "implement", "attempt": 0}
        return search.archive.contains("failures", candidate_id=identity, **keys)
    versions = search.versions(slot)
    return not versions or search.history.reflection(str(versions[-1].candidate_id)) is not None
