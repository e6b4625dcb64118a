"""What a composition that nobody has trained is expected to score, of all that were: extremely randomized trees over mechanisms.

Every tree splits the candidates by a choice or a number, the best of some at random thresholds, until a leaf has two or three; a
composition is expected to score the mean of what the trees say, and their standard deviation tells how little is known of it. Trees
do not extrapolate: nothing is expected above what was measured. Scores of collapsed trainings are raised first
(``poise_core.evidence.noise.winsorized``): how far down a collapse went says nothing of what is worth trying.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from poise_core.evidence.forest import Forest
from poise_core.evidence.noise import winsorized
from poise_core.mechanisms.features import Array, Codes

FEWEST = 8
"""Scored candidates below which nothing is expected."""

TREES, LEAF = 32, 2
"""Trees of a forest, and the fewest candidates in a leaf."""


@dataclass(frozen=True)
class Promise:
    """The fitted forest."""

    forest: Forest

    @classmethod
    def learn(cls, codes: Codes, numbers: Array, overall: Array, seeds: Array) -> Promise | None:
        """Fit to scored candidates; None where they are fewer than ``FEWEST`` or all score the same. Equal input, equal forest.

        Args:
            codes: (n, S) of ``poise_core.mechanisms.features.encode_all``.
            numbers: (n, P) of the same.
            overall: (n,) mean Overall, percent.
            seeds: (n,) behind each, by which they are weighed.
        """
        if len(overall) < FEWEST or not np.ptp(overall) > 0.0:
            return None
        return cls(Forest.grow(codes, numbers, winsorized(overall), seeds, TREES, LEAF))

    def predict(self, codes: Codes, numbers: Array) -> tuple[Array, Array]:
        """(m,) expected Overall of compositions, percent, and (m,) the standard deviation of what the trees say."""
        said = self.forest.said(codes, numbers)[..., 0]
        return said.mean(axis=0), said.std(axis=0)
