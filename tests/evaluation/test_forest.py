"""A forest that is grown tree by tree is the one that scikit-learn grows."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor

from poise_core.evidence.forest import COLUMNS, Forest
from poise_core.mechanisms.features import encode_all, indicators
from poise_core.mechanisms.operators import random_composition


@pytest.mark.parametrize("outputs", [(), (1,), (3,)])
@pytest.mark.parametrize("leaf", [1, 2])
def test_every_tree_is_that_of_scikit_learn(outputs: tuple[int, ...], leaf: int) -> None:
    source, rng = random.Random(0), np.random.default_rng(0)
    some, others = (encode_all([random_composition(source) for _ in range(count)]) for count in (40, 15))
    target, weights = rng.normal(size=(40, *outputs)), rng.integers(1, 5, 40).astype(float)
    theirs = ExtraTreesRegressor(20, min_samples_leaf=leaf, max_features=COLUMNS, random_state=0)
    theirs.fit(indicators(*some), target.squeeze(), sample_weight=weights)
    own = Forest.grow(*some, target, weights, 20, leaf)
    said = np.array([tree.predict(indicators(*others)) for tree in theirs.estimators_]).reshape(20, 15, -1)
    assert np.array_equal(own.said(*others), said), "to the last digit"
    assert np.array_equal(own.predict(*others), said.mean(axis=0))
    assert own.said(*(part[:0] for part in others)).shape == (20, 0, said.shape[2]), "none asked, none told"
    assert len({one.tobytes() for one in said}) == 20, "no two are alike"
