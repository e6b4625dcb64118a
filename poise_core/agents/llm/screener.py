"""The LLM-backed screener."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from poise_core.agents.llm.call import Caller
from poise_core.agents.llm.context import Section, fit, slot_sections
from poise_core.agents.llm.faults import CallFailed
from poise_core.agents.llm.forms import JudgementForm, ScreeningForm
from poise_core.agents.llm.prompts import Prompt, data_block, estimate_tokens
from poise_core.agents.llm.question import Question
from poise_core.agents.roles import Proposal, ProposalContext, Screened, Screener

WEIGHTS = {"logic": 0.3, "feasibility": 0.2, "novelty": 0.2, "expected_gain": 0.3}
"""Of the terms, each in [0, 1], in the score."""

_FOR_AUTHORS = ("contract", "literature")
"""Sections that a judge does without: what the contract can express stands in the prompt, and what was tried in the archive."""


@dataclass(frozen=True)
class ModelScreener:
    """See ``poise_core.agents.roles.Screener``."""

    caller: Caller
    prompt: Prompt
    catalogue: Screener  # its obstacles always count; it ranks alone where the model cannot
    may_fall_back: bool = True

    def rank(self, proposals: Sequence[Proposal], context: ProposalContext) -> list[Screened]:
        """All proposals, best first; the catalogue ranks them where no language model wrote any.

        Where the model gives no answer the catalogue ranks, too; with ``on_failure: fail`` no proposal is feasible then.
        """
        known = self.catalogue.rank(proposals, context)
        if not any(proposal.proposer == "llm" for proposal in proposals):
            return known
        question = Question.about_slot(
            "screener", context, ScreeningForm, self.prompt, lambda budget: self._fill(proposals, context, budget)
        )
        try:
            answer = self.caller.ask(question)
        except CallFailed as failure:
            why = f"the language model did not rank: {failure.outcome}: {failure.message}"
            return [
                replace(one, feasible=one.feasible and self.may_fall_back, reasons=(*one.reasons, why)) for one in known
            ]
        judgements = {one.index: one for one in answer.value.judgements}
        screened = [
            _screened(proposal, judgements.get(index), next(one for one in known if one.proposal is proposal))
            for index, proposal in enumerate(proposals)
        ]
        return sorted(screened, key=lambda one: (not one.feasible, -round(one.score, 9), one.proposal.name))

    def _fill(self, proposals: Sequence[Proposal], context: ProposalContext, budget: int) -> tuple[str, str]:
        listed = "\n\n".join(
            data_block(f"proposal_{index}", proposal_text(one), 6000) for index, one in enumerate(proposals)
        )
        fixed = estimate_tokens(self.prompt.system.template + self.prompt.user.template + listed) + 100
        sections: list[Section] = [one for one in slot_sections(context) if one.name not in _FOR_AUTHORS]
        return self.prompt.fill(count=str(len(proposals)), proposals=listed, data=fit(sections, budget - fixed).text)


def proposal_text(proposal: Proposal) -> str:
    """A proposal in words, for prompts."""
    lines = [
        f"name: {proposal.name}",
        f"direction: {proposal.direction}",
        f"addresses: {proposal.addresses}",
        f"hypothesis: {proposal.hypothesis}",
        f"change: {proposal.mechanism_change}",
        *(f"equation: {one}" for one in proposal.equations),
        *(f"expected: {one.foretold}, because {one.why}" for one in proposal.expectations),
    ]
    if proposal.touches:
        lines.append(f"touches: {', '.join(proposal.touches)}")
    return "\n".join(lines)


def _screened(proposal: Proposal, judgement: JudgementForm | None, known: Screened) -> Screened:
    if judgement is None:
        reasons = (*known.reasons, "the screener did not judge it")
        return Screened(proposal, 0.0, False, dict.fromkeys(WEIGHTS, 0.0), reasons, "llm")
    terms = {name: getattr(judgement, name) / 10.0 for name in WEIGHTS}
    score = sum(weight * terms[name] for name, weight in WEIGHTS.items())
    obstacles = () if known.feasible else known.reasons
    feasible = judgement.admissible and known.feasible
    return Screened(proposal, score, feasible, terms, (*obstacles, judgement.reason), "llm")
