"""The implementer that needs no language model: it renders compositions of the mechanism catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from poise_core.agents.catalogue.compositions import read_composition
from poise_core.agents.catalogue.wording import render_proposal
from poise_core.agents.roles import Attempt, Proposal, ProposalContext
from poise_core.failures import CandidateFailure, FailureKind


@dataclass(frozen=True)
class CatalogueImplementer:
    """Renders the proposal's composition; see ``poise_core.agents.roles.Implementer``."""

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
        composition = read_composition(proposal.composition)
        if composition is None:
            raise CandidateFailure(
                FailureKind.REJECTED, "implement", f"{proposal.name} has no composition that the catalogue can render"
            )
        return render_proposal(proposal, context)
