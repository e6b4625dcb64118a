"""The screener that needs no language model: it ranks compositions by what they answer and how new they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from poise_core.agents.catalogue.compositions import (
    composition_of_record,
    read_composition,
    tried_compositions,
    wanted_answers,
)
from poise_core.agents.catalogue.promising import bounds, on_a_scale, promise_of
from poise_core.agents.roles import Proposal, ProposalContext, Screened
from poise_core.config.search import PromiseSpec
from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.composition import Composition, changed_slots, distance, number_distance
from poise_core.mechanisms.conflicts import incompatibilities


@dataclass(frozen=True)
class CatalogueScreener:
    """Ranks by relevance to the parent's diagnoses, novelty, variety of direction and simplicity.

    ``relevance``: share of the parent's diagnoses (and the directive's) that a changed choice answers. ``novelty``: smallest
    distance to any composition tried in the run, 1 at 3 slots or more; a number that moves by a factor of 4 beside the same choices
    counts as two slots, less in proportion to its logarithm. ``variety``: 1 / (1 + ideas already tried on this
    parent in the same direction). ``simplicity``: share of slots left neutral. ``promise``: what it may score, of all that the run
    has measured (``poise_core.evidence.promise``), among the proposals; its share is that of the preset. All lie in [0, 1].
    """

    weights: Mapping[str, float] = field(
        default_factory=lambda: {"relevance": 0.35, "novelty": 0.3, "variety": 0.2, "simplicity": 0.15}
    )
    promise: PromiseSpec | None = None

    def rank(self, proposals: Sequence[Proposal], context: ProposalContext) -> list[Screened]:
        """See ``poise_core.agents.roles.Screener``; ties fall by name."""
        promised = self._promised(proposals, context)
        screened = [self._screen(proposal, context, own) for proposal, own in zip(proposals, promised, strict=True)]
        return sorted(screened, key=lambda s: (not s.feasible, -round(s.score, 9), s.proposal.name))

    def _promised(self, proposals: Sequence[Proposal], context: ProposalContext) -> Sequence[float | None]:
        """What each is expected to score among them, 0 to 1; None where nothing is known of that."""
        compositions = [read_composition(one.composition) for one in proposals]
        known = [one for one in compositions if one is not None]
        spec = self.promise
        if spec is None or not spec.weight or not known or (promise := promise_of(context)) is None:
            return [None] * len(proposals)
        scaled = iter(on_a_scale(bounds(promise, known, spec.confidence)).tolist())
        return [0.5 if one is None else next(scaled) for one in compositions]

    def _screen(self, proposal: Proposal, context: ProposalContext, promised: float | None) -> Screened:
        composition = read_composition(proposal.composition)
        obstacles = _obstacles(proposal, composition, context)
        terms = self._terms(proposal, composition, context)
        score = sum(weight * terms[name] for name, weight in self.weights.items())
        names = list(self.weights)
        if self.promise is not None and promised is not None:
            share = self.promise.weight
            score = (1.0 - share) * score + share * promised
            names, terms = ["promise", *names], {"promise": promised, **terms}
        summary = ", ".join(f"{name} {terms[name]:.2f}" for name in names)
        return Screened(proposal, score, not obstacles, terms, (*obstacles, f"score {score:.2f}: {summary}"))

    def _terms(self, proposal: Proposal, composition: Composition | None, context: ProposalContext) -> dict[str, float]:
        siblings = [
            t for t in context.avoid if t.outcome != "not_taken" and context.parent.candidate_id in t.parent_ids
        ]
        base, _ = composition_of_record(context.parent)
        same = 0
        for sibling in siblings:
            other = read_composition(sibling.composition)
            same += bool(other and changed_slots(base, other)[:1] == [proposal.direction])
        variety = 1.0 / (1.0 + same)
        if composition is None:  # written outside the catalogue: nothing to compare
            return {"relevance": 0.5, "novelty": 0.5, "variety": variety, "simplicity": 0.5}
        wanted = wanted_answers(context)
        answers = {a for s in changed_slots(base, composition) for a in composition.choice(s).answers}
        tried = [base, *tried_compositions(context)]
        nearest = min(_slots_apart(composition, other) for other in tried)
        neutral = sum(composition.choices[name] == slot.neutral.name for name, slot in SLOTS.items())
        return {
            "relevance": len(wanted & answers) / len(wanted) if wanted else 0.5,
            "novelty": min(1.0, nearest / 3),
            "variety": variety,
            "simplicity": neutral / len(SLOTS),
        }


def _slots_apart(one: Composition, other: Composition) -> float:
    """Slots on which two compositions differ; see ``CatalogueScreener`` for numbers."""
    return 2.0 * number_distance(one, other) if one.choices == other.choices else distance(one, other) * len(SLOTS)


def _obstacles(proposal: Proposal, composition: Composition | None, context: ProposalContext) -> list[str]:
    """Why a proposal cannot be implemented or would be a repetition."""
    if composition is None:
        return ["its composition is not one of this catalogue"] if proposal.composition is not None else []
    obstacles = incompatibilities(composition)
    for tried in context.avoid:
        other = read_composition(tried.composition)
        if other is not None and other.key == composition.key and tried.outcome != "not_taken":
            obstacles.append(f"the same composition as {tried.name} ({tried.outcome})")
    if not all(math.isfinite(value) for value in composition.parameters.values()):
        obstacles.append("a parameter is not finite")
    return obstacles
