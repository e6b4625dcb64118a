"""Overall forecast from what a short training does to the policy: what the proxy is judged by where it has learned to predict.

The proxy's reward predicts Overall badly where Overall counts what reward does not (pass@k of hard problems lives on diversity).
How far the policy has moved, how spread its answers are and how long they have become say more. What they mean for Overall is not
assumed but learned from the candidates of earlier generations: ridge regression of a candidate's level on the means of
``FEATURES`` over the proxy's last steps, levels and features averaged over the seeds that a candidate has, weights n / (n + 1)
for n seeds (equal parts of candidates' and of seeds' variance). The penalty minimises the leave-one-out error

    e_c = (y_c - yhat_c) / (1 - h_c),  h = the diagonal of the hat matrix

(Allen 1974, the PRESS statistic; Golub, Heath and Wahba 1979), and the mean square of e is the variance of a forecast: it holds the
seed noise of the levels too, so it is rather too large. A regression that predicts nothing is a wide forecast of the mean and stops
nobody.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from poise_core.config import LadderSpec
from poise_core.evaluation.noise import Array, SeedNoise
from poise_core.evaluation.racing import Difference, SeedModel

FEATURES = ("reward_mean", "completion_length", "entropy", "kl")
"""Per step; all but the first on a log scale."""

FEWEST = 2 * len(FEATURES)
"""Candidates; fewer make no forecast."""

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Of the ridge, for features of unit spread; the last one is nearly the mean alone."""

_SMALLEST = 1e-4  # below which logarithms say nothing
_FARTHEST = 3.0  # standard deviations; beyond them a feature is not extrapolated

Dynamics = tuple[float, ...]
"""One number per feature."""


def proxy_dynamics(trajectory: Sequence[Mapping[str, float]], steps: int, window: int) -> Dynamics | None:
    """Means of ``FEATURES`` over the last ``window`` of the first ``steps`` steps.

    Args:
        trajectory: rows of metrics, one per step.
        steps: of the proxy.
        window: last steps of it.

    Returns:
        None where steps are missing or something is not finite.
    """
    if len(trajectory) < steps:
        return None
    rows = trajectory[:steps][-window:]
    found = []
    for feature in FEATURES:
        values = [row[feature] for row in rows if row.get(feature) is not None]
        mean = statistics.fmean(values) if values else math.nan
        found.append(mean if feature == "reward_mean" else math.log(max(mean, _SMALLEST)))
    return tuple(found) if all(map(math.isfinite, found)) else None


@dataclass(frozen=True)
class Forecast:
    """A fitted regression; see the module's docstring."""

    centre: Array  # (F,) of the features
    spread: Array  # (F,)
    coefficients: Array  # (1 + F,) intercept first, percent points per unit of spread
    noise: SeedNoise  # variance of a forecast

    @classmethod
    def learn(cls, dynamics: Mapping[str, Mapping[int, Dynamics]], model: SeedModel) -> Forecast | None:
        """From candidates of earlier generations.

        Args:
            dynamics: candidate -> seed -> of its proxy.
            model: of Overall, percent.

        Returns:
            None with fewer than ``FEWEST`` candidates that have both for a seed.
        """
        features, levels, weights = [], [], []
        for name, row in sorted(dynamics.items()):
            seeds = sorted(row.keys() & model.values.get(name, {}).keys())
            if not seeds:
                continue
            features.append(np.mean([row[seed] for seed in seeds], axis=0))
            levels.append(model.level(name, seeds).estimate)
            weights.append(len(seeds) / (len(seeds) + 1.0))
        if len(levels) < FEWEST:
            return None
        x, y, w = np.array(features), np.array(levels), np.array(weights)
        centre, spread = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
        design = np.hstack([np.ones((len(y), 1)), _scaled(x, centre, spread)])
        fits = [_ridge(design, y, w, penalty) for penalty in PENALTIES]
        coefficients, errors, parameters = min(fits, key=lambda fit: float(w @ fit[1] ** 2))
        variance = float(w @ errors**2) / float(w.sum())
        return cls(centre, spread, coefficients, SeedNoise(variance, len(y) - parameters))

    def predict(self, dynamics: Dynamics) -> float:
        """Overall of an average seed, percent."""
        return float(
            self.coefficients[0] + _scaled(np.array(dynamics), self.centre, self.spread) @ self.coefficients[1:]
        )

    def differences(self, dynamics: Dynamics, model: SeedModel, references: Iterable[str]) -> dict[str, Difference]:
        """A candidate of which only the proxy is known, minus each of several earlier ones; those not measured left out."""
        found = {}
        for name in references:
            if row := model.values.get(name):
                level = model.level(name, list(row))
                noise = SeedNoise(self.noise.variance + level.noise.variance, self.noise.freedom)
                found[name] = Difference(self.predict(dynamics) - level.estimate, noise)
        return found


def foretold(
    generations: Mapping[str, int],
    dynamics: Mapping[str, Mapping[int, Dynamics]],
    overalls: Mapping[str, Mapping[int, float]],
    seed: int,
    ladder: LadderSpec,
) -> dict[str, float]:
    """What every candidate's proxy forecast when it was made, whether or not the ladder asked: to compare with what came true.

    Args:
        generations: candidate -> its generation. Each is forecast from earlier ones only.
        dynamics: candidate -> seed -> of its proxy.
        overalls: candidate -> seed -> Overall, percent.
        seed: of the proxies.
        ladder: guesses of noise.

    Returns:
        Candidate -> percent; those left out for which too little was known. A forecast is learned anew once a sixteenth more
        candidates are known, so a long run is not quadratic.
    """
    found: dict[str, float] = {}
    forecast, learned_from = None, 0
    for generation in sorted(set(generations.values())):
        known = {name for name, made in generations.items() if made < generation}
        if len(known) - learned_from > learned_from / 16:
            model = SeedModel.learn(
                {name: row for name, row in overalls.items() if name in known},
                ladder.overall_noise,
                ladder.noise_weight,
                ladder.shared_noise,
            )
            own = {name: row for name, row in dynamics.items() if name in known}
            forecast, learned_from = Forecast.learn(own, model), len(known)
        if forecast is not None:
            new = [name for name, made in generations.items() if made == generation and seed in dynamics.get(name, {})]
            found |= {name: forecast.predict(dynamics[name][seed]) for name in new}
    return found


def _scaled(x: Array, centre: Array, spread: Array) -> Array:
    return np.asarray(np.clip((x - centre) / spread, -_FARTHEST, _FARTHEST), np.float64)


def _ridge(design: Array, y: Array, w: Array, penalty: float) -> tuple[Array, Array, float]:
    """Coefficients, leave-one-out errors, effective parameters; the first column is not penalised."""
    weighted = design * w[:, None]
    normal = design.T @ weighted + penalty * np.diag([0.0] + [1.0] * (design.shape[1] - 1))
    solved = np.linalg.solve(normal, weighted.T)  # (1 + F, N)
    coefficients = solved @ y
    leverage = np.einsum("nf,fn->n", design, solved)
    return coefficients, (y - design @ coefficients) / (1.0 - leverage), float(leverage.sum())
