"""Diagnoses of a training: each is a threshold that was crossed, in one sentence with its numbers.

A diagnosis names the mechanism slots that could answer it, which is what the catalogue's proposer acts on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from poise_core.agents.digest import TrajectoryDigest
from poise_core.agents.roles import Diagnosis


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


def diagnose(digest: TrajectoryDigest) -> tuple[Diagnosis, ...]:
    """The diagnoses of a trajectory, the gravest first."""
    found = []
    for code, rule in DIAGNOSES.items():
        text = rule.check(digest)
        if text is not None:
            found.append(Diagnosis(code=code, text=text, slots=rule.slots))
    return tuple(found)
