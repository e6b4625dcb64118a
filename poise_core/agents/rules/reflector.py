"""Reflection by rules: sentences on a trajectory and its evaluation, each with its numbers.

A reflection is a pure function of ``poise_core.agents.roles.ReflectionEvidence``. Paired intervals alone decide whether something
moved: where zero lies inside, the text says so and the expectation is undecidable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError
from scipy.special import ndtr

from poise_core.agents.digest import TrajectoryDigest, make_digest, paired_run_delta
from poise_core.agents.roles import (
    Claim,
    Diagnosis,
    Expectation,
    ExpectationOutcome,
    Measured,
    Reflection,
    ReflectionEvidence,
)
from poise_core.agents.rules.diagnoses import diagnose
from poise_core.evidence.format import spell_interval
from poise_core.evidence.intervals import Interval, distinguishable
from poise_core.evidence.noise import SeedNoise
from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.composition import Composition
from poise_core.trajectory import RUN_METRICS

LABELS: Mapping[str, str] = {
    "reward_end": "reward at the end",
    "entropy_end": "entropy at the end (nats)",
    "kl_end": "KL at the end (nats)",
    "length_end": "completion length at the end (tokens)",
    "format_valid_end": "format validity at the end",
    "truncated_end": "share of truncated completions at the end",
    "all_fail_end": "share of all-fail groups at the end",
    "clip_fraction_mean": "mean clip fraction",
    "grad_norm_median": "median gradient norm",
}


@dataclass(frozen=True)
class RuleReflector:
    """See ``poise_core.agents.roles.Reflector``; deterministic."""

    level: float = 0.95  # of the intervals over seeds of trajectory metrics
    suggestions: int = 3  # at most, per diagnosis

    def reflect(self, evidence: ReflectionEvidence) -> Reflection:
        """Diagnoses, claims, scored expectations and advice; missing evidence leaves its part empty."""
        candidate, parent = evidence.candidate, evidence.parent
        digest = make_digest(candidate.trajectories)
        diagnoses = diagnose(digest) if digest else ()
        runs = self._run_deltas(candidate, parent, evidence.run_noise)
        proposal = candidate.proposal
        outcomes = tuple(self._judge(e, evidence, runs) for e in (proposal.expectations if proposal else ()))
        moved = {name: delta for name, delta in evidence.benchmark_deltas.items() if delta.excludes_zero}
        return Reflection(
            candidate_id=candidate.candidate_id,
            parent_id=parent.candidate_id if parent else None,
            reflector="rules",
            summary=_summary(evidence, diagnoses),
            diagnoses=diagnoses,
            claims=tuple(_claims(evidence, digest, runs)),
            expectations=outcomes,
            benchmarks_up=tuple(name for name, delta in moved.items() if delta.low > 0),
            benchmarks_down=tuple(name for name, delta in moved.items() if delta.high < 0),
            try_next=tuple(self._try_next(evidence, diagnoses)),
            avoid=tuple(_avoid(evidence, diagnoses)),
            digest=digest,
        )

    def _run_deltas(
        self, candidate: Measured, parent: Measured | None, noise: Mapping[str, SeedNoise]
    ) -> dict[str, Interval]:
        if parent is None:
            return {}
        deltas = {
            name: paired_run_delta(candidate.trajectories, parent.trajectories, name, self.level, noise.get(name))
            for name in RUN_METRICS
        }
        return {name: delta for name, delta in deltas.items() if delta is not None}

    def _judge(
        self, expectation: Expectation, evidence: ReflectionEvidence, runs: Mapping[str, Interval]
    ) -> ExpectationOutcome:
        metric = expectation.metric
        delta = evidence.overall_delta if metric == "Overall" else {**evidence.benchmark_deltas, **runs}.get(metric)
        label = LABELS.get(metric, metric)
        if delta is None:
            text = f"{label} was {expectation.claim}: there is no paired measurement of it."
            return ExpectationOutcome(expectation=expectation, outcome="undecidable", text=text)
        measured = spell_interval(delta, _digits(metric))
        chance = chance_of(expectation, delta)
        if chance is None or TOO_OPEN < chance < 1.0 - TOO_OPEN:
            what = "does not exclude zero" if not expectation.size else "leaves both open"
            text = f"{label} was {expectation.claim}: {measured}, which {what}."
            return ExpectationOutcome(expectation=expectation, outcome="undecidable", text=text, chance=chance)
        text = f"{label} was {expectation.claim}: {measured}."
        outcome: Literal["met", "not met"] = "met" if chance > 0.5 else "not met"
        return ExpectationOutcome(expectation=expectation, outcome=outcome, text=text, chance=chance)

    def _try_next(self, evidence: ReflectionEvidence, diagnoses: Sequence[Diagnosis]) -> list[str]:
        present = _composition(evidence.candidate)
        advice = []
        delta = evidence.overall_delta
        if delta is not None and delta.low > 0:
            advice.append(f"Build on {_change(evidence)}: Overall {spell_interval(delta)} against {_parent(evidence)}.")
        for diagnosis in diagnoses:
            answers = [
                f"{slot}={choice.name} ({choice.idea})"
                for slot in diagnosis.slots
                for choice in SLOTS[slot].choices
                if diagnosis.code in choice.answers and (present is None or present.choices[slot] != choice.name)
            ]
            if answers:
                advice.append(f"Against {diagnosis.code}: {'; '.join(answers[: self.suggestions])}.")
        return advice


def chance_of(expectation: Expectation, delta: Interval) -> float | None:
    """The probability that the claim holds, by the measurement alone; None where the measurement has no limits.

    The claim is that s d > t, where d is the true difference and s its sign. A change of at least ``size`` has t = size, and a
    null that is tight refutes it; non-inferiority by a margin has t = -size (a one-sided test; Blackwelder 1982). With a flat
    prior, d is taken as normal around the estimate with the standard error half the 95 % interval / 1.96, wide where the
    interval is that of a t distribution. A width of zero decides nothing about a difference of exactly t.
    """
    if not (math.isfinite(delta.low) and math.isfinite(delta.high)):
        return None
    sign = 1.0 if expectation.direction in ("increase", "no_fall") else -1.0
    bound = expectation.size if expectation.direction in ("increase", "decrease") else -expectation.size
    beyond = sign * delta.estimate - bound
    error = (delta.high - delta.low) / 2 / 1.96
    if error == 0.0:
        return 0.5 if beyond == 0.0 else float(beyond > 0.0)
    return float(ndtr(beyond / error))


TOO_OPEN = 0.025
"""An expectation is decided where its chance lies at most this near to 0 or 1: its bound lies outside the 95 % interval."""


def _composition(candidate: Measured) -> Composition | None:
    try:
        return Composition.model_validate(dict(candidate.composition)) if candidate.composition else None
    except ValidationError:
        return None


def _digits(metric: str) -> str:
    return "+.3g" if metric in RUN_METRICS else "+.2f"


def _parent(evidence: ReflectionEvidence) -> str:
    return evidence.parent.name if evidence.parent else "its parent"


def _change(evidence: ReflectionEvidence) -> str:
    proposal = evidence.candidate.proposal
    return f"'{proposal.mechanism_change}'" if proposal else "this change"


def _summary(evidence: ReflectionEvidence, diagnoses: Sequence[Diagnosis]) -> str:
    name = evidence.candidate.name
    if evidence.failure is not None:
        failure = evidence.failure
        return (
            f"{name} was not evaluated: {failure.get('kind', 'failed')} at {failure.get('stage', 'an unknown stage')}: "
            f"{failure.get('message', 'no message')}"
        )
    parts = []
    if evidence.candidate.overall is not None:
        parts.append(f"{name} reaches Overall {spell_interval(evidence.candidate.overall, '.2f')}.")
    delta = evidence.overall_delta
    if delta is not None:
        parts.append(f"Against {_parent(evidence)}: {spell_interval(delta)}, {distinguishable(delta)}.")
    grave = " ".join(diagnosis.text for diagnosis in diagnoses[:2])
    parts.append(grave or "No rule found a fault in its training.")
    return " ".join(parts)


def _claims(evidence: ReflectionEvidence, digest: TrajectoryDigest | None, runs: Mapping[str, Interval]) -> list[Claim]:
    """One sentence for each difference to the parent that the intervals carry, then the course of the reward."""
    parent, claims = _parent(evidence), []
    for name, delta in evidence.benchmark_deltas.items():
        if delta.excludes_zero:
            claims.append(_moved(f"{name} (percent points)", delta, parent, "+.2f"))
    for name, delta in runs.items():
        if delta.excludes_zero:
            claims.append(_moved(LABELS[name], delta, parent, "+.3g"))
    if evidence.benchmark_deltas and not any(delta.excludes_zero for delta in evidence.benchmark_deltas.values()):
        overall = evidence.overall_delta
        nothing = "No benchmark moved beyond noise"
        if overall is not None and overall.excludes_zero:
            nothing = "Overall moved, but no single benchmark beyond its own noise"
        widest = max(abs(delta.estimate) for delta in evidence.benchmark_deltas.values())
        claims.append(
            Claim(
                text=f"{nothing}; the largest difference to {parent} is {widest:.2f} points.",
                evidence={"largest_absolute_delta": widest},
            )
        )
    if digest is not None and digest.reward_start is not None and digest.reward_end is not None:
        claims.append(
            Claim(
                text=f"Reward went from {digest.reward_start:.3f} to {digest.reward_end:.3f} in {digest.steps} steps.",
                evidence={"reward_start": digest.reward_start, "reward_end": digest.reward_end},
            )
        )
    if digest is not None and digest.non_finite_steps:
        claims.append(
            Claim(
                text=f"{digest.non_finite_steps} steps reported a number that is not finite.",
                evidence={"non_finite_steps": float(digest.non_finite_steps)},
            )
        )
    return claims


def _moved(label: str, delta: Interval, parent: str, digits: str) -> Claim:
    direction = "higher" if delta.low > 0 else "lower"
    return Claim(
        text=f"{label} is {direction} than {parent}'s: {spell_interval(delta, digits)}.",
        evidence={"delta": delta.estimate, "low": delta.low, "high": delta.high},
    )


def _avoid(evidence: ReflectionEvidence, diagnoses: Sequence[Diagnosis]) -> list[str]:
    failure, delta = evidence.failure, evidence.overall_delta
    if failure is not None:
        return [f"{_change(evidence)} on {_parent(evidence)}: {failure.get('kind')}: {failure.get('message')}"]
    if delta is None or delta.high >= 0:
        return []
    with_it = f" It came with {', '.join(d.code for d in diagnoses)}." if diagnoses else ""
    return [f"{_change(evidence)} on {_parent(evidence)}: Overall {spell_interval(delta)}.{with_it}"]
