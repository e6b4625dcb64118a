"""Selecting: the parents of a generation, from the scores of the generations before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from poise_core.archive import EVOLUTION_ARM as ARM
from poise_core.archive import selection_row
from poise_core.archive.typed import SelectionRow
from poise_core.evolution.history import with_bonus
from poise_core.evolution.records import CandidateRef, ChildSlot
from poise_core.evolution.search_context import SearchContext
from poise_core.search.selection import Selection


class EvolutionError(Exception):
    """The search cannot go on; the message is one line."""


def select_parents(search: SearchContext, generation: int) -> list[ChildSlot]:
    """The slots of a generation, each with its parent.

    Raises:
        EvolutionError: no candidate has a score yet.
    """
    protocol = search.preset.protocol.digest
    names = {row["candidate_id"]: row["name"] for row in search.history.candidates()}
    if not search.run.archive.contains("selections", protocol=protocol, arm=ARM, generation=generation):
        nodes = search.history.with_stopped(search.history.nodes(generation), search.preset.ladder)
        bonuses = search.history.steering_bonuses(nodes, search.preset.agents.steering)
        steered = [with_bonus(node, bonuses.get(node.candidate_id, 0.0)) for node in nodes]
        chosen = search.roles.selector.select(steered, search.preset.search.parents, search.seed("select", generation))
        if not chosen:
            raise EvolutionError(f"nothing to select parents from: {_why_no_scores(search)}")
        search.run.archive.append("selections", _selection_rows(search, generation, chosen, bonuses))
        search.run.archive.refresh_snapshots()
    rows = search.run.archive.rows("selections", protocol=protocol, arm=ARM, generation=generation, selected=True)
    slots = [
        ChildSlot(generation, slot, row["candidate_id"], names[row["candidate_id"]], repeat, row["reason"] or "")
        for row in rows
        for repeat, slot in enumerate(row["slots"])
    ]
    return sorted(slots, key=lambda slot: slot.number)


def _selection_rows(
    search: SearchContext, generation: int, chosen: Sequence[Selection], bonuses: Mapping[str, float]
) -> list[SelectionRow]:
    slots: dict[str, list[int]] = {}
    reasons: dict[str, dict[str, None]] = {}
    for one in chosen:
        slots.setdefault(one.candidate_id, []).append(one.slot)
        reasons.setdefault(one.candidate_id, {})[one.reason] = None
    return [
        selection_row(
            protocol=search.preset.protocol.digest,
            generation=generation,
            candidate_id=score.candidate_id,
            terms={
                **score.terms,
                **({"steering": bonuses[score.candidate_id]} if score.candidate_id in bonuses else {}),
            },
            total=score.total,
            slots=slots.get(score.candidate_id, ()),
            reason=" ".join(reasons[score.candidate_id]) if score.candidate_id in reasons else None,
            arm=ARM,
        )
        for score in chosen[0].scores
    ]


def _why_no_scores(search: SearchContext) -> str:
    for row in search.history.candidates():
        failure = search.run_context.failure(CandidateRef.of_row(row))
        if failure is not None:
            return f"{row['name']} {failure.kind} in {failure.stage}: {failure.message}"
    return "no candidate has been evaluated"
