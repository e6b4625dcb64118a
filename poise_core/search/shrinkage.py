"""Scores without their luck: empirical-Bayes shrinkage, and the noise between seeds that it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from poise_core.evaluation.statistics import Interval

Array = npt.NDArray[np.float64]

OUTLYING = 3.0
"""Robust standard deviations below the median at which a score counts as a collapse."""


def shrink(values: Array, seeds: Array, variance: float | None) -> Array:
    """m + tau^2 / (tau^2 + v / n) * (x - m) for every finite value; NaN stays NaN.

    m is the mean of the values and tau^2 = max(var(x) - mean(v / n), 0) the spread that noise does not explain (normal
    means with unequal variances, method of moments; Efron and Morris, JASA 1975). Both are taken after :func:`winsorized`:
    one collapsed run would otherwise pass for spread and keep the luck of the best. With one value, or where v is unknown,
    nothing is shrunk.

    Args:
        values: (n,) percent, mean over seeds; NaN where nothing was measured.
        seeds: (n,) seeds behind each, at least 1.
        variance: v, between the seeds of one candidate; None if no candidate has two.
    """
    known = np.isfinite(values)
    if known.sum() < 2 or variance is None:
        return np.where(known, values, np.nan)
    noise = variance / seeds[known]
    typical = winsorized(values[known])
    mean, spread = float(typical.mean()), max(float(typical.var(ddof=1)) - float(noise.mean()), 0.0)
    weight = np.divide(spread, spread + noise, out=np.ones_like(noise), where=noise > 0)
    shrunken = np.full(values.shape, np.nan)
    shrunken[known] = mean + weight * (values[known] - mean)
    return shrunken


def winsorized(values: Array) -> Array:
    """The values with collapses raised to ``OUTLYING`` robust standard deviations (1.4826 MAD) below the median."""
    middle = float(np.median(values))
    scale = 1.4826 * float(np.median(np.abs(values - middle)))
    return np.maximum(values, middle - OUTLYING * scale) if scale > 0 else values


def pooled_variance(seeds: Sequence[Sequence[float]]) -> float | None:
    """Variance between the numbers of one candidate, pooled over candidates by degrees of freedom; None without a pair."""
    by_length: dict[int, list[Sequence[float]]] = {}
    for one in seeds:
        if len(one) > 1 and all(map(math.isfinite, one)):
            by_length.setdefault(len(one), []).append(one)
    freedom = sum((length - 1) * len(groups) for length, groups in by_length.items())
    if not freedom:
        return None
    squares = sum((length - 1) * float(np.array(g).var(axis=1, ddof=1).sum()) for length, g in by_length.items())
    return squares / freedom


def seed_variance(overalls: Sequence[Interval]) -> float | None:
    """The same from intervals alone, half-widths read as t * sqrt(v / n).

    Too much by the problems' share: all candidates answer the same problems.
    """
    finite = [o for o in overalls if o.seeds > 1 and math.isfinite(o.high - o.low)]
    if not finite:
        return None
    total = sum(
        (o.seeds - 1) * o.seeds * ((o.high - o.low) / 2 / float(stdtrit(o.seeds - 1, 0.975))) ** 2 for o in finite
    )
    return total / sum(o.seeds - 1 for o in finite)
