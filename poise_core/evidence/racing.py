"""Which candidates go on to the next rung of the ladder, decided from differences and known noise.

What one training measures is taken as candidate + seed + noise, and what a seed does to all candidates as random (crossed random
effects; Searle, Casella and McCulloch 1992, Variance components):

    x_cs = c + s + e_cs,  var(s) = tau^2,  var(e_cs) = v

The difference of a child with one seed to a candidate with several is estimated by generalised least squares with a flat
prior on candidates. Where a seed shifts all candidates much (large tau) that is the difference at the shared seed, where it does
not it is the difference to the other's mean over all its seeds. So a seed with which the baseline happened to score high does not
count against every child that is judged by it. With d the estimate, V its variance and f its degrees of freedom,

    P(better) = T_f(d / sqrt(V))

and the candidate stops where this falls below ``stop_below`` for its parent or the baseline (divided by two where they are two
candidates: two chances to be wrong). A child that equals the baseline is thus stopped with a probability of at most ``stop_below``
per rung, a better one less often, whatever the number of children. v and tau^2 are learned from all candidates of earlier
generations, with a stated guess as prior of weight f_0.

A reference that was chosen for its high score, a parent or the leader, is overestimated. With a ``Population`` of which
it is one (mean m, variance w) its level is the posterior mean, m + B (x - m) with B = w / (w + v / n) for n seeds (empirical Bayes;
Efron and Morris 1975), and d and V follow:

    d = B d_flat + (1 - B) (y - m),  V = v + B v / n + B^2 (what seeds leave uncertain)

Not successive halving: a rank among siblings exists only once all of them are measured, so the slowest one holds up the rest, and
a fixed share is dropped even where nothing separates them. Here the share dropped follows from the differences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from poise_core.evidence.noise import FEWEST_CANDIDATES, Array, SeedNoise, moderated, repeated, two_way, winsorized


@dataclass(frozen=True)
class Difference:
    """An estimate of how much better one candidate is than another, percent points."""

    estimate: float
    noise: SeedNoise  # variance of the estimate


@dataclass(frozen=True)
class Decision:
    """What was decided after a rung, and the comparison that decided it."""

    stop: bool
    reference: str | None  # the one that the candidate compares worst with; None where there was none to compare with
    difference: Difference | None  # to it
    probability: float | None  # that the candidate is truly better than it
    message: str


def race(differences: Mapping[str, Difference], stop_below: float) -> Decision:
    """Decide whether a candidate goes on.

    Args:
        differences: reference -> the candidate minus the reference; one that is not finite is left out.
        stop_below: probability; 0 never stops.
    """
    chances = {name: _chance_above_zero(one) for name, one in differences.items() if math.isfinite(one.estimate)}
    if not chances:
        return Decision(False, None, None, None, "nothing to compare with")
    worst = min(sorted(chances), key=lambda name: chances[name])
    gap, chance = differences[worst], chances[worst]
    text = f"{gap.estimate:+.1f} points to {worst}, noise {gap.noise.std:.1f}: better with probability {chance:.2f}"
    return Decision(chance < stop_below / len(chances), worst, gap, chance, text)


def _chance_above_zero(gap: Difference) -> float:
    if gap.noise.std == 0.0:  # as where a benchmark is so hard that everybody scores zero
        return 0.5 + 0.5 * float(np.sign(gap.estimate))
    return float(stdtr(gap.noise.freedom, gap.estimate / gap.noise.std))


@dataclass(frozen=True)
class Population:
    """The distribution of the children's true levels, estimated from one seed of each, percent."""

    mean: float  # with what that seed does to all
    variance: float  # between true levels

    @classmethod
    def learn(cls, firsts: Iterable[float], noise: SeedNoise) -> Population | None:
        """From the same seed of all children, so that none was chosen by it; None with fewer than ``FEWEST_CANDIDATES``.

        Args:
            firsts: one measurement of each child; what is not finite is left out.
            noise: v.
        """
        known = np.array([one for one in firsts if math.isfinite(one)])
        if len(known) < FEWEST_CANDIDATES:
            return None
        typical = winsorized(known)  # a collapse is not spread
        return cls(float(typical.mean()), max(float(typical.var(ddof=1)) - noise.variance, 0.0))


@dataclass(frozen=True)
class SeedModel:
    """The model of one number per candidate and seed, learned from earlier generations: see the module's docstring."""

    values: Mapping[str, Mapping[int, float]]  # candidate -> seed -> measured, finite
    noise: SeedNoise  # v
    shared: float  # tau^2, percent points squared
    seeds: tuple[int, ...]
    effects: Array  # (S,) predicted, of each seed on all
    inverse: Array  # (S, S) times v: covariance of their prediction errors

    @classmethod
    def learn(
        cls, values: Mapping[str, Mapping[int, float]], guess: float, weight: float, share: float = 0.5
    ) -> SeedModel:
        """From everything measured.

        Args:
            values: candidate -> seed -> measured; what is not finite is left out. One seed alone says nothing of noise.
            guess: standard deviation of one candidate between seeds, percent points.
            weight: degrees of freedom that the guess counts for.
            share: of the guessed variance, what seeds do to all candidates alike.
        """
        finite = {name: {s: x for s, x in row.items() if math.isfinite(x)} for name, row in values.items()}
        table = repeated(finite)
        fitted = two_way(table)
        total, count = SeedNoise(guess**2, weight), len(fitted.seeds)
        if len(table) == 1:  # what a seed does to all cannot be told apart
            (only,) = table.values()
            total = moderated(total, SeedNoise(statistics.variance(only.values()), len(only) - 1.0))
        noise = SeedNoise((1 - share) * total.variance, total.freedom)
        shared = share * total.variance
        if fitted.pooled.freedom > 0:
            noise = moderated(noise, fitted.pooled)
            spurious = fitted.pooled.variance * float(np.trace(np.linalg.pinv(fitted.normal, hermitian=True)))
            found = max(0.0, float(fitted.effects @ fitted.effects) - spurious) / (count - 1)
            shared = (weight * shared + (count - 1) * found) / (weight + count - 1)
        ridge = noise.variance / shared * np.eye(count)
        inverse = np.asarray(np.linalg.inv(fitted.normal + ridge), np.float64)
        return cls(finite, noise, shared, fitted.seeds, inverse @ fitted.right, inverse)

    def leader(self, seeds: Sequence[int]) -> str | None:
        """The candidate with the highest mean among those that have all these seeds; the first by name where several have."""
        complete = sorted(name for name, row in self.values.items() if row and set(seeds) <= row.keys())
        means = {name: statistics.fmean(self.values[name][seed] for seed in seeds) for name in complete}
        return max(complete, key=lambda name: means[name], default=None)

    def differences(
        self, value: float, seed: int, references: Iterable[str], population: Population | None = None
    ) -> dict[str, Difference]:
        """As ``difference`` to each of several, those that were not measured left out."""
        found = {name: self.difference(value, seed, name, population) for name in references}
        return {name: gap for name, gap in found.items() if gap is not None}

    def difference(
        self, value: float, seed: int, reference: str, population: Population | None = None
    ) -> Difference | None:
        """A new candidate, measured once, minus an earlier one; None where that one was not measured.

        Args:
            value: of the new candidate, percent.
            seed: that it was measured with.
            reference: the earlier one.
            population: that it was chosen from, measured with ``seed``; None where it was not chosen, or nothing is known.
        """
        row = self.values.get(reference)
        if not row:
            return None
        trust, gap = 1.0, value - statistics.fmean(row.values())
        if population is not None:
            trust = population.variance / (population.variance + self.noise.variance / len(row))
            gap = trust * gap + (1.0 - trust) * (value - population.mean)
        design = np.zeros(len(self.seeds))
        unknown = 0.0  # variance by seeds that no candidate with several seeds has had
        shares = {one: -trust / len(row) for one in row}
        shares[seed] = shares.get(seed, 0.0) + trust
        for one, part in shares.items():
            if one in self.seeds:
                design[self.seeds.index(one)] = part
            else:
                unknown += part**2 * self.shared
        own = self.noise.variance * (1.0 + trust / len(row) + float(design @ self.inverse @ design))
        return Difference(gap - float(design @ self.effects), SeedNoise(own + unknown, self.noise.freedom))


def proxy_reward(trajectory: Sequence[Mapping[str, float]], steps: int, window: int) -> float:
    """Mean correctness over the last ``window`` of the first ``steps`` steps, percent; NaN where steps are missing."""
    rewards = [row["reward_mean"] for row in trajectory[:steps] if row.get("reward_mean") is not None]
    return 100.0 * statistics.fmean(rewards[-window:]) if len(rewards) == steps > 0 else math.nan
