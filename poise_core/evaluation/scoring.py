"""The score of a policy from the counts of its correct completions: pass@k, a benchmark's score, and Overall."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from poise_core.config.protocol import Protocol
from poise_core.evaluation.results import BenchmarkResult

Array = npt.NDArray[np.float64]


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
    return 1.0 - _all_wrong(n, k)[counts]


@functools.lru_cache(maxsize=64)
def _all_wrong(n: int, k: int) -> Array:
    """C(n-c, k) / C(n, k) for c = 0..n, which is prod_{i=0}^{c-1} (n-i-k) / (n-i) and reaches 0 at c = n-k+1."""
    remaining = n - np.arange(n)
    return np.concatenate([[1.0], np.cumprod(np.maximum(remaining - k, 0) / remaining)])


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
