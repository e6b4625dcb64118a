"""Racing: the probability by hand, its error rate by simulation, and noise learned from a table with holes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from poise_core.evaluation.noise import SeedNoise
from poise_core.evaluation.racing import difference_noise, proxy_reward, race


def test_the_probability_by_hand() -> None:
    # one degree of freedom is a Cauchy: P(t < -1) = 1/4, so a loss of one standard deviation is better with 0.25
    noise = SeedNoise(4.0, 1.0)
    decision = race({"parent": -2.0}, noise, 0.26)
    assert (decision.stop, decision.reference, decision.difference) == (True, "parent", -2.0)
    assert decision.probability == pytest.approx(0.25)
    assert not race({"parent": -2.0}, noise, 0.24).stop
    # four seeds halve the error: P(t < -2) = 1/2 - arctan(2)/pi
    assert race({"parent": -2.0}, noise, 0.1, seeds=4).probability == pytest.approx(0.5 - math.atan(2.0) / math.pi)


def test_the_worst_of_two_references_decides_at_half_the_threshold() -> None:
    noise = SeedNoise(4.0, 1.0)
    decision = race({"baseline": 1.0, "parent": -2.0}, noise, 0.49)
    assert (decision.reference, decision.stop) == ("parent", False)  # 0.25 is not below 0.49 / 2
    assert race({"baseline": 1.0, "parent": -2.0}, noise, 0.51).stop


def test_absence_and_nan_never_stop() -> None:
    assert not race({}, SeedNoise(1.0, 5.0), 0.9).stop
    assert not race({"parent": math.nan}, SeedNoise(1.0, 5.0), 0.9).stop
    assert not race({"parent": -100.0}, SeedNoise(1.0, 5.0), 0.0).stop
    assert race({"parent": math.nan, "baseline": -100.0}, SeedNoise(1.0, 5.0), 0.1).reference == "baseline"


@pytest.mark.parametrize("threshold", [0.05, 0.2])
def test_an_equal_child_is_lost_as_often_as_stated(threshold: float) -> None:
    rng = np.random.default_rng(0)
    stopped, trials = 0, 4000
    for _ in range(trials):
        variance = float(rng.chisquare(8) / 8)  # an estimate with eight degrees of freedom of a true 1
        stopped += race({"parent": float(rng.normal())}, SeedNoise(variance, 8.0), threshold).stop
    assert stopped / trials == pytest.approx(threshold, abs=4 * math.sqrt(threshold / trials))


def test_noise_of_a_difference_by_hand() -> None:
    # nothing measured: twice the guess squared
    assert difference_noise({}, 2.0, 4.0) == SeedNoise(8.0, 4.0)
    # one candidate with 70, 74: variance 8, a difference 16 with one degree; (4 * 8 + 1 * 16) / 5
    assert difference_noise({"grpo": {0: 70.0, 1: 74.0}, "one": {0: 50.0}}, 2.0, 4.0) == SeedNoise(9.6, 5.0)
    # two candidates, what the seeds do to both is removed: rows 70, 74 and 71, 73; differences -1, 1
    # residuals +-0.5, squares 4 * 0.25 = 1 with (2-1)(2-1) = 1 degree; a difference has variance 2
    found = difference_noise({"a": {0: 70.0, 1: 74.0}, "b": {0: 71.0, 1: 73.0}}, 2.0, 4.0)
    assert found.variance == pytest.approx((4 * 8 + 1 * 2) / 5)
    assert found.freedom == 5.0
    assert difference_noise({"a": {0: math.nan, 1: 74.0}}, 2.0, 4.0) == SeedNoise(8.0, 4.0)


def test_noise_with_holes_is_unbiased() -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(300):
        seeds = rng.normal(0, 5, 4)
        table = {
            f"c{i}": {s: 50 + i + seeds[s] + rng.normal(0, 1.5) for s in range(4) if rng.random() < 0.7}
            for i in range(8)
        }
        found.append(difference_noise(table, 1.5, 1e-9).variance)
    assert np.mean(found) == pytest.approx(2 * 1.5**2, rel=0.05)


def test_the_proxy_is_the_mean_of_its_last_steps() -> None:
    steps = [{"reward_mean": reward} for reward in (0.1, 0.2, 0.4, 0.6, 0.9)]
    assert proxy_reward(steps, 4, 2) == pytest.approx(50.0)
    assert math.isnan(proxy_reward(steps, 6, 2))  # it never got that far
    assert math.isnan(proxy_reward([{}, *steps[1:]], 5, 2))


def test_stats_agree_with_scipy() -> None:
    decision = race({"parent": -1.3}, SeedNoise(2.0, 7.0), 0.1)
    assert decision.probability == pytest.approx(stats.t.cdf(-1.3 / math.sqrt(2.0), 7))
