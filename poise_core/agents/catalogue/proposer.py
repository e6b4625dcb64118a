"""Proposer, screener and implementer that need no language model: they vary compositions of the mechanism catalogue.

The proposer changes one or two slots of the parent (three or four on a plateau), or takes slots from a reference. What the
parent's reflection diagnosed makes the slots and choices that answer it likelier; a choice that a failed sibling tried
becomes less likely. All three are deterministic functions of their arguments.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ValidationError

from poise_core.agents.roles import (
    Attempt,
    CandidateRecord,
    Diagnosis,
    Expectation,
    Proposal,
    ProposalContext,
    Screened,
)
from poise_core.candidate.loading import source_digest
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.composition import GRPO, Composition, changed_slots, distance
from poise_core.mechanisms.conflicts import incompatibilities
from poise_core.mechanisms.known import composition_for
from poise_core.mechanisms.model import Choice
from poise_core.mechanisms.operators import Variation, crossover, mutate
from poise_core.mechanisms.render import render

OPPOSITE: Mapping[str, Literal["increase", "decrease"]] = {"increase": "decrease", "decrease": "increase"}
DIRECTIVE_HINTS: Mapping[str, str] = {
    r"short|concise|brief|length|verbos": "length_growth",
    r"format|pars": "format_invalid",
    r"explor|entropy|divers": "entropy_collapse",
    r"stab|spike|kl": "kl_spike",
    r"hard|difficult|fail": "all_fail_high",
}
"""Words of a directive -> the diagnosis whose answers they call for."""


def composition_of_record(record: CandidateRecord) -> tuple[Composition, str]:
    """A candidate in the catalogue's words, and what these words leave out ('' where nothing).

    A file that the catalogue does not know counts as GRPO, and the second value says so.
    """
    if record.composition is not None:
        try:
            return Composition.model_validate(dict(record.composition)), ""
        except ValidationError:  # archived by a version with another catalogue; the source may still be known
            pass
    known = composition_for(record.source)
    if known is None:
        return (
            GRPO,
            f"everything in which {record.name} differs from GRPO, because the catalogue cannot express its file",
        )
    return known.composition, known.left_out


@dataclass(frozen=True)
class CatalogueProposer:
    """Varies the parent's composition; see :class:`poise_core.agents.roles.Proposer`."""

    crossover_share: float = 0.25  # of proposals, where references exist
    double_share: float = 0.4  # of mutations that change two slots
    emphasis: float = 4.0  # how much likelier an answer to a diagnosis becomes
    wider_by: int = 2  # further slots that a mutation changes while the search is on a plateau

    def propose(self, context: ProposalContext, n: int, seed: int) -> list[Proposal]:
        """Up to ``n`` proposals; fewer only where the catalogue has nothing new to offer from this parent."""
        rng = random.Random(f"{seed}:{context.parent.candidate_id}:{context.generation}")
        base, left_out = composition_of_record(context.parent)
        tried = TriedIdeas.of(context, base)
        slot_weights, choice_weights = self._weights(context, base)
        donors = [(one.record, composition_of_record(one.record)[0]) for one in context.references]
        proposals: list[Proposal] = []
        for _ in range(100 * n):
            if len(proposals) == n:
                break
            variation, donor = self._vary(base, donors, rng, slot_weights, choice_weights, wide=context.wide)
            if variation is None or not tried.add(variation.composition):
                continue
            proposal = write_proposal(context, base, left_out, variation, donor, tried)
            if proposal is None:
                continue
            proposals.append(proposal)
            for slot in changed_slots(base, variation.composition):  # the next one should go elsewhere
                slot_weights[slot] *= 0.3
        return proposals

    def _vary(
        self,
        base: Composition,
        donors: Sequence[tuple[CandidateRecord, Composition]],
        rng: random.Random,
        slot_weights: Mapping[str, float],
        choice_weights: Mapping[tuple[str, str], float],
        *,
        wide: bool,
    ) -> tuple[Variation | None, CandidateRecord | None]:
        if donors and rng.random() < self.crossover_share:
            donor, theirs = rng.choice(donors)
            return crossover(base, theirs, rng), donor
        strength = 2 if rng.random() < self.double_share else 1
        strength += self.wider_by if wide else 0
        return mutate(base, rng, strength, slot_weights=slot_weights, choice_weights=choice_weights), None

    def _weights(
        self, context: ProposalContext, base: Composition
    ) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
        slots = dict.fromkeys(SLOTS, 1.0)
        choices: dict[tuple[str, str], float] = {}
        codes = wanted_answers(context)
        for name, slot in SLOTS.items():
            answering = [choice for choice in slot.choices if codes & set(choice.answers)]
            if any(choice.name != base.choices[name] for choice in answering):
                slots[name] *= self.emphasis
            for choice in answering:
                choices[name, choice.name] = self.emphasis
        for tried in context.avoid:
            if tried.outcome in set(FailureKind) and context.parent.candidate_id in tried.parent_ids:
                failed = _composition(tried.composition)
                for name in changed_slots(base, failed) if failed else ():
                    pair = (name, failed.choices[name]) if failed else (name, "")
                    choices[pair] = choices.get(pair, 1.0) * 0.3
        return slots, choices


def wanted_answers(context: ProposalContext) -> set[str]:
    """Codes of the parent's diagnoses, and those that the directive's words stand for."""
    reflection = context.parent.reflection
    codes = {diagnosis.code for diagnosis in reflection.diagnoses} if reflection else set()
    directive = context.directive.lower()
    return codes | {code for words, code in DIRECTIVE_HINTS.items() if re.search(words, directive)}


@dataclass
class TriedIdeas:
    """What must not come again, growing with every proposal of the round."""

    keys: set[str]
    digests: set[str]
    names: set[str]

    @classmethod
    def of(cls, context: ProposalContext, base: Composition) -> TriedIdeas:
        """All that the context names: the parent, the references and what the run has tried."""
        records = [context.parent, *(reference.record for reference in context.references)]
        compositions = [base, *(composition_of_record(record)[0] for record in records), *_tried_compositions(context)]
        return cls(
            {composition.key for composition in compositions},
            {tried.source_digest for tried in context.avoid if tried.source_digest},
            {name.upper() for name in [*(r.name for r in records), *(t.name for t in context.avoid), "GRPO"]},
        )

    def add(self, composition: Composition) -> bool:
        """Whether the composition is new; it is not new a second time."""
        new = composition.key not in self.keys
        self.keys.add(composition.key)
        return new

    def name_for(self, parent: CandidateRecord, changed: Sequence[Choice]) -> str:
        """Tags of the new mechanisms, then what fits of the parent's name, for example ``VM-AV``."""
        inherited = [] if parent.name.upper() == "GRPO" else re.sub(r"-\d+$", "", parent.name.upper()).split("-")
        parts = list(dict.fromkeys([*(choice.tag for choice in changed), *inherited]))[:3]
        stem, number = "-".join(parts), 1
        name = stem
        while name.upper() in self.names:
            number += 1
            name = f"{stem}-{number}"
        self.names.add(name.upper())
        return name


def _composition(data: Mapping[str, object] | None) -> Composition | None:
    try:
        return Composition.model_validate(dict(data)) if data is not None else None
    except ValidationError:
        return None


def _tried_compositions(context: ProposalContext) -> list[Composition]:
    """What was implemented or refused in this run; an idea that was only ranked lower may come again."""
    known = [_composition(tried.composition) for tried in context.avoid if tried.outcome != "not_taken"]
    return [composition for composition in known if composition is not None]


def write_proposal(
    context: ProposalContext,
    base: Composition,
    left_out: str,
    variation: Variation,
    donor: CandidateRecord | None,
    tried: TriedIdeas,
) -> Proposal | None:
    """The proposal in words; None where its source has been tried under the same name."""
    child, parent = variation.composition, context.parent
    slots = changed_slots(base, child)
    changed = [child.choice(slot) for slot in slots]
    name = tried.name_for(parent, changed)
    answered = _answered(parent, changed)
    ideas = "; ".join(_idea(base, child, slot) for slot in slots)
    reason = f"{answered.text} " if answered else ""
    change = variation.change + (f" (taken from {donor.name})" if donor else "")
    change += f". Not carried over: {left_out}" if left_out else ""
    proposal = Proposal(
        name=name,
        hypothesis=f"{reason}{name} {ideas}.",
        mechanism_change=change,
        equations=tuple(formula for choice in changed for formula in choice.formulas),
        addresses=answered.text if answered else f"no diagnosed deficiency: explores {', '.join(slots)}",
        expectations=_expectations(base, child, slots),
        parent_ids=(parent.candidate_id, *([donor.candidate_id] if donor else [])),
        direction=slots[0],
        proposer="catalogue",
        composition=child.model_dump(mode="json"),
    )
    return None if source_digest(_source(proposal, context)) in tried.digests else proposal


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


def _source(proposal: Proposal, context: ProposalContext) -> str:
    composition = Composition.model_validate(proposal.composition)
    names = {record.candidate_id: record.name for record in (r.record for r in context.references)}
    names[context.parent.candidate_id] = context.parent.name
    parents = [names.get(candidate_id, candidate_id) for candidate_id in proposal.parent_ids]
    return render(composition, proposal.name, proposal.hypothesis, proposal.mechanism_change, parents)


@dataclass(frozen=True)
class CatalogueScreener:
    """Ranks by relevance to the parent's diagnoses, novelty, variety of direction and simplicity.

    ``relevance``: share of the parent's diagnoses (and the directive's) that a changed choice answers. ``novelty``: smallest
    distance to any composition tried in the run, 1 at 3 slots or more. ``variety``: 1 / (1 + ideas already tried on this
    parent in the same direction). ``simplicity``: share of slots left neutral. All lie in [0, 1].
    """

    weights: Mapping[str, float] = field(
        default_factory=lambda: {"relevance": 0.35, "novelty": 0.3, "variety": 0.2, "simplicity": 0.15}
    )

    def rank(self, proposals: Sequence[Proposal], context: ProposalContext) -> list[Screened]:
        """See :class:`poise_core.agents.roles.Screener`; ties fall by name."""
        screened = [self._screen(proposal, context) for proposal in proposals]
        return sorted(screened, key=lambda s: (not s.feasible, -round(s.score, 9), s.proposal.name))

    def _screen(self, proposal: Proposal, context: ProposalContext) -> Screened:
        composition = _composition(proposal.composition)
        obstacles = _obstacles(proposal, composition, context)
        terms = self._terms(proposal, composition, context)
        score = sum(weight * terms[name] for name, weight in self.weights.items())
        summary = ", ".join(f"{name} {terms[name]:.2f}" for name in self.weights)
        return Screened(proposal, score, not obstacles, terms, (*obstacles, f"score {score:.2f}: {summary}"))

    def _terms(self, proposal: Proposal, composition: Composition | None, context: ProposalContext) -> dict[str, float]:
        siblings = [
            t for t in context.avoid if t.outcome != "not_taken" and context.parent.candidate_id in t.parent_ids
        ]
        base, _ = composition_of_record(context.parent)
        same = 0
        for sibling in siblings:
            other = _composition(sibling.composition)
            same += bool(other and changed_slots(base, other)[:1] == [proposal.direction])
        variety = 1.0 / (1.0 + same)
        if composition is None:  # written outside the catalogue: nothing to compare
            return {"relevance": 0.5, "novelty": 0.5, "variety": variety, "simplicity": 0.5}
        wanted = wanted_answers(context)
        answers = {a for s in changed_slots(base, composition) for a in composition.choice(s).answers}
        tried = [base, *_tried_compositions(context)]
        nearest = min(distance(composition, other) for other in tried)
        neutral = sum(composition.choices[name] == slot.neutral.name for name, slot in SLOTS.items())
        return {
            "relevance": len(wanted & answers) / len(wanted) if wanted else 0.5,
            "novelty": min(1.0, nearest * len(SLOTS) / 3),
            "variety": variety,
            "simplicity": neutral / len(SLOTS),
        }


def _obstacles(proposal: Proposal, composition: Composition | None, context: ProposalContext) -> list[str]:
    """Why a proposal cannot be implemented or would be a repetition."""
    if composition is None:
        return ["its composition is not one of this catalogue"] if proposal.composition is not None else []
    obstacles = incompatibilities(composition)
    for tried in context.avoid:
        other = _composition(tried.composition)
        if other is not None and other.key == composition.key and tried.outcome != "not_taken":
            obstacles.append(f"the same composition as {tried.name} ({tried.outcome})")
    if not all(math.isfinite(value) for value in composition.parameters.values()):
        obstacles.append("a parameter is not finite")
    return obstacles


@dataclass(frozen=True)
class CatalogueImplementer:
    """Renders the proposal's composition; see :class:`poise_core.agents.roles.Implementer`."""

    revises = False  # a composition has one file

    def implement(self, proposal: Proposal, context: ProposalContext, attempts: Sequence[Attempt] = ()) -> str:
        """The candidate file.

        Raises:
            CandidateFailure: the proposal has no composition, or its file was refused already (it would be the same).
        """
        if attempts:
            raise CandidateFailure(
                FailureKind.REJECTED,
                "implement",
                f"{proposal.name} was refused ({attempts[-1].stage}), and the catalogue has no other way to write it",
                attempts[-1].report,
            )
        if proposal.source is not None:
            return proposal.source
        composition = _composition(proposal.composition)
        if composition is None:
            raise CandidateFailure(
                FailureKind.REJECTED, "implement", f"{proposal.name} has no composition that the catalogue can render"
            )
        return _source(proposal, context)
