"""What a composition that nobody has trained is expected to score, of all that were: a Gaussian process over mechanisms.

    y_i = m + f(x_i) + e_i,   f ~ GP(0, a k),   e_i ~ N(0, a l s / s_i)

k is ``poise_core.mechanisms.features.kinship``: main effects of choices and numbers, and of pairs of choices. s_i is the number of
seeds of candidate i and s their mean; a, l and the share of pairs maximize the marginal likelihood, a in closed form (Rasmussen and
Williams 2006, sec. 2.2 and 5.4.1). m is the mean of the candidates, weighted by seeds. Scores of collapsed trainings are raised
first (``poise_core.evidence.noise.winsorized``): how far down a collapse went says nothing of what is worth trying.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from poise_core.evidence.noise import winsorized
from poise_core.mechanisms.features import Array, Codes, kinship, own_kinship

FEWEST = 8
"""Scored candidates below which nothing is expected."""

MOST = 256
"""Candidates that are learned from; of more, the better half of so many and the latest."""

PAIR_SHARES = (0.0, 0.3, 0.6)
NOISES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Promise:
    """The fitted process."""

    codes: Codes  # (n, S)
    numbers: Array  # (n, P)
    centre: float
    amplitude: float  # a, squared percent points
    pair_share: float
    factor: tuple[Array, bool]  # Cholesky factor of K + noise
    alpha: Array  # (n,) its inverse times the residuals

    @classmethod
    def learn(cls, codes: Codes, numbers: Array, overall: Array, seeds: Array) -> Promise | None:
        """Fit to scored candidates; None where they are fewer than ``FEWEST`` or all score the same.

        Args:
            codes: (n, S) of ``poise_core.mechanisms.features.encode``.
            numbers: (n, P) of the same.
            overall: (n,) mean Overall, percent.
            seeds: (n,) behind each.
        """
        if len(overall) > MOST:
            better = np.argsort(-overall, kind="stable")[: MOST // 2]
            kept = np.unique(np.concatenate([better, np.arange(len(overall) - MOST // 2, len(overall))]))
            codes, numbers, overall, seeds = codes[kept], numbers[kept], overall[kept], seeds[kept]
        count = len(overall)
        overall = winsorized(overall) if count else overall
        centre = float(np.average(overall, weights=seeds)) if count else 0.0
        rest = overall - centre
        if count < FEWEST or not np.ptp(rest) > 0.0:
            return None
        share = seeds.mean() / seeds
        best: tuple[float, Promise] | None = None
        for pairs in PAIR_SHARES:
            kernel = kinship(codes, numbers, codes, numbers, pairs)
            for noise in NOISES:
                factor = cho_factor(kernel + np.diag(noise * share + 1e-9), lower=True)
                alpha = cho_solve(factor, rest)
                amplitude = float(rest @ alpha) / count
                likelihood = -0.5 * count * math.log(amplitude) - float(np.log(np.diagonal(factor[0])).sum())
                if best is None or likelihood > best[0] + 1e-9:
                    best = likelihood, cls(codes, numbers, centre, amplitude, pairs, factor, alpha)
        assert best is not None  # as there are pairs and noises
        return best[1]

    def predict(self, codes: Codes, numbers: Array) -> tuple[Array, Array]:
        """(m,) expected Overall of compositions, percent, and (m,) the standard deviation of what they would truly score."""
        across = kinship(codes, numbers, self.codes, self.numbers, self.pair_share)
        explained = np.einsum("mn,nm->m", across, cho_solve(self.factor, across.T))
        deviation = np.sqrt(self.amplitude * np.maximum(own_kinship(numbers, self.pair_share) - explained, 0.0))
        return self.centre + across @ self.alpha, deviation
