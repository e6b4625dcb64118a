"""How much Overall differs between seeds, learned from all candidates of a protocol together: the noise floor.

Three seeds estimate their own variance badly (two degrees of freedom), sixty candidates with three seeds each estimate it well.
Seeds are shared, so the layout is candidates x seeds, and what a seed does to all candidates is no noise of a difference:

    x_cs = candidate_c + seed_s + e_cs,  var(e_cs) = v_c

Every candidate's own estimate s_c^2 is the mean square of its residuals. The v_c are not equal (unstable algorithms differ
more between seeds), so nothing is pooled outright: s_c^2 is moderated towards s_0^2 with the weight of d_0 seeds,

    v~_c = (d_0 s_0^2 + d_c s_c^2) / (d_0 + d_c)

where d_0 and s_0^2 come from the scatter of log s_c^2 over candidates (Smyth 2004, Linear models and empirical Bayes methods,
sec. 6.2; scaled inverse chi-square prior, moments of the log). A difference at one seed has variance v_c + v_b. What is assumed:
errors of different candidates are independent given the seed, and roughly normal. Coverage and the rate of false champions under
it are simulated in ``tests/evaluation/test_noise.py`` and ``studies.null_runs``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import polygamma, psi

from poise_core.evaluation.results import SeedEvaluation

Array = npt.NDArray[np.float64]

OUTLYING = 3.0
"""Robust standard deviations below the median at which a score counts as a collapse."""

FEWEST_CANDIDATES = 5
"""With at least two seeds each; the scatter of fewer variances says nothing, and every interval then rests on its own seeds."""


@dataclass(frozen=True)
class SeedNoise:
    """Variance between seeds of one number, and how well it is known."""

    variance: float  # percent points squared, of one seed
    freedom: float  # degrees of freedom of the estimate

    @property
    def std(self) -> float:
        """Standard deviation, percent points."""
        return math.sqrt(self.variance)


@dataclass(frozen=True)
class NoiseFloor:
    """The seed noise of one protocol; see the module's docstring."""

    typical: SeedNoise  # s_0^2 and d_0, of one candidate at one seed beside what the seed does to all
    total: SeedNoise  # of one candidate's Overall, what the seed does to all included; pooled
    candidates: int  # with at least two seeds
    own: Mapping[str, SeedNoise] = field(default_factory=dict)  # candidate -> s_c^2 and d_c

    def of_difference(self, child: str, base: str) -> SeedNoise:
        """Moderated variance of ``child`` minus ``base`` at one seed."""
        prior = SeedNoise(2.0 * self.typical.variance, self.typical.freedom)
        parts = [self.own[name] for name in (child, base) if name in self.own]
        if len(parts) < 2:
            return prior
        variance = sum(part.variance for part in parts)
        if variance == 0.0:
            return moderated(prior, SeedNoise(0.0, min(part.freedom for part in parts)))
        freedom = variance**2 / sum(part.variance**2 / part.freedom for part in parts)
        return moderated(prior, SeedNoise(variance, freedom))


def moderated(prior: SeedNoise, own: SeedNoise) -> SeedNoise:
    """Mean of the two variances, weighted by degrees of freedom, which add up."""
    freedom = prior.freedom + own.freedom
    return SeedNoise((prior.freedom * prior.variance + own.freedom * own.variance) / freedom, freedom)


def noise_floor(evaluations: Mapping[str, Sequence[SeedEvaluation]]) -> NoiseFloor | None:
    """The noise floor of a protocol; None with fewer than ``FEWEST_CANDIDATES`` candidates of two seeds or more.

    Args:
        evaluations: candidate -> its evaluations on one split, under one protocol. Values that are not finite are left out.
    """
    return noise_of({name: {one.seed: one.overall for one in evals} for name, evals in evaluations.items()})


def noise_of(values: Mapping[str, Mapping[int, float]]) -> NoiseFloor | None:
    """As ``noise_floor``, of any number measured per candidate and seed."""
    table = repeated(values)
    if len(table) < FEWEST_CANDIDATES:
        return None
    fitted = two_way(table)
    residuals, pooled = fitted.residuals, fitted.pooled
    if pooled.freedom <= 0 or pooled.variance <= 0:
        return None
    within = [value - np.mean(list(row.values())) for row in table.values() for value in row.values()]
    freedom = float(sum(len(row) - 1 for row in table.values()))
    share = pooled.freedom / freedom  # of the degrees of freedom, what the effects of the seeds leave
    own = {
        name: SeedNoise(float((rest**2).sum()) / ((len(rest) - 1) * share), (len(rest) - 1) * share)
        for name, rest in residuals.items()
    }
    total = SeedNoise(float(np.sum(np.square(within))) / freedom, freedom)
    return NoiseFloor(_prior(list(own.values()), pooled), total, len(table), own)


def floor_with_prior(values: Mapping[str, Mapping[int, float]], prior: SeedNoise) -> NoiseFloor:
    """As ``noise_of``, from the first candidate on: with too few candidates for the scatter of their variances, the pooled
    residuals of those that there are moderate a prior.

    It serves what agents are told, where a guess that says so is better than nothing. No champion is declared by it.

    Args:
        values: candidate -> seed -> number.
        prior: of one candidate at one seed, before anything was measured; its variance must not be zero.
    """
    if (floor := noise_of(values)) is not None:
        return floor
    table = repeated(values)
    if not table:
        return NoiseFloor(prior, prior, 0)
    fitted = two_way(table)
    typical = moderated(prior, fitted.pooled) if fitted.pooled.freedom > 0 else prior
    if len(table) == 1:  # a lone candidate cannot tell what a seed does to all from its own noise: it has both
        (row,) = table.values()
        own = SeedNoise(float(np.var(list(row.values()), ddof=1)), float(len(row) - 1))
        typical = moderated(prior, own)
    return NoiseFloor(typical, typical, len(table))


RUN_METRIC_GUESSES: Mapping[str, tuple[float, float]] = {
    "reward_end": (0.03, 0.0),
    "entropy_end": (0.005, 0.2),
    "kl_end": (0.005, 0.3),
    "length_end": (0.1, 0.08),
    "format_valid_end": (0.02, 0.0),
    "truncated_end": (0.02, 0.0),
    "all_fail_end": (0.03, 0.0),
    "clip_fraction_mean": (0.002, 0.3),
    "grad_norm_median": (0.01, 0.2),
}
"""Metric of a training -> what one seed's standard deviation is guessed to be before any was measured: at least the first number,
in the metric's own unit, and at least the second as a share of the metric's mean. These are guesses of this project."""


@dataclass(frozen=True)
class Floors:
    """The noise floor of every number that a candidate has, each with a prior, so that one seed has limits too."""

    overall: NoiseFloor
    benchmarks: Mapping[str, NoiseFloor]
    runs: Mapping[str, NoiseFloor]  # metrics of ``poise_core.trajectory.RUN_METRICS``

    @classmethod
    def learn(
        cls,
        weights: Mapping[str, float],
        evaluations: Mapping[str, Sequence[SeedEvaluation]],
        runs: Mapping[str, Mapping[str, Mapping[int, float]]],
        *,
        overall_noise: float,
        freedom: float,
    ) -> Floors:
        """From what was measured of all candidates.

        A benchmark's prior is that of Overall as if benchmarks had equal, independent noise: var(Overall) = sum w^2 var.

        Args:
            weights: benchmark -> its weight in Overall.
            evaluations: candidate -> its evaluations.
            runs: metric of the training -> candidate -> seed -> number.
            overall_noise: guess of the standard deviation of one seed's Overall, percent points.
            freedom: degrees of freedom that the guesses count for.
        """
        scores = {
            name: {
                candidate: {one.seed: result.score for one in found for result in one.benchmarks if result.name == name}
                for candidate, found in evaluations.items()
            }
            for name in weights
        }
        overalls = {name: {one.seed: one.overall for one in found} for name, found in evaluations.items()}
        alone = overall_noise**2 / sum(weight**2 for weight in weights.values())
        return cls(
            floor_with_prior(overalls, SeedNoise(overall_noise**2, freedom)),
            {name: floor_with_prior(found, SeedNoise(alone, freedom)) for name, found in scores.items()},
            {
                name: floor_with_prior(runs.get(name, {}), SeedNoise(_guess(name, runs.get(name, {})) ** 2, freedom))
                for name in RUN_METRIC_GUESSES
            },
        )


def _guess(metric: str, values: Mapping[str, Mapping[int, float]]) -> float:
    least, share = RUN_METRIC_GUESSES[metric]
    known = [abs(value) for row in values.values() for value in row.values() if math.isfinite(value)]
    return max(least, share * float(np.mean(known)) if known else 0.0)


def lowest_of_the_bulk(values: Array) -> float:
    """``OUTLYING`` robust standard deviations (1.4826 MAD) below the median; -inf where half of the values are alike."""
    middle = float(np.median(values))
    scale = 1.4826 * float(np.median(np.abs(values - middle)))
    return middle - OUTLYING * scale if scale > 0 else -math.inf


def winsorized(values: Array) -> Array:
    """The values with collapses raised to the lowest of the bulk."""
    return np.maximum(values, lowest_of_the_bulk(values))


def repeated(values: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]]:
    """Candidates with two seeds or more, by name; what is not finite is left out."""
    finite = {name: {s: x for s, x in row.items() if math.isfinite(x)} for name, row in sorted(values.items())}
    return {name: row for name, row in finite.items() if len(row) > 1}


@dataclass(frozen=True)
class TwoWay:
    """Least squares of candidate + seed over a table with missing cells; S seeds."""

    seeds: tuple[int, ...]
    normal: Array  # (S, S) normal equations of the seeds' effects, candidates eliminated
    right: Array  # (S,) their right-hand side
    effects: Array  # (S,) of the seeds, with the smallest norm
    residuals: Mapping[str, Array]  # candidate -> one number per seed that it has
    pooled: SeedNoise  # mean square of the residuals; variance 0 with no degrees of freedom


def two_way(table: Mapping[str, Mapping[int, float]]) -> TwoWay:
    """Candidates are centred first; the seeds' effects then solve S equations, whatever the number of candidates.

    Args:
        table: candidate -> seed -> value, two seeds or more each; see ``repeated``.
    """
    seeds = sorted({seed for row in table.values() for seed in row})
    column = {seed: i for i, seed in enumerate(seeds)}
    normal, right = np.zeros((len(seeds), len(seeds))), np.zeros(len(seeds))
    centred = {}
    for name, row in table.items():
        at = np.array([column[seed] for seed in row])
        values = np.array(list(row.values()))
        centred[name] = (at, values - values.mean())
        normal[at, at] += 1.0
        normal[np.ix_(at, at)] -= 1.0 / len(at)
        right[at] += centred[name][1]
    effects = np.linalg.pinv(normal, hermitian=True) @ right
    residuals = {name: rest - (effects[at] - effects[at].mean()) for name, (at, rest) in centred.items()}
    rank = int(np.linalg.matrix_rank(normal, hermitian=True)) if seeds else 0
    freedom = sum(len(row) - 1 for row in table.values()) - rank
    squares = float(sum((rest**2).sum() for rest in residuals.values()))
    pooled = SeedNoise(squares / freedom if freedom > 0 else 0.0, float(max(freedom, 0)))
    return TwoWay(tuple(seeds), normal, right, effects, residuals, pooled)


def _prior(own: Sequence[SeedNoise], pooled: SeedNoise) -> SeedNoise:
    """s_0^2 and d_0; where variances scatter no more than chance, all are pooled. Never better known than ``pooled``."""
    usable = [one for one in own if one.variance > 1e-12]
    if len(usable) < FEWEST_CANDIDATES:
        return pooled
    half = np.array([one.freedom / 2 for one in usable])
    logs = np.log([one.variance for one in usable]) - psi(half) + np.log(half)
    scatter = float(np.var(logs, ddof=1) - polygamma(1, half).mean())
    if scatter <= 0:
        return pooled
    freedom = 2.0 * inverse_trigamma(scatter)
    if freedom >= pooled.freedom:
        return pooled
    return SeedNoise(math.exp(float(logs.mean()) + float(psi(freedom / 2)) - math.log(freedom / 2)), freedom)


def inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value > 0, by Newton's method on 1 / trigamma (Smyth 2004, appendix)."""
    x = 0.5 + 1.0 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1.0 - trigamma / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x
