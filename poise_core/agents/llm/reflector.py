"""The LLM-backed reflector, which explains what the rules have measured.

The rules come first: their diagnoses, the scored expectations, benchmarks up and down and the digest are measurements and stand as
they are. The model adds the explanation. Its claims cite numbered evidence rows; one that cites none is kept, and marked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from poise_core.agents.digest import paired_run_delta
from poise_core.agents.llm.call import Caller
from poise_core.agents.llm.context import Section, fit
from poise_core.agents.llm.faults import CallFailed
from poise_core.agents.llm.forms import ReflectionForm
from poise_core.agents.llm.prompts import Prompt, estimate_tokens
from poise_core.agents.llm.question import Answer, Question
from poise_core.agents.llm.screener import proposal_text
from poise_core.agents.reports import curves, difference, levels, without_folders
from poise_core.agents.roles import Claim, Diagnosis, Measured, Reflection, ReflectionEvidence, Reflector
from poise_core.agents.rules.diagnoses import DIAGNOSES
from poise_core.agents.rules.reflector import LABELS
from poise_core.escaping import prompt_name
from poise_core.evidence.format import spell_interval
from poise_core.evidence.intervals import Interval
from poise_core.trajectory import RUN_METRICS


@dataclass(frozen=True)
class EvidenceRow:
    """One measured fact with an id to cite."""

    id: str
    text: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelReflector:
    """See ``poise_core.agents.roles.Reflector``."""

    caller: Caller
    prompt: Prompt
    rules: Reflector
    may_fall_back: bool = True

    def reflect(self, evidence: ReflectionEvidence) -> Reflection:
        """The rules' reflection with the model's explanation, or the rules' alone where the model gives no answer.

        Without ``may_fall_back`` such a reflection says that there was no answer, and holds the scored expectations only.
        """
        ground = self.rules.reflect(evidence)
        rows = evidence_rows(evidence, ground)
        question = Question(
            role="reflector",
            scope=evidence.candidate.candidate_id,
            generation=evidence.generation,
            kind=ReflectionForm,
            build=lambda budget: self._fill(evidence, ground, rows, budget),
            prompt=self.prompt.label,
        )
        try:
            return merge(ground, self.caller.ask(question), rows)
        except CallFailed as failure:
            if self.may_fall_back:
                return ground
            summary = f"No reflection: the language model gave no answer ({failure.outcome}: {failure.message})."
            return ground.model_copy(
                update={"summary": summary, "diagnoses": (), "claims": (), "try_next": (), "avoid": ()}
            )

    def _fill(
        self, evidence: ReflectionEvidence, ground: Reflection, rows: Sequence[EvidenceRow], budget: int
    ) -> tuple[str, str]:
        proposal, failure = evidence.candidate.proposal, evidence.failure
        outcomes = "\n".join(
            f"{one.outcome}: {one.text} (because {one.expectation.why})" for one in ground.expectations
        )
        candidate, parent = evidence.candidate, evidence.parent
        theirs = parent.source if parent else ""
        changed = difference(candidate.source, theirs, candidate.name, parent.name) if parent else ""
        scores = levels(
            candidate.levels, parent.levels if parent else {}, evidence.task, parent.name if parent else "no parent"
        )
        sections = [
            Section("directive", evidence.directive, 100, required=True),
            Section("task", evidence.task.text() if evidence.task else "", 88),
            Section("change", proposal_text(proposal) if proposal else "no proposal: an algorithm of the start", 90),
            Section("difference_to_the_parents_file", changed, 89),
            Section("file", candidate.source, 72),
            Section("evidence", "\n".join(f"{row.id}: {row.text}" for row in rows), 95, required=True),
            Section("benchmark_levels", scores, 84),
            Section("curves", curves(candidate.trajectories, parent.trajectories if parent else {}), 82),
            Section("completions", "\n\n".join(evidence.samples), 50),
            Section("rules", "\n".join(f"{one.code}: {one.text}" for one in ground.diagnoses), 80),
            Section("expectations", outcomes, 70),
            Section(
                "failure", without_folders(failure["detail"])[-3000:] if failure and failure.get("detail") else "", 60
            ),
        ]
        fixed = estimate_tokens(self.prompt.system.template + self.prompt.user.template) + 200
        return self.prompt.fill(
            name=prompt_name(evidence.candidate.name),
            codes=", ".join(DIAGNOSES),
            data=fit(sections, budget - fixed).text,
        )


def evidence_rows(evidence: ReflectionEvidence, ground: Reflection) -> list[EvidenceRow]:
    """Everything that can be cited: scores, paired differences to the parent, the digest's numbers, a failure."""
    candidate, parent = evidence.candidate, evidence.parent
    earlier = parent is not None and _ended_earlier(candidate, parent)
    facts: list[tuple[str, dict[str, float]]] = []
    if candidate.overall is not None:
        facts.append((f"Overall {spell_interval(candidate.overall, '.2f')}", {"overall": candidate.overall.estimate}))
    deltas = {"Overall": evidence.overall_delta, **evidence.benchmark_deltas}
    facts += [
        (f"{name} against {parent.name}, points: {spell_interval(delta)}", _numbers(delta))
        for name, delta in deltas.items()
        if delta is not None and parent is not None
    ]
    for name in RUN_METRICS if parent is not None else ():
        delta = (
            paired_run_delta(candidate.trajectories, parent.trajectories, name, noise=evidence.run_noise.get(name))
            if parent
            else None
        )
        if delta is not None and parent is not None:
            label = LABELS.get(name, name) + (", at the step where it was stopped," if earlier else "")
            facts.append((f"{label} against {parent.name}: {spell_interval(delta, '+.3g')}", _numbers(delta)))
    if ground.digest is not None:
        for name, value in ground.digest.model_dump().items():
            numbers = value if isinstance(value, dict) else {name: value}
            finite = {key: float(one) for key, one in numbers.items() if one is not None and math.isfinite(one)}
            if finite:
                shown = ", ".join(f"{key} {one:.4g}" for key, one in finite.items())
                facts.append((shown if name in finite else f"{name}: {shown}", finite))
    if evidence.stopped_overall is not None:
        text = f"Overall {evidence.stopped_overall:.2f} of the policy at which it was stopped (one seed, not whole)"
        facts.append((text, {"stopped_overall": evidence.stopped_overall}))
    if evidence.failure is not None:
        failure = evidence.failure
        facts.append((f"{failure['kind']} in {failure['stage']}: {failure['message'][:1000]}", {"failed": 1.0}))
    return [EvidenceRow(f"E{number}", text, numbers) for number, (text, numbers) in enumerate(facts, start=1)]


def _ended_earlier(candidate: Measured, parent: Measured) -> bool:
    shared = candidate.trajectories.keys() & parent.trajectories.keys()
    return any(len(candidate.trajectories[seed]) < len(parent.trajectories[seed]) for seed in shared)


def _numbers(delta: Interval) -> dict[str, float]:
    numbers = {"delta": delta.estimate, "low": delta.low, "high": delta.high}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def merge(ground: Reflection, answer: Answer[ReflectionForm], rows: Sequence[EvidenceRow]) -> Reflection:
    """The stored reflection: the rules' measurements and the model's explanation, each claim with the rows it cites."""
    form, by_id = answer.value, {row.id: row for row in rows}
    fired = {one.code: one for one in ground.diagnoses}
    told = {one.code: one.text for one in form.diagnoses}
    diagnoses = [
        Diagnosis(code=code, text=f"{one.text} {told[code]}" if code in told else one.text, slots=one.slots)
        for code, one in fired.items()
    ]
    claims = [
        Claim(
            text=claim.text,
            evidence={
                f"{row_id} {name}": value
                for row_id in dict.fromkeys(claim.cites)
                if row_id in by_id
                for name, value in by_id[row_id].numbers.items()
            },
        )
        for claim in form.claims
    ]
    # a diagnosis that no measurement backs is a claim without evidence
    claims += [Claim(text=f"{code}: {text}") for code, text in told.items() if code not in fired]
    return ground.model_copy(
        update={
            "reflector": "llm",
            "summary": form.summary,
            "diagnoses": tuple(diagnoses),
            "claims": (*ground.claims, *claims),
            "try_next": tuple(form.try_next) or ground.try_next,
            "avoid": (*ground.avoid, *form.avoid),
            "prompt": answer.prompt,
            "call_id": answer.call_id,
        }
    )
