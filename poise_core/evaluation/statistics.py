"""Scores and their uncertainty: pass@k, Overall, and intervals that carry seed noise and problem noise.

Two things vary when an evaluation is repeated: the training seed (and with it the samples drawn), and which problems the
benchmark happens to hold. Every seed answers the same problems, so the design is crossed, not nested.

:func:`paired_delta` and :func:`overall_interval` give the hull of two intervals:

* a hierarchical bootstrap: seeds are drawn with replacement, problems are drawn with replacement within each benchmark
  (one draw for all seeds and for both candidates, so the pairing holds), percentiles of the resampled estimate;
* a t-interval over the per-seed values, because few seeds starve the bootstrap: three seeds resample to only ten
  different sets, and the resampled spread falls short of the true one by sqrt((n - 1) / n) besides.

One seed says nothing of seed noise, so its interval is infinite. Two seeds give t a quantile of 12.7 at 95 %: wide, and
rightly so. The intervals are per comparison; nothing is corrected for the number of candidates compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from poise_core.evaluation.protocol import Protocol
from poise_core.evaluation.results import BenchmarkResult, SeedEvaluation

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

    def to_dict(self) -> dict[str, Any]:
        """For JSON: an open limit is ``None``."""
        return {
            "estimate": self.estimate,
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "seeds": self.seeds,
        }


def pass_at_k(n: int, c: npt.ArrayLike, k: int) -> Array:
    """Unbiased estimate of the chance that at least one of k completions is correct: 1 - C(n-c, k) / C(n, k).

    Chen et al., arXiv 2107.03374, eq. 1. Computed as a running product, so no binomial overflows.

    Args:
        n: completions drawn per problem.
        c: how many of them are correct; any shape, integers in 0..n.
        k: completions that the metric grants, 1..n.

    Returns:
        Probabilities in [0, 1], the shape of ``c``.

    Raises:
        ValueError: k outside 1..n or a count outside 0..n.
    """
    counts = np.asarray(c, dtype=np.int64)
    if not 1 <= k <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n, got k = {k} and n = {n}")
    if counts.size and (counts.min() < 0 or counts.max() > n):
        raise ValueError(f"a correct count lies outside 0..{n}")
    # all_wrong[c] = C(n-c, k) / C(n, k) = prod_{i=0}^{c-1} (n-i-k) / (n-i), which reaches 0 at c = n-k+1
    remaining = n - np.arange(n)
    all_wrong = np.concatenate([[1.0], np.cumprod(np.maximum(remaining - k, 0) / remaining)])
    return 1.0 - all_wrong[counts]


def benchmark_score(correct: Sequence[int], samples: int, k: int) -> float:
    """Mean pass@k over the problems of a benchmark, percent."""
    return 100.0 * float(pass_at_k(samples, correct, k).mean())


def overall(benchmarks: Sequence[BenchmarkResult], protocol: Protocol) -> float:
    """Weighted mean of the benchmarks' scores, percent.

    Raises:
        ValueError: the results are not those of the protocol's benchmarks.
    """
    scores = {result.name: result.score for result in benchmarks}
    expected = {spec.name for spec in protocol.benchmarks}
    if len(scores) != len(benchmarks) or set(scores) != expected:
        raise ValueError(
            f"expected one result for each of {', '.join(sorted(expected))}; got {', '.join(sorted(scores))}"
        )
    return sum(spec.weight * scores[spec.name] for spec in protocol.benchmarks)


def overall_interval(
    evals: Sequence[SeedEvaluation], protocol: Protocol, level: float = 0.95, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean Overall over seeds, percent, with its confidence limits.

    Args:
        evals: evaluations of one candidate on one split, one per seed.
        protocol: the protocol they were made under.
        level: confidence level in (0, 1).
        resamples: bootstrap resamples.
        seed: of the resampling, so that the same evaluations give the same limits.

    Raises:
        ValueError: no evaluation, a seed twice, mixed splits, or benchmarks that are not the protocol's.
    """
    by_seed = _by_seed(evals)
    return _interval([_problem_scores(evaluation, protocol) for evaluation in by_seed.values()], level, resamples, seed)


def paired_delta(
    child: Sequence[SeedEvaluation],
    base: Sequence[SeedEvaluation],
    protocol: Protocol,
    level: float = 0.95,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Overall of ``child`` minus Overall of ``base`` over the seeds both have, with confidence limits.

    Pairing by seed and by problem removes what the two share: the problems' difficulty, the prompts' order.

    Raises:
        ValueError: no seed in common, different splits or different benchmarks.
    """
    children, bases = _by_seed(child), _by_seed(base)
    shared = [number for number in children if number in bases]
    if not shared:
        raise ValueError(f"no seed in common: {sorted(children)} and {sorted(bases)}")
    if child[0].split != base[0].split:
        raise ValueError(f"evaluations of different splits: {child[0].split} and {base[0].split}")
    differences = []
    for number in shared:
        pairs = zip(_problem_scores(children[number], protocol), _problem_scores(bases[number], protocol), strict=True)
        differences.append([_subtract(mine, theirs) for mine, theirs in pairs])
    return _interval(differences, level, resamples, seed)


def distinguishable(delta: Interval) -> str:
    """``better``, ``worse``, or ``not distinguishable`` where zero lies within the limits."""
    if not delta.excludes_zero:
        return "not distinguishable"
    return "better" if delta.low > 0 else "worse"


def _by_seed(evals: Sequence[SeedEvaluation]) -> dict[int, SeedEvaluation]:
    if not evals:
        raise ValueError("no evaluation given")
    by_seed = {evaluation.seed: evaluation for evaluation in evals}
    if len(by_seed) != len(evals):
        raise ValueError("two evaluations have the same seed")
    if len({evaluation.split for evaluation in evals}) > 1:
        raise ValueError("evaluations of both splits are mixed")
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


def _interval(values: Sequence[Sequence[Array]], level: float, resamples: int, seed: int) -> Interval:
    """Interval of the mean over seeds of the sum over benchmarks of the mean over problems.

    Args:
        values: per seed, per benchmark, an array over problems.
        level: confidence level.
        resamples: bootstrap resamples.
        seed: of the resampling.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    count = len(values)
    blocks = [np.stack(columns) for columns in zip(*values, strict=True)]  # per benchmark: (seeds, problems)
    per_seed = np.sum([block.mean(axis=1) for block in blocks], axis=0)  # (seeds,)
    estimate = float(per_seed.mean())
    if count == 1:
        return Interval(estimate, -math.inf, math.inf, 1)
    from scipy.stats import t  # half a second to import, and only needed here

    half = float(t.ppf(0.5 + level / 2, count - 1) * per_seed.std(ddof=1) / math.sqrt(count))
    resampled = _bootstrap(blocks, resamples, seed)
    low, high = np.quantile(resampled, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(estimate, min(float(low), estimate - half), max(float(high), estimate + half), count)


def _bootstrap(blocks: Sequence[Array], resamples: int, seed: int) -> Array:
    """Estimates of resampled seeds and problems. Per benchmark (seeds, problems) -> (resamples,)."""
    rng = np.random.default_rng(seed)
    seeds = blocks[0].shape[0]
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds  # (R, seeds)
    estimates = np.zeros(resamples)
    for block in blocks:
        problems = block.shape[1]
        weights = rng.multinomial(problems, np.full(problems, 1 / problems), size=resamples) / problems  # (R, problems)
        estimates += np.einsum("rs,rs->r", seed_weights, weights @ block.T)
    return estimates
