"""The proposer that needs no language model: it varies compositions of the mechanism catalogue.

It changes one or two slots of the parent (three or four on a plateau), moves one or two of its numbers, or takes slots from a
reference. Once enough of the run is scored, many variations are drawn, and those that promise most are proposed. What the
parent's reflection diagnosed makes the slots and choices that answer it likelier; a choice that a failed sibling tried becomes less
likely. It is a deterministic function of its arguments.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from poise_core.agents.catalogue.compositions import TriedIdeas, composition_of_record, read_composition, wanted_answers
from poise_core.agents.catalogue.promising import most_promising, promise_of
from poise_core.agents.catalogue.wording import write_proposal
from poise_core.agents.roles import CandidateRecord, Proposal, ProposalContext
from poise_core.config.search import PromiseSpec
from poise_core.failures import FailureKind
from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.composition import Composition, changed_slots
from poise_core.mechanisms.operators import Variation, crossover, mutate, mutate_numbers

Drawn = tuple[Variation, CandidateRecord | None]
"""A variation, and from whom it was taken."""


@dataclass(frozen=True)
class CatalogueProposer:
    """Varies the parent's composition; see ``poise_core.agents.roles.Proposer``."""

    crossover_share: float = 0.25  # of proposals, where references exist
    number_share: float = (
        0.2  # of mutations move numbers and leave all choices; by the diagnoses, and none on a plateau
    )
    double_share: float = 0.4  # of mutations that change two slots
    emphasis: float = 4.0  # how much likelier an answer to a diagnosis becomes
    wider_by: int = 2  # further slots that a mutation changes while the search is on a plateau
    promise: PromiseSpec | None = None  # None: variations are proposed as they are drawn

    def propose(self, context: ProposalContext, n: int, seed: int) -> list[Proposal]:
        """Up to ``n`` proposals; fewer only where the catalogue has nothing new to offer from this parent."""
        rng = random.Random(f"{seed}:{context.parent.candidate_id}:{context.generation}")
        base, left_out = composition_of_record(context.parent)
        tried = TriedIdeas.of(context, base)
        slot_weights, choice_weights = self._weights(context, base)
        donors = [(one.record, composition_of_record(one.record)[0]) for one in context.references]

        def draws(limit: int, reach: int | None = None) -> Iterator[Drawn]:
            """New variations, one by one: what was proposed meanwhile moves the weights of the next."""
            for _ in range(100 * limit):
                variation, donor = self._vary(
                    base, donors, rng, slot_weights, choice_weights, wide=context.wide, reach=reach
                )
                if variation is not None and tried.add(variation.composition):
                    yield variation, donor

        chosen: Iterable[Drawn] = draws(n)
        if self.promise is not None and (promise := promise_of(context)) is not None:
            reach = self.promise.reach
            chosen = most_promising(
                lambda limit: draws(limit, reach), promise, self.promise, n, lambda drawn: drawn[0].composition
            )[0]
        proposals: list[Proposal] = []
        for variation, donor in chosen:
            if len(proposals) == n:
                break
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
        reach: int | None = None,
    ) -> tuple[Variation | None, CandidateRecord | None]:
        if donors and rng.random() < self.crossover_share:
            donor, theirs = rng.choice(donors)
            return crossover(base, theirs, rng), donor
        if not wide and rng.random() < self.number_share * _weight_of_numbers(base, slot_weights):
            return mutate_numbers(base, rng, slot_weights=slot_weights), None
        if reach is not None:
            strength = rng.randint(1, reach)
        else:
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
                failed = read_composition(tried.composition)
                for name in changed_slots(base, failed) if failed else ():
                    pair = (name, failed.choices[name]) if failed else (name, "")
                    choices[pair] = choices.get(pair, 1.0) * 0.3
        return slots, choices


def _weight_of_numbers(base: Composition, slot_weights: Mapping[str, float]) -> float:
    """Mean weight of the slots whose numbers can move, over the largest of all: below 1 where diagnoses call for other slots."""
    own = [weight for slot, weight in slot_weights.items() if any(one.movable for one in base.choice(slot).parameters)]
    return sum(own) / len(own) / max(slot_weights.values()) if own else 0.0
