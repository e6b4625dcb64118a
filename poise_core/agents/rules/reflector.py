"""Reflection by rules: what a trajectory and its evaluation say, in sentences that each carry their number.

A pure function of :class:`poise_core.agents.roles.ReflectionEvidence`. A diagnosis is a threshold that was crossed; it names the
mechanism slots that could answer it, which is what the catalogue proposer acts on. Whether something moved is decided by paired
intervals alone: where zero lies inside, the text says so and the expectation is undecidable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from poise_core.agents.digest import RUN_METRICS, TrajectoryDigest, make_digest, paired_run_delta
from poise_core.agents.roles import (
    Claim,
    Diagnosis,
    Expectation,
    ExpectationOutcome,
    Measured,
    Reflection,
    ReflectionEvidence,
)
from poise_core.evidence.format import spell_interval
from poise_core.evidence.intervals import Interval, distinguishable
from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.composition import Composition


@dataclass(frozen=True)
class Rule:
    """When a diagnosis is made, and which slots could answer it."""

    slots: tuple[str, ...]
    check: Callable[[TrajectoryDigest], str | None]  # the sentence, or None where the rule does not fire


def _entropy_collapse(d: TrajectoryDigest) -> str | None:
    if d.entropy_start is None or d.entropy_end is None or d.entropy_slope is None:
        return None
    if d.entropy_end >= 0.3 * d.entropy_start:
        return None
    return (
        f"Entropy collapsed from {d.entropy_start:.3g} to {d.entropy_end:.3g} nats "
        f"({d.entropy_slope * 100:+.2g} per 100 steps)."
    )


def _entropy_explosion(d: TrajectoryDigest) -> str | None:
    if d.entropy_start is None or d.entropy_end is None or d.entropy_end <= 1.5 * d.entropy_start:
        return None
    return f"Entropy rose from {d.entropy_start:.3g} to {d.entropy_end:.3g} nats: the policy dissolves."


def _kl_spike(d: TrajectoryDigest) -> str | None:
    spike = d.kl_spike
    if spike is None or spike.ratio < 3.0 or spike.value < 0.02:
        return None
    return f"KL spiked to {spike.value:.3g} at step {spike.step} of seed {spike.seed}, {spike.ratio:.1f} times the steps around it."


def _gradient_spikes(d: TrajectoryDigest) -> str | None:
    spike = d.grad_norm_spike
    if spike is None or spike.ratio < 5.0:
        return None
    return (
        f"The gradient norm jumped to {spike.value:.3g} at step {spike.step} of seed {spike.seed}, "
        f"{spike.ratio:.1f} times the steps around it."
    )


def _reward_collapse(d: TrajectoryDigest) -> str | None:
    if d.reward_best is None or d.reward_end is None or d.reward_end >= 0.8 * d.reward_best:
        return None
    return f"Reward fell back to {d.reward_end:.3f} after a best of {d.reward_best:.3f}."


def _reward_plateau(d: TrajectoryDigest) -> str | None:
    if d.reward_plateau_step is None or d.reward_end is None or d.reward_start is None or d.steps < 10:
        return None
    if d.reward_plateau_step > 0.6 * d.steps or d.reward_end > 0.95:
        return None
    return (
        f"Reward stopped rising at step {d.reward_plateau_step} of {d.steps} "
        f"(start {d.reward_start:.3f}, best {d.reward_best:.3f}, end {d.reward_end:.3f})."
    )


def _all_fail_high(d: TrajectoryDigest) -> str | None:
    if d.all_fail_start is None or d.all_fail_end is None or d.all_fail_end <= 0.25:
        return None
    return (
        f"In {d.all_fail_end:.0%} of the groups no completion was right at the end ({d.all_fail_start:.0%} at the start); "
        "they carry no outcome signal."
    )


def _format_decay(d: TrajectoryDigest) -> str | None:
    if d.format_valid_start is None or d.format_valid_end is None:
        return None
    if d.format_valid_end >= d.format_valid_start - 0.03:
        return None
    return f"Format validity fell from {d.format_valid_start:.1%} to {d.format_valid_end:.1%}."


def _format_invalid(d: TrajectoryDigest) -> str | None:
    if d.format_valid_end is None or d.format_valid_end >= 0.9:
        return None
    return f"{1 - d.format_valid_end:.1%} of the completions still have no parseable answer at the end."


def _length_growth(d: TrajectoryDigest) -> str | None:
    if not d.length_start or d.length_end is None or d.length_end <= 1.3 * d.length_start:
        return None
    return f"Completions grew from {d.length_start:.1f} to {d.length_end:.1f} tokens."


def _length_collapse(d: TrajectoryDigest) -> str | None:
    if not d.length_start or d.length_end is None or d.length_end >= 0.6 * d.length_start:
        return None
    return f"Completions shrank from {d.length_start:.1f} to {d.length_end:.1f} tokens."


def _truncation_high(d: TrajectoryDigest) -> str | None:
    if d.truncated_end is None or d.truncated_start is None or d.truncated_end <= 0.1:
        return None
    return f"{d.truncated_end:.1%} of the completions hit the length limit at the end ({d.truncated_start:.1%} at the start)."


def _clip_saturation(d: TrajectoryDigest) -> str | None:
    if d.clip_fraction_mean is None or d.clip_fraction_mean <= 0.2:
        return None
    return f"{d.clip_fraction_mean:.1%} of the tokens were clipped on average ({d.clip_fraction_end:.1%} at the end)."


DIAGNOSES: Mapping[str, Rule] = {
    "entropy_collapse": Rule(("entropy", "clip", "bound", "routing"), _entropy_collapse),
    "entropy_explosion": Rule(("entropy", "kl"), _entropy_explosion),
    "kl_spike": Rule(("kl", "scale", "clip", "ratio", "bound"), _kl_spike),
    "gradient_spikes": Rule(("scale", "bound", "clip", "ratio"), _gradient_spikes),
    "reward_collapse": Rule(("kl", "clip", "scale", "bound"), _reward_collapse),
    "reward_plateau": Rule(("routing", "entropy", "kl", "scale"), _reward_plateau),
    "all_fail_high": Rule(("failure", "baseline", "routing", "reward"), _all_fail_high),
    "format_decay": Rule(("format", "failure", "reward", "kl"), _format_decay),
    "format_invalid": Rule(("format", "failure", "reward", "baseline"), _format_invalid),
    "length_growth": Rule(("length", "aggregation", "routing"), _length_growth),
    "length_collapse": Rule(("length",), _length_collapse),
    "truncation_high": Rule(("length", "routing"), _truncation_high),
    "clip_saturation": Rule(("clip", "ratio"), _clip_saturation),
}
"""Code -> rule, the gravest first; the thresholds are this project's and stand in the rules."""

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


def diagnose(digest: TrajectoryDigest) -> tuple[Diagnosis, ...]:
    """The diagnoses of a trajectory, the gravest first."""
    found = []
    for code, rule in DIAGNOSES.items():
        text = rule.check(digest)
        if text is not None:
            found.append(Diagnosis(code=code, text=text, slots=rule.slots))
    return tuple(found)


@dataclass(frozen=True)
class RuleReflector:
    """See :class:`poise_core.agents.roles.Reflector`; deterministic."""

    level: float = 0.95  # of the intervals over seeds of trajectory metrics
    suggestions: int = 3  # at most, per diagnosis

    def reflect(self, evidence: ReflectionEvidence) -> Reflection:
        """Diagnoses, claims, scored expectations and advice; missing evidence leaves its part empty."""
        candidate, parent = evidence.candidate, evidence.parent
        digest = make_digest(candidate.trajectories)
        diagnoses = diagnose(digest) if digest else ()
        runs = self._run_deltas(candidate, parent)
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

    def _run_deltas(self, candidate: Measured, parent: Measured | None) -> dict[str, Interval]:
        if parent is None:
            return {}
        deltas = {
            name: paired_run_delta(candidate.trajectories, parent.trajectories, name, self.level)
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
            text = f"{label} was to {expectation.direction}: there is no paired measurement of it."
            return ExpectationOutcome(expectation=expectation, outcome="undecidable", text=text)
        measured = spell_interval(delta, _digits(metric))
        if not delta.excludes_zero:
            text = f"{label} was to {expectation.direction}: {measured}, which does not exclude zero."
            return ExpectationOutcome(expectation=expectation, outcome="undecidable", text=text)
        met = (delta.low > 0) == (expectation.direction == "increase")
        text = f"{label} was to {expectation.direction}: {measured}."
        return ExpectationOutcome(expectation=expectation, outcome="met" if met else "not met", text=text)

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
        widest = max(abs(delta.estimate) for delta in evidence.benchmark_deltas.values())
        claims.append(
            Claim(
                text=f"No benchmark moved beyond noise; the largest difference to {parent} is {widest:.2f} points.",
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
