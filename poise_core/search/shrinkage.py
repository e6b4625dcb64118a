"""Empirical-Bayes shrinkage of noisy scores, and the noise between seeds that it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from poise_core.evidence.intervals import Interval
from poise_core.evidence.noise import winsorized

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Posterior:
    """The posterior of n true scores, given noisy measurements."""

    mean: Array  # (n,) the shrunken values; NaN where nothing was measured
    variance: Array  # (n,) of the true score around it; NaN where nothing was measured or the noise is unknown
    spread: float  # tau^2, the variance of true scores; infinite where it cannot be estimated and nothing is shrunken


def shrink(values: Array, seeds: Array, variance: float | None) -> Array:
    """The mean of ``posterior`` alone."""
    return posterior(values, seeds, variance).mean


def posterior(values: Array, seeds: Array, variance: float | None) -> Posterior:
    """True scores taken as normal with mean m and variance tau^2, each measured with the noise v / n.

    The mean is m + w (x - m) and the variance tau^2 (v / n) / (tau^2 + v / n) = w v / n, with w = tau^2 / (tau^2 + v / n),
    for every finite value; NaN stays NaN. m is the mean of the values and tau^2 = max(var(x) - mean(v / n), 0) the spread
    that noise does not explain (normal means with unequal variances, method of moments; Efron and Morris, JASA 1975). Both
    are taken with collapses raised (``winsorized``): one would otherwise count as spread and weaken the shrinkage.
    With one value, or where v is unknown, nothing is shrunk.

    Args:
        values: (n,) percent, mean over seeds; NaN where nothing was measured.
        seeds: (n,) seeds behind each, at least 1.
        variance: v, between the seeds of one candidate; None if no candidate has two.
    """
    known = np.isfinite(values)
    noise = np.where(known, (math.nan if variance is None else variance) / seeds, np.nan)
    if known.sum() < 2 or variance is None:
        return Posterior(np.where(known, values, np.nan), noise, math.inf)
    typical = winsorized(values[known])
    mean, spread = float(typical.mean()), max(float(typical.var(ddof=1)) - float(noise[known].mean()), 0.0)
    weight = np.divide(spread, spread + noise, out=np.ones_like(noise), where=noise > 0)
    return Posterior(np.where(known, mean + weight * (values - mean), np.nan), weight * noise, spread)


def pooled_variance(seeds: Sequence[Sequence[float]]) -> float | None:
    """Variance between the numbers of one candidate, pooled over candidates by degrees of freedom; None without a pair."""
    return PooledVariance.of(seeds).of_first(len(seeds))


@dataclass(frozen=True)
class PooledVariance:
    """``pooled_variance`` of the first candidates of a list, however many, without going through them again."""

    by_length: Mapping[int, tuple[npt.NDArray[np.int64], Array]]  # seeds -> rows of candidates with so many, variances

    @classmethod
    def of(cls, seeds: Sequence[Sequence[float]]) -> PooledVariance:
        """Of every candidate's numbers; one that has fewer than two, or one that is not finite, does not count."""
        rows: dict[int, list[int]] = {}
        for row, one in enumerate(seeds):
            if len(one) > 1 and all(map(math.isfinite, one)):
                rows.setdefault(len(one), []).append(row)
        return cls(
            {
                length: (np.array(found, np.int64), np.array([seeds[row] for row in found]).var(axis=1, ddof=1))
                for length, found in rows.items()
            }
        )

    def of_first(self, count: int) -> float | None:
        """Of the first ``count`` candidates; None without a pair."""
        known = {
            length: variances[: np.searchsorted(rows, count)] for length, (rows, variances) in self.by_length.items()
        }
        freedom = sum((length - 1) * len(variances) for length, variances in known.items())
        if not freedom:
            return None
        return sum((length - 1) * float(variances.sum()) for length, variances in known.items()) / freedom


def seed_variance(overalls: Sequence[Interval]) -> float | None:
    """Variance between seeds from intervals alone, whose half-widths are read as t * sqrt(v / n).

    It is too large by the noise of the problems, which the intervals contain and all candidates share.
    """
    finite = [o for o in overalls if o.seeds > 1 and math.isfinite(o.high - o.low)]
    if not finite:
        return None
    total = sum(
        (o.seeds - 1) * o.seeds * ((o.high - o.low) / 2 / float(stdtrit(o.seeds - 1, 0.975))) ** 2 for o in finite
    )
    return total / sum(o.seeds - 1 for o in finite)
