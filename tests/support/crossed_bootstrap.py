"""Paired bootstrap over problems and seeds, crossed: the check on the intervals of ``poise_core.evidence.intervals``.

Seeds are drawn with replacement, problems of every benchmark too, and both draws apply to the same table of paired differences
(Owen 2007, The pigeonhole bootstrap, arXiv 0712.1111). Its variance expects var(seed) (n-1)/n^2 + var(problem) (m-1)/m^2 and about
three times the rest. With few seeds the first factor makes it too narrow, the last one too wide, and which of them wins depends on
how much of the noise lies between seeds. What is printed is therefore the interval of ``poise_core.evidence.intervals``;
``docs/evidence.md`` has the coverage and the width of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from poise_core.config.protocol import Protocol
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.intervals import Interval, paired_problem_scores


def bootstrap_delta(
    child: Sequence[SeedEvaluation],
    base: Sequence[SeedEvaluation],
    protocol: Protocol,
    level: float = 0.95,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Overall of ``child`` minus Overall of ``base`` over the seeds both have, with percentile limits, percent points.

    One seed leaves the limits at the scatter of the problems alone; callers that mean seeds must not use them.

    Raises:
        ValueError: no seed in common, different splits or different benchmarks.
    """
    differences = paired_problem_scores(child, base, protocol)
    rng = np.random.default_rng(seed)
    seeds = len(differences)
    chosen = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds  # (draws, seeds): weights
    means = np.zeros(draws)
    estimate = 0.0
    for columns in zip(*differences, strict=True):
        block = np.stack(columns)  # (seeds, problems)
        problems = block.shape[1]
        weights = rng.multinomial(problems, np.full(problems, 1 / problems), size=draws) / problems
        means += np.einsum("ds,sp,dp->d", chosen, block, weights, optimize=True)
        estimate += float(block.mean())
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(estimate, float(low), float(high), seeds)
