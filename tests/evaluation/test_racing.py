"""Racing: the probability by hand, its error rate by simulation, and noise learned from a table with holes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from poise_core.evidence.noise import SeedNoise
from poise_core.evidence.racing import Difference, SeedModel, proxy_reward, race


def gap(estimate: float, variance: float, freedom: float = 5.0) -> Difference:
    return Difference(estimate, SeedNoise(variance, freedom))


def test_the_probability_by_hand() -> None:
    # one degree of freedom is a Cauchy: P(t < -1) = 1/4, so a loss of one standard error is better with 0.25
    decision = race({"parent": gap(-2.0, 4.0, 1.0)}, 0.26)
    assert (decision.stop, decision.reference, decision.difference) == (True, "parent", gap(-2.0, 4.0, 1.0))
    assert decision.probability == pytest.approx(0.25)
    assert not race({"parent": gap(-2.0, 4.0, 1.0)}, 0.24).stop
    assert race({"parent": gap(-2.0, 1.0, 1.0)}, 0.1).probability == pytest.approx(0.5 - math.atan(2.0) / math.pi)
    assert race({"parent": gap(-1.3, 2.0, 7.0)}, 0.1).probability == pytest.approx(
        stats.t.cdf(-1.3 / math.sqrt(2.0), 7)
    )


def test_the_worst_of_two_references_decides_at_half_the_threshold() -> None:
    # worst is who it is least likely better than: 2 points behind with noise 2, not 3 points behind with noise 9
    gaps = {"baseline": gap(-3.0, 81.0, 1.0), "parent": gap(-2.0, 4.0, 1.0)}
    decision = race(gaps, 0.49)
    assert (decision.reference, decision.stop) == ("parent", False)  # 0.25 is not below 0.49 / 2
    assert race(gaps, 0.51).stop


def test_absence_and_nan_never_stop() -> None:
    assert not race({}, 0.9).stop
    assert not race({"parent": gap(math.nan, 1.0)}, 0.9).stop
    assert not race({"parent": gap(-100.0, 1.0)}, 0.0).stop
    assert race({"parent": gap(math.nan, 1.0), "baseline": gap(-100.0, 1.0)}, 0.1).reference == "baseline"
    model = SeedModel.learn({"lost": {0: math.nan}, "none": {}}, 2.0, 4.0)
    assert model.difference(70.0, 0, "lost") is None
    assert model.difference(70.0, 0, "none") is None
    assert model.difference(70.0, 0, "unheard of") is None


def test_the_leader_has_all_seeds_and_the_highest_mean() -> None:
    values = {
        "grpo": {0: 70.0, 1: 72.0},
        "good": {0: 76.0, 1: 74.0, 7: 10.0},  # a seed beyond the search's does not count
        "twin": {0: 74.0, 1: 76.0},
        "lucky": {0: 90.0},
    }
    model = SeedModel.learn(values, 2.0, 4.0)
    assert model.leader([0, 1]) == "good"
    assert model.leader([0]) == "lucky"
    assert model.leader([0, 1, 2]) is None
    assert SeedModel.learn({}, 2.0, 4.0).leader([0]) is None


TABLE = {
    "grpo": {0: 76.0, 1: 66.0, 2: 73.0, 3: 71.0},
    "other": {0: 75.0, 1: 68.0, 2: 72.5},
    "third": {1: 64.0, 3: 72.0},
    "stopped": {0: 70.0},
}


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize(("seed", "reference"), [(0, "grpo"), (0, "stopped"), (2, "third"), (9, "grpo")])
def test_a_difference_is_that_of_generalised_least_squares(share: float, seed: int, reference: str) -> None:
    """Against the full matrices: one row per training, candidates fixed, seeds random."""
    model = SeedModel.learn(TABLE, 3.0, 4.0, share)
    table = {**TABLE, "child": {seed: 74.0}}
    cells = [(name, number, value) for name, row in table.items() for number, value in row.items()]
    names, numbers = sorted(table), sorted({number for _, number, _ in cells})
    candidates = np.array([[float(name == one) for one in names] for name, _, _ in cells])
    seeds = np.array([[float(number == one) for one in numbers] for _, number, _ in cells])
    weight = np.linalg.inv(model.noise.variance * np.eye(len(cells)) + model.shared * seeds @ seeds.T)
    covariance = np.linalg.inv(candidates.T @ weight @ candidates)
    estimates = covariance @ candidates.T @ weight @ np.array([value for _, _, value in cells])
    contrast = np.array([float(one == "child") - float(one == reference) for one in names])
    found = model.difference(74.0, seed, reference)
    assert found is not None
    assert found.estimate == pytest.approx(contrast @ estimates, abs=1e-9)
    assert found.noise.variance == pytest.approx(contrast @ covariance @ contrast, abs=1e-9)
    assert found.noise.freedom == model.noise.freedom


@pytest.mark.parametrize(("share", "expected"), [(1e-6, 0.0), (0.5, -2.0), (1 - 1e-6, -4.0)])
def test_between_the_shared_seed_and_the_mean_of_all(share: float, expected: float) -> None:
    """What seeds do to all decides how far a lucky seed of the baseline, 4 above its mean of 72, is held against a child."""
    model = SeedModel.learn({"grpo": {0: 76.0, 1: 70.0, 2: 70.0}}, 2.0, 1e9, share)
    found = model.difference(72.0, 0, "grpo")
    assert found is not None
    assert found.estimate == pytest.approx(expected, abs=1e-4)


def test_variances_by_hand() -> None:
    # nothing measured: half of the guess squared each
    assert SeedModel.learn({}, 2.0, 4.0).noise == SeedNoise(2.0, 4.0)
    assert SeedModel.learn({}, 2.0, 4.0).shared == 2.0
    # one candidate with 70, 74: variance 8 with one degree; (4 * 4 + 1 * 8) / 5 in all
    lonely = SeedModel.learn({"grpo": {0: 70.0, 1: 74.0}, "one": {0: 50.0}}, 2.0, 4.0)
    assert (lonely.noise, lonely.shared) == (SeedNoise(2.4, 5.0), 2.4)
    # rows 70, 74 and 71, 73: effects of the seeds -1.5 and 1.5, residuals +-0.5, squares 1 with (2-1)(2-1) = 1 degree
    found = SeedModel.learn({"a": {0: 70.0, 1: 74.0}, "b": {0: 71.0, 1: 73.0}}, 2.0, 4.0)
    assert found.noise.variance == pytest.approx((4 * 2 + 1 * 1) / 5)
    # squares of the effects 4.5, of which noise makes 1/2: variance 4 with one degree
    assert found.shared == pytest.approx((4 * 2 + 1 * 4) / 5)


@pytest.mark.slow
def test_variances_with_holes_are_unbiased() -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(400):
        seeds = rng.normal(0, 3, 6)
        table = {
            f"c{i}": {s: 50 + i + seeds[s] + rng.normal(0, 1.5) for s in range(6) if rng.random() < 0.7}
            for i in range(8)
        }
        model = SeedModel.learn(table, 1.5, 1e-9)
        found.append((model.noise.variance, model.shared))
    noise, shared = np.mean(found, axis=0)
    assert noise == pytest.approx(1.5**2, rel=0.05)
    assert shared == pytest.approx(3.0**2, rel=0.12)  # five degrees of freedom each: standard error 3.2 %


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_an_equal_child_is_lost_as_often_as_stated(share: float) -> None:
    """Whatever seeds do to all, and with a baseline that has more seeds than the child."""
    rng = np.random.default_rng(0)
    threshold, stopped, trials = 0.2, 0, 1500
    for _ in range(trials):
        effects = rng.normal(0, 2.0 * math.sqrt(share), 6)
        own = 2.0 * math.sqrt(1 - share)
        earlier = {f"c{i}": {s: effects[s] + rng.normal(0, own) for s in range(6)} for i in range(6)}
        model = SeedModel.learn(earlier, 2.0, 1.0)
        found = model.difference(effects[0] + rng.normal(0, own), 0, "c0")
        assert found is not None
        stopped += race({"c0": found}, threshold).stop
    assert stopped / trials == pytest.approx(threshold, abs=4 * math.sqrt(threshold * (1 - threshold) / trials))


def test_the_proxy_is_the_mean_of_its_last_steps() -> None:
    steps = [{"reward_mean": reward} for reward in (0.1, 0.2, 0.4, 0.6, 0.9)]
    assert proxy_reward(steps, 4, 2) == pytest.approx(50.0)
    assert math.isnan(proxy_reward(steps, 6, 2))  # it never got that far
    assert math.isnan(proxy_reward([{}, *steps[1:]], 5, 2))
    assert math.isnan(proxy_reward(steps, 0, 2))  # a ladder without a proxy
