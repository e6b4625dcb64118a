"""What a composition is expected to score: the process against its formulas, and against effects that are known."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from poise_core.evidence.noise import winsorized
from poise_core.evidence.promise import FEWEST, MOST, NOISES, PAIR_SHARES, Promise
from poise_core.mechanisms.composition import GRPO, Composition, compose
from poise_core.mechanisms.features import encode, encode_all, kinship
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


def test_kinship_by_hand() -> None:
    """Of S slots, one differs: (1 - p) (S - 1) / S + p (S - 1) (S - 2) / (S (S - 1)), and equal numbers agree by their squares."""
    other = compose(GRPO, kl="none")
    codes, numbers = encode_all([GRPO, other])
    slots = codes.shape[1]
    kept = float(numbers[0] @ numbers[1])
    for pairs in (0.0, 0.3, 1.0):
        found = kinship(codes, numbers, codes, numbers, pairs)
        agree = slots - 1
        by_hand = (1 - pairs) * (agree + kept) / slots + pairs * agree * (agree - 1) / (slots * (slots - 1))
        assert found[0, 1] == pytest.approx(by_hand, rel=1e-12)
        assert found[0, 0] == pytest.approx(
            (1 - pairs) * (slots + float(numbers[0] @ numbers[0])) / slots + pairs, rel=1e-12
        )


def test_predictions_are_those_of_the_formulas() -> None:
    """Mean k' K^-1 y and variance k - k' K^-1 k, with the inverse written out."""
    rng = np.random.default_rng(0)
    some, others = drawn(30), drawn(5, seed=1)
    overall = np.array([pays(one) for one in some]) + rng.normal(size=30)
    seeds = rng.integers(1, 7, 30).astype(float)
    promise = Promise.learn(*encode_all(some), overall, seeds)
    assert promise is not None
    raised = winsorized(overall)
    centre = float(np.average(raised, weights=seeds))
    best = None
    for pairs in PAIR_SHARES:
        for noise in NOISES:
            covariance = kinship(*encode_all(some), *encode_all(some), pairs) + np.diag(
                noise * seeds.mean() / seeds + 1e-9
            )
            inverse = np.linalg.inv(covariance)
            amplitude = float((raised - centre) @ inverse @ (raised - centre)) / 30
            likelihood = multivariate_normal(np.zeros(30), amplitude * covariance).logpdf(raised - centre)
            if best is None or likelihood > best[0]:
                best = likelihood, pairs, inverse, amplitude
    assert best is not None
    _, pairs, inverse, amplitude = best
    assert (promise.pair_share, promise.centre) == (pairs, pytest.approx(centre))
    across = kinship(*encode_all(others), *encode_all(some), pairs)
    own = np.diagonal(kinship(*encode_all(others), *encode_all(others), pairs))
    mean, deviation = promise.predict(*encode_all(others))
    assert mean == pytest.approx(
        centre + across @ inverse @ (raised - centre), rel=1e-6
    )  # two ways to solve the same equations
    assert deviation**2 == pytest.approx(
        amplitude * (own - np.einsum("mn,nk,mk->m", across, inverse, across)), rel=1e-5
    )


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


def test_of_very_many_the_best_and_the_latest_are_learned_from() -> None:
    some = drawn(MOST + 100)
    overall = np.array([pays(one) for one in some]) + np.random.default_rng(2).normal(size=len(some))
    promise = Promise.learn(*encode_all(some), overall, np.ones(len(some)))
    assert promise is not None
    assert MOST // 2 < len(promise.alpha) <= MOST
    best = encode(some[int(np.argmax(overall))])[0]
    assert (promise.codes == best).all(axis=1).any()
    assert (promise.codes[-1] == encode(some[-1])[0]).all()
