"""What a composition is expected to score: the forest against its trees, and against effects that are known."""

from __future__ import annotations

import random

import numpy as np
import pytest

from poise_core.evidence.forest import Forest
from poise_core.evidence.noise import winsorized
from poise_core.evidence.promise import FEWEST, LEAF, TREES, Promise
from poise_core.mechanisms.composition import Composition
from poise_core.mechanisms.features import encode_all
from poise_core.mechanisms.operators import random_composition


def drawn(count: int, seed: int = 0) -> list[Composition]:
    return [random_composition(random.Random(f"{seed}:{number}")) for number in range(count)]


def pays(composition: Composition) -> float:
    """By hand: the sum over sequences costs 6 points, a clip that is higher above gains 3."""
    return (
        80.0
        - 6.0 * (composition.choices["aggregation"] == "sequence-sum")
        + 3.0 * (composition.choices["clip"] == "higher")
    )


def test_predictions_are_mean_and_deviation_of_what_every_tree_says() -> None:
    """Scores are raised and weighed by seeds first: a candidate with six counts like six candidates."""
    rng = np.random.default_rng(0)
    some, others = drawn(30), drawn(5, seed=1)
    overall = np.array([pays(one) for one in some]) + rng.normal(size=30)
    overall[3] = 5.0
    seeds = rng.integers(1, 7, 30).astype(float)
    promise = Promise.learn(*encode_all(some), overall, seeds)
    assert promise is not None
    forest = Forest.grow(*encode_all(some), winsorized(overall), seeds, TREES, LEAF)
    mean, deviation = promise.predict(*encode_all(others))
    said = forest.said(*encode_all(others))[..., 0]
    assert mean == pytest.approx(said.mean(axis=0), rel=1e-12)
    assert deviation == pytest.approx([np.std(said[:, one]) for one in range(5)], rel=1e-12)
    again = Promise.learn(*encode_all(some), overall, seeds)
    assert again is not None
    assert np.array_equal(again.predict(*encode_all(others)), (mean, deviation))


def test_nothing_is_expected_beyond_what_was_measured() -> None:
    """Eight mechanisms of a point each: the best of all compositions has them all, but nobody has tried it."""
    some = drawn(60)
    adds = sorted({choice for one in some for choice in one.choices.values()})[:40]
    overall = np.array([70.0 + sum(choice in adds for choice in one.choices.values()) for one in some])
    promise = Promise.learn(*encode_all(some), overall, np.ones(60))
    assert promise is not None
    mean, _ = promise.predict(*encode_all(drawn(400, seed=2)))
    assert overall.min() <= mean.min()
    assert mean.max() <= overall.max()


def test_what_pays_is_found_and_what_nobody_tried_is_uncertain() -> None:
    rng = np.random.default_rng(1)
    some, others = drawn(80), drawn(200, seed=1)
    overall = np.array([pays(one) for one in some]) + rng.normal(scale=1.0, size=80)
    promise = Promise.learn(*encode_all(some), overall, np.full(80, 2.0))
    assert promise is not None
    mean, deviation = promise.predict(*encode_all(others))
    assert np.corrcoef(mean, [pays(one) for one in others])[0, 1] > 0.9
    _, known = promise.predict(*encode_all(some))
    assert known.mean() < 0.8 * deviation.mean()


def test_a_collapse_does_not_hide_what_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mechanism that sometimes ends at 0 without fault of its own; raw scores would be about nothing else."""
    some, others = drawn(80), drawn(200, seed=1)
    overall = np.array([pays(one) for one in some]) + np.random.default_rng(3).normal(size=80)
    overall[::13] = 0.0

    def agreement() -> float:
        promise = Promise.learn(*encode_all(some), overall, np.ones(80))
        assert promise is not None
        return float(np.corrcoef(promise.predict(*encode_all(others))[0], [pays(one) for one in others])[0, 1])

    assert agreement() > 0.75
    monkeypatch.setattr("poise_core.evidence.promise.winsorized", lambda values: values)
    assert agreement() < 0.5


def test_nothing_is_expected_of_too_little() -> None:
    codes, numbers = encode_all(drawn(FEWEST))
    scores = np.arange(FEWEST, dtype=float)
    assert Promise.learn(codes[:-1], numbers[:-1], scores[:-1], np.ones(FEWEST - 1)) is None
    assert Promise.learn(codes[:0], numbers[:0], scores[:0], np.ones(0)) is None
    assert Promise.learn(codes, numbers, np.full(FEWEST, 80.0), np.ones(FEWEST)) is None
    assert Promise.learn(codes, numbers, scores, np.ones(FEWEST)) is not None
