"""Extremely randomized trees over mechanisms (Geurts, Ernst and Wehenkel 2006).

The trees are those of scikit-learn's ``ExtraTreesRegressor(trees, min_samples_leaf=leaf, max_features=0.5, random_state=0)``,
grown one by one: that class copies and checks its settings anew for every tree, which takes longer than growing a small one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from poise_core.mechanisms.features import Array, Codes, indicators

if TYPE_CHECKING:
    from sklearn.tree import ExtraTreeRegressor

COLUMNS = 0.5
"""Share of the columns among which a split is chosen."""


@dataclass(frozen=True)
class Forest:
    """Trees that each predict the scores of compositions."""

    trees: tuple[ExtraTreeRegressor, ...]

    @classmethod
    def grow(cls, codes: Codes, numbers: Array, target: Array, weights: Array, trees: int, leaf: int = 1) -> Forest:
        """Fit to n compositions. Equal input, equal forest.

        Args:
            codes: (n, S) of ``poise_core.mechanisms.features.encode_all``.
            numbers: (n, P) of the same.
            target: (n,) of one output, or (n, J).
            weights: (n,) of the compositions.
            trees: how many, T.
            leaf: the fewest compositions in a leaf.
        """
        from sklearn import config_context
        from sklearn.tree import ExtraTreeRegressor

        columns, source = indicators(codes, numbers).astype(np.float32), np.random.RandomState(0)
        grown = []
        with config_context(assume_finite=True, skip_parameter_validation=True):
            for _ in range(trees):
                seed = int(source.randint(np.iinfo(np.int32).max))
                tree = ExtraTreeRegressor(min_samples_leaf=leaf, max_features=COLUMNS, random_state=seed)
                grown.append(tree.fit(columns, target, sample_weight=weights, check_input=False))
        return cls(tuple(grown))

    def said(self, codes: Codes, numbers: Array) -> Array:
        """(T, m, J) what every tree predicts for m compositions, J = 1 where it was fitted to one output."""
        columns = indicators(codes, numbers).astype(np.float32)
        said = np.array([tree.tree_.predict(columns) for tree in self.trees])
        return said.reshape(len(self.trees), len(columns), self.trees[0].n_outputs_)

    def predict(self, codes: Codes, numbers: Array) -> Array:
        """(m, J) the mean of what the trees predict."""
        mean: Array = self.said(codes, numbers).mean(axis=0)
        return mean
