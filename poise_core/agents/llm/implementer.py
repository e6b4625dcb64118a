"""The LLM-backed implementer: plan, generate, check against the proposal, answer reports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from poise_core.agents.llm.call import Caller
from poise_core.agents.llm.consistency import contradictions
from poise_core.agents.llm.context import Section, contract_text, fit
from poise_core.agents.llm.forms import ImplementationForm
from poise_core.agents.llm.prompts import Prompt, estimate_tokens
from poise_core.agents.llm.question import Question, failing_as
from poise_core.agents.llm.screener import proposal_text
from poise_core.agents.llm.tools import language_text, offered, results, tools_for
from poise_core.agents.roles import Attempt, Implementer, Proposal, ProposalContext
from poise_core.escaping import prompt_name
from poise_core.failures import CandidateFailure, FailureKind


@dataclass(frozen=True)
class ModelImplementer:
    """See ``poise_core.agents.roles.Implementer``."""

    caller: Caller
    prompt: Prompt
    catalogue: Implementer  # renders what the catalogue proposed
    revises: bool = True

    def implement(self, proposal: Proposal, context: ProposalContext, attempts: Sequence[Attempt] = ()) -> str:
        """The candidate file, consistent with its proposal.

        Raises:
            CandidateFailure: the model gave none (NO_ANSWER), or none that agrees with the proposal (REJECTED).
        """
        if proposal.proposer == "catalogue":
            return self.catalogue.implement(proposal, context, attempts)
        tries = list(attempts)
        faults: list[str] = []
        for _ in range(1 + self.caller.settings.consistency_revisions):
            form = self._ask(proposal, context, tries)
            source = _plain(form.source)
            faults = contradictions(source, proposal, context.parent.source, form.equations)
            if not faults:
                return source
            tries.append(Attempt(source, "consistency", "\n".join(faults)))
        raise CandidateFailure(
            FailureKind.REJECTED,
            "implement",
            f"{proposal.name} contradicts its proposal: {faults[0]}",
            "\n".join(faults),
        )

    def _ask(self, proposal: Proposal, context: ProposalContext, tries: Sequence[Attempt]) -> ImplementationForm:
        """The final answer, after as many turns with tools as the model wants and ``agents.tool_turns`` allows."""
        turns: list[Section] = []
        most = self.caller.settings.tool_turns
        for turn in range(most + 1):
            question = Question.about_slot(
                "implementer",
                context,
                ImplementationForm,
                self.prompt,
                partial(self._fill, proposal, context, tries, tuple(turns), most - turn),
            )
            with failing_as("implement", proposal.name):
                form = self.caller.ask(question.with_tools(offered() if turn < most else None)).value
            if not form.tries or turn == most:
                break
            source = _plain(form.source)
            training = context.task.protocol.training if context.task else None
            told = results(form.tries, source, tools_for(proposal.name, self.caller.should_stop, training))
            turns = [  # earlier drafts make room for the last one
                *(one for one in turns if one.name.endswith("_results")),
                Section("your_draft", source, 87),
                Section(f"turn_{turn + 1}_results", told, 88 + turn),
            ]
        return form

    def _fill(
        self,
        proposal: Proposal,
        context: ProposalContext,
        tries: Sequence[Attempt],
        turns: Sequence[Section],
        left: int,
        budget: int,
    ) -> tuple[str, str]:
        sections = [
            Section("task", context.task.text() if context.task else "", 60),
            Section("contract", contract_text(), 70),
            Section("language", language_text(), 72),
            Section("proposal", proposal_text(proposal), 100, required=True),
            Section("equations", "\n".join(f"{n}. {one}" for n, one in enumerate(proposal.equations, 1)), 95),
            Section("parent_code", context.parent.source, 90, required=True),
        ]
        for number, attempt in enumerate(tries, start=1):
            last = number == len(tries)
            sections += [
                Section(f"try_{number}_file", attempt.source, 85 if last else 40 + number, required=last),
                Section(f"try_{number}_{attempt.stage}_report", attempt.report, 86 if last else 50 + number),
            ]
        sections += turns
        fixed = estimate_tokens(self.prompt.system.template + self.prompt.user.template) + 100
        return self.prompt.fill(
            name=prompt_name(proposal.name),
            turns=str(left),
            mechanisms=", ".join(map(prompt_name, proposal.mechanisms)) or "at least one",
            data=fit(sections, budget - fixed).text,
        )


def _plain(source: str) -> str:
    """The file without a Markdown code block around it."""
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    fenced = re.fullmatch(r"\s*```\w*[ \t]*\n(.*?)\n?```\s*", source, re.DOTALL)
    return (fenced.group(1) if fenced else source).strip() + "\n"
