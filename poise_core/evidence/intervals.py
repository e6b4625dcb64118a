"""The uncertainty of scores: intervals of Overall that carry seed noise and problem noise.

An evaluation varies with the training seed (and with it the samples drawn) and with the problems that the benchmark
happens to hold. Every seed answers the same problems, so the design is crossed: the difference between two candidates
at seed s and problem p is ``delta + seed_s + problem_p + rest_sp``, the parts independent. With n seeds and m problems

    V_seed    = variance of the per-seed means / n           expects  var(seed)/n    + var(rest)/(n m)
    V_problem = variance of the per-problem means / m        expects  var(problem)/m + var(rest)/(n m)
    V_rest    = variance of what both leave over / (n m)     expects  var(rest)/(n m)

so ``V = V_seed + V_problem - V_rest`` is unbiased for the variance of the mean (two-way random effects; Searle, Casella
and McCulloch, Variance Components, ch. 4), held at no less than the larger of its first two parts. Benchmarks add up
with the squares of their weights. The limits are t quantiles with Satterthwaite's degrees of freedom, not below n - 1.
A bootstrap over seeds and problems is not used: it counts the rest three times, and is too narrow with few seeds.

Small samples: one seed says nothing of seed noise, so its limits are infinite. With two seeds Satterthwaite's degrees of
freedom are too many, so the t-interval over the two per-seed values is taken where it is wider (its 95 % quantile is
12.7, so such limits exclude little). Coverage, and the width against a bootstrap's, are simulated in
``tests/evaluation/test_statistics.py``. Nothing is corrected for the number of candidates compared: that is done by
``poise_core.evidence.promotion``, through ``level``.

Where the noise between seeds is known from elsewhere (``poise_core.evidence.noise``), its variance over n takes the place of
``V_seed`` and its degrees of freedom that of n - 1. One seed then has limits too; its rest cannot be told from its problems'
part and stays in, which makes them wider.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from poise_core.config.protocol import Protocol
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evaluation.scoring import pass_at_k
from poise_core.evidence.noise import NoiseFloor, SeedNoise

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence limits, in percent points."""

    estimate: float
    low: float  # -inf where the number of seeds leaves it open
    high: float  # +inf likewise
    seeds: int  # how many seeds stand behind it

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the limits."""
        return self.low > 0.0 or self.high < 0.0

    def within(self, least: float, most: float) -> Interval:
        """The same with limits that no true value lies beyond, such as 0 and 100 for a percentage; open limits stay open."""
        low = self.low if math.isinf(self.low) else min(max(self.low, least), self.estimate)
        high = self.high if math.isinf(self.high) else max(min(self.high, most), self.estimate)
        return Interval(self.estimate, low, high, self.seeds)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Interval:
        """From what ``to_dict`` has written."""
        low, high = plain["low"], plain["high"]
        bounds = (-math.inf if low is None else low, math.inf if high is None else high)
        return cls(plain["estimate"], *bounds, plain["seeds"])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: an open limit is ``None``."""
        return {
            "estimate": self.estimate,
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "seeds": self.seeds,
        }


def mean_interval(values: Sequence[float] | Array, level: float = 0.95) -> Interval:
    """The mean of independent values with its limits by Student's t; one value leaves them open.

    Args:
        values: at least one, such as one per seed.
        level: confidence level in (0, 1).
    """
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    half = float(stdtrit(count - 1, 0.5 + level / 2)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def overall_interval(
    evals: Sequence[SeedEvaluation], protocol: Protocol, level: float = 0.95, noise: SeedNoise | None = None
) -> Interval:
    """Mean Overall over seeds, percent, with its confidence limits.

    Args:
        evals: evaluations of one candidate on one split, one per seed.
        protocol: the protocol they were made under.
        level: confidence level in (0, 1).
        noise: of Overall between seeds, where it is known better than from these.

    Raises:
        ValueError: no evaluation, a seed twice, mixed splits or problems, or benchmarks that are not the protocol's.
    """
    by_seed = _by_seed(evals)
    return _interval([_problem_scores(evaluation, protocol) for evaluation in by_seed.values()], level, noise)


def paired_delta(
    child: Sequence[SeedEvaluation],
    base: Sequence[SeedEvaluation],
    protocol: Protocol,
    level: float = 0.95,
    noise: SeedNoise | None = None,
) -> Interval:
    """Overall of ``child`` minus Overall of ``base`` over the seeds both have, with confidence limits.

    Pairing by seed and by problem removes what the two share: the problems' difficulty, the prompts' order. ``noise`` is that of
    the difference between seeds, where it is known better than from these.

    Raises:
        ValueError: no seed in common, different splits or different benchmarks.
    """
    return _interval(paired_problem_scores(child, base, protocol), level, noise)


def paired_contrast(
    terms: Sequence[tuple[float, Sequence[SeedEvaluation]]],
    protocol: Protocol,
    level: float = 0.95,
    noise: SeedNoise | None = None,
) -> Interval | None:
    """A weighted sum of several candidates' Overall over the seeds that all have, with confidence limits.

    ``paired_delta`` is the case of the weights 1 and -1. The interaction of two mechanisms a and b is the contrast
    (with both) - (without a) - (without b) + (without both) of a 2 x 2 factorial design.

    Args:
        terms: weight and evaluations of each; of one split.
        protocol: the protocol they were made under.
        level: confidence level in (0, 1).
        noise: of the contrast between seeds, where it is known better than from these.

    Returns:
        None without a seed that all have, on equal problems.
    """
    found = [(weight, _by_seed(evaluations)) for weight, evaluations in terms if evaluations]
    if len(found) < len(terms):
        return None
    common = set.intersection(*({(one.seed, one.problems) for one in by_seed.values()} for _, by_seed in found))
    if not common:
        return None
    rows = []
    for seed, _ in sorted(common):
        scores = [[weight * part for part in _problem_scores(by_seed[seed], protocol)] for weight, by_seed in found]
        rows.append([np.sum(parts, axis=0) for parts in zip(*scores, strict=True)])
    return _interval(rows, level, noise)


def delta_between(
    child: str,
    base: str,
    evaluations: Mapping[str, Sequence[SeedEvaluation]],
    protocol: Protocol,
    noise: NoiseFloor | None,
    level: float = 0.95,
) -> Interval | None:
    """``paired_delta`` of two candidates with the noise floor, where there is one; None without a seed in common on equal problems.

    All comparisons of two candidates use this function: those in reflections, pages and declarations.
    """
    mine, theirs = evaluations.get(child, ()), evaluations.get(base, ())
    if not {(one.seed, one.problems) for one in mine} & {(one.seed, one.problems) for one in theirs}:
        return None
    return paired_delta(mine, theirs, protocol, level, noise.of_difference(child, base) if noise else None)


def paired_problem_scores(
    child: Sequence[SeedEvaluation], base: Sequence[SeedEvaluation], protocol: Protocol
) -> list[list[Array]]:
    """Per shared seed, per benchmark: weighted percent of every problem, ``child`` minus ``base``.

    Raises:
        ValueError: as ``paired_delta``.
    """
    children, bases = _by_seed(child), _by_seed(base)
    common = [number for number in children if number in bases]
    if not common:
        raise ValueError(f"no seed in common: {sorted(children)} and {sorted(bases)}")
    shared = [number for number in common if children[number].problems == bases[number].problems]
    if not shared:
        raise ValueError("the two were asked different problems, so their scores are no pairs")
    if child[0].split != base[0].split:
        raise ValueError(f"evaluations of different splits: {child[0].split} and {base[0].split}")
    differences = []
    for number in shared:
        pairs = zip(_problem_scores(children[number], protocol), _problem_scores(bases[number], protocol), strict=True)
        differences.append([_subtract(mine, theirs) for mine, theirs in pairs])
    return differences


def distinguishable(delta: Interval) -> str:
    """``better``, ``worse``, or ``not distinguishable`` where zero lies within the limits."""
    if not delta.excludes_zero:
        return "not distinguishable"
    return "better" if delta.low > 0 else "worse"


@dataclass(frozen=True)
class VarianceParts:
    """What makes up V, the variance of a mean difference: each part falls as 1 / of what it is named after."""

    seed: float  # var(seed) / n, percent points squared
    problem: float  # var(problem) / m
    rest: float  # var(rest) / (n m): what a seed does to single problems, and the drawing of answers
    seeds: int

    @property
    def total(self) -> float:
        """V."""
        return self.seed + self.problem + self.rest

    def scaled(self, seeds: float = 1.0, problems: float = 1.0) -> float:
        """V with so many times the seeds and the problems."""
        return self.seed / seeds + self.problem / problems + self.rest / (seeds * problems)


def variance_parts(
    child: Sequence[SeedEvaluation], base: Sequence[SeedEvaluation], protocol: Protocol
) -> VarianceParts | None:
    """The parts of V for one paired difference, from its own seeds: unbiased, so that their mean over differences is, and a
    small part may come out below zero.

    Returns:
        None with fewer than two shared seeds.

    Raises:
        ValueError: as ``paired_delta``.
    """
    values = paired_problem_scores(child, base, protocol)
    seeds = len(values)
    if seeds < 2:
        return None
    blocks = [np.stack(columns) for columns in zip(*values, strict=True)]
    per_seed = np.sum([block.mean(axis=1) for block in blocks], axis=0)
    problem, rest = (sum(parts) for parts in zip(*map(_problem_variance, blocks), strict=True))
    seed = float(per_seed.var(ddof=1)) / seeds
    return VarianceParts(seed - rest, problem - rest, rest, seeds)


def _by_seed(evals: Sequence[SeedEvaluation]) -> dict[int, SeedEvaluation]:
    if not evals:
        raise ValueError("no evaluation given")
    by_seed = {evaluation.seed: evaluation for evaluation in evals}
    if len(by_seed) != len(evals):
        raise ValueError("two evaluations have the same seed")
    if len({evaluation.split for evaluation in evals}) > 1:
        raise ValueError("evaluations of both splits are mixed")
    if len({evaluation.problems for evaluation in evals}) > 1:
        raise ValueError("evaluations on different problems are mixed")
    return dict(sorted(by_seed.items()))


def _problem_scores(evaluation: SeedEvaluation, protocol: Protocol) -> list[Array]:
    """Weighted percent of every problem, one array per benchmark: the sum of the arrays' means is Overall."""
    results = {result.name: result for result in evaluation.benchmarks}
    scores = []
    for spec in protocol.benchmarks:
        if spec.name not in results:
            raise ValueError(f"seed {evaluation.seed}: no result for benchmark {spec.name}")
        result = results[spec.name]
        scores.append(100.0 * spec.weight * pass_at_k(result.samples, result.correct, spec.k))
    return scores


def _subtract(mine: Array, theirs: Array) -> Array:
    if mine.shape != theirs.shape:
        raise ValueError(f"{mine.size} problems against {theirs.size}; these are not the same benchmark")
    return mine - theirs


def _interval(values: Sequence[Sequence[Array]], level: float, noise: SeedNoise | None = None) -> Interval:
    """Interval of the mean over seeds of the sum over benchmarks of the mean over problems.

    Args:
        values: per seed, per benchmark, an array over problems.
        level: confidence level in (0, 1).
        noise: of the sum between seeds, where it is known better than from these.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    seeds = len(values)
    blocks = [np.stack(columns) for columns in zip(*values, strict=True)]  # per benchmark: (seeds, problems)
    per_seed = np.sum([block.mean(axis=1) for block in blocks], axis=0)  # (seeds,)
    estimate = float(per_seed.mean())
    if seeds == 1 and noise is None:
        return Interval(estimate, -math.inf, math.inf, 1)
    seed_part = noise.variance / seeds if noise else float(per_seed.var(ddof=1)) / seeds
    seed_freedom = noise.freedom if noise else seeds - 1.0
    problem_parts = [_problem_variance(block) for block in blocks]
    problem_part, rest_part = (sum(parts) for parts in zip(*problem_parts, strict=True))
    variance = max(seed_part + problem_part - rest_part, seed_part, problem_part)
    if variance == 0.0:  # every seed and every problem agrees, as for a candidate against itself
        return Interval(estimate, estimate, estimate, seeds)
    others = [(part, block.shape[1] - 1) for (part, _), block in zip(problem_parts, blocks, strict=True) if part > 0]
    spread = seed_part**2 / seed_freedom + sum(part**2 / freedom for part, freedom in others)
    freedom = max(variance**2 / spread, min([seed_freedom, *(freedom for _, freedom in others)]))
    half = float(stdtrit(freedom, 0.5 + level / 2)) * math.sqrt(variance)
    if seeds < 3 and noise is None:
        half = max(half, float(stdtrit(seeds - 1, 0.5 + level / 2)) * math.sqrt(seed_part))
    return Interval(estimate, estimate - half, estimate + half, seeds)


def _problem_variance(block: Array) -> tuple[float, float]:
    """``V_problem`` and ``V_rest`` of one benchmark, (seeds, problems) -> two numbers; a lone problem has none."""
    seeds, problems = block.shape
    if problems < 2:
        return 0.0, 0.0
    if seeds == 1:
        return float(block.var(ddof=1)) / problems, 0.0
    per_problem, per_seed = block.mean(axis=0, keepdims=True), block.mean(axis=1, keepdims=True)
    rest = block - per_problem - per_seed + block.mean()
    rest_part = float((rest**2).sum()) / ((seeds - 1) * (problems - 1)) / (seeds * problems)
    return float(per_problem.var(ddof=1)) / problems, rest_part
