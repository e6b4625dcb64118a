"""Random search over the mechanism catalogue, or over the baseline's numbers alone. As controls, their ideas do not depend on any
measurement; as the immigrants of a search, the most promising of many are proposed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from poise_core.agents.catalogue.compositions import TriedIdeas, composition_of_record
from poise_core.agents.catalogue.promising import most_promising, promise_of
from poise_core.agents.catalogue.screener import CatalogueScreener
from poise_core.agents.catalogue.wording import write_proposal
from poise_core.agents.roles import Proposal, ProposalContext, Screened
from poise_core.config.search import PromiseSpec
from poise_core.mechanisms.composition import Composition
from poise_core.mechanisms.operators import Variation, random_composition, random_numbers


def with_random_numbers(base: Composition, rng: random.Random) -> Variation:
    """The composition with random numbers; a coin adds or takes the KL penalty, and another an entropy bonus."""
    return random_numbers(base, rng, optional={"kl": base.choices["kl"], "entropy": "bonus"})


@dataclass(frozen=True)
class RandomProposer:
    """Compositions drawn from the whole catalogue, or the parent with random numbers; see ``poise_core.agents.roles.Proposer``.

    What was tried in this run does not come again, as in every arm: a repetition would only waste the budget.
    """

    numbers_only: bool = (
        False  # the parent's choices stay, but for the KL penalty and an entropy bonus, which a coin adds or takes
    )
    promise: PromiseSpec | None = None  # None: compositions are proposed as they are drawn

    def propose(self, context: ProposalContext, n: int, seed: int) -> list[Proposal]:
        """``n`` proposals with the context's parent, whatever it is."""
        rng = random.Random(f"{'tune' if self.numbers_only else 'random'}:{seed}:{context.generation}")
        base, left_out = composition_of_record(context.parent)
        tried = TriedIdeas.of(context, base)

        def draws(limit: int) -> Iterator[Variation]:
            for _ in range(100 * limit):
                variation = self._drawn(base, rng)
                if tried.add(variation.composition):
                    yield variation

        chosen: Iterable[Variation] = draws(n)
        words = (
            "Random numbers for what the parent does"
            if self.numbers_only
            else "Drawn at random from the whole catalogue"
        )
        if self.promise is not None and (promise := promise_of(context)) is not None:
            chosen = most_promising(draws, promise, self.promise, n, lambda variation: variation.composition)[0]
            words += ", among the most promising of many"
        proposals: list[Proposal] = []
        for variation in chosen:
            if len(proposals) == n:
                break
            proposal = write_proposal(context, base, left_out, variation, None, tried, words)
            if proposal is not None:
                proposals.append(proposal)
        return proposals

    def _drawn(self, base: Composition, rng: random.Random) -> Variation:
        if self.numbers_only:
            return with_random_numbers(base, rng)
        return Variation(random_composition(rng), base)


@dataclass(frozen=True)
class FirstComeScreener:
    """Keeps the proposer's order and only sorts out what cannot be implemented; see ``Screener``."""

    def rank(self, proposals: Sequence[Proposal], context: ProposalContext) -> list[Screened]:
        """All proposals; infeasible ones last."""
        judged = {one.proposal.name: one for one in CatalogueScreener().rank(proposals, context)}
        kept = [
            Screened(proposal, 0.0, judged[proposal.name].feasible, {}, judged[proposal.name].reasons[:-1])
            for proposal in proposals
        ]
        return sorted(kept, key=lambda one: not one.feasible)
