"""What a composition that nobody has trained is expected to score, of all that were: extremely randomized trees over mechanisms.

Every tree splits the candidates by a choice or a number, the best of some at random thresholds (Geurts, Ernst and Wehenkel 2006),
until a leaf has two or three; a composition is expected to score the mean of what the trees say, and their standard deviation tells
how little is known of it. Trees do not extrapolate: nothing is expected above what was measured. Scores of collapsed trainings are
raised first (``poise_core.evidence.noise.winsorized``): how far down a collapse went says nothing of what is worth trying.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from poise_core.evidence.noise import winsorized
from poise_core.mechanisms.features import Array, Codes, indicators

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesRegressor

FEWEST = 8
"""Scored candidates below which nothing is expected."""

TREES, LEAF, COLUMNS = 32, 2, 0.5
"""Of a forest: trees, the fewest candidates in a leaf, and the share of columns among which a split is chosen."""


@dataclass(frozen=True)
class Promise:
    """The fitted forest."""

    forest: ExtraTreesRegressor

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
        from sklearn.ensemble import ExtraTreesRegressor

        forest = ExtraTreesRegressor(TREES, min_samples_leaf=LEAF, max_features=COLUMNS, random_state=0)
        return cls(forest.fit(indicators(codes, numbers), winsorized(overall), sample_weight=seeds))

    def predict(self, codes: Codes, numbers: Array) -> tuple[Array, Array]:
        """(m,) expected Overall of compositions, percent, and (m,) the standard deviation of what the trees say."""
        said = said_by_trees(self.forest, codes, numbers)
        return said.mean(axis=0), said.std(axis=0)


def said_by_trees(forest: ExtraTreesRegressor, codes: Codes, numbers: Array) -> Array:
    """(T, m) or (T, m, J) what every tree of a forest predicts for compositions, of one target or of J."""
    columns = indicators(codes, numbers).astype(np.float32)  # as the trees hold them: they need no check then
    return np.array([tree.predict(columns, check_input=False) for tree in forest.estimators_])
