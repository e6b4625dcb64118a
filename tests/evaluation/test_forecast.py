"""Forecasts of Overall: the leave-one-out error by brute force, what can and cannot be learned, and what is left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

from poise_core.config import LadderSpec
from poise_core.evaluation.forecast import FEWEST, PENALTIES, Forecast, foretold, proxy_dynamics
from poise_core.evaluation.racing import SeedModel

Table = dict[str, dict[int, float]]


def world(candidates: int, slope: float, rng: np.random.Generator, noise: float = 1.0) -> tuple[dict, Table]:
    """Candidates whose level falls with the second and rises with the third feature; one seed, the first three have four."""
    dynamics: dict = {}
    overalls: Table = {}
    for index in range(candidates):
        features = rng.normal(size=4)
        level = 70.0 + slope * (features[2] - features[1])
        seeds = range(4 if index < 3 else 1)
        dynamics[f"c{index:02d}"] = {seed: tuple(features + 0.05 * rng.normal(size=4)) for seed in seeds}
        overalls[f"c{index:02d}"] = {seed: level + noise * float(rng.normal()) for seed in seeds}
    return dynamics, overalls


def test_penalty_and_error_are_those_of_leaving_one_out() -> None:
    """Every candidate left out in turn and fitted anew by another library, for every penalty."""
    dynamics, overalls = world(14, 1.5, np.random.default_rng(3))
    model = SeedModel.learn(overalls, 2.0, 4.0)
    found = Forecast.learn(dynamics, model)
    assert found is not None
    names = sorted(dynamics)
    x = np.array([np.mean(list(dynamics[name].values()), axis=0) for name in names])
    y = np.array([model.level(name, sorted(overalls[name])).estimate for name in names])
    w = np.array([len(overalls[name]) / (len(overalls[name]) + 1.0) for name in names])
    z = (x - x.mean(0)) / x.std(0)
    errors = {}
    for penalty in PENALTIES:
        left = []
        for out in range(len(names)):
            rest = np.arange(len(names)) != out
            fit = Ridge(alpha=penalty).fit(z[rest], y[rest], sample_weight=w[rest])
            left.append(y[out] - fit.predict(z[[out]])[0])
        errors[penalty] = float(np.average(np.square(left), weights=w))
    best = min(errors, key=lambda penalty: errors[penalty])
    assert found.noise.variance == pytest.approx(errors[best], rel=1e-9)
    whole = Ridge(alpha=best).fit(z, y, sample_weight=w)
    probe = (0.3, -0.2, 0.9, -0.5)
    expected = whole.predict(((np.array(probe) - x.mean(0)) / x.std(0))[None])[0]
    assert found.predict(probe) == pytest.approx(expected, rel=1e-9)


def test_what_dynamics_say_is_learned_and_what_they_do_not_say_is_not() -> None:
    rng = np.random.default_rng(0)
    for slope, least, most in ((2.0, 0.7, 1.0), (0.0, -0.4, 0.4)):
        dynamics, overalls = world(90, slope, rng)
        known = {name for name in dynamics if name < "c45"}
        model = SeedModel.learn({name: overalls[name] for name in known}, 1.0, 4.0)
        forecast = Forecast.learn({name: dynamics[name] for name in known}, model)
        assert forecast is not None
        rest = sorted(dynamics.keys() - known)
        said = [forecast.predict(dynamics[name][0]) for name in rest]
        true = [overalls[name][0] for name in rest]
        assert least <= stats.spearmanr(said, true).statistic <= most
        error = float(np.std(np.subtract(said, true)))
        assert forecast.noise.std == pytest.approx(error, rel=0.35)  # 45 errors: standard error 11 % on either side
    assert np.ptp(said) < 1.0  # nothing to learn: nearly the mean for all


def test_a_difference_holds_the_error_of_the_forecast_and_that_of_the_reference() -> None:
    dynamics, overalls = world(20, 1.0, np.random.default_rng(1))
    model = SeedModel.learn(overalls, 2.0, 4.0)
    forecast = Forecast.learn(dynamics, model)
    assert forecast is not None
    probe = dynamics["c07"][0]
    gaps = forecast.differences(probe, model, ["c00", "c10", "never measured"])
    assert set(gaps) == {"c00", "c10"}
    for name, gap in gaps.items():
        level = model.level(name, sorted(overalls[name]))
        assert gap.estimate == pytest.approx(forecast.predict(probe) - level.estimate)
        assert gap.noise.variance == pytest.approx(forecast.noise.variance + level.noise.variance)
    assert gaps["c00"].noise.variance < gaps["c10"].noise.variance  # four seeds against one


def test_a_level_by_hand() -> None:
    # rows 70, 74 and 72, 76: effects of the seeds -2 and 2, no residuals; the guess counts next to nothing
    model = SeedModel.learn({"a": {0: 70.0, 1: 74.0}, "b": {0: 72.0, 1: 76.0}, "c": {0: 68.0}}, 2.0, 1e-9)
    assert model.level("c", [0]).estimate == pytest.approx(70.0)
    assert model.level("a", [0, 1]).estimate == pytest.approx(72.0)
    with pytest.raises(KeyError):
        model.level("c", [1])


def test_outliers_are_not_extrapolated() -> None:
    dynamics, overalls = world(30, 2.0, np.random.default_rng(2))
    forecast = Forecast.learn(dynamics, SeedModel.learn(overalls, 1.0, 4.0))
    assert forecast is not None
    far, farther = ((0.0, 0.0, at, 0.0) for at in (50.0, 5000.0))
    assert forecast.predict(far) == forecast.predict(farther)


def test_too_few_make_no_forecast() -> None:
    dynamics, overalls = world(FEWEST, 1.0, np.random.default_rng(4))
    assert Forecast.learn(dynamics, SeedModel.learn(overalls, 2.0, 4.0)) is not None
    without = {name: row for name, row in overalls.items() if name != "c05"}  # dynamics, no score: no part in it
    assert Forecast.learn(dynamics, SeedModel.learn(without, 2.0, 4.0)) is None
    assert Forecast.learn({}, SeedModel.learn(overalls, 2.0, 4.0)) is None
    equal = {name: dict.fromkeys(row, (1.0, 2.0, 3.0, 4.0)) for name, row in dynamics.items()}
    flat = Forecast.learn(equal, SeedModel.learn(overalls, 2.0, 4.0))
    assert flat is not None
    assert math.isfinite(flat.predict((1.0, 2.0, 3.0, 4.0)))


def test_dynamics_are_means_over_the_last_steps_of_the_proxy() -> None:
    def row(reward: float, length: float) -> dict[str, float]:
        return {"reward_mean": reward, "completion_length": length, "entropy": 0.5, "kl": 0.0}

    steps = [row(0.9, 90.0), row(0.2, 10.0), row(0.4, 30.0), row(0.9, 90.0)]
    assert proxy_dynamics(steps, 3, 2) == pytest.approx((0.3, math.log(20.0), math.log(0.5), math.log(1e-4)))
    assert proxy_dynamics(steps, 5, 2) is None  # it never got that far
    assert proxy_dynamics([{**one, "kl": math.nan} for one in steps], 3, 2) is None
    assert proxy_dynamics([{"reward_mean": 0.3}] * 4, 3, 2) is None


def test_foretold_looks_at_earlier_generations_only() -> None:
    dynamics, overalls = world(40, 2.0, np.random.default_rng(5))
    generations = {name: index // 4 for index, name in enumerate(sorted(dynamics))}
    ladder = LadderSpec()
    said = foretold(generations, dynamics, overalls, 0, ladder)
    assert min(generations[name] for name in said) == FEWEST // 4
    assert len(said) == 40 - FEWEST
    last = max(generations.values())
    changed = {name: {0: 0.0} if generations[name] == last else row for name, row in overalls.items()}
    assert foretold(generations, dynamics, changed, 0, ladder) == said
    changed["c00"] = {0: 20.0}
    assert foretold(generations, dynamics, changed, 0, ladder) != said
    assert not foretold(generations, dynamics, overalls, 9, ladder)  # a seed that no proxy has
