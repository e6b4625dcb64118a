"""Which candidates go up the ladder: the decision after one rung, from paired differences and known noise.

A candidate is compared at the seed it has, on the same prompts and problems, with its parent and with the baseline. With d the
difference, v the variance of a difference between seeds with f degrees of freedom and a flat prior, the true difference is
d + sqrt(v / n) * t_f, so

    P(better) = T_f(d / sqrt(v / n))

and the candidate stops where this falls below ``stop_below`` for either of them (divided by two where they are two candidates:
two chances to be wrong). A child that equals its parent is thus lost with at most ``stop_below`` per rung, a better one less often,
whatever the number of children. v is the two-way residual variance of all candidates measured in earlier generations, with a stated
guess as prior of weight f_0.

Not successive halving: a rank among siblings exists only once all of them are measured, so the slowest one holds up the rest, and
a fixed share is dropped even where nothing separates them. Here the share dropped follows from the differences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr

from poise_core.evaluation.noise import SeedNoise, moderated, repeated, two_way_residuals


@dataclass(frozen=True)
class Decision:
    """What was decided after a rung, and on what ground."""

    stop: bool
    reference: str | None  # the one that the candidate compares worst with; None where there was none to compare with
    difference: float | None  # to it, percent points
    probability: float | None  # that the candidate is truly better than it
    message: str


def race(differences: Mapping[str, float], noise: SeedNoise, stop_below: float, seeds: int = 1) -> Decision:
    """Decide whether a candidate goes on.

    Args:
        differences: reference -> the candidate's mean minus the reference's over their shared seeds; NaN is left out.
        noise: of such a difference at one seed.
        stop_below: probability; 0 never stops.
        seeds: how many are shared.
    """
    known = {name: value for name, value in differences.items() if math.isfinite(value)}
    if not known:
        return Decision(False, None, None, None, "nothing to compare with")
    error = math.sqrt(noise.variance / seeds)
    worst = min(sorted(known), key=lambda name: known[name])
    probability = float(stdtr(noise.freedom, known[worst] / error))
    stop = probability < stop_below / len(known)
    text = f"{known[worst]:+.1f} points to {worst}, noise {error:.1f}: better with probability {probability:.2f}"
    return Decision(stop, worst, known[worst], probability, text)


def difference_noise(values: Mapping[str, Mapping[int, float]], guess: float, weight: float) -> SeedNoise:
    """Variance of a difference between two candidates at one seed.

    Args:
        values: candidate -> seed -> what was measured; those with one seed say nothing here.
        guess: standard deviation of one candidate between seeds, percent points.
        weight: degrees of freedom that the guess counts for.
    """
    prior = SeedNoise(2.0 * guess**2, weight)
    table = repeated(values)
    if not table:
        return prior
    if len(table) == 1:  # what a seed does to all cannot be told apart: it stays in, on the safe side
        (only,) = table.values()
        return moderated(prior, SeedNoise(2.0 * statistics.variance(only.values()), len(only) - 1.0))
    _, pooled = two_way_residuals(table)
    return moderated(prior, SeedNoise(2.0 * pooled.variance, pooled.freedom)) if pooled.freedom > 0 else prior


def proxy_reward(trajectory: Sequence[Mapping[str, float]], steps: int, window: int) -> float:
    """Mean correctness over the last ``window`` of the first ``steps`` steps, percent; NaN where steps are missing."""
    rewards = [row["reward_mean"] for row in trajectory[:steps] if row.get("reward_mean") is not None]
    return 100.0 * statistics.fmean(rewards[-window:]) if len(rewards) == steps else math.nan
