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
    """Estimate without bias the probability that at least one of k completions is correct: 1 - C(n-c, k) / C(n, k).

    The formula is eq. 1 of Chen et al., arXiv 2107.03374, computed as a running product so that no binomial overflows.

    Args:
        n: number of completions drawn per problem.
        c: number of correct ones among them; any shape, integers in 0..n.
        k: number of completions in the metric, 1..n.

    Returns:
        Probabilities in [0, 1], in the shape of ``c``.

    Raises:
        ValueError: k lies outside 1..n, or a count outside 0..n.
    """
    counts = np.asarray(c, dtype=np.int64)
    if not 1 <= k <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n, got k = {k} and n = {n}")
    if counts.size and (counts.min() < 0 or counts.max() > n):
        raise ValueError(f"a correct count lies outside 0..{n}")
    return 1.0 - _all_wrong(n, k)[counts]


@functools.lru_cache(maxsize=64)
def _all_wrong(n: int, k: int) -> Array:
    """Return C(n-c, k) / C(n, k) for c = 0..n, which is prod_{i=0}^{c-1} (n-i-k) / (n-i) and reaches 0 at c = n-k+1."""
    remaining = n - np.arange(n)
    return np.concatenate([[1.0], np.cumprod(np.maximum(remaining - k, 0) / remaining)])


def benchmark_score(correct: Sequence[int], samples: int, k: int) -> float:
    """Return the mean pass@k over the problems of a benchmark, in percent."""
    return 100.0 * float(pass_at_k(samples, correct, k).mean())


def overall(benchmarks: Sequence[BenchmarkResult], protocol: Protocol) -> float:
    """Return the weighted mean of the benchmarks' scores, in percent.

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
