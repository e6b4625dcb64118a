"""Writes a variation of a composition as a proposal, and the candidate file of a proposal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from poise_core.agents.catalogue.compositions import TriedIdeas
from poise_core.agents.roles import CandidateRecord, Diagnosis, Expectation, Proposal, ProposalContext
from poise_core.candidate.identity import source_digest
from poise_core.mechanisms.composition import Composition, changed_slots
from poise_core.mechanisms.model import Choice
from poise_core.mechanisms.operators import Variation
from poise_core.mechanisms.render import render

OPPOSITE: Mapping[str, Literal["increase", "decrease"]] = {"increase": "decrease", "decrease": "increase"}


def write_proposal(
    context: ProposalContext,
    base: Composition,
    left_out: str,
    variation: Variation,
    donor: CandidateRecord | None,
    tried: TriedIdeas,
    drawn: str = "",
) -> Proposal | None:
    """The proposal in words; None where its source has been tried under the same name.

    Args:
        context: with the parent.
        base: the parent's composition.
        left_out: what of the parent's mechanisms a composition does not hold.
        variation: of ``base``.
        donor: the candidate with which the parent was crossed.
        tried: what there is already.
        drawn: how the composition was drawn, if nobody looked at the parent's diagnoses; then it claims to answer none.
    """
    child, parent = variation.composition, context.parent
    slots = changed_slots(base, child)
    changed = [child.choice(slot) for slot in slots]
    name = tried.name_for(parent, changed)
    ideas = "; ".join(_idea(base, child, slot) for slot in slots)
    if drawn:
        reason, addresses = f"{drawn}. ", f"no diagnosed deficiency: {drawn[0].lower()}{drawn[1:]}"
    elif answered := _answered(parent, changed):
        reason, addresses = f"{answered.text} ", answered.text
    else:
        reason, addresses = "", f"no diagnosed deficiency: explores {', '.join(slots)}"
    change = variation.change + (f" (taken from {donor.name})" if donor else "")
    change += f". Not carried over: {left_out}" if left_out else ""
    proposal = Proposal(
        name=name,
        hypothesis=f"{reason}{name} {ideas}.",
        mechanism_change=change,
        equations=tuple(formula for choice in changed for formula in choice.formulas),
        addresses=addresses,
        expectations=_expectations(base, child, slots),
        parent_ids=(parent.candidate_id, *([donor.candidate_id] if donor else [])),
        direction=slots[0],
        proposer="catalogue",
        composition=child.model_dump(mode="json"),
    )
    return None if source_digest(render_proposal(proposal, context)) in tried.digests else proposal


def _idea(base: Composition, child: Composition, slot: str) -> str:
    if base.choices[slot] == child.choices[slot]:
        return f"moves {slot} from {base.describe(slot)} to {child.describe(slot)}"
    return child.choice(slot).idea


def _answered(parent: CandidateRecord, changed: Sequence[Choice]) -> Diagnosis | None:
    """The first of the parent's diagnoses that one of the new choices answers."""
    answers = {code for choice in changed for code in choice.answers}
    diagnoses = parent.reflection.diagnoses if parent.reflection else ()
    return next((diagnosis for diagnosis in diagnoses if diagnosis.code in answers), None)


def _expectations(base: Composition, child: Composition, slots: Sequence[str]) -> tuple[Expectation, ...]:
    """Effects of what is new and the reverse of what is gone, one per metric (none where they disagree), then Overall."""
    found: dict[str, Expectation | None] = {}
    for slot in slots:
        if base.choices[slot] == child.choices[slot]:
            continue
        new, gone = child.choice(slot).effects, base.choice(slot).effects
        effects = [(e.metric, e.direction, e.why) for e in new]
        effects += [
            (e.metric, OPPOSITE[e.direction], f"the parent has it otherwise ({e.why}), the child no longer")
            for e in gone
            if e.metric not in {effect.metric for effect in new}
        ]
        for metric, direction, why in effects:
            known = found.get(metric)
            disagrees = metric in found and (known is None or known.direction != direction)
            found[metric] = None if disagrees else Expectation(metric=metric, direction=direction, why=why)
    overall = Expectation(metric="Overall", direction="increase", why="the purpose of the change")
    return (*(expectation for expectation in found.values() if expectation), overall)


def render_proposal(proposal: Proposal, context: ProposalContext) -> str:
    """The candidate file of a proposal that has a composition."""
    composition = Composition.model_validate(proposal.composition)
    names = {record.candidate_id: record.name for record in (r.record for r in context.references)}
    names[context.parent.candidate_id] = context.parent.name
    parents = [names.get(candidate_id, candidate_id) for candidate_id in proposal.parent_ids]
    return render(composition, proposal.name, proposal.hypothesis, proposal.mechanism_change, parents)
