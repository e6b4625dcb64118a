"""Forecasts of Overall: the leave-one-out error by brute force, what can and cannot be learned, and what is left out."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge
from trees import world

from poise_core.evidence.forecast import FEWEST, PENALTIES, Forecast, forecast_each, proxy_dynamics
from poise_core.evidence.racing import Population, SeedModel


def test_penalty_and_error_are_those_of_leaving_one_out() -> None:
    """Every candidate left out in turn and fitted anew by another library, for every penalty."""
    dynamics, overalls = world(14, 1.5, np.random.default_rng(3))
    found = Forecast.learn(dynamics, overalls)
    assert found is not None
    names = sorted(dynamics)
    x, y = np.array([dynamics[name] for name in names]), np.array([overalls[name] for name in names])
    z = (x - x.mean(0)) / x.std(0)
    errors = {}
    for penalty in PENALTIES:
        left = []
        for out in range(len(names)):
            rest = np.arange(len(names)) != out
            left.append(y[out] - Ridge(alpha=penalty).fit(z[rest], y[rest]).predict(z[[out]])[0])
        errors[penalty] = float(np.mean(np.square(left)))
    best = min(errors, key=lambda penalty: errors[penalty])
    assert found.noise.variance == pytest.approx(errors[best], rel=1e-9)
    others = [np.delete(y, out).mean() for out in range(len(y))]
    assert found.explained == pytest.approx(1.0 - errors[best] / np.mean(np.square(y - others)), rel=1e-9)
    probe = (0.3, -0.2, 0.9, -0.5)
    expected = Ridge(alpha=best).fit(z, y).predict(((np.array(probe) - x.mean(0)) / x.std(0))[None])[0]
    assert found.predict(probe) == pytest.approx(expected, rel=1e-9)


def test_what_dynamics_say_is_learned_and_what_they_do_not_say_is_not() -> None:
    rng = np.random.default_rng(0)
    for slope, least, most in ((2.0, 0.7, 1.0), (0.0, -0.4, 0.4)):
        dynamics, overalls = world(90, slope, rng)
        known = {name for name in dynamics if name < "c45"}
        forecast = Forecast.learn({name: dynamics[name] for name in known}, overalls)
        assert forecast is not None
        rest = sorted(dynamics.keys() - known)
        said = [forecast.predict(dynamics[name]) for name in rest]
        true = [overalls[name] for name in rest]
        assert least <= stats.spearmanr(said, true).statistic <= most
        error = float(np.std(np.subtract(said, true)))
        assert forecast.noise.std == pytest.approx(error, rel=0.35)  # 45 errors: standard error 11 % on either side
    assert np.ptp(said) < 1.0  # nothing to learn: nearly the mean for all


def test_a_difference_holds_the_error_of_the_forecast_instead_of_a_seeds() -> None:
    dynamics, overalls = world(20, 1.0, np.random.default_rng(1))
    forecast = Forecast.learn(dynamics, overalls)
    assert forecast is not None
    calm = SeedModel.learn({"root": {0: 70.0, 1: 70.6}, "one": {0: 71.0}}, 0.5, 4.0)
    wild = SeedModel.learn({"root": {0: 70.0, 1: 74.0}, "one": {0: 71.0}}, 2.0, 4.0)
    assert calm.noise.variance < forecast.noise.variance < wild.noise.variance
    probe = dynamics["c07"]
    for model, population in product((calm, wild), (None, Population(70.0, 4.0))):
        own = max(forecast.noise.variance, model.noise.variance)  # no surer than the training that it forecasts
        gaps = forecast.differences(probe, 0, model, ["root", "one", "never measured"], population)
        plain = model.differences(forecast.predict(probe), 0, ["root", "one"], population)
        assert gaps.keys() == plain.keys()
        for name, gap in gaps.items():
            assert gap.estimate == plain[name].estimate
            expected = plain[name].noise.variance - model.noise.variance + own
            assert gap.noise.variance == pytest.approx(expected)


def test_outliers_are_not_extrapolated() -> None:
    forecast = Forecast.learn(*world(30, 2.0, np.random.default_rng(2)))
    assert forecast is not None
    far, farther = ((0.0, 0.0, at, 0.0) for at in (50.0, 5000.0))
    assert forecast.predict(far) == forecast.predict(farther)


def test_too_few_make_no_forecast() -> None:
    dynamics, overalls = world(FEWEST, 1.0, np.random.default_rng(4))
    assert Forecast.learn(dynamics, overalls) is not None
    assert Forecast.learn(dynamics, {**overalls, "c05": math.nan}) is None  # dynamics, no score: no part in it
    assert Forecast.learn({}, overalls) is None
    flat = Forecast.learn(dict.fromkeys(dynamics, (1.0, 2.0, 3.0, 4.0)), overalls)
    assert flat is not None
    assert math.isfinite(flat.predict((1.0, 2.0, 3.0, 4.0)))
    assert flat.explained == pytest.approx(0.0)  # it is the mean
    equals = Forecast.learn(dynamics, dict.fromkeys(dynamics, 70.0))
    assert equals is not None
    assert equals.explained == 0.0


def test_dynamics_are_means_over_the_last_steps_of_the_proxy() -> None:
    def row(reward: float, length: float) -> dict[str, float]:
        return {"reward_mean": reward, "completion_length": length, "entropy": 0.5, "kl": 0.0}

    steps = [row(0.9, 90.0), row(0.2, 10.0), row(0.4, 30.0), row(0.9, 90.0)]
    assert proxy_dynamics(steps, 3, 2) == pytest.approx((0.3, math.log(20.0), math.log(0.5), math.log(1e-4)))
    assert proxy_dynamics(steps, 5, 2) is None  # it never got that far
    assert proxy_dynamics(steps, 0, 2) is None  # a ladder without a proxy
    assert proxy_dynamics([{**one, "kl": math.nan} for one in steps], 3, 2) is None
    assert proxy_dynamics([{"reward_mean": 0.3}] * 4, 3, 2) is None


def test_forecast_each_looks_at_earlier_generations_only() -> None:
    dynamics, overalls = world(40, 2.0, np.random.default_rng(5))
    generations = {name: index // 4 for index, name in enumerate(sorted(dynamics))}
    said = forecast_each(generations, dynamics, overalls)
    assert min(generations[name] for name in said) == FEWEST // 4
    assert len(said) == 40 - FEWEST
    last = max(generations.values())
    changed = {name: 0.0 if generations[name] == last else one for name, one in overalls.items()}
    assert forecast_each(generations, dynamics, changed) == said
    assert forecast_each(generations, dynamics, {**changed, "c00": 20.0}) != said
