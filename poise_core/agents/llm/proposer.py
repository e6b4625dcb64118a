"""The LLM-backed proposer: different directions are asked for, duplicates are merged."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from poise_core.agents.llm.bandit import Bandit
from poise_core.agents.llm.call import Caller
from poise_core.agents.llm.context import fit, slot_sections
from poise_core.agents.llm.faults import CallFailed
from poise_core.agents.llm.forms import ProposalForm, ProposalsForm
from poise_core.agents.llm.literature import Note
from poise_core.agents.llm.prompts import Prompt, estimate_tokens
from poise_core.agents.llm.question import Answer, Question, failing_as
from poise_core.agents.roles import Diagnosis, Expectation, Proposal, ProposalContext, Proposer
from poise_core.escaping import prompt_name
from poise_core.trajectory import RUN_METRICS

DIRECTIONS: dict[str, str] = {
    "reward": "how correctness, format and length become a reward",
    "baseline": "what an advantage is centred on: group, batch or subset",
    "scale": "what an advantage is divided by, or whether at all",
    "bound": "how extreme advantages are bounded",
    "routing": "treating mixed, all-right and all-wrong groups differently",
    "length": "what the length of a completion does to its advantage",
    "format": "how completions without a parseable answer are treated",
    "failure": "what a group without any right answer can still teach",
    "ratio": "token, sequence or geometric-mean importance ratios",
    "clip": "how the ratio is clipped or damped, on which side",
    "kl": "keeping to the initial policy: where, how strongly, when",
    "entropy": "keeping exploration: bonuses, targets, selection of tokens, controllers",
    "aggregation": "how token losses are weighed against each other",
}
"""Families of mechanisms; the names are the slots of the catalogue."""


@dataclass(frozen=True)
class ModelProposer:
    """See ``poise_core.agents.roles.Proposer``."""

    caller: Caller
    prompt: Prompt
    notes: tuple[Note, ...]
    fallback: Proposer | None  # who answers where the model cannot; None: a typed failure
    seed: int | None = None  # of the order of directions, common to all slots; None: each slot has its own
    bandit: Bandit | None = None  # chooses model and prompt; None: the role's own

    def propose(self, context: ProposalContext, n: int, seed: int) -> list[Proposal]:
        """Up to ``n`` proposals.

        Raises:
            poise_core.failures.CandidateFailure: no answer, and no fallback.
        """
        directions = wanted_directions(context, n, self.seed if self.seed is not None else seed)
        arm = self.bandit.choose(context) if self.bandit else None
        prompt, model = (arm.prompt, arm.model) if arm else (self.prompt, None)
        question = Question.about_slot(
            "proposer",
            context,
            ProposalsForm,
            prompt,
            lambda budget: self._fill(prompt, context, directions, budget),
            model,
        )
        if self.fallback is None:
            with failing_as("propose", f"child of {context.parent.name}"):
                return merged(self.caller.ask(question), context)[:n]
        try:
            proposals = merged(self.caller.ask(question), context)[:n]
        except CallFailed:
            proposals = []
        return proposals or self.fallback.propose(context, n, seed)

    def _fill(
        self, prompt: Prompt, context: ProposalContext, directions: Sequence[str], budget: int
    ) -> tuple[str, str]:
        fixed = estimate_tokens(prompt.system.template + prompt.user.template) + 600
        count = self.caller.settings.literature_notes
        data = fit(slot_sections(context, self.notes, count), budget - fixed)
        return prompt.fill(
            count=str(len(directions)),
            directions="\n".join(f"- {one}: {DIRECTIONS[one]}" for one in directions),
            metrics=", ".join(["Overall", *map(prompt_name, context.parent.benchmarks), *RUN_METRICS]),
            data=data.text,
        )


TOO_COMMON = 0.6
"""Share of the candidates measured so far from which on a diagnosis says nothing about the one that has it."""

FEWEST_TO_COMPARE = 5
"""Measured candidates from which on that share is looked at."""


def telling_diagnoses(context: ProposalContext) -> list[Diagnosis]:
    """The parent's diagnoses that tell it from others: not those that most candidates so far have as well."""
    reflection = context.parent.reflection
    found = list(reflection.diagnoses) if reflection else []
    others = [one for one in context.table if one.measured and one.name != context.parent.name]
    if len(others) < FEWEST_TO_COMPARE:
        return found
    counts = Counter(code for one in others for code in one.diagnoses)
    return [one for one in found if counts[one.code] < TOO_COMMON * len(others)]


def wanted_directions(context: ProposalContext, n: int, seed: int) -> list[str]:
    """``n`` different directions (at most all): first those that telling diagnoses point to, the rest at random.

    Of several slots of one parent each gets the next ``n`` of one order, so that no two get the same before all were offered.
    """
    pointed = [slot for one in telling_diagnoses(context) for slot in one.slots[:2]]
    pointed = [slot for slot in dict.fromkeys(pointed) if slot in DIRECTIONS]
    rest = [slot for slot in DIRECTIONS if slot not in pointed]
    random.Random(f"{seed}:{context.generation}:{context.parent.candidate_id}").shuffle(rest)
    keep = max(1, (n + 1) // 2)  # half for what is diagnosed, half to explore
    ordered = [*pointed[:keep], *rest, *pointed[keep:]]
    begin = context.repeat * n % len(ordered)
    return [*ordered[begin:], *ordered[:begin]][:n]


def merged(answer: Answer[ProposalsForm], context: ProposalContext) -> list[Proposal]:
    """Proposals of the answer; of those that say the same, the first. Names that are taken get a number."""
    taken = {one.name.upper() for one in context.avoid} | {context.parent.name.upper()}
    taken |= {reference.record.name.upper() for reference in context.references}
    seen: list[set[str]] = []
    proposals = []
    for form in answer.value.proposals:
        words = set(re.findall(r"[a-z0-9_]+", " ".join([form.mechanism_change, *form.equations]).lower()))
        if any(len(words & other) > 0.8 * len(words | other) for other in seen):
            continue
        seen.append(words)
        name = _free_name(form.name, taken)
        taken.add(name.upper())
        proposals.append(_proposal(form, name, answer, context))
    return proposals


def _free_name(wanted: str, taken: set[str]) -> str:
    stem = re.sub(r"[^A-Za-z0-9]+", "-", wanted).strip("-")[:40] or "child"
    name, number = stem, 1
    while name.upper() in taken:
        number += 1
        name = f"{stem}-{number}"
    return name


def _proposal(form: ProposalForm, name: str, answer: Answer[ProposalsForm], context: ProposalContext) -> Proposal:
    known = {"Overall", *context.parent.benchmarks, *RUN_METRICS}
    expectations = tuple(
        Expectation(metric=one.metric, direction=one.direction, why=one.why, size=one.size, probability=one.probability)
        for one in form.expectations
        if one.metric in known  # what is not measured can never be scored
    )
    words = re.findall(r"[a-z]+", form.direction.lower())
    return Proposal(
        name=name,
        hypothesis=form.hypothesis,
        mechanism_change=form.mechanism_change,
        equations=tuple(form.equations),
        addresses=form.addresses,
        expectations=expectations,
        parent_ids=(context.parent.candidate_id,),
        direction=next((word for word in words if word in DIRECTIONS), words[0] if words else "other"),
        proposer="llm",
        mechanisms=tuple(dict.fromkeys(_identifier(one) for one in form.mechanisms)),
        touches=tuple(dict.fromkeys(form.touches)),
        prompt=answer.prompt,
        call_id=answer.call_id,
    )


def _identifier(name: str) -> str:
    """A mechanism's name in characters that a candidate may use: Greek letters are spelt out, accents left out."""
    letters = (one for one in unicodedata.normalize("NFKD", name) if not unicodedata.combining(one))
    spelt = "".join(map(_spelt, letters)).lower()
    return re.sub(r"[^a-z0-9_]+", "_", spelt)[:60].strip("_") or "mechanism"


def _spelt(letter: str) -> str:
    found = re.fullmatch(r"GREEK (?:SMALL|CAPITAL) LETTER (?:FINAL )?(\w+)", unicodedata.name(letter, ""))
    return found[1].replace("LAMDA", "LAMBDA") if found else letter
