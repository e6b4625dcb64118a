"""The forecast of Overall from the dynamics of a short training, by which the proxy is judged once enough is known.

The proxy's reward predicts Overall badly where Overall counts what reward does not (pass@k of hard problems needs diversity).
How far the policy has moved, how spread its answers are and how long they have become predict it better. Their weights are
learned from the candidates of earlier generations: ridge regression of Overall on the means of ``FEATURES`` over the proxy's
last steps, with one seed of each candidate, the one that children are judged by. Further seeds are left out, because that seed
has decided which candidates have any. The penalty minimises the leave-one-out error

    e_c = (y_c - yhat_c) / (1 - h_c),  h = the diagonal of the hat matrix

(Allen 1974, the PRESS statistic; Golub, Heath and Wahba 1979), and the mean square of e is the variance of a forecast: it holds the
noise of the one seed, too. What a regression explains is measured against the mean of all, left out in the same way: a forecast
that is no better says the same of every child, and stops none (``poise_core.evidence.stopping``).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from poise_core.evidence.noise import Array, SeedNoise
from poise_core.evidence.racing import Difference, Population, SeedModel
from poise_core.trajectory import Column

FEATURES: tuple[Column, ...] = ("reward_mean", "completion_length", "entropy", "kl")
"""Per step; all but the first on a log scale."""

FEWEST = 2 * len(FEATURES)
"""Candidates; fewer make no forecast."""

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Of the ridge, for features of unit spread; the last one is nearly the mean alone."""

_SMALLEST = 1e-4  # smallest value before the logarithm
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
    if not 0 < steps <= len(trajectory):
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
    explained: float  # share of the leave-one-out error of the mean that it saves; 0 or less: it knows nothing

    @classmethod
    def learn(cls, dynamics: Mapping[str, Dynamics], overalls: Mapping[str, float]) -> Forecast | None:
        """From candidates of earlier generations, the same seed of all.

        Args:
            dynamics: candidate -> of its proxy.
            overalls: candidate -> percent; what is not finite is left out.

        Returns:
            None with fewer than ``FEWEST`` candidates that have both.
        """
        names = sorted(name for name in dynamics if math.isfinite(overalls.get(name, math.nan)))
        if len(names) < FEWEST:
            return None
        x, y = np.array([dynamics[name] for name in names]), np.array([overalls[name] for name in names])
        centre, spread = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
        design = np.hstack([np.ones((len(y), 1)), _scaled(x, centre, spread)])
        fits = [_ridge(design, y, penalty) for penalty in PENALTIES]
        coefficients, errors, parameters = min(fits, key=lambda fit: float(fit[1] @ fit[1]))
        variance, of_mean = float(np.mean(errors**2)), float(np.mean(((y - y.mean()) * len(y) / (len(y) - 1)) ** 2))
        explained = 1.0 - variance / of_mean if of_mean > 0.0 else 0.0
        return cls(centre, spread, coefficients, SeedNoise(variance, len(y) - parameters), explained)

    def predict(self, dynamics: Dynamics) -> float:
        """Overall at the seed that it was learned from, percent."""
        return float(
            self.coefficients[0] + _scaled(np.array(dynamics), self.centre, self.spread) @ self.coefficients[1:]
        )

    def differences(
        self, dynamics: Dynamics, seed: int, model: SeedModel, references: Iterable[str], population: Population | None
    ) -> dict[str, Difference]:
        """As ``SeedModel.differences``, of a candidate of which only the proxy is known.

        A forecast counts as no surer than the training that it forecasts, whose seed's noise is in its error, too.
        """
        own = max(self.noise.variance, model.noise.variance)
        gaps = model.differences(self.predict(dynamics), seed, references, population)
        return {
            name: Difference(
                gap.estimate,
                SeedNoise(gap.noise.variance - model.noise.variance + own, self.noise.freedom),
            )
            for name, gap in gaps.items()
        }


def forecast_each(
    generations: Mapping[str, int], dynamics: Mapping[str, Dynamics], overalls: Mapping[str, float]
) -> dict[str, float]:
    """The forecast of each candidate's Overall from its proxy and earlier generations, whether or not the ladder has used it.

    Args:
        generations: candidate -> its generation. Each is forecast from earlier ones only.
        dynamics: candidate -> of its proxy.
        overalls: candidate -> percent, at the same seed.

    Returns:
        Candidate -> percent; those left out for which too little was known. A forecast is learned anew once a sixteenth more
        candidates are known, so a long run is not quadratic.
    """
    found: dict[str, float] = {}
    forecast, learned_from = None, 0
    for generation in sorted(set(generations.values())):
        known = {name for name, made in generations.items() if made < generation}
        if len(known) - learned_from > learned_from / 16:
            own = {name: one for name, one in dynamics.items() if name in known}
            forecast, learned_from = Forecast.learn(own, overalls), len(known)
        if forecast is not None:
            new = [name for name, made in generations.items() if made == generation and name in dynamics]
            found |= {name: forecast.predict(dynamics[name]) for name in new}
    return found


def _scaled(x: Array, centre: Array, spread: Array) -> Array:
    return np.asarray(np.clip((x - centre) / spread, -_FARTHEST, _FARTHEST), np.float64)


def _ridge(design: Array, y: Array, penalty: float) -> tuple[Array, Array, float]:
    """Coefficients, leave-one-out errors, effective parameters; the first column is not penalised."""
    normal = design.T @ design + penalty * np.diag([0.0] + [1.0] * (design.shape[1] - 1))
    solved = np.linalg.solve(normal, design.T)  # (1 + F, N)
    coefficients = solved @ y
    leverage = np.einsum("nf,fn->n", design, solved)
    return coefficients, (y - design @ coefficients) / (1.0 - leverage), float(leverage.sum())
